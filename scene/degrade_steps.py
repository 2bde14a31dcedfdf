"""The steps that a degradation is made of, and their order: blur, resize, noise, JPEG, each with its drawn values.

An image here is float64 RGB [H, W, 3] in 0-1, clipped after every step but resizing and blurring. Pixel j covers
[j, j + 1] and every resize maps the whole image onto the whole image, so that poses stay right whatever the sizes.
"""

import io
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float64, UInt8
from PIL import Image
from torch.nn.functional import interpolate

from scene.alpha import premultiplied, straight
from scene.degrade_kernels import Blur, blurred
from scene.lr_kernel import LRKernel, Size
from utils.errors import UserError

LUMA = (0.299, 0.587, 0.114)  # Rec. 601


@dataclass(frozen=True)
class Resize:
    """To `factor` times the size of the HR image (`of` = "hr") or of the LR image ("lr").

    mode : area (exact box), bilinear and bicubic (a = -0.75) without antialiasing, or antialiased (bicubic, a = -0.5,
        from HR to LR only).
    """

    mode: str
    factor: float = 1.0
    of: str = "lr"


@dataclass(frozen=True)
class Noise:
    """`kind` gaussian: `level` is its standard deviation, 0-1. poisson: of photons, times `level`.

    grey : one realisation for all three channels.
    """

    kind: str
    level: float
    grey: bool = False


@dataclass(frozen=True)
class Jpeg:
    """Written and read as a JPEG of this quality, 1-100 (libjpeg), chroma at half size."""

    quality: int


Step = Blur | Resize | Noise | Jpeg
NAMES: dict[str, type] = {"blur": Blur, "resize": Resize, "noise": Noise, "jpeg": Jpeg}


def to_json(steps: tuple[Step, ...]) -> list[dict[str, Any]]:
    """The steps as JSON values: {"step": name, field: value, ...} each."""
    names = {cls: name for name, cls in NAMES.items()}
    return [{"step": names[type(s)]} | {k: _listed(v) for k, v in asdict(s).items()} for s in steps]


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def from_json(values: list[dict[str, Any]], where: str) -> tuple[Step, ...]:
    """The inverse of `to_json`. Raises UserError for a step or field that is not known; `where` names the source."""
    try:
        return tuple(
            NAMES[v["step"]](**{k: tuple(x) if isinstance(x, list) else x for k, x in v.items() if k != "step"})
            for v in values
        )
    except (KeyError, TypeError) as error:
        raise UserError(f"{where}: not the steps of a degradation ({error})") from error


def degraded(
    image: UInt8[np.ndarray, "H W C"], steps: tuple[Step, ...], used: Size, lr: Size, seed: int
) -> UInt8[np.ndarray, "h w C"]:
    """An LR view: the HR image after all steps, rounded to 8 bit once.

    Parameters
    ----------
    image : RGB, or RGBA with straight alpha; what lies right of `used` or below is cropped.
    steps : the last resize of them leads to the LR size.
    seed : of the noise's realisation.

    Raises
    ------
    UserError : the steps do not end at the LR size.

    Notes
    -----
    Premultiplied colour is degraded; alpha is only made small (antialiased bicubic). Colour is divided by it at the
    end, so noise and ringing outside the object vanish with it.
    """
    width, height = used
    planes = premultiplied(image[:height, :width]).astype(np.float64)
    colour = planes[..., :3]
    for index, step in enumerate(steps):
        colour = applied(step, colour, used, lr, np.random.default_rng([seed, index]))
    if colour.shape[:2] != (lr[1], lr[0]):
        raise UserError(f"degradation: its steps end at {colour.shape[1]}x{colour.shape[0]} px, not at {lr}")
    if planes.shape[2] == 4:
        alpha = torch.from_numpy(np.ascontiguousarray(planes[..., 3]))
        small = LRKernel("bicubic", "renormalise", used, lr).down(alpha).numpy()
        colour = np.concatenate([colour, small[..., None]], axis=2)
    return straight(colour)


