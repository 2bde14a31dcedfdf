"""The fused training interface: losses, Adam, statistics, threads."""

import math

import pytest
import torch
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from scene.lr_kernel import LRKernel
from tests.submodules.rasterizer_scenes import FIELDS, make_case, relative
from utils.ssim import ssim, ssim_map

RATES = (1.6e-4, 5e-3, 1e-3, 0.05, 2.5e-3, 1.25e-4)


def images(height: int, width: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    g = torch.Generator().manual_seed(seed)
    return torch.rand(3, height, width, generator=g), torch.rand(3, height, width, generator=g)


def reference_loss(x: Tensor, y: Tensor, dssim: float) -> Tensor:
    return (1 - dssim) * (x - y).abs().mean() + dssim * (1 - ssim(x, y))


SIZES = [(48, 64), (37, 100), (450, 333), (269, 31), (1, 1), (5, 17), (16, 1)]


@pytest.mark.parametrize("size", SIZES)
def test_loss_and_gradient_are_those_of_the_definition(size):
    x, y = images(*size)
    leaf = x.double().requires_grad_()
    expected = reference_loss(leaf, y.double(), 0.2)
    (0.7 * expected).backward()
    gradient = torch.full_like(x, math.nan)
    terms = Workspace().l1_ssim(x, y, gradient, weight=0.7, lambda_dssim=0.2)
    assert terms.loss == pytest.approx(expected.item(), rel=1e-6)
    assert terms.l1 == pytest.approx((x - y).double().abs().mean().item(), rel=1e-6)
    assert relative(gradient, leaf.grad) < 1e-6


@pytest.mark.parametrize("size", SIZES)
def test_weights_of_pixels_are_those_of_the_definition(size):
    (x, y), weight = images(*size), images(*size, seed=1)[0][:1].contiguous()
    leaf, at, fixed = x.double().requires_grad_(), weight.double(), y.double()
    l1, similarity = (at * (leaf - fixed).abs()).mean(), 1 - (at * (1 - ssim_map(leaf, fixed))).mean()
    expected = 0.8 * l1 + 0.2 * (1 - similarity)
    (0.7 * expected).backward()
    gradient = torch.full_like(x, math.nan)
    terms = Workspace().l1_ssim(x, y, gradient, weight=0.7, lambda_dssim=0.2, pixel_weights=weight)
    assert list(terms) == pytest.approx([l1.item(), similarity.item(), expected.item()], rel=1e-6)
    assert relative(gradient, leaf.grad) < 1e-6
    ones, plain, same = torch.ones_like(weight), torch.empty_like(x), torch.empty_like(x)
    assert Workspace().l1_ssim(x, y, same, pixel_weights=ones) == pytest.approx(Workspace().l1_ssim(x, y, plain))
    assert relative(same, plain) < 1e-6
    with pytest.raises(ValueError, match="pixel_weights: expected shape"):
        Workspace().l1_ssim(x, y, same, pixel_weights=torch.ones_like(x))


def test_equal_images_have_no_loss_and_accumulate_adds():
    x, y = images(40, 50)
    terms = Workspace().l1_ssim(x, x, torch.empty_like(x))
    assert terms.l1 == 0
    assert terms.ssim == pytest.approx(1, abs=1e-6)
    alone, added = torch.empty_like(x), torch.ones_like(x)
    Workspace().l1_ssim(x, y, alone)
    Workspace().l1_ssim(x, y, added, accumulate=True)
    assert torch.allclose(added, alone + 1, rtol=0, atol=2e-7)  # one rounding near 1


def test_the_loss_stage_counts_every_term_since_the_forward_pass():
    case = make_case(0)
    workspace = Workspace()
    image, _, _ = workspace.forward(case.raster_camera, *case.six)
    times = [workspace.facts["stage_ms"]["loss"]]
    for _ in range(2):
        workspace.l1_ssim(image, torch.zeros_like(image), torch.empty_like(image))
        times.append(workspace.facts["stage_ms"]["loss"])
    assert times[0] == 0 < times[1] < times[2]
    workspace.forward(case.raster_camera, *case.six)
    assert workspace.facts["stage_ms"]["loss"] == 0


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
@pytest.mark.parametrize("border", ["renormalise", "mirror"])
@pytest.mark.parametrize(
    "sizes", [((64, 48), (16, 12)), ((45, 35), (15, 5)), ((40, 24), (20, 12)), ((101, 70), (33, 9)), ((19, 6), (19, 6))]
)
def test_lr_loss_goes_through_the_operator_and_its_transpose(kernel, border, sizes):
    (width, height), (lr_width, lr_height) = sizes
    operator = LRKernel(kernel, border, (width, height), (lr_width, lr_height))
    x, _ = images(height, width, 1)
    y, _ = images(lr_height, lr_width, 2)
    leaf = x.double().requires_grad_()
    expected = reference_loss(operator.down(leaf), y.double(), 0.2)
    (0.4 * expected).backward()
    gradient = torch.full_like(x, math.nan)
    taps = operator.taps("x"), operator.taps("y")
    terms = Workspace().lr_l1_ssim(x, y, gradient, *taps, weight=0.4)
    assert terms.loss == pytest.approx(expected.item(), rel=1e-6)
    assert relative(gradient, leaf.grad) < 1e-5
    more = gradient.clone()
    Workspace().lr_l1_ssim(x, y, more, *taps, weight=0.4, accumulate=True)
    assert relative(more, 2 * gradient) < 1e-6


def lr_gradient(
    workspace: Workspace, taps_x: tuple[Tensor, Tensor], taps_y: tuple[Tensor, Tensor], width: int, height: int
) -> Tensor:
    x, y = images(height, width, 3)[0], images(len(taps_y[0]), len(taps_x[0]), 4)[1]
    gradient = torch.full_like(x, math.nan)
    workspace.lr_l1_ssim(x, y, gradient, taps_x, taps_y)
    return gradient


def tensor_taps(operator: LRKernel, axis: str) -> tuple[Tensor, Tensor]:
    start, weight = operator.taps(axis)
    return torch.from_numpy(start), torch.from_numpy(weight)


def test_a_workspace_notices_other_taps():
    """It keeps the operator of the last call; kernels, sizes and values written into the same arrays may change."""
    used, seen = Workspace(), []
    operators = [
        LRKernel(*of, *sizes)
        for sizes in (((64, 48), (16, 12)), ((48, 64), (12, 16)), ((64, 48), (32, 12)))
        for of in (("bicubic", "renormalise"), ("area", "renormalise"), ("bicubic", "mirror"))
    ]
    for operator in operators + operators[:2]:
        taps, size = [tensor_taps(operator, axis) for axis in "xy"], operator.hr_size
        for _ in range(2):
            seen.append(lr_gradient(used, *taps, *size))
            assert torch.equal(seen[-1], lr_gradient(Workspace(), *taps, *size))
        for axis in range(2):
            taps[axis][1][3] *= 0.5
            seen.append(lr_gradient(used, *taps, *size))
            assert torch.equal(seen[-1], lr_gradient(Workspace(), *taps, *size))
            taps[axis][0][3] -= 1
            seen.append(lr_gradient(used, *taps, *size))
            assert torch.equal(seen[-1], lr_gradient(Workspace(), *taps, *size))
            assert not torch.equal(seen[-1], seen[-2])
            assert not torch.equal(seen[-2], seen[-3])


def test_taps_may_leave_pixels_out():
    """Outputs without weights, inputs that no output uses (whole blocks of them), and bands in any order."""
    g = torch.Generator().manual_seed(5)
    (width, height), (lr_width, lr_height) = (150, 90), (40, 23)

    def taps(inputs: int, outputs: int) -> tuple[Tensor, Tensor, Tensor]:
        start = torch.randint(0, inputs // 2, (outputs,), generator=g, dtype=torch.int32)
        start[-1] = inputs - 2  # its last tap is beyond the image
        weight = torch.rand(outputs, 3, generator=g)
        weight[1] = weight[-1, -1] = 0
        matrix = torch.zeros(outputs, inputs + 1, dtype=torch.float64)
        for i in range(outputs):
            matrix[i, start[i] : start[i] + 3] = weight[i].double()
        return start, weight, matrix[:, :inputs]

    (*taps_x, matrix_x), (*taps_y, matrix_y) = taps(width, lr_width), taps(height, lr_height)
    x, y = images(height, width, 3)[0], images(lr_height, lr_width, 4)[1]
    leaf = x.double().requires_grad_()
    reference_loss(matrix_y @ leaf @ matrix_x.T, y.double(), 0.2).backward()
    gradient = torch.full_like(x, math.nan)
    Workspace().lr_l1_ssim(x, y, gradient, tuple(taps_x), tuple(taps_y))
    assert relative(gradient, leaf.grad) < 1e-5
    assert (gradient[:, 60:88] == 0).all()


def moments(six: list[Tensor]) -> list[Tensor]:
    return [torch.zeros_like(p) for p in six]


def test_adam_is_torch_adam_also_without_gradient():
    """Degree 3, then 0: bands and Gaussians without gradient go on by their momentum, as torch's dense Adam does."""
    cases = [make_case(3, sh_degree=d) for d in (3, 3, 0, 0)]
    six, workspace = cases[0].six, Workspace()
    mean, square, start = moments(six), moments(six), [p.clone() for p in six]
    theirs = [p.double() for p in six]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(theirs, RATES, strict=True)]
    optimizer = torch.optim.Adam(groups, eps=1e-15, foreach=False)
    for step, case in enumerate(cases, start=1):
        image, _, _ = workspace.forward(case.raster_camera, *six)
        gradient = torch.ones_like(image)
        grads = [torch.empty_like(p) for p in six]
        workspace.backward(gradient, six, grads)
        for p, g in zip(theirs, grads, strict=True):
            p.grad = g.double()
        optimizer.step()
        workspace.backward_adam(gradient, six, exp_avg=mean, exp_avg_sq=square, learning_rates=RATES, step=step)
    for name, ours, wanted, before in zip(FIELDS, six, theirs, start, strict=True):
        rounding = 4 * 1.2e-7 * before.norm()  # four roundings of the parameter itself
        error = (ours.double() - wanted).norm()
        assert error < 1e-5 * (wanted - before).norm() + rounding, name
        state = optimizer.state[theirs[FIELDS.index(name)]]
        assert relative(mean[FIELDS.index(name)], state["exp_avg"]) < 1e-5
        assert relative(square[FIELDS.index(name)], state["exp_avg_sq"]) < 1e-5


def test_statistics_are_those_of_the_original():
    case = make_case(4)
    six, workspace = case.six, Workspace()
    n = len(six[0])
    image, _, _ = workspace.forward(case.raster_camera, *six)
    means2d = torch.empty(n, 3)
    gradient = torch.randn(image.shape, generator=torch.Generator().manual_seed(0))
    workspace.backward(gradient, six, moments(six), grad_means2d=means2d)
    stats = torch.ones(n), torch.ones(n), torch.ones(n)
    zeros = (0.0,) * 6
    workspace.backward_adam(
        gradient, six, exp_avg=moments(six), exp_avg_sq=moments(six), learning_rates=zeros, step=1, stats=stats
    )
    visible = workspace.radii > 0
    assert 0 < visible.sum() < n
    faint = visible & (six[3][:, 0].sigmoid() < 1 / 255)
    assert (stats[1][faint] == 2).all()  # seen, although too faint to be drawn
    assert torch.equal(stats[1], 1 + visible.float())
    assert torch.equal(stats[2], workspace.radii.float().clamp(min=1))
    assert torch.allclose(stats[0], 1 + means2d[:, :2].norm(dim=1), rtol=1e-6)
    assert all(torch.equal(a, b) for a, b in zip(six, case.six, strict=True))  # learning rate 0


def one_step(threads: int) -> list[Tensor]:
    case = make_case(7, n=3000, width=333, height=210)
    torch.set_num_threads(threads)
    six, workspace = case.six, Workspace()
    mean, square = moments(six), moments(six)
    stats = tuple(torch.zeros(len(six[0])) for _ in range(3))
    operator = LRKernel("bicubic", "renormalise", (333, 210), (111, 70))
    target, lr_target = images(210, 333)[1], images(70, 111)[1]
    terms = []
    for step in (1, 2):
        image, transmittance, depth = workspace.forward(case.raster_camera, *six, aux=True)
        gradient = torch.empty_like(image)
        terms += workspace.l1_ssim(image, target, gradient, weight=0.4)
        taps = operator.taps("x"), operator.taps("y")
        terms += workspace.lr_l1_ssim(image, lr_target, gradient, *taps, weight=0.6, accumulate=True)
        workspace.backward_adam(
            gradient, six, exp_avg=mean, exp_avg_sq=square, learning_rates=RATES, step=step, stats=stats
        )
    return [*six, *mean, *square, *stats, image, transmittance, depth, gradient, torch.tensor(terms)]


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        runs = [one_step(threads) for threads in (1, 2, 3, 7)]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))


def test_a_used_workspace_is_as_good_as_a_new_one():
    """Densification changes N and views change size; nothing of an earlier scene may show."""
    used = Workspace()
    for seed, n, width, height in ((1, 900, 100, 80), (2, 100, 33, 200), (3, 1500, 120, 90)):
        case = make_case(seed, n=n, width=width, height=height)
        results = []
        for workspace in (used, Workspace()):
            six = case.six
            image, transmittance, _ = workspace.forward(case.raster_camera, *six)
            grads = [torch.empty_like(p) for p in six]
            workspace.backward(torch.ones_like(image), six, grads)
            results.append([image, transmittance, workspace.radii, *grads])
        assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))
