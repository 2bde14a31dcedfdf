"""PSNR, SSIM and LPIPS of images against their truths, per view and mean. Gets images, never a model."""

import hashlib
import math
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from evaluation.extra_metrics import ExtraMetrics
from evaluation.lpips import Lpips
from scene.lr_kernel import LRKernel
from utils.errors import UserError
from utils.psnr import psnr
from utils.ssim import ssim

PSNR_CAP_DB = 100.0  # equal images have an infinite PSNR, which neither a mean nor JSON can hold


def as_tensor(image: UInt8[np.ndarray, "H W c"], device: torch.device | str = "cpu") -> Tensor:
    """Return RGB of an 8-bit image as float32 [3, H, W] in [0, 1] on `device`."""
    return torch.from_numpy(np.array(image[..., :3])).to(device).permute(2, 0, 1).float() / 255


def capped_psnr(image: Tensor, truth: Tensor) -> float:
    """Compute the PSNR [dB] of two [3, H, W] images in [0, 1], at most 100."""
    return min(float(psnr(image, truth)), PSNR_CAP_DB)


def measure(
    image: UInt8[np.ndarray, "h w c"],
    truth: UInt8[np.ndarray, "H W c"],
    lpips: Lpips | None,
    where: str = "image",
    device: torch.device | str = "cpu",
    kernel: LRKernel | None = None,
    extra: ExtraMetrics | None = None,
) -> dict[str, float]:
    """Measure one 8-bit image against its truth.

    Parameters
    ----------
    image, truth : [H, W, 3 or more], the first three channels are RGB.
    lpips : the networks, or None to leave LPIPS out. Truths are remembered by content.
    where : names the image in messages.
    device : where PSNR and SSIM are computed; LPIPS has its own.
    kernel : reduces both to the LR views' size, for LR_PSNR; None leaves it out.
    extra : what else is measured.

    Returns
    -------
    {"PSNR": dB, "SSIM": 0-1, "LR_PSNR": dB, every variant of `lpips`, and every metric of `extra` that has a value}.

    Raises
    ------
    UserError : the sizes differ, or one of `extra` cannot be measured.
    """
    if image.shape[:2] != truth.shape[:2]:
        sizes = [f"{x.shape[1]}x{x.shape[0]} px" for x in (image, truth)]
        raise UserError(f"{where}: {sizes[0]}, its truth has {sizes[1]}; render the views again with render.py")
    a, b = as_tensor(image, device), as_tensor(truth, device)
    values = {"PSNR": capped_psnr(a, b), "SSIM": float(ssim(a, b))}
    if kernel is not None:
        values["LR_PSNR"] = capped_psnr(kernel.down(a), kernel.down(b))
    if lpips is not None:
        values |= lpips(a, b, hashlib.sha256(truth.tobytes()).hexdigest())
    if extra is not None:
        values |= extra(image, a, b, where)
    return values


def mean(views: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Average each metric over the views that have it, exactly rounded (math.fsum): their order has no influence.

    Raises
    ------
    UserError : no views.
    """
    views = list(views)
    if not views:
        raise UserError("no views to average: render some first (render.py)")
    values = {key: [view[key] for view in views if key in view] for key in dict.fromkeys(k for v in views for k in v)}
    return {key: math.fsum(found) / len(found) for key, found in values.items()}
