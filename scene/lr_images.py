"""The pixels of an LR view, made from its HR image: ours (alpha kept) and the paper's release (composited)."""

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn.functional import interpolate

from scene.alpha import composite, premultiplied, straight
from scene.lr_kernel import LRKernel, Size


def cropped_size(hr_size: Size, scale: int) -> tuple[Size, Size]:
    """(used part of the HR image, LR size): the crop rule.

    Sides that `scale` does not divide lose their last 1 .. scale - 1 px at the right and at the bottom. The origin
    stays where it is, so intrinsics in px stay valid and LR intrinsics are exactly 1 / scale of them.
    """
    lr = hr_size[0] // scale, hr_size[1] // scale
    return (lr[0] * scale, lr[1] * scale), lr


def lr_image(image: UInt8[np.ndarray, "H W C"], kernel: LRKernel) -> UInt8[np.ndarray, "h w C"]:
    """A x, rounded to 8 bit once.

    Parameters
    ----------
    image : RGB, or RGBA with straight alpha; at least kernel.hr_size, what lies right of it or below is cropped.

    Notes
    -----
    Colour is premultiplied in float, all planes are filtered in float64 (the result does not depend on how a matrix
    product is split over threads), then colour is divided by alpha, clipped and rounded; colour 0 where alpha is 0.
    """
    width, height = kernel.hr_size
    planes = torch.from_numpy(premultiplied(image[:height, :width])).permute(2, 0, 1).double()  # [C, H, W]
    filtered = torch.stack([kernel.down(plane) for plane in planes])  # [C, h, w]; plane by plane bounds the memory
    return straight(filtered.permute(1, 2, 0).contiguous().numpy())


def released_image(
    image: UInt8[np.ndarray, "H W C"],
    background: tuple[float, float, float],
    *,
    factor: int = 0,
    size: Size | None = None,
) -> UInt8[np.ndarray, "h w 3"]:
    """An image as the release of "Sequence Matters" makes it: composited first, then filtered, then truncated (Q22).

    Parameters
    ----------
    factor : shrink by this (NeRF-synthetic), or
    size : to this width, height (Mip-NeRF 360).

    Notes
    -----
    torch's own float32 filter, as there: truncation turns its rounding errors into whole levels.
    """
    x = torch.from_numpy(composite(image, background, quantise=False)).permute(2, 0, 1)[None].contiguous()
    goal = {"size": (size[1], size[0])} if size else {"scale_factor": 1.0 / factor}
    y = interpolate(x, mode="bicubic", align_corners=False, antialias=True, **goal)[0]
    return (y.permute(1, 2, 0) * 255.0).clamp(0.0, 255.0).to(torch.uint8).numpy()
