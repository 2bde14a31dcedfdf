"""A model of the LR views in run.py: made, used by upsampling and training, skipped, made again after a change."""

import json
from pathlib import Path

import numpy as np
import pytest

from scene.ply import read_gaussians
from tests.pipeline.test_pipeline import fingerprint, run, write_blobs

STEPS = ("order", "lr_model", "geometry", "upsample", "train")
CONFIG = """
[scene]
eval = true
[lr_model]
iterations = 60
max_gaussians = 5000
init_points = "hull"
[upsample]
upsampler = "tests.upsampling.test_aligner:make_graph_recorder"
alpha = "bicubic"
max_angle = 90.0
[train]
iterations = 20
init_gaussians = 900
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(OUT, the command's words)"""
    folder = tmp_path_factory.mktemp("depth")
    hr, lr, out, config = folder / "hr", folder / "lr", folder / "out", folder / "c.toml"
    write_blobs(hr)
    run("-m", "scene.downscale", "-s", hr, "-o", lr, "--scale", 2)
    config.write_text(CONFIG)
    words = ("run.py", "-s", lr, "-m", out, "--config", config, "--steps", *STEPS)
    run(*words)
    return out, words


def records(out: Path) -> dict:
    return json.loads((out / "run.json").read_text())["steps"]


def test_the_depth_of_a_model_of_the_lr_views_moves_features(finished):
    out, _ = finished
    names = [path.relative_to(out / "geometry").with_suffix("") for path in (out / "geometry").rglob("*.npz")]
    assert len(names) == 10  # train and test views
    with np.load(out / "geometry" / "train" / "r_0.npz") as arrays:
        z = arrays["z"]
    assert z.shape == (32, 32)
    solid = z > 0
    assert 0.02 < solid.mean() < 0.9
    assert 2 < float(np.median(z[solid])) < 6  # the cameras stand four units from the blobs
    notes = records(out)["upsample"]["notes"]
    assert (notes["flow"], notes["propagation"]) == ("geometry", "graph")
    report = json.loads((out / "hr" / "alignment.json").read_text())
    assert max(n["visible"] for view in report["views"].values() for n in view["neighbours"]) > 0.5


def test_training_starts_from_the_same_model(finished):
    out, _ = finished
    made = records(out)["train"]
    assert made["inputs"]["init_ply"]["files"] == 1
    assert made["settings"]["init_points"] == "lr_model"
    assert read_gaussians(out / "point_cloud/iteration_20/point_cloud.ply").num == 900


def test_nothing_is_made_twice(finished):
    out, words = finished
    before = fingerprint(out)
    again = run(*words).stderr
    for step in ("order", "train", "geometry", "upsample"):  # the model of the LR views is a training like any other
        assert f"{step}: up to date" in again
    assert fingerprint(out) == before


@pytest.mark.slow
def test_another_model_makes_depths_and_frames_anew(finished):
    _, words = finished
    config = Path(words[words.index("--config") + 1])
    config.write_text(CONFIG.replace("iterations = 60", "iterations = 70"))
    again = run(*words).stderr
    assert "order: up to date" in again
    assert "setting iterations was 60 and is 70" in again
    assert "geometry: runs because its input model changed" in again
    assert "upsample: runs because its input geometry changed" in again
    assert "train: runs because its input" in again
