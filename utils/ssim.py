"""Structural similarity of two images as the 3D Gaussian Splatting code computes it.

An 11x11 Gaussian window (sigma 1.5 px) over images padded with zeros, so border pixels count too: values differ from
skimage's and torchmetrics', which crop or mirror, in the third decimal. Letters: mu = local mean, C1 and C2 = the
constants (0.01)^2 and (0.03)^2 for values in [0, 1].
"""

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv2d

WINDOW_PX = 11
SIGMA_PX = 1.5
C1, C2 = 0.01**2, 0.03**2


def gaussian_window(like: Tensor) -> Float[Tensor, "11"]:
    """Return the one-dimensional window, sum 1, in the dtype and on the device of `like`."""
    x = torch.arange(WINDOW_PX, dtype=torch.float64) - WINDOW_PX // 2
    window = torch.exp(-x.square() / (2 * SIGMA_PX**2))
    return (window / window.sum()).to(like)


def ssim_map(a: Float[Tensor, "c H W"], b: Float[Tensor, "c H W"]) -> Float[Tensor, "c H W"]:
    """Compute the similarity of every pixel and channel, see `ssim`."""
    window, half = gaussian_window(a), WINDOW_PX // 2
    maps = torch.stack([a, b, a * a, b * b, a * b]).flatten(0, 1)[None]  # [1, 5 c, H, W]
    each = len(maps[0])  # planes as channels of one image: as many images they are 20 times as slow on a CPU
    blurred = conv2d(maps, window.view(1, 1, -1, 1).expand(each, 1, -1, 1), padding=(half, 0), groups=each)
    # the 2D Gaussian is separable
    blurred = conv2d(blurred, window.view(1, 1, 1, -1).expand(each, 1, 1, -1), padding=(0, half), groups=each)
    mu_a, mu_b, aa, bb, ab = blurred[0].unflatten(0, (5, a.shape[0]))  # 5 times [c, H, W]
    variance_a, variance_b, covariance = aa - mu_a * mu_a, bb - mu_b * mu_b, ab - mu_a * mu_b
    luminance = (2 * mu_a * mu_b + C1) / (mu_a * mu_a + mu_b * mu_b + C1)
    return luminance * (2 * covariance + C2) / (variance_a + variance_b + C2)


def ssim(a: Float[Tensor, "c H W"], b: Float[Tensor, "c H W"]) -> Float[Tensor, ""]:
    """Measure how alike two images are: 1 = equal; the mean over all pixels and channels.

    Parameters
    ----------
    a, b : [c, H, W] of one floating dtype and size, nominal range 0-1.

    Returns
    -------
    A scalar of the dtype of `a`, at most 1, differentiable in both.

    Notes
    -----
    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", TIP 2004, eq. 13, with the
    window and zero padding of Kerbl et al., SIGGRAPH 2023 (code). Cost: 5 c separable 11-tap filters.
    """
    return ssim_map(a, b).mean()
