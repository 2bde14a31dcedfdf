"""Adam, statistics and the guard at the end of the backward pass on a GPU, against PyTorch and the CPU's kernels."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import RasterCamera, fused
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from tests.cuda.scenes import deterministic, map_gradients, moved
from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative
from tests.submodules.rasterizer_view import RATES, filter_of
from tests.submodules.test_rasterizer_adam import adam_by_torch, assert_adam
from tests.submodules.test_rasterizer_train_step import cameras_of, target

pytestmark = pytest.mark.gpu
EPS = 1e-15


class Trained:
    """Parameters, moments and statistics on a device, that steps change in place."""

    def __init__(self, case: Case, device: Any) -> None:
        self.six = moved(case.six, device)
        self.mean, self.square = ([torch.zeros_like(p) for p in self.six] for _ in range(2))
        self.stats = fused.Statistics(*(torch.zeros(len(self.six[0]), device=device) for _ in range(4)))

    @property
    def tensors(self) -> list[Tensor]:
        """Copies on the CPU."""
        mine = [*self.six, *self.mean, *self.square, *(s for s in self.stats if s is not None)]
        return [t.detach().cpu().clone() for t in mine]

    def step(self, camera: RasterCamera | list[RasterCamera], step: int = 1, **changes: Any) -> fused.StepResult:
        options = {"exp_avg": self.mean, "exp_avg_sq": self.square, "learning_rates": RATES, "stats": self.stats}
        return fused.train_step(camera, self.six, step=step, **(options | changes))


def gradients(case: Case, six: list[Tensor], color: Tensor) -> list[Tensor]:
    workspace = Workspace(device=six[0].device)
    workspace.forward(case.raster_camera, *six)
    grads = [torch.full_like(p, math.nan) for p in six]
    workspace.backward(color, six, grads)
    return grads


@pytest.mark.parametrize("sparse", [False, True])
def test_adam_is_that_of_torch(cuda: Any, sparse: bool) -> None:
    """Three steps; dense, Gaussians that are not drawn move by their momentum, sparse they stay as they are."""
    case = make_case(37, n=32 * 9 + 5)
    views = [replace(camera, width=30) for camera in cameras_of(case, 3)]
    trained, found, rows = Trained(case, cuda), [], []
    with deterministic(True):
        for step, camera in enumerate(views, 1):
            color = torch.randn(3, 45, 30, generator=torch.Generator().manual_seed(step)).to(cuda)
            workspace = Workspace(device=cuda)
            workspace.forward(camera, *trained.six)
            grads = [torch.full_like(p, math.nan) for p in trained.six]
            workspace.backward(color, trained.six, grads)
            found.append([g.cpu() for g in grads])
            before = trained.tensors[:18]
            result = trained.step(camera, step, grad_image=color, sparse=sparse, stats=None)
            rows.append((result.radii > 0).cpu())
            assert 0 < rows[-1].sum() < len(rows[-1])
            if sparse:
                for now, old in zip(trained.tensors[:18], before, strict=True):
                    assert torch.equal(now[~rows[-1]], old[~rows[-1]])
    wanted = adam_by_torch(case.six, found, rows if sparse else None, EPS)
    ours = trained.tensors
    assert_adam((ours[:6], ours[6:12], ours[12:18]), wanted, case.six)


def test_a_gaussian_in_view_of_nobody_moves_by_its_momentum(cuda: Any) -> None:
    case = make_case(36, n=70)
    case.gaussians["means"][:] -= torch.tensor([0.0, 0.0, 50.0])
    trained = Trained(case, cuda)
    for m, s in zip(trained.mean, trained.square, strict=True):
        m[::2], s[::2] = 0.5, 0.25
    trained.step(case.raster_camera, 3, grad_image=map_gradients(case)[0].to(cuda))
    on_cpu = Trained(case, "cpu")
    for m, s in zip(on_cpu.mean, on_cpu.square, strict=True):
        m[::2], s[::2] = 0.5, 0.25
    on_cpu.step(case.raster_camera, 3, grad_image=map_gradients(case)[0])
    for name, gpu, start, cpu in zip(FIELDS, trained.tensors, case.six, on_cpu.tensors, strict=False):
        assert torch.equal(gpu[1::2], start[1::2]), name
        assert (gpu[::2] != start[::2]).all(), name
        assert torch.allclose(gpu, cpu, rtol=3e-7, atol=0), name


def agree(gpu: Trained, cpu: Trained, case: Case) -> None:
    """Updates, up to roundings of the parameter itself and of gradients near zero; moments and statistics."""
    start = Trained(case, "cpu").tensors
    for name, a, b, old in zip(FIELDS, gpu.tensors[:6], cpu.tensors[:6], start[:6], strict=True):
        assert (a - b).norm() < 1e-3 * (b - old).norm() + 4 * 1.2e-7 * old.norm(), name
    for a, b in zip(gpu.tensors[6:], cpu.tensors[6:], strict=True):
        assert relative(a, b) < 1e-4


@pytest.mark.parametrize("ordered", [False, True])
@pytest.mark.parametrize("views", [1, 3])
def test_steps_and_statistics_are_those_of_the_cpu(cuda: Any, views: int, ordered: bool) -> None:
    """Several cameras' gradients are added up; the filter, both kinds of loss weight, and the absolute statistic."""
    case = make_case(42, n=700, sh_degree=2)
    cameras, filter_3d, trained = cameras_of(case, views), filter_of(case), []
    for device in ("cpu", cuda):
        trained.append(Trained(case, device))
        with deterministic(ordered):
            for step in (1, 2):
                losses = [[fused.L1SSIM(target(k).to(device), weight=0.4 + k)] for k in range(views)]
                trained[-1].step(
                    cameras if views > 1 else cameras[0],
                    step,
                    losses=losses if views > 1 else losses[0],
                    filter_3d=filter_3d.to(device),
                )
    agree(trained[1], trained[0], case)
    for k in (1, 2):  # views and largest radius are whole numbers, for all but a Gaussian next to a step
        assert torch.count_nonzero(trained[1].tensors[18 + k] - trained[0].tensors[18 + k]) <= 1


