"""Pseudo-HR frames against the HR truth of the training views: what upsampling gained before any 3D model saw it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from torch.nn.functional import interpolate

from evaluation.metrics import as_tensor, capped_psnr, mean
from evaluation.protocols import view_set_hash
from evaluation.rendering import COLOURS, truth_8bit
from scene import Scene
from scene.image_files import read_image
from scene.images import composite, premultiplied, straight
from upsampling.interpolation import interpolation_matrix
from utils.errors import UserError
from utils.log import Progress


def frame_paths(scene: Scene, frames: Path) -> dict[str, Path]:
    """List the frames of training views that have an HR truth, by view."""
    paths = {name: frames / f"{name}.png" for name in scene.train if scene.hr_path(name) is not None}
    return {name: path for name, path in paths.items() if path.is_file()}


def measure_frames(scene: Scene, frames: Path, background: str, single: Path | None = None) -> dict[str, Any] | None:
    """Measure frames, plain bicubic upsampling of the same LR views, and frames made without neighbours.

    Parameters
    ----------
    frames : folder of NAME.png, RGB or RGBA.
    background : "white" or "black", what frames and truths with alpha are composed on, rounded to 8 bit.
    single : folder of the frames made without neighbours; None = there is none.

    Returns
    -------
    {"PSNR", "bicubic_PSNR": means in dB, "background", "views": count, "of": training views, "view_set",
    "per_view": {name: {"PSNR", "bicubic_PSNR"}}}, with `single` "single_PSNR" beside each "PSNR"; None where no view
    has both frame and truth.

    Raises
    ------
    UserError : a frame of another size than its truth, missing among the single ones, or unreadable.
    """
    paths = frame_paths(scene, frames)
    if not paths:
        return None
    per_view = {}
    progress = Progress("frames", len(paths), "view")
    for i, (name, path) in enumerate(paths.items()):
        truth = truth_8bit(scene, name, background)
        bicubic = composed(bicubic_upsampled(scene.images.raw(name), truth.shape[1], truth.shape[0]), background)
        images = {"PSNR": _frame(path, truth, background), "bicubic_PSNR": bicubic}
        if single is not None:
            images["single_PSNR"] = _frame(single / f"{name}.png", truth, background)
        target = as_tensor(truth)
        per_view[name] = {key: capped_psnr(as_tensor(image), target) for key, image in images.items()}
        progress.update(i + 1, PSNR=f"{per_view[name]['PSNR']:.2f}")
    progress.close()
    counts = {"background": background, "views": len(paths), "of": len(scene.train)}
    return mean(per_view.values()) | counts | {"view_set": view_set_hash(list(paths)), "per_view": per_view}


def _frame(path: Path, truth: UInt8[np.ndarray, "H W 3"], background: str) -> UInt8[np.ndarray, "H W 3"]:
    """Read a frame and refuse one that cannot be compared with its truth."""
    if not path.is_file():
        raise UserError(f"{path}: not there; --single_frames needs a frame of every view that is measured")
    frame = composed(read_image(path), background)
    if frame.shape != truth.shape:
        sizes = [f"{x.shape[1]}x{x.shape[0]} px" for x in (frame, truth)]
        raise UserError(f"{path}: {sizes[0]}, the HR truth of its view has {sizes[1]}; give the right --hr_root")
    return frame


def composed(image: UInt8[np.ndarray, "H W c"], background: str) -> UInt8[np.ndarray, "H W 3"]:
    """Put a frame on a background, rounded to 8 bit."""
    return np.rint(composite(image, COLOURS[background]) * 255).astype(np.uint8)


def bicubic_upsampled(image: UInt8[np.ndarray, "h w c"], width: int, height: int) -> UInt8[np.ndarray, "H W c"]:
    """Enlarge an LR view as `--upsampler bicubic` does, alpha premultiplied.

    That is defined for whole factors; any other size is made by PyTorch's bicubic (a = -0.75 instead of -0.5).
    """
    planes = torch.from_numpy(premultiplied(image)).permute(2, 0, 1).double()  # [c, h, w]
    h, w = planes.shape[1:]
    if (height % h, width % w) == (0, 0):
        rows = torch.tensor(interpolation_matrix(h, height // h, "bicubic"))
        columns = torch.tensor(interpolation_matrix(w, width // w, "bicubic"))
        large = rows @ planes @ columns.T
    else:
        large = interpolate(planes[None], size=(height, width), mode="bicubic", align_corners=False)[0]
    return straight(large.permute(1, 2, 0).float().numpy())
