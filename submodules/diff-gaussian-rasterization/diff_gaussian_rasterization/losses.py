"""Terms of the training objective: what they compare, and what they find.

Images are float32 [3, H, W]; L1SSIM is at the image's own size, LowResolution at that of the LR view.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diff_gaussian_rasterization.checks import CPU, check_range, size_of
from diff_gaussian_rasterization.taps import Taps


class Loss(NamedTuple):
    """Mean absolute error, mean SSIM, and (1 - lambda) l1 + lambda (1 - ssim).

    From a `Workspace` on CUDA these are float64 tensors [] there, so that nothing waits for them.
    """

    l1: float
    ssim: float
    loss: float


def loss_of(terms: Tensor) -> Loss:
    """Of float64 [3] that a kernel wrote."""
    values: Any = terms.tolist() if terms.is_cpu else terms.unbind()
    return Loss(*values)


@dataclass(frozen=True, eq=False)
class L1SSIM:
    """(1 - lambda) L1 + lambda (1 - SSIM) of the image against target [3, H, W]; `weight` is its factor.

    Parameters
    ----------
    pixel_weights : float32 [1, H, W], c, of any sign and size: (1 - lambda) mean(c |x - y|) + lambda mean(c (1 - SSIM
        map)), means over all pixels and channels; SSIM is then reported as 1 - mean(c (1 - SSIM map)). None = 1.

    Notes
    -----
    Kerbl et al. 2023, Eq. 7. SSIM: 11x11 Gaussian window, sigma 1.5, zero padding. The gradient of |x| at 0 is 0.
    """

    target: Tensor
    weight: float = 1.0
    lambda_dssim: float = 0.2
    pixel_weights: Tensor | None = None

    def __post_init__(self) -> None:
        check_range("lambda_dssim", self.lambda_dssim, 0, 1)


@dataclass(frozen=True, eq=False)
class LowResolution:
    """The same of the shrunk image A image against lr_target [3, h, w].

    Parameters
    ----------
    taps_x, taps_y : the banded A along each axis as (start int32 [n_out], weight float32 [n_out, taps]); out[i] =
        sum_k weight[i, k] in[start[i] + k]; taps beyond the image must have weight 0. `Taps` are checked only once.
    """

    lr_target: Tensor
    taps_x: Taps | tuple[ArrayLike, ArrayLike]
    taps_y: Taps | tuple[ArrayLike, ArrayLike]
    weight: float = 1.0
    lambda_dssim: float = 0.2

    def __post_init__(self) -> None:
        check_range("lambda_dssim", self.lambda_dssim, 0, 1)


Term = L1SSIM | LowResolution


def taps_of(term: Term, view: list[int]) -> list[Tensor]:
    """Start and weight along x, then y, on the target's device; empty for a term of the image's size."""
    if isinstance(term, L1SSIM):
        return [torch.empty(0, device=CPU) for _ in range(4)]
    lr_height, lr_width = size_of("lr_target", term.lr_target, 1), size_of("lr_target", term.lr_target, 2)
    x, y = Taps.of("taps_x", term.taps_x, lr_width, view[0]), Taps.of("taps_y", term.taps_y, lr_height, view[1])
    x, y = x.on(term.lr_target.device), y.on(term.lr_target.device)
    return [x.start, x.weight, y.start, y.weight]
