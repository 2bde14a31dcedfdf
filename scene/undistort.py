"""Lens distortion taken out of an image when it is decoded, so that everything after sees a pinhole.

The pinhole keeps the image size and the principal point. It keeps the focal lengths too where every pixel then has a
source (barrel distortion); otherwise both are enlarged by the smallest common factor that leaves no pixel without one:
an invented border would be trained on as if it had been seen.

OpenCV puts (0, 0) at the centre of the first pixel, we at its corner: 0.5 is subtracted from cx, cy on the way in.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from scene.alpha import premultiplied, straight
from scene.cameras import intrinsics
from utils.errors import UserError

MAX_ZOOM = 8.0  # a lens that needs more is not one that these models describe


@dataclass(frozen=True)
class Distortion:
    """Coefficients in OpenCV's order: (k1, k2, p1, p2[, k3, k4, k5, k6]), or (k1, k2, k3, k4) of a fisheye."""

    coefficients: tuple[float, ...]
    fisheye: bool = False

    @property
    def is_none(self) -> bool:
        return not self.fisheye and not any(self.coefficients)


@dataclass(frozen=True, eq=False)
class Undistortion:
    """From a distorted image of `size` (width, height) with `K` to the pinhole `K_pinhole` of the same size."""

    size: tuple[int, int]
    K: Float[np.ndarray, "3 3"]
    K_pinhole: Float[np.ndarray, "3 3"]
    distortion: Distortion

    def apply(self, image: UInt8[np.ndarray, "H W C"]) -> UInt8[np.ndarray, "H W C"]:
        """The undistorted image: bicubic, alpha premultiplied, rounded once. `image` must have `size`."""
        cv2 = _opencv()
        coefficients = np.array(self.distortion.coefficients)
        K, K_new = _centre_origin(self.K), _centre_origin(self.K_pinhole)
        initialise = cv2.fisheye.initUndistortRectifyMap if self.distortion.fisheye else cv2.initUndistortRectifyMap
        map_x, map_y = initialise(K, coefficients, np.eye(3), K_new, self.size, cv2.CV_32FC1)
        moved = cv2.remap(premultiplied(image), map_x, map_y, cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        return straight(moved)


def undistortion(
    K: Float[np.ndarray, "3 3"], size: tuple[int, int], distortion: Distortion, where: str
) -> Undistortion:
    """Choose the pinhole for a distorted camera.

    Parameters
    ----------
    K : [3, 3] pixels, corner origin, of the distorted image with `size` (width, height).
    where : names the file and the camera in the message.

    Raises
    ------
    UserError : no zoom up to 8 gives every pixel a source: the coefficients are not those of this camera.
    """
    low, high = 1.0, 1.0
    while not _covered(K, size, distortion, high):
        low, high = high, high * 1.25
        if high > MAX_ZOOM:
            raise UserError(
                f"{where}: distortion {distortion.coefficients} cannot be undone; run `colmap image_undistorter`"
            )
    for _ in range(20 if high > 1.0 else 0):  # bisect to 1e-6 of the zoom
        middle = 0.5 * (low + high)
        low, high = (low, middle) if _covered(K, size, distortion, middle) else (middle, high)
    return Undistortion(size, K, _zoomed(K, high), distortion)


def _zoomed(K: Float[np.ndarray, "3 3"], zoom: float) -> Float[np.ndarray, "3 3"]:
    return intrinsics(K[0, 0] * zoom, K[1, 1] * zoom, K[0, 2], K[1, 2])


def _covered(K: Float[np.ndarray, "3 3"], size: tuple[int, int], distortion: Distortion, zoom: float) -> bool:
    """Whether every border pixel of the zoomed pinhole image has its source inside the distorted image."""
    width, height = size
    x, y = np.arange(width) + 0.5, np.arange(height) + 0.5
    ones_x, ones_y = np.ones(width), np.ones(height)
    border = np.concatenate(
        [
            np.stack([x, 0.5 * ones_x], 1),
            np.stack([x, (height - 0.5) * ones_x], 1),
            np.stack([0.5 * ones_y, y], 1),
            np.stack([(width - 0.5) * ones_y, y], 1),
        ]
    )
    K_new = _zoomed(K, zoom)
    rays = (border - K_new[:2, 2]) / np.array([K_new[0, 0], K_new[1, 1]])
    source = _distorted_pixels(K, rays, distortion)
    with np.errstate(invalid="ignore"):
        inside = (source >= 0.0).all(1) & (source[:, 0] <= width) & (source[:, 1] <= height)
    return bool(inside.all())


def _distorted_pixels(
    K: Float[np.ndarray, "3 3"], rays: Float[np.ndarray, "M 2"], distortion: Distortion
) -> Float[np.ndarray, "M 2"]:
    """Corner-origin pixels of the distorted image in which rays (x/z, y/z) are seen."""
    cv2 = _opencv()
    coefficients = np.array(distortion.coefficients)
    if distortion.fisheye:
        pixels = cv2.fisheye.distortPoints(rays[:, None, :], K, coefficients)
    else:
        points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1)
        pixels, _ = cv2.projectPoints(points[:, None, :], np.zeros(3), np.zeros(3), K, coefficients)
    return pixels[:, 0, :]


def _centre_origin(K: Float[np.ndarray, "3 3"]) -> Float[np.ndarray, "3 3"]:
    shifted = K.copy()
    shifted[:2, 2] -= 0.5
    return shifted


def _opencv() -> Any:
    try:
        import cv2
    except ImportError as error:
        raise UserError("distorted images need OpenCV: pip install opencv-python-headless") from error
    return cv2
