"""run.py on a scene that does not say how its LR views were made: refused before the first step, where a step would."""

import subprocess
import sys
from pathlib import Path

import pytest

from arguments.pipeline import plan
from arguments.steps import parse
from tests.scene_factory import write_blender
from tests.training_factory import write_scene
from training.job import Settings
from training.session import open_job
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
CONSTANT = ["--lambda_tex_final", "-1"]


def write_file(scene: Path, name: str, text: str) -> None:
    if name:
        (scene / name).write_text(text)


KERNEL = ("lr_kernel.json", '{"kernel": "area"}')
DEGRADED = ("degradation.json", '{"preset": "mild"}')
NOTHING = ("", "")


@pytest.fixture
def scene(tmp_path):
    return write_blender(tmp_path / "lr", views=2, test_views=1, size=8)


def refusal(call) -> str:
    """The message of a UserError, "" where there was none."""
    try:
        call()
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("words", "file", "expected"),
    [
        ([], NOTHING, "says how its LR views were made"),
        ([], KERNEL, ""),
        ([], DEGRADED, "no linear operator made them"),
        (["--lr_kernel", "area"], NOTHING, ""),
        (["--lr_kernel", "area"], DEGRADED, ""),
        (["--lr_kernel", "cubic"], KERNEL, "an existing JSON file is expected"),
        (["--subpixel", "avg"], NOTHING, ""),
        (["--frames", "none"], NOTHING, ""),
        (["--lambda_tex", "1", *CONSTANT], NOTHING, ""),
        (["--lambda_tex", "0", *CONSTANT], NOTHING, "says how its LR views were made"),
        (["--lambda_tex", "1", *CONSTANT, "--choose_lambda"], NOTHING, "says how its LR views were made"),
        (["--lambda_tex", "0", *CONSTANT, "--frames", "none", "--scale", "2"], NOTHING, "says how its LR views"),
        (["--lambda_tex", "0", *CONSTANT, "--frames", "none", "--scale", "2", "--subpixel", "avg"], NOTHING, ""),
    ],
)
def test_what_training_refuses_is_refused_before_the_first_step(tmp_path, words, file, expected):
    """By `plan` in the words of training itself, and only there."""
    root = write_scene(tmp_path)
    write_file(root / "lr", *file)
    given = ["-s", str(root / "lr"), "-m", str(root / "out"), "--eval", "--device", "cpu", *words]
    alone = refusal(lambda: open_job(Settings(*parse("train", [*given, "--init_points", "scene"])), root / "out"))
    early = refusal(lambda: plan([*given, "--steps", "order", "train"]))
    assert early == alone
    assert (expected in early) if expected else not early


def test_frames_that_are_still_to_be_made_count(scene):
    out = scene.parent / "out"
    assert not refusal(lambda: plan(["-s", str(scene), "-m", str(out), "--steps", "train"]))
    assert "says how" in refusal(lambda: plan(["-s", str(scene), "-m", str(out), "--steps", "upsample", "train"]))


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--upsampler", "ddnm"], "--upsampler ddnm, which works by projection"),
        (["--project"], "--project"),
        (["--upsampler", "small", "--project_lr", "hard"], "--project_lr hard"),
        (["--upsampler", "small"], ""),
        (["--upsampler", "bicubic"], ""),
    ],
)
def test_projection_without_an_operator_is_refused_before_the_first_step(scene, words, asked):
    def early(*more: str) -> str:
        return refusal(lambda: plan(["-s", str(scene), "-m", "out", "--steps", "order", "upsample", *words, *more]))

    assert early("--lr_kernel", "bicubic") == ""
    assert early().startswith(f"{asked}: no LR kernel is known" if asked else "")
    assert bool(early()) == bool(asked)
    write_file(scene, *DEGRADED)
    for more in ([], ["--lr_kernel", "bicubic"]):  # which says nothing of degraded views
        assert (f"{asked}: the LR views were degraded" in early(*more)) if asked else not early(*more)


def test_run_py_refuses_in_one_line_and_leaves_nothing(scene):
    out = scene.parent / "out"
    command = [sys.executable, str(ROOT / "run.py"), "-s", str(scene), "-m", str(out), "--upsampler", "ddnm"]
    done = subprocess.run(command, cwd=scene.parent, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: --upsampler ddnm, which works by projection: no LR kernel is known")
    assert done.stderr.count("\n") == 1
    assert not out.exists()
