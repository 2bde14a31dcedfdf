"""Files that other tools read, and clearing what an earlier run left."""

import json

import pytest

from arguments.training import OptimizationParams, TrainingParams
from scene import load_scene
from tests.training_factory import VIEWS, settings, write_scene
from training.objective import Terms
from training.outputs import Log, clear_earlier, tensorboard, write_static
from training.views import training_views
from utils.errors import UserError


def test_cameras_json_has_test_views_first_at_the_rendered_size(tmp_path):
    root = write_scene(tmp_path)
    scene, given = load_scene(root / "lr"), settings(root)
    views = training_views(scene, root / "out" / "hr", given.model, given.optimisation, 0, "cpu")
    write_static(tmp_path, scene, views)
    cameras = json.loads((tmp_path / "cameras.json").read_text())
    assert [c["id"] for c in cameras] == list(range(VIEWS + 2))
    assert [c["img_name"] for c in cameras[:3]] == ["test/r_0", "test/r_1", "train/r_0"]
    assert cameras[2]["width"] == 32
    assert set(cameras[0]) == {"id", "img_name", "width", "height", "position", "rotation", "fy", "fx"}
    assert (tmp_path / "input.ply").read_bytes().startswith(b"ply\n")


def test_an_earlier_run_is_cleared_and_other_steps_lines_stay(tmp_path):
    for name in ("point_cloud/iteration_7", "point_cloud/mine", "checkpoints"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "checkpoints/iteration_7.safetensors").touch()
    (tmp_path / "checkpoints/notes.txt").touch()
    other = json.dumps({"step": "order", "cost": 3}) + "\n"
    (tmp_path / "log.jsonl").write_text(json.dumps({"step": "train"}) + "\n" + other + '{"step": "tr')
    clear_earlier(tmp_path)
    assert (tmp_path / "log.jsonl").read_text() == other
    assert sorted(p.name for p in (tmp_path / "point_cloud").iterdir()) == ["mine"]
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["notes.txt"]


class Board:
    """Collects what TensorBoard would be given."""

    def __init__(self):
        self.scalars = []

    def add_scalar(self, tag, value, step):
        self.scalars.append((tag, step))

    def close(self):
        pass


def test_log_lines_and_tags(tmp_path):
    board = Board()
    log = Log(tmp_path / "log.jsonl", 0, 10, board)
    for iteration in (1, 5, 10):
        log.iteration(iteration, Terms(0.5, l1=0.1), 0.03, gaussians=7)
    log.measured(10, "test", 0.1, 30.0, 7)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines] == [1, 10, 10]
    assert lines[0] == {"step": "train", "iteration": 1, "loss": 0.5, "l1": 0.1, "gaussians": 7}
    assert lines[2]["psnr"] == 30.0
    assert {tag for tag, _ in board.scalars} == {
        "train_loss_patches/l1_loss",
        "train_loss_patches/total_loss",
        "iter_time",
        "test/loss_viewpoint - l1_loss",
        "test/loss_viewpoint - psnr",
        "total_points",
    }


def test_missing_tensorboard_is_said(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tensorboard", None)
    monkeypatch.setitem(__import__("sys").modules, "torch.utils.tensorboard", None)
    with pytest.raises(UserError, match="pip install tensorboard"):
        tensorboard(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"iterations": 0},
        {"lambda_tex": 1.5},
        {"lambda_tex_final": -0.5},
        {"feature_lr": -1.0},
        {"densification_interval": 0},
        {"percent_dense": float("nan")},
    ],
)
def test_settings_out_of_range_name_their_flag(wrong):
    with pytest.raises(UserError, match=f"--{next(iter(wrong))}"):
        OptimizationParams(**wrong)


def test_scale_must_not_be_negative():
    with pytest.raises(UserError, match="--scale"):
        TrainingParams(scale=-1)
