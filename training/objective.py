"""The objective lambda_tex L(R, V) + (1 - lambda_tex) L(A R, I), L(a, b) = (1 - d) |a - b| + d (1 - SSIM(a, b)).

R render, V pseudo-HR frame, I LR view, A the LR kernel, d = lambda_dssim. Ko et al., "Sequence Matters", AAAI 2025,
equations 3 to 5; L is that of Kerbl et al. 2023, equation 7. Without an LR view only the first term is left, without a
frame only the second.

With weights c of pixels, 0-1 (--confidence), the frames' term is
L_c(a, b) = (1 - d) mean(c |a - b|) + d mean(c (1 - SSIM map(a, b))), means over all pixels and channels: what is not
trusted is left to the LR term alone. It is not divided by mean(c). So a pixel counts the same in every view, and a
frame that is hardly trusted counts little; with c = 1 it is L. Asthana et al., "SplatSuRe", CVPR 2026, weight so too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from training.views import Targets, View
from utils.ssim import ssim, ssim_map


@dataclass(frozen=True)
class Weights:
    """lambda_tex in 0-1 and lambda_dssim in 0-1."""

    tex: float
    dssim: float

    def of(self, targets: Targets) -> tuple[float, float]:
        """Weights of the HR and of the LR term; a term that stands alone has all of it."""
        if targets.lr is None:
            return 1.0, 0.0
        return (0.0, 1.0) if targets.hr is None else (self.tex, 1.0 - self.tex)


@dataclass(frozen=True)
class Terms:
    """What one step's objective came to; None = that term was not evaluated.

    Attributes
    ----------
    loss : the weighted sum. l1, ssim : of the HR term, see `similarity_terms`. lr_l1, lr_ssim : of the LR term.
    depth_l1 : of the depth regulariser (training/depth.py), which engines add. sds : of a prior's guidance
        (training/guidance.py), which is a gradient: it is no part of `loss`.
    """

    loss: float
    l1: float | None = None
    ssim: float | None = None
    lr_l1: float | None = None
    lr_ssim: float | None = None
    depth_l1: float | None = None
    sds: float | None = None

    @property
    def finite(self) -> bool:
        """Whether every term is a number."""
        return all(value is None or math.isfinite(value) for value in vars(self).values())


Outcome = Callable[[], Terms]  # what a step came to; asking for it may wait for the device


def similarity_terms(
    a: Float[Tensor, "3 H W"], b: Float[Tensor, "3 H W"], weight: Float[Tensor, "1 H W"] | None = None
) -> tuple[Tensor, Tensor]:
    """Return mean |a - b| and SSIM, both scalars and differentiable.

    With `weight` c, 0-1: mean(c |a - b|) and 1 - mean(c (1 - SSIM map)).
    """
    if weight is None:
        return (a - b).abs().mean(), ssim(a, b)
    return (weight * (a - b).abs()).mean(), 1 - (weight * (1 - ssim_map(a, b))).mean()


def objective(
    render: Float[Tensor, "3 H W"], view: View, targets: Targets, weights: Weights
) -> tuple[Float[Tensor, ""], Terms]:
    """Evaluate the objective on an unclamped render with PyTorch.

    Returns
    -------
    loss : differentiable scalar. terms : the same and its parts as numbers, read from the device at once.
    """
    hr_weight, lr_weight = weights.of(targets)
    loss, parts = render.new_zeros(()), dict[str, Tensor]()
    if targets.hr is not None and hr_weight > 0:
        l1, similarity = similarity_terms(render, targets.hr, targets.weight)
        loss = loss + hr_weight * ((1 - weights.dssim) * l1 + weights.dssim * (1 - similarity))
        parts |= {"l1": l1, "ssim": similarity}
    if targets.lr is not None and lr_weight > 0:
        assert view.kernel is not None, "an LR target comes with its kernel"
        l1, similarity = similarity_terms(view.kernel.down(render), targets.lr)
        loss = loss + lr_weight * ((1 - weights.dssim) * l1 + weights.dssim * (1 - similarity))
        parts |= {"lr_l1": l1, "lr_ssim": similarity}
    values = torch.stack([loss, *parts.values()]).tolist()
    return loss, Terms(values[0], **dict(zip(parts, values[1:], strict=True)))
