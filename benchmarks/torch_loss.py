"""The loss of 3DGS code as its users write it with PyTorch: (1 - lambda) L1 + lambda (1 - SSIM), conv2d, autograd.

SSIM over an 11x11 Gaussian window (sigma 1.5 px) that is not taken apart, zero padding: five 2D convolutions. This is
what the fused loss is measured against; `utils.ssim` gives the same values with separable windows.
"""

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from utils.ssim import C1, C2, WINDOW_PX, gaussian_window

LAMBDA_DSSIM = 0.2


def torch_loss(image: Tensor, target: Tensor, lambda_dssim: float = LAMBDA_DSSIM) -> Tensor:
    """Differentiable scalar.

    Parameters
    ----------
    image, target : [3, H, W] of one dtype. lambda_dssim : 0-1.

    Notes
    -----
    Kerbl et al. 2023, eq. 7; Wang et al. 2004, eq. 13.
    """
    line = gaussian_window(image)
    window = torch.outer(line, line).expand(image.shape[0], 1, WINDOW_PX, WINDOW_PX).contiguous()

    def blurred(picture: Tensor) -> Tensor:
        return conv2d(picture[None], window, padding=WINDOW_PX // 2, groups=image.shape[0])[0]

    mu_x, mu_y = blurred(image), blurred(target)
    xx = blurred(image * image) - mu_x * mu_x
    yy = blurred(target * target) - mu_y * mu_y
    xy = blurred(image * target) - mu_x * mu_y
    similarity = (2 * mu_x * mu_y + C1) * (2 * xy + C2) / ((mu_x * mu_x + mu_y * mu_y + C1) * (xx + yy + C2))
    return (1 - lambda_dssim) * (image - target).abs().mean() + lambda_dssim * (1 - similarity.mean())
