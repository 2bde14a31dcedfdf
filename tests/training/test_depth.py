"""The depth regulariser: its loss in plain loops, its files, its schedule, and runs with it."""

import json

import numpy as np
import pytest
import torch

from arguments.training import OptimizationParams
from scene import load_scene
from scene.cameras import Camera
from tests.training_factory import LR_SIZE, VIEWS, command, settings, whole_and_resumed, write_scene
from training.depth import depth_loss, inverse_depths
from training.job import Job
from training.schedules import depth_weight
from training.views import training_views, with_depths
from utils.errors import UserError


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = write_scene(tmp_path_factory.mktemp("scene"))
    write_depths(root / "geometry")
    return root


def write_depths(folder):
    """Half of each view at depth 3, the other half unknown."""
    (folder / "train").mkdir(parents=True)
    z = np.zeros((LR_SIZE, LR_SIZE), np.float32)
    z[:, : LR_SIZE // 2] = 3.0
    for i in range(VIEWS):
        np.savez(folder / f"train/r_{i}.npz", z=z, alpha=np.full_like(z, 0.9))


def trainer(root, depths="geometry", rasterizer="native", **optimisation):
    given = settings(root, rasterizer, **optimisation)
    scene = load_scene(root / "lr")
    views = training_views(scene, root / "out/hr", given.model, given.optimisation, 0, "cpu")
    views = with_depths(views, depths and str(root / depths), given.optimisation)
    return Job(given, root / "out", scene, views, root / "out/hr", "cpu").trainer()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_loss_is_its_definition(n):
    generator = torch.Generator().manual_seed(n)
    rendered = torch.rand(4 * n, 5 * n, dtype=torch.float64, generator=generator)
    target = torch.rand(4, 5, dtype=torch.float64, generator=generator)
    target[target < 0.4] = 0
    total = 0.0
    for y in range(4):
        for x in range(5):
            block = rendered[n * y : n * y + n, n * x : n * x + n]
            if target[y, x] > 0:
                total += abs(float(block.mean()) - float(target[y, x]))
    assert float(depth_loss(rendered, target)) == pytest.approx(total / 20, rel=1e-12)
    assert torch.autograd.gradcheck(lambda r: depth_loss(r, target), rendered.requires_grad_())


def test_files_become_alpha_over_z(tmp_path):
    camera = Camera("a/b", 8, 4, np.eye(3), np.eye(4))
    (tmp_path / "a").mkdir()
    z, alpha = np.array([[2.0, 0, 4, 5]] * 2, np.float32), np.array([[1.0, 0.3, 0.5, 0.9]] * 2, np.float32)
    np.savez(tmp_path / "a/b.npz", z=z, alpha=alpha)
    found = inverse_depths(tmp_path, {"a/b": camera}, torch.device("cpu"))["a/b"]
    torch.testing.assert_close(found, torch.tensor([[0.5, 0, 0.125, 0.18]] * 2))


def test_the_weight_is_the_released_schedule():
    given = OptimizationParams(iterations=1000)
    assert depth_weight(given, 0) == pytest.approx(1.0)
    assert depth_weight(given, 500) == pytest.approx(0.1)
    assert depth_weight(given, 1000) == pytest.approx(0.01)


@pytest.mark.parametrize("rasterizer", ["native", "reference"])
def test_the_term_enters_the_loss_with_its_weight(root, rasterizer):
    with_it, without = trainer(root, rasterizer=rasterizer), trainer(root, "", rasterizer=rasterizer)
    a, b = with_it.step(), without.step()
    assert b.depth_l1 is None
    assert a.depth_l1 > 0
    weight = depth_weight(with_it.settings, 1)
    assert a.loss == pytest.approx(b.loss + weight * a.depth_l1, rel=1e-5)


def test_training_brings_the_depth_closer(root):
    flags = {"iterations": 80, "densify_from_iter": 1000, "opacity_reset_interval": 1000}
    weights = {"depth_l1_weight_init": 20.0, "depth_l1_weight_final": 20.0}
    held, free = trainer(root, **flags, **weights), trainer(root, "", **flags)
    for run in (held, free):
        while run.iteration < 80:
            run.step()
    free.views, free.settings, free.engine = held.views, held.settings, held.engine  # measured as the other was
    found, other = (np.mean([run.step().depth_l1 for _ in range(VIEWS)]) for run in (held, free))
    assert found < 0.6 * other


def test_an_interrupted_run_ends_as_one_that_was_not(root, tmp_path):
    whole, second, _ = whole_and_resumed(lambda: trainer(root), tmp_path)
    expected = whole.state.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in second.state.tensors().items())


def test_the_log_and_the_record_name_them(root, run_train):
    out = root / "held"
    argv = [*command(root, out, iterations=12), "--skip_done"]
    run_train([*argv, "--depths", root / "geometry"])
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert all(line["depth_l1"] > 0 for line in lines)
    assert json.loads((out / "run.json").read_text())["steps"]["train"]["inputs"]["depths"]["files"] == VIEWS
    assert "its input depths changed" in run_train(argv).err


def test_a_longer_run_is_another_as_the_weight_follows_the_length(root, run_train):
    flags = {"depths": root / "geometry", "checkpoint_iterations": 5}
    run_train(command(root, root / "short", iterations=10, **flags))
    with pytest.raises(UserError, match="iterations = 10"):
        run_train([*command(root, root / "short", iterations=20, start_checkpoint="latest", **flags), "--overwrite"])


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: p.unlink(), "no such depth"),
        (lambda p: p.write_bytes(b"PK\3\4 torn"), "cannot be read"),
        (lambda p: np.savez(p, z=np.ones((LR_SIZE, LR_SIZE))), "cannot be read"),
        (lambda p: np.savez(p, z=np.ones((5, 5)), alpha=np.ones((5, 5))), "no whole fraction"),
        (lambda p: np.savez(p, z=np.ones((64, 64)), alpha=np.ones((64, 64))), "no whole fraction"),
        (lambda p: np.savez(p, z=np.full((16, 16), np.nan), alpha=np.ones((16, 16))), "finite"),
        (lambda p: np.savez(p, z=-np.ones((16, 16)), alpha=np.ones((16, 16))), "not negative"),
        (lambda p: np.savez(p, z=np.array([None]), alpha=np.ones((16, 16))), "cannot be read"),
    ],
)
def test_bad_files_are_named(root, tmp_path, spoil, words):
    write_depths(tmp_path / "geometry")
    spoil(tmp_path / "geometry/train/r_5.npz")
    views = trainer(root, "").views
    with pytest.raises(UserError, match=words) as error:
        with_depths(views, str(tmp_path / "geometry"), OptimizationParams())
    assert "r_5.npz" in str(error.value)
    assert "\n" not in str(error.value)


def test_what_makes_no_sense_is_refused(root):
    views = trainer(root, "").views
    for given, folder, words in (
        ({"depth_l1_weight_init": 0.5}, "", "--depths names none"),
        ({"depth_l1_weight_init": 0.0}, str(root / "geometry"), "must be above 0"),
        ({}, str(root / "nowhere"), "no such folder"),
    ):
        with pytest.raises(UserError, match=words):
            with_depths(views, folder, OptimizationParams(**given))
