"""The objective's two terms, their weights, and the gradient through the LR kernel."""

import numpy as np
import pytest
import torch

from scene.cameras import Camera, intrinsics
from scene.lr_kernel import LRKernel
from training.objective import Terms, Weights, objective
from training.views import Targets, View
from utils.ssim import ssim, ssim_map

KERNEL = LRKernel("bicubic", "renormalise", (14, 12), (7, 6))
VIEW = View(Camera("v", 14, 12, intrinsics(20, 20, 7, 6), np.eye(4)), KERNEL)
G = torch.Generator().manual_seed(0)
RENDER = torch.rand(3, 12, 14, generator=G, dtype=torch.float64) * 1.4 - 0.2  # unclamped
HR, LR = torch.rand(3, 12, 14, generator=G, dtype=torch.float64), torch.rand(3, 6, 7, generator=G, dtype=torch.float64)


def similarity(a, b):
    return 0.8 * (a - b).abs().mean() + 0.2 * (1 - ssim(a, b))


@pytest.mark.parametrize("tex", [0.0, 0.3, 1.0])
def test_both_terms_are_weighted(tex):
    loss, terms = objective(RENDER, VIEW, Targets(HR, LR), Weights(tex, 0.2))
    expected = tex * similarity(RENDER, HR) + (1 - tex) * similarity(KERNEL.down(RENDER), LR)
    assert float(loss) == pytest.approx(float(expected), abs=1e-12)
    assert (terms.l1 is None) == (tex == 0)
    assert (terms.lr_l1 is None) == (tex == 1)


def test_a_term_alone_has_all_the_weight():
    assert Weights(0.3, 0.2).of(Targets(HR, None)) == (1.0, 0.0)
    assert Weights(0.3, 0.2).of(Targets(None, LR)) == (0.0, 1.0)
    loss, _ = objective(RENDER, VIEW, Targets(None, LR), Weights(0.3, 0.2))
    assert float(loss) == pytest.approx(float(similarity(KERNEL.down(RENDER), LR)))


def test_gradient_through_the_kernel_is_its_transpose():
    render = RENDER.clone().requires_grad_()
    objective(render, VIEW, Targets(None, LR), Weights(0.0, 0.2))[0].backward()
    reduced = KERNEL.down(RENDER).requires_grad_()
    similarity(reduced, LR).backward()
    torch.testing.assert_close(render.grad, KERNEL.transpose(reduced.grad))


WEIGHT = torch.rand(1, 12, 14, generator=G, dtype=torch.float64)


def with_gradient(weight, tex=0.6):
    render = RENDER.clone().requires_grad_()
    loss, terms = objective(render, VIEW, Targets(HR, LR, weight), Weights(tex, 0.2))
    loss.backward()
    return loss.detach(), render.grad, terms


def test_pixels_are_weighted_one_by_one():
    similar, total = ssim_map(RENDER, HR), 0.0
    for c in range(3):
        for y in range(12):
            for x in range(14):
                difference = abs(float(RENDER[c, y, x] - HR[c, y, x]))
                total += float(WEIGHT[0, y, x]) * (0.8 * difference + 0.2 * (1 - float(similar[c, y, x])))
    expected = 0.6 * total / (3 * 12 * 14) + 0.4 * float(similarity(KERNEL.down(RENDER), LR))
    loss, _, terms = with_gradient(WEIGHT)
    assert float(loss) == pytest.approx(expected, abs=1e-12)
    frames = 0.8 * terms.l1 + 0.2 * (1 - terms.ssim)
    assert 0.6 * frames + 0.4 * (0.8 * terms.lr_l1 + 0.2 * (1 - terms.lr_ssim)) == pytest.approx(float(loss))


def numbers(terms):
    return {name: value for name, value in vars(terms).items() if value is not None}


def test_weights_of_one_change_nothing():
    for one, none in zip(with_gradient(torch.ones(1, 12, 14, dtype=torch.float64)), with_gradient(None), strict=True):
        if isinstance(one, Terms):
            assert numbers(one) == pytest.approx(numbers(none), rel=1e-13)
        else:
            torch.testing.assert_close(one, none, rtol=1e-13, atol=1e-16)


def test_weights_of_zero_leave_the_lr_term():
    loss, gradient, _ = with_gradient(torch.zeros(1, 12, 14, dtype=torch.float64))
    assert float(loss) == pytest.approx(0.4 * float(similarity(KERNEL.down(RENDER), LR)), abs=1e-12)
    alone = RENDER.clone().requires_grad_()
    objective(alone, VIEW, Targets(None, LR), Weights(0.6, 0.2))[0].backward()
    torch.testing.assert_close(gradient, 0.4 * alone.grad)


def test_gradient_of_the_weighted_objective_by_finite_differences():
    """At every seventh value; nowhere do the random images come within the step of equality, where |x| bends."""
    _, gradient, _ = with_gradient(WEIGHT)
    step = 1e-6
    for i in range(0, RENDER.numel(), 7):
        change = torch.zeros(RENDER.numel(), dtype=torch.float64)
        change[i] = step
        sides = [
            objective(RENDER + sign * change.view_as(RENDER), VIEW, Targets(HR, LR, WEIGHT), Weights(0.6, 0.2))[0]
            for sign in (1, -1)
        ]
        assert float(gradient.flatten()[i]) == pytest.approx(float(sides[0] - sides[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_terms_know_when_they_are_not_numbers(value):
    assert Terms(1.0, 0.5).finite
    assert not Terms(1.0, lr_ssim=value).finite
