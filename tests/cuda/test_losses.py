"""The losses on a GPU: against their definition in float64 and the CPU's kernels, at every size that cuts a tile."""

import math
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization.fused import Workspace
from diff_gaussian_rasterization.taps import Taps
from torch import Tensor

from scene.lr_kernel import LRKernel
from tests.submodules.rasterizer_scenes import relative
from utils.ssim import ssim

pytestmark = pytest.mark.gpu

# Height, width: within one tile of 32 x 32, at its edges, one row or column, many tiles with cut ones at both ends.
SIZES = [(1, 1), (5, 17), (16, 1), (1, 40), (31, 33), (32, 32), (33, 31), (37, 100), (64, 42), (269, 31), (450, 333)]
RESIZES = [((64, 48), (16, 12)), ((45, 35), (15, 5)), ((101, 70), (33, 9)), ((19, 6), (19, 6)), ((800, 300), (200, 75))]


def images(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=g), torch.rand(3, height, width, generator=g)


def definition(x: Tensor, y: Tensor, dssim: float) -> Tensor:
    return (1 - dssim) * (x - y).abs().mean() + dssim * (1 - ssim(x, y))


def slope(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad


def unwritten(like: Tensor, device: Any) -> Tensor:
    return torch.full_like(like, math.nan, device=device)


def values(terms: Any) -> list[float]:
    return [float(v) for v in (terms.l1, terms.ssim, terms.loss)]


def same(one: list[float], other: list[float]) -> bool:
    """Bit for bit; NaN is NaN."""
    return torch.equal(torch.tensor(one).double().view(torch.int64), torch.tensor(other).double().view(torch.int64))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("dssim", [0, 0.2, 1])
def test_loss_and_gradient_are_those_of_the_definition(cuda: Any, size: tuple[int, int], dssim: float) -> None:
    x, y = images(*size)
    leaf = x.double().requires_grad_()
    expected = definition(leaf, y.double(), dssim)
    (0.7 * expected).backward()
    gradient = unwritten(x, cuda)
    terms = Workspace(device=cuda).l1_ssim(x.to(cuda), y.to(cuda), gradient, weight=0.7, lambda_dssim=dssim)
    # as on the CPU: sums in double of values that float32 rounds to 1e-7 each
    assert float(terms.loss) == pytest.approx(expected.item(), rel=1e-6)
    assert float(terms.l1) == pytest.approx((x - y).double().abs().mean().item(), rel=1e-6)
    assert relative(gradient.cpu(), slope(leaf)) < 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("weighted", [False, True])
def test_the_cpu_gives_the_same(cuda: Any, size: tuple[int, int], weighted: bool) -> None:
    x, y = images(*size, seed=1)
    weights = images(*size, seed=2)[0][:1].contiguous() if weighted else None
    on_cpu, on_gpu = unwritten(x, "cpu"), unwritten(x, cuda)
    expected = Workspace().l1_ssim(x, y, on_cpu, pixel_weights=weights)
    there = None if weights is None else weights.to(cuda)
    found = Workspace(device=cuda).l1_ssim(x.to(cuda), y.to(cuda), on_gpu, pixel_weights=there)
    assert values(found) == pytest.approx(values(expected), rel=1e-6)
    assert relative(on_gpu.cpu(), on_cpu) < 1e-6


def test_equal_images_have_no_loss_and_accumulate_adds(cuda: Any) -> None:
    x, y = (t.to(cuda) for t in images(40, 50))
    terms = Workspace(device=cuda).l1_ssim(x, x, torch.empty_like(x))
    assert float(terms.l1) == 0
    assert float(terms.ssim) == pytest.approx(1, abs=1e-6)
    alone, added = torch.empty_like(x), torch.ones_like(x)
    Workspace(device=cuda).l1_ssim(x, y, alone)
    Workspace(device=cuda).l1_ssim(x, y, added, accumulate=True)
    assert torch.allclose(added, alone + 1, rtol=0, atol=2e-7)  # one rounding near 1


@pytest.mark.parametrize("lr", [False, True])
def test_every_run_has_the_same_bits(cuda: Any, lr: bool) -> None:
    """Sums have a fixed order, whether determinism is asked for or not."""
    operator = LRKernel("bicubic", "renormalise", (333, 450), (83, 112))
    x, y = (t.to(cuda) for t in images(450, 333))
    small = images(112, 83)[1].to(cuda)
    workspace, seen = Workspace(device=cuda), []
    for _ in range(3):
        gradient = torch.empty_like(x)
        if lr:
            terms = workspace.lr_l1_ssim(x, small, gradient, operator.taps("x"), operator.taps("y"))
        else:
            terms = workspace.l1_ssim(x, y, gradient)
        seen.append((values(terms), gradient))
    assert all(same(s[0], seen[0][0]) and torch.equal(s[1], seen[0][1]) for s in seen[1:])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0, 0), (2, 69, 89), (1, 33, 64)])
