"""Does the confidence that comes with pseudo-HR frames know where they err? Measured where there is an HR truth."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from evaluation.frames import composed, frame_paths
from evaluation.ranks import rank_correlation
from evaluation.rendering import truth_8bit
from scene import Scene
from scene.image_files import read_image
from upsampling import CONFIDENCE
from utils.errors import UserError

BLOCK_PX = 8


def confidence_paths(scene: Scene, frames: Path) -> dict[str, Path]:
    """List the confidence maps of frames that have an HR truth, by view."""
    paths = {name: frames / CONFIDENCE / f"{name}.png" for name in frame_paths(scene, frames)}
    return {name: path for name, path in paths.items() if path.is_file()}


def measure_confidence(scene: Scene, frames: Path, background: str) -> dict[str, Any] | None:
    """Correlate doubt and error of all frames that have a confidence map.

    Returns
    -------
    {"views": count, "pixel", "block": means over the views for which they are defined, None without,
    "per_view": {name: `view_ranks`}}, or None where no frame has map and truth.

    Raises
    ------
    UserError : a map of another size than its truth, or unreadable.
    """
    paths = confidence_paths(scene, frames)
    if not paths:
        return None
    per_view = {}
    for name, path in paths.items():
        truth = truth_8bit(scene, name, background)
        confidence = read_image(path)[..., 0]
        if confidence.shape != truth.shape[:2]:
            sizes = [f"{x.shape[1]}x{x.shape[0]} px" for x in (confidence, truth)]
            raise UserError(f"{path}: {sizes[0]}, the HR truth of view {name} has {sizes[1]}")
        frame = composed(read_image(frames / f"{name}.png"), background)
        error = (((frame.astype(float) - truth) / 255) ** 2).mean(-1)
        raw = scene.hr_image(name)
        assert raw is not None  # views without truth are not among the paths
        per_view[name] = view_ranks(confidence, error, raw[..., 3] if raw.shape[2] == 4 else np.ones_like(confidence))
    return {"views": len(per_view), "pixel": _mean(per_view, "pixel"), "block": _mean(per_view, "block")} | {
        "per_view": per_view
    }


def _mean(per_view: Mapping[str, Mapping[str, float | None]], key: str) -> float | None:
    values = [value for view in per_view.values() if (value := view[key]) is not None]
    return math.fsum(values) / len(values) if values else None


def view_ranks(
    confidence: UInt8[np.ndarray, "H W"],
    error: Float[np.ndarray, "H W"],
    content: UInt8[np.ndarray, "H W"],
) -> dict[str, float | None]:
    """Correlate the ranks of doubt and of squared error over one view.

    Parameters
    ----------
    confidence : 255 = sure.
    error : squared error, mean over RGB.
    content : 0 where the truth is empty: such pixels do not count, they would be equal and right for nothing.

    Returns
    -------
    Spearman's rho: "pixel"; "block", of means over 8x8 px, of whole blocks with any content. +1 = the doubt is largest
    where the error is; None where one of both does not vary.
    """
    doubt = 255.0 - confidence
    seen = content > 0
    blocks = block_means(seen.astype(float)) > 0
    return {
        "pixel": rank_correlation(doubt[seen], error[seen]),
        "block": rank_correlation(block_means(doubt)[blocks], block_means(error)[blocks]),
    }


def block_means(values: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "h w"]:
    """Average 8x8 px; the last rows and columns that fill no block are left out."""
    h, w = (n // BLOCK_PX for n in values.shape)
    return values[: h * BLOCK_PX, : w * BLOCK_PX].reshape(h, BLOCK_PX, w, BLOCK_PX).mean((1, 3))
