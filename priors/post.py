"""What is done to images after sampling: colours of the LR view, and what its pixels say. Images 0-1, [B, 3, H, W]."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import conv2d, pad

from scene.lr_kernel import LRKernel

LEAST_VARIANCE = 1e-5  # of a channel; flatter ones are not stretched further


def color_adain(image: Float[Tensor, "B 3 H W"], reference: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 H W"]:
    """Each channel with the mean and standard deviation of the reference's (Huang and Belongie 2017, equation 8).

    Notes
    -----
    The releases add 1e-5 to both variances; here it is a floor instead, so that the statistics are met exactly.
    """
    mean, deviation = _moments(image)
    wanted_mean, wanted_deviation = _moments(reference)
    return (image - mean) / deviation * wanted_deviation + wanted_mean


def color_wavelet(
    image: Float[Tensor, "B 3 H W"], reference: Float[Tensor, "B 3 H W"], levels: int = 5
) -> Float[Tensor, "B 3 H W"]:
    """High bands of the image on the low band of the reference, split by `low_band` (StableSR's release)."""
    return image - low_band(image, levels) + low_band(reference, levels)


def low_band(image: Float[Tensor, "B C H W"], levels: int = 5) -> Float[Tensor, "B C H W"]:
    """Blurred `levels` times by [1 2 1]^2 / 16 with gaps of 1, 2, 4, .. px, the border repeated (a trous)."""
    channels = image.shape[1]
    row = image.new_tensor([0.25, 0.5, 0.25])
    across, down = row.expand(channels, 1, 1, 3), row[:, None].expand(channels, 1, 3, 1)
    for level in range(levels):
        gap = 2**level
        image = conv2d(pad(image, (gap, gap, 0, 0), mode="replicate"), across, dilation=gap, groups=channels)
        image = conv2d(pad(image, (0, 0, gap, gap), mode="replicate"), down, dilation=gap, groups=channels)
    return image


def project(
    image: Float[Tensor, "B 3 H W"],
    kernel: LRKernel,
    lr: Float[Tensor, "B 3 h w"],
    tolerance: float = 0.0,
    rounds: int = 10,
    mask: Bool[Tensor, "h w"] | None = None,
) -> Float[Tensor, "B 3 H W"]:
    """An image 0-1 whose LR version is the LR view: projection and clipping in turn (POCS; Bauschke and Borwein 1996).

    Parameters
    ----------
    lr, tolerance, mask : see `LRKernel.project_soft`.
    rounds : of both; 3 come within 1 / 255 on photographs nearly everywhere, 10 leave outliers at saturated areas.

    Returns
    -------
    Clipped to 0-1, so the LR view is met as far as clipping lets it.
    """
    for _ in range(rounds):
        image = kernel.project_soft(image, lr, tolerance, mask).clamp(0, 1)
    return image


def _moments(image: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, [B, 3, 1, 1]."""
    variance, mean = torch.var_mean(image, (-2, -1), correction=0, keepdim=True)
    return mean, variance.clamp(min=LEAST_VARIANCE).sqrt()
