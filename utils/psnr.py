"""Peak signal-to-noise ratio of two images whose values lie in [0, 1]."""

import torch
from jaxtyping import Float
from torch import Tensor


def psnr(a: Float[Tensor, "c H W"], b: Float[Tensor, "c H W"]) -> Float[Tensor, ""]:
    """Measure one image against another: 10 log10(1 / MSE) in dB, MSE over all pixels and channels.

    Parameters
    ----------
    a, b : [c, H, W] of any one floating dtype, nominal range 0-1 (the peak is 1).

    Returns
    -------
    A scalar in dB of the dtype of `a`, differentiable; +inf when the images are equal.
    """
    return -10 * torch.log10((a - b).square().mean())
