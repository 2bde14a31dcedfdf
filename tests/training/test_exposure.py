"""Exposure compensation: its formula, its gradient, its schedule, and runs with it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.training import OptimizationParams
from scene import load_scene
from tests.training_factory import VIEWS, command, settings, whole_and_resumed, write_scene
from training.checkpoint import load
from training.exposure import EPS, Exposures, exposed
from training.job import Job
from training.report import measurer
from training.schedules import exposure_rate
from training.views import training_views
from utils.errors import UserError
from utils.state import load_state, save_state

ON = {"exposure_lr_init": 0.01, "exposure_lr_final": 0.001}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def trainer(root, rasterizer="native", **optimisation):
    given = settings(root, rasterizer, **ON | optimisation)
    scene = load_scene(root / "lr")
    views = training_views(scene, root / "out/hr", given.model, given.optimisation, 0, "cpu")
    return Job(given, root / "out", scene, views, root / "out/hr", "cpu").trainer()


def test_an_exposure_is_the_released_product():
    image, exposure = torch.rand(3, 5, 7, dtype=torch.float64), torch.randn(3, 4, dtype=torch.float64)
    found = exposed(image, exposure)
    for y in range(5):
        for x in range(7):
            for c in range(3):
                expected = sum(float(image[k, y, x] * exposure[k, c]) for k in range(3)) + float(exposure[c, 3])
                assert float(found[c, y, x]) == pytest.approx(expected)
    released = torch.matmul(image.permute(1, 2, 0), exposure[:3, :3]).permute(2, 0, 1) + exposure[:3, 3, None, None]
    torch.testing.assert_close(found, released)
    leaves = image.requires_grad_(), exposure.requires_grad_()
    assert torch.autograd.gradcheck(exposed, leaves)


def test_they_start_as_identity_and_change_nothing_then(root):
    with_them, without = trainer(root), trainer(root, exposure_lr_init=0.0)
    assert without.state.exposures is None
    assert torch.equal(with_them.state.exposures.values, torch.eye(3, 4).repeat(VIEWS, 1, 1))
    assert with_them.step().loss == pytest.approx(without.step().loss, rel=1e-5)


def test_adam_is_torchs_on_all_views_at_once():
    parameter = torch.nn.Parameter(torch.eye(3, 4).repeat(3, 1, 1))
    optimiser = torch.optim.Adam([parameter], lr=0.01, eps=EPS)
    ours = Exposures.start(["a", "b", "c"], torch.device("cpu"))
    for i, name in enumerate(["b", "a", "b", "b"]):
        gradient = torch.randn(3, 4, generator=torch.Generator().manual_seed(i))
        parameter.grad = torch.zeros_like(parameter)
        parameter.grad["abc".index(name)] = gradient
        optimiser.step()
        ours.update(name, gradient, 0.01)
    torch.testing.assert_close(ours.values, parameter.detach(), rtol=1e-6, atol=1e-7)
    assert ours.steps == 4
    assert torch.equal(ours.values[2], torch.eye(3, 4)), "never drawn"


def test_the_rate_is_the_released_schedule():
    given = OptimizationParams(
        iterations=1000,
        exposure_lr_init=0.02,
        exposure_lr_final=0.0002,
        exposure_lr_delay_steps=100,
        exposure_lr_delay_mult=0.1,
    )
    for i in (1, 50, 100, 500, 999):
        delay = 0.1 + 0.9 * math.sin(0.5 * math.pi * min(i / 100, 1))
        assert exposure_rate(given, i) == pytest.approx(delay * 0.02 * 0.01 ** (i / 1000))
    assert exposure_rate(given, 1000) == 0, "the last iteration updates nothing"
    assert exposure_rate(OptimizationParams(), 5) == 0, "off by default"


def test_training_finds_the_exposure_of_a_darkened_view(tmp_path):
    """One view's images at half their brightness: its exposure falls, the others' stay, and the losses part."""
    write_scene(tmp_path)
    name = "train/r_3"
    for path in (tmp_path / f"out/hr/{name}.png", tmp_path / f"lr/{name}.png"):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[..., :3] //= 2
        Image.fromarray(pixels).save(path)
    flags = {"iterations": 160, "densify_from_iter": 1000, "sh_interval": 1000, "opacity_reset_interval": 1000}
    runs = [trainer(tmp_path, **flags, exposure_lr_init=rate) for rate in (0.01, 0.0)]
    losses = []
    for run in runs:
        while run.iteration < 160:
            run.step()
        run.sampler.left = [list(run.views.views).index(name)]
        losses.append(run.step().loss)
    values = runs[0].state.exposures.values
    gains = values[:, :, :3].diagonal(dim1=1, dim2=2).mean(dim=1)
    others = [row for other, row in runs[0].state.exposures.rows.items() if other != name]
    assert gains[runs[0].state.exposures.rows[name]] < 0.92 * gains[others].mean()
    assert losses[0] < losses[1]


def test_training_views_are_measured_under_their_exposures_and_held_out_ones_are_not(root):
    run = trainer(root)
    measure = measurer(load_scene(root / "lr"), run.views, settings(root).pipeline, (0.0, 0.0, 0.0))
    plain = measure(run.drawn, 0, None)
    assert measure(run.drawn, 0, run.state.exposures) == plain
    run.state.exposures.values[:, :, :3] *= 0.1
    darker = {m.group: m.psnr for m in measure(run.drawn, 0, run.state.exposures)}
    before = {m.group: m.psnr for m in plain}
    assert darker["train"] != before["train"]
    assert darker["lr"] != before["lr"]
    scene, given = load_scene(root / "lr"), settings(root)
    own = training_views(scene, None, given.model, given.optimisation, 0, "cpu")  # held-out views have a truth then
    measure = measurer(scene, own, given.pipeline, (0.0, 0.0, 0.0))
    plain, exposed_ = ({m.group: m.psnr for m in measure(run.drawn, 0, e)} for e in (None, run.state.exposures))
    assert exposed_["train"] != plain["train"]
    assert exposed_["test"] == plain["test"]


def test_an_interrupted_run_ends_as_one_that_was_not(root, tmp_path):
    whole, second, path = whole_and_resumed(lambda: trainer(root), tmp_path)
    expected = whole.state.tensors()
    assert {"exposure.values", "exposure.steps"} <= set(expected)
    assert second.state.exposures.steps == 40
    assert all(torch.equal(value, expected[name]) for name, value in second.state.tensors().items())
    tensors, info = load_state(path)
    for name, broken in (("values", torch.zeros(2, 3, 3)), ("steps", torch.tensor([-1.0])), ("exp_avg", None)):
        other = {k: v for k, v in tensors.items() if k != f"exposure.{name}"}
        save_state(path, other if broken is None else other | {f"exposure.{name}": broken}, info)
        with pytest.raises(UserError, match="exposure"):
            load(path)
    few = {k: v[:2] if k.startswith("exposure.") and v.ndim == 3 else v for k, v in tensors.items()}
    with pytest.raises(UserError, match="another number of training views"):
        second.restore(few, info)


def test_a_run_writes_them_and_a_run_without_leaves_none(root, run_train):
    out = root / "exposed"
    run_train(command(root, out, iterations=12, **ON))
    written = json.loads((out / "exposure.json").read_text())
    assert set(written) == {f"train/r_{i}" for i in range(VIEWS)}
    assert np.array(written["train/r_0"]).shape == (3, 4)
    assert not np.allclose(written["train/r_0"], np.eye(3, 4))
    record = json.loads((out / "run.json").read_text())["steps"]["train"]
    assert "exposure.json" in record["outputs"]
    run_train([*command(root, out, iterations=12), "--overwrite"])
    assert not (out / "exposure.json").exists()


def test_what_makes_no_sense_is_refused(root):
    with pytest.raises(UserError, match="--exposure_lr_final 0"):
        OptimizationParams(exposure_lr_init=0.01, exposure_lr_final=0.0)
    with pytest.raises(UserError, match="--abs_grad: only the native"):
        trainer(root, abs_grad=True)
    given = settings(root)
    assert not replace(given, optimisation=replace(given.optimisation, **ON)).optimisation.abs_grad
