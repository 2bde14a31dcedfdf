"""The whole pipeline on a small scene: from LR views to a scored model, skipping, rerunning, and touching no source."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests import scene_factory

ROOT = Path(__file__).resolve().parents[2]
FLAGS = ["--eval", "--upsampler", "bicubic", "--iterations", "60", "--densify_from_iter", "20", "--densification_interval", "20",
         "--save_iterations", "60", "--test_iterations", "60", "--no_lpips"]  # fmt: skip


def run(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *map(str, words)], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert not check or done.returncode == 0, done.stderr
    return done


def fingerprint(folder: Path) -> dict[str, str]:
    return {
        str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.rglob("*") if p.is_file()
    }


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(HR scene, LR scene, OUT, stderr of the first run)"""
    folder = tmp_path_factory.mktemp("pipeline")
    hr, lr, out = folder / "hr", folder / "lr", folder / "out"
    scene_factory.write_blender(hr, size=64, views=8, test_views=2)
    before = fingerprint(hr)
    run("-m", "scene.downscale", "-s", hr, "-o", lr, "--scale", 2)
    between = fingerprint(lr)
    first = run("run.py", "-s", lr, "-m", out, *FLAGS, "--scale", 2)
    assert fingerprint(hr) == before
    assert fingerprint(lr) == between, "a step wrote into its source"
    return hr, lr, out, first.stderr


def test_every_artefact_of_the_layout_is_there(finished):
    _, _, out, _ = finished
    artefacts = ("run.json", "sequences.json", "cfg_args", "cameras.json", "input.ply", "log.jsonl", "results.json", "per_view.json",
                 "metrics.json", "report/index.html", "point_cloud/iteration_60/point_cloud.ply", "hr/train/r_0.png",
                 "test/ours_60/renders/00000.png", "test/ours_60/gt/00000.png")  # fmt: skip
    for name in artefacts:
        assert (out / name).is_file(), name
    assert set(json.loads((out / "run.json").read_text())["steps"]) == {
        "order",
        "upsample",
        "train",
        "render",
        "metrics",
    }


def test_the_model_is_better_than_a_flat_picture(finished):
    _, _, out, _ = finished
    results = json.loads((out / "results.json").read_text())["ours_60"]
    assert results["PSNR"] > 15  # an empty black image scores about 11 on this scene


def test_nothing_runs_twice(finished):
    _, lr, out, _ = finished
    before = fingerprint(out)
    again = run("run.py", "-s", lr, "-m", out, *FLAGS, "--scale", 2)
    for step in ("order", "upsample", "train", "render", "metrics"):
        assert f"{step}: up to date" in again.stderr
    assert {k: v for k, v in fingerprint(out).items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


def test_a_changed_setting_reruns_what_depends_on_it_and_says_why(finished):
    _, lr, out, _ = finished
    done = run("run.py", "-s", lr, "-m", out, *FLAGS, "--scale", 2, "--lambda_tex", "0.3")
    assert "order: up to date" in done.stderr
    assert "upsample: up to date" in done.stderr
    assert "setting lambda_tex was 0.6 and is 0.3" in done.stderr
    assert "render: runs because its input" in done.stderr


def test_an_edited_schedule_is_used(finished):
    _, lr, out, _ = finished
    path = out / "sequences.json"
    schedule = json.loads(path.read_text())
    schedule["subsequences"] = list(reversed(schedule["subsequences"]))
    text = path.read_text()
    path.write_text(json.dumps(schedule))
    done = run("vsr_upsample.py", "-s", lr, "-m", out, "--upsampler", "bicubic", "--skip_done", "--overwrite", "--eval")
    path.write_text(text)
    assert "input" in done.stderr
    assert "changed" in done.stderr
