"""How numbers were made: every result names its protocol, and results of different protocols are never mixed."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from utils.errors import UserError

UNKNOWN = "unknown"
PSNR_TEXT = "mean over views of the PSNR of 8-bit files, equal images count 100 dB"
SSIM_TEXT = "11x11 Gaussian sigma 1.5, zero padding, as in the 3DGS code"
LPIPS_TEXT = "LPIPS: VGG v0.1 fed 0..1 as in the 3DGS code; LPIPS_vgg, LPIPS_alex: fed -1..1; float32"
ROUNDED, FLOORED = "composited, rounded to 8 bit", "composited, floored to 8 bit"
OPAQUE = "opaque images"


@dataclass(frozen=True)
class Protocol:
    """What must be equal for two results to be compared. "unknown" and 0 mean: not recorded.

    Parameters
    ----------
    scene : name of the scene's folder.
    split, views, view_set : "test" or "train", how many views, hash of their names in order.
    resolution : "WIDTHxHEIGHT" of the compared images, or "several".
    background : "white", "black" or "unknown"; the models' own training background is no part of it.
    compositing : how the truth's alpha met the background (the paper floors, this project rounds).
    lr_kernel, lr_rounding, scale : how the LR views that were trained on were made; scale = HR size / LR size.
    rasterizer, antialiasing, dilation : what drew the renders.
    psnr, ssim, lpips : which definition of the metric.
    truth : hash of the pixels of all truths in order.
    clipiqa, dists, niqe : which definition and model of the extra metrics; "" = not measured.
    """

    scene: str = UNKNOWN
    split: str = "test"
    views: int = 0
    view_set: str = UNKNOWN
    resolution: str = UNKNOWN
    background: str = UNKNOWN
    compositing: str = UNKNOWN
    lr_kernel: str = UNKNOWN
    lr_rounding: str = UNKNOWN
    scale: float = 0.0
    rasterizer: str = UNKNOWN
    antialiasing: bool = False
    dilation: float = 0.3
    psnr: str = PSNR_TEXT
    ssim: str = SSIM_TEXT
    lpips: str = LPIPS_TEXT
    truth: str = UNKNOWN
    clipiqa: str = ""
    dists: str = ""
    niqe: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the fields by name, for metrics.json; without those of extra metrics that were not measured."""
        return {name: value for name, value in asdict(self).items() if value or name not in OF_EXTRA}


FIELDS = tuple(f.name for f in fields(Protocol))
# These follow from the scene: where a table shows the scene as a column, they may differ from scene to scene.
OF_SCENE = ("views", "view_set", "resolution", "compositing")
# These define metrics that are not always measured: compared only where both are.
OF_EXTRA = ("clipiqa", "dists", "niqe")
# These decide the truth's pixels: its hash is compared only where they are equal.
OF_TRUTH = ("scene", "split", "view_set", "resolution", "background", "compositing")
# These say how LR views were made: a model trained on the HR truth itself (scale 1, the bound) has none.
OF_LR = ("lr_kernel", "lr_rounding", "scale")


def from_json(value: Any, where: str) -> Protocol:
    """Read what `Protocol.to_json` wrote.

    Raises
    ------
    UserError : not an object, a field that is not known, or a value of another type; `where` names the source.
    """
    if not isinstance(value, dict):
        raise UserError(f"{where}: the protocol is not an object; measure again with metrics.py")
    for name, given in value.items():
        if name not in FIELDS:
            raise UserError(f"{where}: unknown protocol field {name!r}; measure again with this version's metrics.py")
        expected = type(getattr(Protocol(), name))
        if not isinstance(given, (int, float) if expected is float else expected):
            raise UserError(f"{where}: protocol field {name!r} is {given!r}, expected {expected.__name__}")
    return Protocol(**value)


def view_set_hash(names: Sequence[str]) -> str:
    """Identify a list of views: 12 hex digits of the SHA-256 of their names in order, one a line."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]


def first_difference(a: Protocol, b: Protocol, shown: Sequence[str] = ()) -> str | None:
    """Name the first field that forbids comparing `a` with `b`, or None.

    Parameters
    ----------
    shown : fields that the reader sees beside each number, which may therefore differ.
    """
    free = set(shown)
    if "scene" in free and a.scene != b.scene:
        free |= set(OF_SCENE)
    if a.truth == b.truth != UNKNOWN:
        free.add("scene")  # an LR scene and its HR scene have one truth and two folders
    if 1 in (a.scale, b.scale):
        free |= set(OF_LR)
    if any(getattr(a, name) != getattr(b, name) for name in OF_TRUTH):
        free.add("truth")
    free |= {name for name in OF_EXTRA if not (getattr(a, name) and getattr(b, name))}
    return next((name for name in FIELDS if name not in free and getattr(a, name) != getattr(b, name)), None)


def require_equal(named: Sequence[tuple[str, Protocol]], shown: Sequence[str] = ()) -> None:
    """Refuse to mix protocols.

    Parameters
    ----------
    named : (name for messages, protocol) of every result.
    shown : fields shown as a column of their own.

    Raises
    ------
    UserError : names the field that differs, both values, and the column that would allow it.
    """
    for i, (name_a, a) in enumerate(named):
        for name_b, b in named[:i]:
            field = first_difference(a, b, shown)
            if field is not None:
                raise UserError(
                    f"protocols differ in {field!r}: {getattr(b, field)!r} in {name_b}, {getattr(a, field)!r} in "
                    f"{name_a}; add {field} to --columns, or make one table each"
                )