def applied(
    step: Step, image: Float64[np.ndarray, "H W 3"], hr: Size, lr: Size, rng: np.random.Generator
) -> Float64[np.ndarray, "H2 W2 3"]:
    """The image after one step; `rng` makes its noise."""
    if isinstance(step, Blur):
        return blurred(image, step)
    if isinstance(step, Resize):
        base = lr if step.of == "lr" else hr
        return resized(image, (max(round(base[0] * step.factor), 1), max(round(base[1] * step.factor), 1)), step.mode)
    if isinstance(step, Noise):
        return noisy(image, step, rng)
    return jpeg(image, step.quality)


def resized(image: Float64[np.ndarray, "H W C"], size: Size, mode: str) -> Float64[np.ndarray, "h w C"]:
    """The image at `size` (width, height) px; see `Resize` for the modes."""
    here = image.shape[1], image.shape[0]
    if here == size:
        return image
    if mode == "area":
        return _boxed(_boxed(image, size[1]).transpose(1, 0, 2), size[0]).transpose(1, 0, 2)
    planes = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    if mode == "antialiased":
        small = torch.stack([LRKernel("bicubic", "renormalise", here, size).down(plane) for plane in planes])
    else:  # the size, never a factor: torch would take the factor for the ratio of the sizes, and shift the picture
        small = interpolate(planes[None], size=(size[1], size[0]), mode=mode, align_corners=False)[0]
    return small.permute(1, 2, 0).numpy()


def _boxed(image: Float64[np.ndarray, "n W C"], rows: int) -> Float64[np.ndarray, "{rows} W C"]:
    """Means over `rows` equal boxes of the first axis: differences of its running integral."""
    n = len(image)
    integral = np.concatenate([np.zeros_like(image[:1]), np.cumsum(image, axis=0)])
    edges = np.arange(rows + 1) * (n / rows)
    whole = np.minimum(edges.astype(int), n - 1)
    at_edges = integral[whole] + (edges - whole)[:, None, None] * image[whole]
    return np.diff(at_edges, axis=0) * (rows / n)


def noisy(image: Float64[np.ndarray, "H W 3"], noise: Noise, rng: np.random.Generator) -> Float64[np.ndarray, "H W 3"]:
    """The image with noise, clipped.

    Notes
    -----
    Poisson, as in Real-ESRGAN: the image at 8 bit is a mean count of photons, v of them at white with v the number of
    grey levels in the image, rounded up to a power of two; what the draw differs from it is scaled and added.
    """
    if noise.kind == "gaussian":
        shape = (*image.shape[:2], 1) if noise.grey else image.shape
        return (image + noise.level * rng.standard_normal(shape)).clip(0.0, 1.0)
    light = (image @ np.array(LUMA))[..., None] if noise.grey else image
    light = np.rint(light.clip(0.0, 1.0) * 255.0) / 255.0
    white = 2.0 ** np.ceil(np.log2(max(len(np.unique(light)), 2)))
    return (image + noise.level * (rng.poisson(light * white) / white - light)).clip(0.0, 1.0)


def jpeg(image: Float64[np.ndarray, "H W 3"], quality: int) -> Float64[np.ndarray, "H W 3"]:
    """The image as a JPEG file gives it back."""
    with Image.open(io.BytesIO(jpeg_bytes(image, quality)), formats=["JPEG"]) as opened:
        return np.asarray(opened.convert("RGB"), np.float64) / 255.0


def jpeg_bytes(image: Float64[np.ndarray, "H W 3"], quality: int) -> bytes:
    """The image as a JPEG file."""
    buffer = io.BytesIO()
    levels = np.rint(image.clip(0.0, 1.0) * 255.0).astype(np.uint8)
    Image.fromarray(levels).save(buffer, "JPEG", quality=quality, subsampling="4:2:0")
    return buffer.getvalue()
