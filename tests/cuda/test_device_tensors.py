"""What is written in PyTorch gives the same on a GPU as on the CPU: reference, gsplat's package, LR kernel, density."""

from dataclasses import replace

import pytest
import torch

from arguments.training import OptimizationParams
from gaussian_renderer import render
from scene.gaussians import FIELDS, Gaussians
from scene.lr_kernel import LRKernel, opaque_support_mask
from tests.gaussian_renderer.scenes import BACKGROUND, converted, make_camera, make_gaussians
from tests.training_factory import random_state
from training.densify import densification, opacity_reset
from training.morton import order, reordered
from training.smoothing import baked, filters
from training.state import TrainState, apply
from utils.psnr import psnr
from utils.ssim import ssim

pytestmark = pytest.mark.gpu


def on(device, gaussians, dtype):
    moved = Gaussians(**{name: getattr(gaussians, name).to(device) for name in FIELDS})
    return converted(moved, dtype, gradients=True)


def drawn(gaussians, rasterizer):
    """All maps, and the gradient of a mixture of them in every field."""
    out = render(make_camera(), gaussians, background=BACKGROUND, rasterizer=rasterizer)
    weights = torch.linspace(-1, 1, out.color.numel(), dtype=out.color.dtype).reshape(out.color.shape)
    ((weights.to(out.color) * out.color).sum() + out.alpha.square().sum() + out.inverse_depth.sum()).backward()
    maps = {name: value.detach().cpu() for name, value in vars(out).items() if name != "means2d"}
    return maps, {name: getattr(gaussians, name).grad.cpu() for name in FIELDS} | {"means2d": out.means2d.grad.cpu()}


def test_the_reference_is_the_same_anywhere(cuda):
    gaussians = make_gaussians(60, 0)
    found, expected = (drawn(on(device, gaussians, torch.float64), "reference") for device in (cuda, "cpu"))
    for here, there in zip(found, expected, strict=True):
        for name, value in there.items():
            torch.testing.assert_close(here[name], value, rtol=1e-9, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


def test_gsplat_draws_the_same_scene(cuda):
    pytest.importorskip("gsplat")
    gaussians = make_gaussians(60, 0)
    maps, gradients = drawn(on(cuda, gaussians, torch.float32), "gsplat")
    expected, wanted = drawn(on("cpu", gaussians, torch.float64), "reference")
    assert psnr(maps["color"].double(), expected["color"]) > 45  # some pixels end or begin elsewhere
    assert torch.equal(maps["radii"] > 0, expected["radii"] > 0)
    for name in ("means", "sh0", "means2d"):
        error = (gradients[name].double() - wanted[name]).norm() / wanted[name].norm()
        assert error < 0.05, name


@pytest.mark.parametrize("border", ["renormalise", "mirror"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_lr_kernel_works_where_its_images_are(cuda, border, dtype):
    kernel = LRKernel("bicubic", border, (37, 29), (12, 10))
    draw = torch.Generator().manual_seed(0)
    hr, lr = torch.rand(3, 29, 37, generator=draw, dtype=dtype), torch.rand(3, 10, 12, generator=draw, dtype=dtype)
    tolerance = {"rtol": 0, "atol": 1e-5 if dtype == torch.float32 else 1e-12}
    for name, values in (("down", [hr]), ("transpose", [lr]), ("pinv", [lr]), ("project", [hr, lr])):
        found = getattr(kernel, name)(*(value.to(cuda) for value in values))
        assert found.device == cuda
        torch.testing.assert_close(found.cpu(), getattr(kernel, name)(*values), **tolerance)
    alpha = (hr[0] > 0.3).to(dtype)
    assert torch.equal(opaque_support_mask(kernel, alpha.to(cuda)).cpu(), opaque_support_mask(kernel, alpha))


def test_metrics_are_those_of_the_cpu(cuda, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    draw = torch.Generator().manual_seed(0)
    a = torch.rand(3, 64, 80, generator=draw)
    b = (a + 0.05 * torch.randn(a.shape, generator=draw)).clamp(0, 1)
    assert float(psnr(a.to(cuda), b.to(cuda))) == pytest.approx(float(psnr(a, b)), abs=1e-4)
    assert float(ssim(a.to(cuda), b.to(cuda))) == pytest.approx(float(ssim(a, b)), abs=1e-5)


def state_on(device, n=2000):
    tensors = random_state(n).tensors()
    return TrainState.from_tensors(tensors, dict.fromkeys(FIELDS, 0), torch.device(device))


def test_density_control_makes_the_same_rows(cuda):
    settings = OptimizationParams(
        densify_grad_threshold=0.5, percent_dense=0.2, prune_screen_px=60.0, max_gaussians=2600
    )
    states = []
    for device in ("cpu", cuda):
        state = state_on(device)
        change = densification(state, settings, 4.0, True, torch.Generator().manual_seed(3))
        apply(state, reordered(state.gaussians.means, change))
        apply(state, opacity_reset(state))
        states.append(state.tensors())
    assert len(states[0]["param.means"]) != 2000
    for name, value in states[1].items():
        assert value.device == cuda
        torch.testing.assert_close(
            value.cpu(), states[0][name], rtol=1e-5, atol=1e-5, msg=lambda text, n=name: n + text
        )


def test_the_curve_orders_points_alike(cuda):
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(5000, 3, generator=draw)
    points[::50] = points[0]
    points[7] = float("nan")
    assert torch.equal(order(points.to(cuda)).cpu(), order(points))


def test_filters_are_those_of_the_cpu(cuda):
    gaussians = make_gaussians(500, 0, spread=3.0)
    cameras = [make_camera(), replace(make_camera(focal=90.0), name="other")]
    widths = filters(cameras, gaussians.means)
    there = filters(cameras, gaussians.means.to(cuda))
    torch.testing.assert_close(there.cpu(), widths, rtol=1e-5, atol=1e-7)
    found = baked(Gaussians(**{name: getattr(gaussians, name).to(cuda) for name in FIELDS}), there)
    for name, value in vars(baked(gaussians, widths)).items():
        torch.testing.assert_close(getattr(found, name).cpu(), value, rtol=1e-4, atol=1e-5)
