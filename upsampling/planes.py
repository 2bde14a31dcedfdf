"""Images with alpha through networks that know only RGB, so that one set of frames is clean on every background.

Colour goes in premultiplied (composited on black), alpha as a grey image of its own, through the same network: an
alpha from a plain filter would be blurrier than the colour and leave a fringe (white background, lego: 27.9 dB against
32.0; black 31.9 against 32.2). Where the LR alpha is flat, HR alpha is that very value, so that backgrounds stay empty.
"""

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor

from scene.alpha import premultiplied, straight

FLAT_WINDOW = 5  # LR px: the support of a cubic filter around a pixel


def colour_plane(image: UInt8[np.ndarray, "h w c"]) -> Float[Tensor, "3 h w"]:
    """Premultiplied colour, float32 in 0-1."""
    return torch.from_numpy(np.ascontiguousarray(premultiplied(image)[..., :3].transpose(2, 0, 1)))


def alpha_plane(image: UInt8[np.ndarray, "h w 4"]) -> Float[Tensor, "h w"]:
    """Alpha, float32 in 0-1."""
    return torch.from_numpy(image[..., 3].astype(np.float32) / np.float32(255))


def joined(
    colour: Float[Tensor, "3 H W"], alpha: Float[Tensor, "H W"] | None, lr_alpha: Float[Tensor, "h w"] | None
) -> Float[Tensor, "c H W"]:
    """The planes of an HR image: RGB, or premultiplied RGB and alpha, which is settled to 8 bit here.

    Parameters
    ----------
    colour : premultiplied where there is alpha.
    alpha : upsampled alpha; None = an image without.
    lr_alpha : alpha of the LR view; its size divides the image's.
    """
    if alpha is None or lr_alpha is None:
        return colour
    scale = alpha.shape[0] // lr_alpha.shape[0]
    highest, lowest = _highest(lr_alpha), -_highest(-lr_alpha)
    flat, value = (_repeated(x, scale) for x in (highest == lowest, lr_alpha))
    alpha = torch.where(flat, value, alpha)
    return torch.cat([colour, quantised(alpha)[None]])


def quantised(alpha: Float[Tensor, "*n H W"]) -> Float[Tensor, "*n H W"]:
    """Alpha as 8 bit hold it: colour / alpha x stored alpha then is the premultiplied colour to half a grey level."""
    return torch.round(alpha * 255) / 255


def stored(planes: Float[Tensor, "c H W"]) -> UInt8[np.ndarray, "H W c"]:
    """An HR image as it lies on disk: RGB, or RGBA with straight alpha, clipped and rounded once."""
    return straight(planes.permute(1, 2, 0).numpy())


def _highest(x: Tensor) -> Tensor:
    """[h, w]: the maximum around each pixel."""
    return F.max_pool2d(x[None, None], FLAT_WINDOW, 1, FLAT_WINDOW // 2)[0, 0]


def _repeated(x: Tensor, scale: int) -> Tensor:
    """[h, w] -> [scale h, scale w], each pixel a block."""
    return x.repeat_interleave(scale, 0).repeat_interleave(scale, 1)
