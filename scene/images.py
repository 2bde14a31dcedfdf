"""The images of a scene: decoded on demand, kept as uint8 only, composited when used."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path
from threading import Lock

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image
from torch import Tensor

from scene.alpha import composite, composite_planes, premultiplied, straight
from scene.image_files import ImageHeader, read_header, read_image, write_png
from scene.undistort import Undistortion
from utils.errors import UserError

__all__ = ["ImageStore", "composite", "premultiplied", "read_image", "resized", "straight", "working_size", "write_png"]

WIDTH_CAP = 1600  # -r -1 of the original 3DGS


class ImageStore:
    """Images by view name; what is kept in memory is uint8 and bounded, whatever the number of views.

    Parameters
    ----------
    paths : file of each view.
    sizes : (width, height) that each view is delivered at; where it differs from the file's, the image is resized
        (antialiased bicubic). Views left out come as they are.
    budget_bytes : bound of the decoded images kept; the least recently used go first.
    undistortions : lenses to take out, at the size of the file.
    truncate : composite as the paper's release does, dropping the fraction of a grey level instead of rounding.
    """

    def __init__(
        self,
        paths: Mapping[str, Path],
        sizes: Mapping[str, tuple[int, int]] | None = None,
        budget_bytes: int = 2 << 30,
        *,
        undistortions: Mapping[str, Undistortion] | None = None,
        truncate: bool = False,
    ) -> None:
        self._paths = dict(paths)
        self._sizes = dict(sizes or {})
        self._undistortions = dict(undistortions or {})
        self._headers: dict[str, ImageHeader] = {}
        self._kept: OrderedDict[str, np.ndarray] = OrderedDict()
        self._kept_bytes = 0
        self._lock = Lock()  # loaders may prefetch from threads
        self.budget_bytes = budget_bytes
        self.truncate = truncate

    def __contains__(self, name: object) -> bool:
        return name in self._paths

    def __iter__(self) -> Iterator[str]:
        return iter(self._paths)

    def __len__(self) -> int:
        return len(self._paths)

    def path(self, name: str) -> Path:
        """The file of a view. Raises UserError for a name that the scene does not have."""
        if name not in self._paths:
            raise UserError(f"view {name!r} is not in this scene; its views are {_some(self._paths)}")
        return self._paths[name]

    def header(self, name: str) -> ImageHeader:
        """Size and channels of the file, read once, without decoding."""
        if name not in self._headers:
            self._headers[name] = read_header(self.path(name))
        return self._headers[name]

    def size(self, name: str) -> tuple[int, int]:
        """(width, height) in px of what `raw` and `load` give."""
        return self._sizes.get(name) or (self.header(name).width, self.header(name).height)

    def undistorts(self, name: str) -> bool:
        """Whether a lens is taken out of this view when it is decoded."""
        return name in self._undistortions

    def has_alpha(self, name: str) -> bool:
        return self.header(name).channels == 4

    def raw(self, name: str) -> UInt8[np.ndarray, "H W C"]:
        """uint8 [H, W, 3], or [H, W, 4] with straight alpha; channel by channel in memory. Read only.

        Raises
        ------
        UserError : unknown name, or the file cannot be decoded (see `read_image`).
        """
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name]
        image = self.decode(name)
        image.setflags(write=False)
        with self._lock:
            if name not in self._kept and image.nbytes <= self.budget_bytes:
                self._kept[name] = image
                self._kept_bytes += image.nbytes
            while self._kept_bytes > self.budget_bytes:
                _, oldest = self._kept.popitem(last=False)
                self._kept_bytes -= oldest.nbytes
        return image

    def load(self, name: str, background: tuple[float, float, float] = (0.0, 0.0, 0.0)) -> Float[Tensor, "3 H W"]:
        """float32 [3, H, W] in 0-1, composited on `background` (RGB 0-1) where the file has alpha."""
        return torch.from_numpy(composite_planes(self.raw(name), background, truncate=self.truncate))

    def decode(self, name: str) -> UInt8[np.ndarray, "H W C"]:
        """The same as `raw`, decoded anew and not kept: for who keeps it elsewhere."""
        image = read_image(self.path(name))
        if name in self._undistortions:
            image = self._undistortions[name].apply(image)
        image = resized(image, *self.size(name)) if name in self._sizes else image
        planes = np.ascontiguousarray(image.transpose(2, 0, 1))  # as composite_planes reads them fastest
        return planes.transpose(1, 2, 0)


def working_size(width: int, height: int, resolution: int) -> tuple[int, int]:
    """The size that -r/--resolution asks for, as the original 3DGS computes it.

    Parameters
    ----------
    resolution : 1, 2, 4, 8 divide (rounded); -1 caps the width at 1600 px; any other number is a width in px.

    Raises
    ------
    UserError : resolution is 0 or below -1, or more than four times the width of the file.
    """
    if resolution in (1, 2, 4, 8):
        return max(round(width / resolution), 1), max(round(height / resolution), 1)
    if resolution == -1:
        factor = max(width / WIDTH_CAP, 1.0)
    elif 0 < resolution <= 4 * width:
        factor = width / resolution
    else:
        raise UserError(
            f"--resolution {resolution}: 1, 2, 4, 8 divide, -1 caps the width at 1600 px, else a width in px"
        )
    # 3DGS truncates; the small addend keeps an exact quotient from falling to the integer below.
    return max(int(width / factor + 1e-9), 1), max(int(height / factor + 1e-9), 1)


def resized(image: UInt8[np.ndarray, "H W C"], width: int, height: int) -> UInt8[np.ndarray, "{height} {width} C"]:
    """The image at width x height px: antialiased bicubic in float on premultiplied colour, rounded once."""
    if image.shape[:2] == (height, width):
        return image
    planes = premultiplied(image)
    bands = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(planes[..., c])).resize((width, height), Image.Resampling.BICUBIC)
        )
        for c in range(planes.shape[2])
    ]
    return straight(np.stack(bands, axis=2))


def _some(names: Mapping[str, Path], limit: int = 3) -> str:
    listed = list(names)[:limit]
    return ", ".join(listed) + (", ..." if len(names) > limit else "")
