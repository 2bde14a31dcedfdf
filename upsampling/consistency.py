"""LR consistency: does an HR frame, made small again by the operator that made the LR views, give its LR view back?

It needs no truth, so it finds frames that went wrong (wrong network for the data, broken flow) on any scene.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arguments.lr_kernel import unknown
from scene.alpha import premultiplied
from scene.lr_kernel import LRKernel, opaque_support_mask
from utils.atomic import read_json, write_json
from utils.log import note, warn

FILE_NAME = "consistency.json"
WARN_DB = 35.0
BEST_DB = 100.0  # what two equal images are given; JSON has no infinity
LEVELS = 255


def consistency_db(kernel: LRKernel, hr: UInt8[np.ndarray, "H W c"], lr: UInt8[np.ndarray, "h w c"]) -> float | None:
    """PSNR in dB of the downscaled frame against its LR view, premultiplied RGB in 0-1.

    With alpha only LR pixels count whose whole HR support has alpha 0 or 1; None where no such pixel exists.
    """
    frame = torch.from_numpy(premultiplied(hr)).permute(2, 0, 1).double()
    view = torch.from_numpy(premultiplied(lr)).permute(2, 0, 1).double()
    error = (kernel.down(frame[:3]) - view[:3]) ** 2
    if frame.shape[0] == 4:
        error = error[:, opaque_support_mask(kernel, frame[3])]
    if error.numel() == 0:
        return None
    mse = float(error.mean())
    return BEST_DB if mse < 10 ** (-BEST_DB / 10) else float(-10 * np.log10(mse))


class ConsistencyErrors(NamedTuple):
    """Root of the mean square and largest magnitude of A x - y, 0-1, and how many LR values they were taken over."""

    rms: float
    max: float
    values: int


def consistency_errors(
    kernel: LRKernel, hr: UInt8[np.ndarray, "H W c"], lr: UInt8[np.ndarray, "h w c"]
) -> ConsistencyErrors | None:
    """How far the downscaled frame is from its LR view, premultiplied RGB in 0-1, where that view is not saturated.

    An LR value of 0 or 255 only bounds A x, so it does not count. With alpha only LR pixels count whose whole HR
    support has alpha 0 or 1; None where no value is left.
    """
    frame = torch.from_numpy(premultiplied(hr)).permute(2, 0, 1).double()
    view = torch.from_numpy(premultiplied(lr)).permute(2, 0, 1).double()
    counts = torch.from_numpy((lr[..., :3] > 0) & (lr[..., :3] < 255)).permute(2, 0, 1)
    if frame.shape[0] == 4:
        counts = counts & opaque_support_mask(kernel, frame[3]) & (view[3:] > 0)
    errors = (kernel.down(frame[:3]) - view[:3])[counts]
    if errors.numel() == 0:
        return None
    return ConsistencyErrors(float(errors.square().mean().sqrt()), float(errors.abs().max()), errors.numel())


def projected(
    kernel: LRKernel, frame: Float[Tensor, "c H W"], lr: UInt8[np.ndarray, "h w c"]
) -> Float[Tensor, "c H W"]:
    """The frame nearest to `frame` whose LR version is the LR view: x + A^+ (y - A x), premultiplied, not clipped.

    With alpha only LR pixels speak whose whole HR support has alpha 0 or 1, and alpha stays as it is. Computed in
    float64. What clipping and rounding to 8 bit undo of it, the stored frame's `consistency_db` shows.
    """
    x = frame.double()
    y = torch.from_numpy(premultiplied(lr)).permute(2, 0, 1).to(x)
    mask = opaque_support_mask(kernel, x[3]) if len(x) == 4 else None
    return torch.cat([kernel.project(x[:3], y[:3], mask), x[3:]]).float()


@dataclass(frozen=True)
class Measured:
    """What is known of a frame: PSNR in dB over all LR values, and errors where the LR view is not saturated."""

    db: float | None
    errors: ConsistencyErrors | None


def write_report(
    folder: Path, kernel: tuple[str, str] | None, values: Mapping[str, Measured], stamp: str, degraded: bool = False
) -> Path:
    """Write FOLDER/consistency.json and warn about frames under 35 dB.

    Parameters
    ----------
    kernel : (kernel, border) of the LR views; None = there is none, nothing was measured.
    values : of each frame by name. stamp : remark that every result must carry ("" = none).
    degraded : the LR views were, so that there is no kernel.
    """
    measured = {name: found.db for name, found in values.items() if found.db is not None}
    errors = {name: found.errors for name, found in values.items() if found.errors is not None}
    low = {name: db for name, db in measured.items() if db < WARN_DB}
    worst = min(measured, key=lambda name: measured[name], default=None)
    report: dict[str, Any] = {
        "kernel": kernel[0] if kernel else None,
        "border": kernel[1] if kernel else None,
        "not_measured": None if kernel else unknown(degraded),
        "warn_below_db": WARN_DB,
        "mean_db": sum(measured.values()) / len(measured) if measured else None,
        "worst_db": measured[worst] if worst else None,
        "worst": worst,
        "mean_rms_levels": LEVELS * sum(e.rms for e in errors.values()) / len(errors) if errors else None,
        "max_levels": LEVELS * max(e.max for e in errors.values()) if errors else None,
        "frames": {name: found.db for name, found in values.items()},
        "errors": {name: _in_levels(found.errors) for name, found in values.items()},
    }
    write_json(folder / FILE_NAME, report | ({"stamp": stamp} if stamp else {}))
    if kernel is None:
        note(f"LR consistency not measured: {unknown(degraded)}")
    if low and worst:
        warn(
            f"{len(low)} of {len(values)} frames are under {WARN_DB:.0f} dB against their LR view, worst {worst} "
            f"with {measured[worst]:.1f} dB; does the network fit the way the LR views were made?"
        )
    return folder / FILE_NAME


def _in_levels(errors: ConsistencyErrors | None) -> dict[str, float] | None:
    return None if errors is None else {"rms_levels": LEVELS * errors.rms, "max_levels": LEVELS * errors.max}


def summary(folder: Path) -> str:
    """FOLDER/consistency.json in a few words, "" where nothing was measured."""
    found = read_json(folder / FILE_NAME)
    if found["mean_db"] is None:
        return ""
    said = f"LR consistency {found['mean_db']:.1f} dB in the mean"
    if found["mean_rms_levels"] is None:
        return said
    return f"{said}, rms {found['mean_rms_levels']:.2f} and at most {found['max_levels']:.1f} of 255 levels"
