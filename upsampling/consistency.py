"""LR consistency: does an HR frame, made small again by the operator that made the LR views, give its LR view back?

It needs no truth, so it finds frames that went wrong (wrong network for the data, broken flow) on any scene.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from scene.alpha import premultiplied
from scene.degradation_file import FILE_NAME as DEGRADED
from scene.lr_kernel import LRKernel, opaque_support_mask
from utils.atomic import write_json
from utils.errors import UserError
from utils.log import note, warn

FILE_NAME = "consistency.json"
WARN_DB = 35.0
BEST_DB = 100.0  # what two equal images are given; JSON has no infinity


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


def refuse_unknown(kernel: tuple[str, str] | None, root: Path | None = None) -> None:
    """Raise UserError where frames are to be projected and nothing says how the LR views were made.

    `root`: folder of the scene, where there is one; its views may be degraded, whatever --lr_kernel says.
    """
    if root is not None and (root / DEGRADED).is_file():
        raise UserError(
            f"--project: the LR views of {root} were degraded ({DEGRADED}: blur, noise, JPEG), and projecting onto "
            "them would undo the upsampling; leave --project out"
        )
    if kernel is None:
        raise UserError(
            "--project: no LR kernel is known; say with --lr_kernel how the LR views were made: bicubic, area or a "
            "JSON file"
        )


def write_report(folder: Path, kernel: tuple[str, str] | None, values: Mapping[str, float | None], stamp: str) -> Path:
    """Write FOLDER/consistency.json and warn about frames under 35 dB.

    Parameters
    ----------
    kernel : (kernel, border) of the LR views; None = not known, nothing was measured.
    values : dB of each frame by name; None = not measurable.
    stamp : remark that every result must carry ("" = none).
    """
    measured = {name: db for name, db in values.items() if db is not None}
    low = {name: db for name, db in measured.items() if db < WARN_DB}
    worst = min(measured, key=lambda name: measured[name], default=None)
    report: dict[str, Any] = {
        "kernel": kernel[0] if kernel else None,
        "border": kernel[1] if kernel else None,
        "warn_below_db": WARN_DB,
        "mean_db": sum(measured.values()) / len(measured) if measured else None,
        "worst_db": measured[worst] if worst else None,
        "worst": worst,
        "frames": dict(values),
    }
    write_json(folder / FILE_NAME, report | ({"stamp": stamp} if stamp else {}))
    if kernel is None:
        note("LR consistency not measured: no LR kernel is known (--lr_kernel bicubic, area or a JSON file)")
    if low and worst:
        warn(
            f"{len(low)} of {len(values)} frames are under {WARN_DB:.0f} dB against their LR view, worst {worst} "
            f"with {measured[worst]:.1f} dB; does the network fit the way the LR views were made?"
        )
    return folder / FILE_NAME