def test_statistics_alone_leave_parameters_and_moments(cuda: Any) -> None:
    case = make_case(41)
    alone, updated = Trained(case, cuda), Trained(case, cuda)
    color = map_gradients(case)[0].to(cuda)
    with deterministic(True):
        alone.step(case.raster_camera, grad_image=color, learning_rates=None, exp_avg=None, exp_avg_sq=None)
        updated.step(case.raster_camera, grad_image=color)
    for a, b in zip(alone.tensors[18:], updated.tensors[18:], strict=True):
        assert torch.equal(a, b)
        assert torch.count_nonzero(a) > 0
    assert all(torch.equal(a, b) for a, b in zip(alone.tensors[:18], Trained(case, "cpu").tensors, strict=False))


def test_resting_fields_keep_their_bits_and_the_others_do_not_notice(cuda: Any) -> None:
    case = make_case(3)
    whole, resting = Trained(case, cuda), Trained(case, cuda)
    rates = [None, RATES[1], None, RATES[3], RATES[4], None]
    color = map_gradients(case)[0].to(cuda)
    with deterministic(True):
        whole.step(case.raster_camera, grad_image=color)
        mean, square = (
            [None if r is None else m for m, r in zip(moments, rates, strict=True)]
            for moments in (resting.mean, resting.square)
        )
        resting.step(case.raster_camera, grad_image=color, learning_rates=rates, exp_avg=mean, exp_avg_sq=square)
    for k, rate in enumerate(rates):
        wanted = case.six[k] if rate is None else whole.tensors[k]
        assert torch.equal(resting.tensors[k], wanted), FIELDS[k]


@pytest.mark.parametrize("ordered", [False, True])
def test_a_loss_that_is_not_finite_leaves_everything_as_it_was(cuda: Any, ordered: bool) -> None:
    case = make_case(5)
    bad = target()
    bad[1, 20, 20] = math.nan
    good, bad = target().to(cuda), bad.to(cuda)
    cameras, before = cameras_of(case, 2), Trained(case, "cpu").tensors
    with deterministic(ordered):
        for camera, losses in (
            (cameras[0], [fused.L1SSIM(bad)]),
            (cameras, [[fused.L1SSIM(good)], [fused.L1SSIM(bad)]]),
            (cameras, [[fused.L1SSIM(bad)], [fused.L1SSIM(good)]]),
        ):
            trained = Trained(case, cuda)
            trained.step(camera, losses=losses)
            assert all(torch.equal(a, b) for a, b in zip(trained.tensors, before, strict=True))


def test_a_rendered_image_is_differentiated_as_one_that_the_step_draws(cuda: Any) -> None:
    """Whether or not it was drawn with what a backward pass needs."""
    case = make_case(7)
    color = map_gradients(case)[0].to(cuda)
    wanted, trained = Trained(case, cuda), Trained(case, cuda)
    with deterministic(True):
        wanted.step(case.raster_camera, grad_image=color)
        rendered = fused.render(case.raster_camera, trained.six)
        trained.step(case.raster_camera, grad_image=color, rendered=rendered)
    assert all(torch.equal(a, b) for a, b in zip(trained.tensors, wanted.tensors, strict=True))


def test_deterministic_training_has_the_same_bits(cuda: Any) -> None:
    case = make_case(43, n=5000, width=200, height=150)
    cameras = [replace(camera, width=200, height=150) for camera in cameras_of(case, 2)]
    runs = []
    for _ in range(2):
        trained = Trained(case, cuda)
        with deterministic(True):
            for step in range(1, 6):
                losses = [[fused.L1SSIM(target(k, 150, 200).to(cuda))] for k in range(2)]
                trained.step(cameras, step, losses=losses, sparse=step % 2 == 0)
        runs.append(trained.tensors)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
