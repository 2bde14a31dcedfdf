"""train.py from end to end on the tiny scene, in this process."""

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from arguments.flags import parse_groups
from arguments.steps import STEPS
from scene.ply import read_gaussians
from tests.scene_factory import write_blender
from tests.training_factory import LR_SIZE, POINTS, SCALE, VIEWS, command, write_scene
from training.output_folder import output_folder
from training.session import fix_order
from utils.errors import UserError
from utils.state import load_state, save_state


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene"))


def files(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_a_run_leaves_what_other_tools_read(root, run_train):
    out = root / "full"
    said = run_train(
        command(root, out, save_iterations=20, checkpoint_iterations=15, test_iterations=60, iterations=60)
    )
    assert files(out) == {
        "run.json",
        ".lock",
        "cfg_args",
        "cameras.json",
        "input.ply",
        "log.jsonl",
        "point_cloud/iteration_20/point_cloud.ply",
        "point_cloud/iteration_60/point_cloud.ply",
        "checkpoints/iteration_15.safetensors",
        "checkpoints/iteration_50.safetensors",
        "checkpoints/iteration_60.safetensors",
    }
    assert "[ITER 60] Evaluating lr: L1" in said.out
    assert f"render.py -m {out}" in said.out
    assert read_gaussians(out / "point_cloud/iteration_60/point_cloud.ply").num > POINTS
    record = json.loads((out / "run.json").read_text())["steps"]["train"]
    assert record["settings"]["iterations"] == 60
    assert "point_cloud/iteration_60/point_cloud.ply" in record["outputs"]


def test_dry_run_writes_nothing(root, run_train):
    said = run_train([*command(root, root / "dry"), "--dry_run"])
    assert not (root / "dry").exists()
    for words in (
        "rendered at 32x32",
        "bicubic",
        "peak memory",
        "checkpoints of",
        "iterations at",
        "nothing was written",
    ):
        assert words in said.out


def test_a_second_call_has_nothing_left_to_do(root, run_train):
    out = root / "twice"
    run_train(command(root, out))
    before = (out / "point_cloud/iteration_60/point_cloud.ply").read_bytes()
    run_train([*command(root, out), "--skip_done"])
    assert (out / "point_cloud/iteration_60/point_cloud.ply").read_bytes() == before


def test_other_settings_need_overwrite(root, run_train):
    out = root / "settings"
    run_train(command(root, out, iterations=20))
    with pytest.raises(UserError, match="--overwrite"):
        run_train(command(root, out, iterations=20, lambda_tex=0.4))
    run_train([*command(root, out, iterations=20, lambda_tex=0.4), "--overwrite"])
    assert len((out / "log.jsonl").read_text().splitlines()) == 20, "the earlier run's lines are gone"


def test_a_longer_run_continues_and_ends_as_if_it_had_been_one(root, run_train):
    run_train(command(root, root / "long"))
    run_train(command(root, root / "grown", iterations=30, checkpoint_iterations=25))
    argv = [*command(root, root / "grown", start_checkpoint="latest"), "--overwrite"]
    run_train(argv)
    for name in ("long", "grown"):
        assert (root / name / "point_cloud/iteration_60/point_cloud.ply").is_file()
    plies = [(root / name / "point_cloud/iteration_60/point_cloud.ply").read_bytes() for name in ("long", "grown")]
    assert plies[0] == plies[1]


def moved(path: Path, device: str, rasterizer: str) -> None:
    """Let a checkpoint say that it was made elsewhere."""
    tensors, info = load_state(path)
    info["fingerprint"] |= {"device": device, "instruction set": f"{rasterizer} {device}"}
    save_state(path, tensors, info)


def test_a_run_goes_on_on_another_device(root, run_train):
    run_train(command(root, root / "unmoved"))
    out = root / "moved"
    run_train(command(root, out, iterations=30, checkpoint_iterations=25))
    moved(out / "checkpoints/iteration_25.safetensors", "cuda", "native")
    flags = {"start_checkpoint": str(out / "checkpoints/iteration_25.safetensors"), "device": "cpu"}
    said = run_train([*command(root, out, **flags), "--overwrite"])
    assert "made on cuda, the run goes on on cpu: not bit for bit" in said.err
    assert model(out, 60) == model(root / "unmoved", 60), "the same numbers, as only the name of the device was changed"


def test_another_instruction_set_of_the_same_device_is_refused(root, run_train):
    out = root / "other_set"
    run_train(command(root, out, iterations=30, checkpoint_iterations=25))
    moved(out / "checkpoints/iteration_25.safetensors", "cpu", "other")
    flags = {"start_checkpoint": str(out / "checkpoints/iteration_25.safetensors")}
    with pytest.raises(UserError, match="instruction set"):
        run_train([*command(root, out, **flags), "--overwrite"])


def test_deterministic_is_recorded(root, run_train):
    out = root / "fixed"
    run_train(command(root, out, iterations=5, deterministic=True))
    record = json.loads((out / "run.json").read_text())["steps"]["train"]
    assert record["settings"]["deterministic"] is True
    assert record["notes"]["deterministic"] is True
    assert record["notes"]["device"] == "cpu"


def test_deterministic_needs_kernels_with_a_fixed_order():
    fix_order("cpu", "gsplat")
    for rasterizer in ("gsplat", "reference"):
        with pytest.raises(UserError, match=f"--rasterizer {rasterizer} has no fixed order"):
            fix_order("cuda:0", rasterizer)
    assert not torch.are_deterministic_algorithms_enabled()


def model(out: Path, iteration: int) -> bytes:
    return (out / f"point_cloud/iteration_{iteration}/point_cloud.ply").read_bytes()


@pytest.mark.parametrize("interval", [10, 20])
def test_the_end_of_a_shorter_run_is_not_the_start_of_a_longer(root, run_train, interval):
    """3DGS's last iteration has no update: 20 then 40 must go on from before the end of the 20, or from the start."""
    straight, grown = root / f"straight_{interval}", root / f"twice_{interval}"
    run_train(command(root, straight, iterations=40))
    run_train(command(root, grown, iterations=20, checkpoint_interval=interval))
    end = grown / "checkpoints/iteration_20.safetensors"
    with pytest.raises(UserError, match="iterations = 20, now it is 40"):
        run_train([*command(root, grown, iterations=40, start_checkpoint=end), "--overwrite"])
    if interval == 20:
        with pytest.raises(UserError, match="can go on from"):
            run_train([*command(root, grown, iterations=40, start_checkpoint="latest"), "--overwrite"])
    said = run_train([*command(root, grown, iterations=40, checkpoint_interval=interval), "--overwrite"])
    assert ("continuing after iteration 10" in said.err) == (interval == 10)
    assert model(grown, 40) == model(straight, 40)
    logs = [(out / "log.jsonl").read_text().splitlines() for out in (grown, straight)]
    assert logs[0] == logs[1]
    assert [json.loads(line)["iteration"] for line in logs[0]] == list(range(1, 41))


def test_a_shorter_run_leaves_nothing_of_the_longer(root, run_train):
    run_train(command(root, root / "was_long", iterations=40, checkpoint_iterations=10))
    run_train([*command(root, root / "was_long", iterations=20), "--overwrite"])
    run_train(command(root, root / "short", iterations=20))
    assert model(root / "was_long", 20) == model(root / "short", 20)
    for pattern in ("point_cloud/iteration_*", "checkpoints/iteration_*"):
        left = {int(p.stem.removeprefix("iteration_")) for p in (root / "was_long").glob(pattern)}
        assert max(left) == 20


def test_a_changed_model_is_made_again(root, run_train):
    out = root / "tampered"
    run_train(command(root, out, iterations=40))
    good = model(out, 40)
    ply = out / "point_cloud/iteration_40/point_cloud.ply"
    ply.write_bytes(good[:-4] + b"\0\0\0\0")
    said = run_train([*command(root, out, iterations=40), "--skip_done"])
    assert "continuing after iteration 30" in said.err
    assert model(out, 40) == good


def test_another_folders_checkpoint_is_continued_here(root, run_train):
    run_train(command(root, root / "there", checkpoint_iterations=35, save_iterations=20))
    start = root / "there/checkpoints/iteration_35.safetensors"
    run_train(command(root, root / "here", start_checkpoint=start, save_iterations=20))
    plies = [(root / name / "point_cloud/iteration_60/point_cloud.ply").read_bytes() for name in ("there", "here")]
    assert plies[0] == plies[1]
    lines = [json.loads(line)["iteration"] for line in (root / "here/log.jsonl").read_text().splitlines()]
    assert lines == list(range(36, 61))


def test_an_initial_ply_is_the_start(root, run_train):
    run_train(command(root, root / "first", iterations=10))
    ply = root / "first/point_cloud/iteration_10/point_cloud.ply"
    run_train(command(root, root / "next", iterations=1, init_ply=ply, sh_degree=2))
    start, end = read_gaussians(ply), read_gaussians(root / "next/point_cloud/iteration_1/point_cloud.ply")
    assert end.sh_degree == 2
    assert (start.means == end.means).all(), "the last iteration updates nothing"


def test_the_model_of_the_lr_views_is_the_start(root, run_train):
    """The latest of OUT/lr_model, an input like any other; the same as naming its file."""
    out, flags = root / "warm", {"init_points": "lr_model"}
    with pytest.raises(UserError, match=r"no model in .*warm/lr_model; run.py makes it"):
        run_train(command(root, out, iterations=10, **flags))
    assert not out.exists()
    run_train(command(root, out / "lr_model", iterations=20, save_iterations=10))
    argv = [*command(root, out, iterations=10, **flags), "--skip_done"]
    run_train(argv)
    latest = out / "lr_model/point_cloud/iteration_20/point_cloud.ply"
    run_train(command(root, root / "one_step", iterations=1, init_ply=latest, **flags))
    started = read_gaussians(root / "one_step/point_cloud/iteration_1/point_cloud.ply").num
    starts = {name: {"init_ply": latest, "init_gaussians": n} for name, n in {"named": -1, "split": started}.items()}
    for name, start in starts.items():
        run_train(command(root, root / name, iterations=10, **start))
    assert model(root / "split", 10) == model(out, 10) != model(root / "named", 10)
    assert "up to date" in run_train(argv).err
    run_train([*command(root, out / "lr_model", iterations=19), "--overwrite"])
    assert "its input init_ply changed" in run_train(argv).err


def test_flags_without_meaning_get_one_notice(root, run_train):
    said = run_train(command(root, root / "notice", iterations=2, port=1234, disable_viewer=True))
    assert said.err.count("no effect here") == 1
    assert "--port, --disable_viewer" in said.err


def test_lr_views_alone(root, run_train):
    argv = command(root, root / "lr_only", iterations=10, lambda_tex=0, scale=3, frames="none", test_iterations=10)
    said = run_train([word for word in argv if word not in ("--frames", str(root / "out/hr"))])
    assert "Evaluating lr" in said.out
    assert "Evaluating train" not in said.out


def test_weights_of_pixels_are_an_input(root, run_train):
    """With them, then without: each time the step knows that its result was made from something else."""
    out, maps = root / "weighted", root / "weights"
    (maps / "train").mkdir(parents=True)
    for i in range(VIEWS):
        Image.new("L", (SCALE * LR_SIZE, SCALE * LR_SIZE), 30 * i).save(maps / f"train/r_{i}.png")
    argv = [*command(root, out, iterations=10), "--skip_done"]
    run_train([*argv, "--confidence", str(maps)])
    weighted = model(out, 10)
    assert json.loads((out / "run.json").read_text())["steps"]["train"]["inputs"]["confidence"]["files"] == VIEWS
    assert "up to date" in run_train([*argv, "--confidence", str(maps)]).err
    assert "its input confidence changed" in run_train(argv).err
    assert model(out, 10) != weighted


def test_plain_training_on_a_scene_without_points(tmp_path, run_train, monkeypatch):
    monkeypatch.setattr("training.session.random_points", lambda seed: _few(seed))
    write_blender(tmp_path / "plain", size=16)
    argv = ["-s", str(tmp_path / "plain"), "-m", str(tmp_path / "o"), "--iterations=6", "--eval", "--white_background"]
    said = run_train([*argv, "--test_iterations=6"])
    assert "Evaluating test" in said.out
    assert (tmp_path / "o/input.ply").is_file()


def _few(seed):
    from scene.points import random_points

    return random_points(200, seed=seed)


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({"start_checkpoint": "latest"}, "no checkpoint in"),
        ({"start_checkpoint": "chkpnt7000.pth"}, "--init_ply"),
        ({"init_ply": "missing.ply"}, "missing.ply"),
        ({"device": "cuda:99"}, "--device cuda:99: torch sees"),
    ],
)
def test_bad_input_is_one_line(root, run_train, flags, words):
    with pytest.raises(UserError, match=words) as error:
        run_train(command(root, root / "bad", **flags))
    assert "\n" not in str(error.value)


def test_no_folder_is_ever_taken_twice(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = parse_groups("train.py", "", STEPS["train"].groups, ["-s", str(tmp_path / "lego")])[1]
    assert output_folder(model) == Path("output/lego")
    (tmp_path / "output/lego").mkdir(parents=True)
    assert output_folder(model) == Path("output/lego_2")
