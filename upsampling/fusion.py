"""Two sources of one frame: `external`, what a network makes of the LR views, and `internal`, what a 3D model shows.

IE-SRGS (AAAI 2026, arXiv 2511.22233): the model is trained on the LR views and rendered at HR; it is consistent over
the views but blurred, the network is sharp but invents. Where both differ strongly, the model is believed. Or both are
mixed evenly, the model as a teacher.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from scene.image_files import read_header
from upsampling.planes import alpha_plane, colour_plane, joined, quantised
from upsampling.sources import Views
from utils.errors import UserError

EPSILON = 1 / 255  # the paper leaves it open; a grey level, so that rounding on black is no disagreement


def fused(
    external: Float[Tensor, "c H W"], internal: Float[Tensor, "c H W"], threshold: float
) -> tuple[Float[Tensor, "c H W"], Bool[Tensor, "H W"]]:
    """The internal frame where D > threshold, the external one elsewhere; with alpha, colours are premultiplied.

    Returns
    -------
    the fused frame, and where it is the internal one.

    Notes
    -----
    D = |I - E| / (I + eps), both summed over RGB. The paper takes 0.6 on NeRF-synthetic and 0.9 on real scenes.
    Written without the division, so that a threshold of 0 gives the internal frame itself.
    """
    difference = (internal[:3] - external[:3]).abs().sum(0)
    believed = difference >= threshold * (internal[:3].sum(0) + 3 * EPSILON)
    return torch.where(believed, internal, external), believed


def mixed(external: Float[Tensor, "c H W"], internal: Float[Tensor, "c H W"], weight: float) -> Float[Tensor, "c H W"]:
    """(1 - weight) external + weight internal, weight in 0-1; colours premultiplied, alpha settled to 8 bit again."""
    planes = torch.lerp(external, internal, weight)
    return torch.cat([planes[:3], quantised(planes[3:])])


def internal_planes(image: UInt8[np.ndarray, "H W c"], lr: UInt8[np.ndarray, "h w c"]) -> Float[Tensor, "c H W"]:
    """Premultiplied planes of a stored frame, float32 in 0-1; alpha as `joined` settles it for every frame."""
    if image.shape[2] == 3:
        return colour_plane(image)
    return joined(colour_plane(image), alpha_plane(image), alpha_plane(lr))


def internal_files(
    folder: Path, names: Iterable[str], views: Views, scale: int, flag: str = "--internal"
) -> dict[str, Path]:
    """The internal frames FOLDER/NAME.png of views; only headers are read. `flag`: that names the folder.

    Raises
    ------
    UserError : one is missing, or is not `scale` times its LR view's size, or has alpha where the view has none.
    """
    files = {name: folder / f"{name}.png" for name in names}
    for name, path in files.items():
        if not path.is_file():
            raise UserError(f"{flag} {path}: no such frame; render.py --hr_frames {scale} makes them of a model")
        found, (w, h), alpha = read_header(path), views.size(name), views.has_alpha(name)
        if (found.width, found.height) != (scale * w, scale * h) or (found.channels == 4) != alpha:
            expected = f"{scale * w}x{scale * h} px with{'' if alpha else 'out'} alpha is expected"
            raise UserError(f"{flag} {path}: {found.width}x{found.height} px, {found.channels} channels; {expected}")
    return files
