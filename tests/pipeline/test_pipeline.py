"""The whole pipeline on a small scene: from LR views to a scored model, skipping, rerunning, and touching no source."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from gaussian_renderer import render
from scene import load_scene
from scene.alpha import composite, straight
from scene.gaussians import Gaussians
from scene.image_files import read_image, write_png
from scene.ply import read_gaussians
from scene.points import PointCloud
from tests import scene_factory

ROOT = Path(__file__).resolve().parents[2]
BLACK = (0.0, 0.0, 0.0)
FLAGS = [
    *("--eval", "--upsampler", "bicubic", "--scale", "2", "--iterations", "150", "--densify_from_iter", "40"),
    *("--densification_interval", "20", "--save_iterations", "150", "--test_iterations", "150", "--no_lpips"),
]
ARTEFACTS = [
    *("run.json", "sequences.json", "cfg_args", "cameras.json", "input.ply", "log.jsonl", "results.json"),
    *("per_view.json", "metrics.json", "report/index.html", "point_cloud/iteration_150/point_cloud.ply"),
    *("hr/train/r_0.png", "test/ours_150/renders/00000.png", "test/ours_150/gt/00000.png"),
]


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def fingerprint(folder: Path) -> dict[str, str]:
    files = [p for p in folder.rglob("*") if p.is_file() and p.name != ".lock"]
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def write_blobs(root: Path) -> None:
    """A scene whose views agree: twenty soft coloured blobs, rendered into the poses of the factory's scene."""
    scene_factory.write_blender(root, size=64, views=8, test_views=2)
    draw = torch.Generator().manual_seed(5)
    cloud = PointCloud(
        (torch.rand(20, 3, generator=draw) * 1.6 - 0.8).numpy(),
        (torch.rand(20, 3, generator=draw) * 255).to(torch.uint8).numpy(),
    )
    blobs = Gaussians.from_points(cloud, 0, torch.full((20,), 0.04))
    blobs = replace(blobs, logit_opacities=torch.full((20, 1), 3.0))
    for name, camera in load_scene(root).cameras.items():
        out = render(camera, blobs, background=(0.0, 0.0, 0.0))
        rgba = torch.cat([out.color, out.alpha[None]]).detach()
        write_png(root / f"{name}.png", straight(rgba.movedim(0, 2).numpy()))


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(HR scene, LR scene, OUT, stderr of the first run)"""
    folder = tmp_path_factory.mktemp("pipeline")
    hr, lr, out = folder / "hr", folder / "lr", folder / "out"
    write_blobs(hr)
    before = fingerprint(hr)
    run("-m", "scene.downscale", "-s", hr, "-o", lr, "--scale", 2)
    between = fingerprint(lr)
    first = run("run.py", "-s", lr, "-m", out, *FLAGS)
    assert fingerprint(hr) == before
    assert fingerprint(lr) == between, "a step wrote into its source"
    return hr, lr, out, first.stderr


def test_every_artefact_of_the_layout_is_there(finished):
    _, _, out, _ = finished
    for name in ARTEFACTS:
        assert (out / name).is_file(), name
    assert set(json.loads((out / "run.json").read_text())["steps"]) == {
        "order",
        "upsample",
        "train",
        "render",
        "metrics",
    }


def test_the_model_is_far_better_than_a_flat_picture(finished):
    _, _, out, _ = finished
    results = json.loads((out / "results.json").read_text())["ours_150"]
    truths = [read_image(path).astype(float) / 255 for path in (out / "test" / "ours_150" / "gt").iterdir()]
    flat = [-10 * np.log10(np.mean((truth - truth.mean((0, 1))) ** 2)) for truth in truths]
    assert results["PSNR"] > np.mean(flat) + 4


def test_nothing_runs_twice(finished):
    _, lr, out, _ = finished
    before = fingerprint(out)
    again = run("run.py", "-s", lr, "-m", out, *FLAGS)
    for step in ("order", "upsample", "train", "render", "metrics"):
        assert f"{step}: up to date" in again.stderr
    assert fingerprint(out) == before


def test_a_changed_setting_reruns_what_depends_on_it_and_says_why(finished):
    _, lr, out, _ = finished
    done = run("run.py", "-s", lr, "-m", out, *FLAGS, "--lambda_tex", "0.3")
    assert "order: up to date" in done.stderr
    assert "upsample: up to date" in done.stderr
    assert "setting lambda_tex was 0.6 and is 0.3" in done.stderr
    assert "render: runs because its input" in done.stderr


def test_a_dry_run_ends_where_the_next_step_would_need_a_result(finished):
    _, lr, out, _ = finished
    new = out.parent / "new"
    done = run("run.py", "-s", lr, "-m", new, *FLAGS, "--dry_run")
    assert "the following steps need the result of order" in done.stderr
    assert "== upsample" not in done.stderr
    assert not new.exists()
    before = fingerprint(out)
    done = run("run.py", "-s", lr, "-m", out, *FLAGS, "--dry_run")
    assert "== metrics" in done.stderr
    assert fingerprint(out) == before


def test_a_mistake_in_the_input_is_one_line(tmp_path):
    done = run("run.py", "-s", tmp_path / "nowhere", "-m", tmp_path / "out", check=False)
    assert done.returncode == 2
    step, error = done.stderr.splitlines()
    assert step == "== order: align_sequence.py"
    assert error.startswith("error: ")
    assert "nowhere" in error


def test_an_edited_schedule_is_used(finished):
    _, lr, out, _ = finished
    path = out / "sequences.json"
    schedule = json.loads(path.read_text())
    schedule["sequences"][0]["frames"].reverse()
    text = path.read_text()
    path.write_text(json.dumps(schedule))
    done = run(
        "vsr_upsample.py",
        "-s",
        lr,
        "-m",
        out,
        "--upsampler",
        "bicubic",
        "--scale",
        2,
        "--skip_done",
        "--overwrite",
        "--eval",
    )
    path.write_text(text)
    assert "input" in done.stderr
    assert "changed" in done.stderr


def test_the_refine_loop_moves_a_models_own_frames_onto_the_lr_views_and_trains_on(finished):
    """The commands of docs/method.md: render at HR, project, train on from the model."""
    hr, lr, out, _ = finished
    refined, start = out / "refined", out / "point_cloud" / "iteration_150" / "point_cloud.ply"
    run("render.py", "-m", out, "--hr_frames", 2)
    words = ("-s", lr, "-m", refined, "--eval")
    source = ("--internal", out / "hr_frames", "--internal_threshold", 0, "--project", "--upsampler", "bicubic")
    run("vsr_upsample.py", *words, "--sequences", out / "sequences.json", "--scale", 2, *source)
    rest = ("--sh_interval", 1, "--densify_until_iter", 0, "--position_lr_init", 0.0000016)
    run("train.py", *words, "--init_ply", start, "--iterations", 20, *rest)
    errors = {}
    for folder in (out / "hr_frames", refined / "hr"):
        files = sorted((folder / "train").glob("*.png"))
        assert len(files) == 8
        pairs = [(composite(read_image(f), BLACK), composite(read_image(hr / "train" / f.name), BLACK)) for f in files]
        errors[folder] = np.mean([((a - b) ** 2).mean() for a, b in pairs])
    assert errors[refined / "hr"] < errors[out / "hr_frames"]
    a, b = (read_gaussians(path) for path in (start, refined / "point_cloud" / "iteration_20" / "point_cloud.ply"))
    assert a.num == b.num  # it went on from there
    assert not torch.equal(a.means, b.means)
