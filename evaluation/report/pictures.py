"""Pictures of a report: encoded small for display, inside the page or beside it; numbers never come from them."""

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from evaluation.report.html import Html, void
from scene.images import resized
from utils.atomic import write_bytes

BUDGET_BYTES = 12 << 20  # of pictures inside one page
MAX_SIDE_PX = 960
QUALITY = 86


@dataclass
class Pictures:
    """Where a page's pictures go.

    Parameters
    ----------
    folder : of the page; pictures are written into folder/images with --link.
    link : keep them beside the page instead of inside it.
    used_bytes : of the budget, so far.
    """

    folder: Path
    link: bool = False
    used_bytes: int = 0

    @property
    def full(self) -> bool:
        """Tell whether the page has taken its share of pictures."""
        return not self.link and self.used_bytes >= BUDGET_BYTES

    def source(self, image: UInt8[np.ndarray, "H W 3"], name: str, exact: bool = False) -> str:
        """Encode an image and return what an <img> takes as src.

        Parameters
        ----------
        name : file name under images/ with --link, without suffix.
        exact : lossless (LR views, thumbnails of a few pixels).
        """
        image = fitted(image)
        buffer = io.BytesIO()
        options = {"lossless": True} if exact else {"quality": QUALITY}
        Image.fromarray(np.ascontiguousarray(image)).save(buffer, "WEBP", method=4, **options)
        data = buffer.getvalue()
        if self.link:
            path = self.folder / "images" / f"{name.replace('/', '_')}.webp"
            write_bytes(path, data)
            return f"images/{path.name}"
        encoded = "data:image/webp;base64," + base64.b64encode(data).decode()
        self.used_bytes += len(encoded)
        return encoded

    def img(
        self, image: UInt8[np.ndarray, "H W 3"], name: str, alt: str, exact: bool = False, pixels: bool = False
    ) -> Html:
        """Make an <img>; `pixels` shows its pixels as squares when enlarged."""
        size = {"width": image.shape[1], "height": image.shape[0]}
        source = self.source(image, name, exact)
        return void("img", src=source, alt=alt, **size, class_="pixels" if pixels else None, loading="lazy")


def fitted(image: UInt8[np.ndarray, "H W 3"], side: int = MAX_SIDE_PX) -> UInt8[np.ndarray, "H W 3"]:
    """Reduce an image to at most `side` px on its longer side."""
    factor = side / max(image.shape[:2])
    if factor >= 1:
        return image
    return resized(image, max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