def test_values_that_are_not_finite_reach_the_terms(cuda: Any, bad: float, place: tuple[int, int, int]) -> None:
    """They stop the update: wherever they are, at full size and through the LR operator."""
    x, y = images(70, 90)
    x[place] = bad
    operator = LRKernel("bicubic", "renormalise", (90, 70), (30, 14))
    small = images(14, 30)[1].to(cuda)
    gradient = unwritten(x, cuda)
    at_hr = Workspace(device=cuda).l1_ssim(x.to(cuda), y.to(cuda), gradient)
    at_lr = Workspace(device=cuda).lr_l1_ssim(x.to(cuda), small, gradient, operator.taps("x"), operator.taps("y"))
    assert not any(map(math.isfinite, values(at_hr)))
    assert not any(map(math.isfinite, values(at_lr)))


@pytest.mark.parametrize("size", [(0, 7), (7, 0), (0, 0)])
def test_images_without_pixels_have_no_loss(cuda: Any, size: tuple[int, int]) -> None:
    x, y = (t.to(cuda) for t in images(*size))
    assert values(Workspace(device=cuda).l1_ssim(x, y, torch.empty_like(x))) == [0, 0, 0]


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
@pytest.mark.parametrize("border", ["renormalise", "mirror"])
@pytest.mark.parametrize("sizes", RESIZES)
def test_lr_loss_goes_through_the_operator_and_its_transpose(cuda: Any, kernel: str, border: str, sizes: Any) -> None:
    (width, height), (lr_width, lr_height) = sizes
    operator = LRKernel(kernel, border, (width, height), (lr_width, lr_height))
    x, y = images(height, width, 1)[0], images(lr_height, lr_width, 2)[1]
    leaf = x.double().requires_grad_()
    expected = definition(operator.down(leaf), y.double(), 0.2)
    (0.4 * expected).backward()
    gradient, taps = unwritten(x, cuda), [operator.taps(axis) for axis in "xy"]
    terms = Workspace(device=cuda).lr_l1_ssim(x.to(cuda), y.to(cuda), gradient, *taps, weight=0.4)
    assert float(terms.loss) == pytest.approx(expected.item(), rel=1e-6)
    assert relative(gradient.cpu(), slope(leaf)) < 1e-5
    more = gradient.clone()
    Workspace(device=cuda).lr_l1_ssim(x.to(cuda), y.to(cuda), more, *taps, weight=0.4, accumulate=True)
    assert relative(more, 2 * gradient) < 1e-6


def bands(inputs: int, outputs: int, g: torch.Generator) -> tuple[Tensor, Tensor]:
    """Outputs without weights, inputs that no output uses, and bands in any order."""
    start = torch.randint(0, inputs // 2, (outputs,), generator=g, dtype=torch.int32)
    start[-1] = inputs - 2  # its last tap is beyond the image
    weight = torch.rand(outputs, 3, generator=g)
    weight[1] = weight[-1, -1] = 0
    return start, weight


def test_taps_may_leave_pixels_out(cuda: Any) -> None:
    g = torch.Generator().manual_seed(5)
    taps = [bands(150, 40, g), bands(90, 23, g)]
    x, y = images(90, 150, 3)[0], images(23, 40, 4)[1]
    on_cpu, on_gpu = unwritten(x, "cpu"), unwritten(x, cuda)
    expected = Workspace().lr_l1_ssim(x, y, on_cpu, *taps)
    found = Workspace(device=cuda).lr_l1_ssim(x.to(cuda), y.to(cuda), on_gpu, *taps)
    assert values(found) == pytest.approx(values(expected), rel=1e-6)
    assert relative(on_gpu.cpu(), on_cpu) < 1e-6
    assert (on_gpu[:, 60:88] == 0).all()


def test_a_workspace_notices_other_taps(cuda: Any) -> None:
    """Nothing of the last call's operator is used again, also where the sizes are the same."""
    used = Workspace(device=cuda)
    for kernel, border in (("bicubic", "renormalise"), ("area", "renormalise"), ("bicubic", "mirror")):
        for size in ((64, 48), (48, 64)):
            operator = LRKernel(kernel, border, size, (16, 12))
            taps = [Taps.of(axis, operator.taps(axis), n, m) for axis, n, m in zip("xy", (16, 12), size, strict=True)]
            x, y = images(size[1], size[0], 3)[0].to(cuda), images(12, 16, 4)[1].to(cuda)
            fresh, gradient = torch.empty_like(x), torch.empty_like(x)
            used.lr_l1_ssim(x, y, gradient, *taps)
            Workspace(device=cuda).lr_l1_ssim(x, y, fresh, *taps)
            assert torch.equal(gradient, fresh)
