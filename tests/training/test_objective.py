"""The objective's two terms, their weights, and the gradient through the LR kernel."""

import numpy as np
import pytest
import torch

from scene.cameras import Camera, intrinsics
from scene.lr_kernel import LRKernel
from training.objective import Terms, Weights, objective
from training.views import Targets, View
from utils.ssim import ssim

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


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_terms_know_when_they_are_not_numbers(value):
    assert Terms(1.0, 0.5).finite
    assert not Terms(1.0, lr_ssim=value).finite
