"""Pinhole cameras in one convention, and the conversions into it.

Letters: `K` intrinsics in pixels, origin in the upper-left CORNER of the image (the centre of the first pixel is
(0.5, 0.5)); `world_to_camera` 4x4 with OpenCV axes (x right, y down, z forward); `R`, `t` its parts; `c2w` the inverse.
Readers convert once; nothing else in the project does.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import atan, isfinite
from typing import Any

import numpy as np
from jaxtyping import Float

from utils.errors import UserError

ORTHONORMAL_TOLERANCE = 1e-3  # largest entry of |R R^T - I| that is still read as rounding; lego's files have 1.3e-6


@dataclass(frozen=True, eq=False)
class Camera:
    """One view: where it stands and how it projects.

    Attributes
    ----------
    name : path of the image in the scene, without extension (`train/r_0`).
    width, height : pixels of the image in hand.
    K : [3, 3] float64, pixels, corner origin; no skew.
    world_to_camera : [4, 4] float64, OpenCV axes.
    """

    name: str
    width: int
    height: int
    K: Float[np.ndarray, "3 3"]
    world_to_camera: Float[np.ndarray, "4 4"]

    @property
    def fx(self) -> float:
        return float(self.K[0, 0])

    @property
    def fy(self) -> float:
        return float(self.K[1, 1])

    @property
    def cx(self) -> float:
        return float(self.K[0, 2])

    @property
    def cy(self) -> float:
        return float(self.K[1, 2])

    @property
    def fov_x(self) -> float:
        """Horizontal field of view in radians, as if the principal point were central (the 3DGS definition)."""
        return 2.0 * atan(self.width / (2.0 * self.fx))

    @property
    def fov_y(self) -> float:
        """Vertical field of view in radians, as if the principal point were central (the 3DGS definition)."""
        return 2.0 * atan(self.height / (2.0 * self.fy))

    @property
    def centre(self) -> Float[np.ndarray, "3"]:
        """Position of the camera in the world, C = -R^T t."""
        return -self.world_to_camera[:3, :3].T @ self.world_to_camera[:3, 3]

    def resized(self, width: int, height: int) -> "Camera":
        """The same camera for the same picture at width x height pixels (exact with the corner origin)."""
        K = scaled_intrinsics(self.K, width / self.width, height / self.height)
        return Camera(self.name, width, height, K, self.world_to_camera)

    def to_json(self, index: int) -> dict[str, Any]:
        """The entry of this camera in the `cameras.json` of the original 3DGS; rotation is camera to world."""
        return {
            "id": index,
            "img_name": self.name,
            "width": self.width,
            "height": self.height,
            "position": self.centre.tolist(),
            "rotation": self.world_to_camera[:3, :3].T.tolist(),
            "fy": self.fy,
            "fx": self.fx,
        }


def intrinsics(fx: float, fy: float, cx: float, cy: float) -> Float[np.ndarray, "3 3"]:
    """K [3, 3] float64 from focal lengths and principal point in pixels."""
    return np.array([[fx, 0.0, cx], [0.0, fy, cy], [0.0, 0.0, 1.0]])


def scaled_intrinsics(K: Float[np.ndarray, "3 3"], sx: float, sy: float) -> Float[np.ndarray, "3 3"]:
    """K of an image enlarged by sx horizontally and sy vertically."""
    return np.diag([sx, sy, 1.0]) @ K


def world_to_camera_from(R: Float[np.ndarray, "3 3"], t: Float[np.ndarray, "3"]) -> Float[np.ndarray, "4 4"]:
    """The 4x4 matrix of x_cam = R x + t."""
    matrix = np.eye(4)
    matrix[:3, :3] = R
    matrix[:3, 3] = t
    return matrix


def rotation_from_quaternion(wxyz: Sequence[float], where: str) -> Float[np.ndarray, "3 3"]:
    """Rotation of a quaternion (w, x, y, z), normalised first.

    Raises
    ------
    UserError : it is zero or not finite; `where` names the file and the image.
    """
    q = np.asarray(wxyz, dtype=np.float64)
    with np.errstate(over="ignore"):
        norm = float(np.linalg.norm(q))
    if not (np.isfinite(norm) and norm > 1e-12):
        raise UserError(f"{where}: rotation quaternion {list(wxyz)} is zero or not finite")
    w, x, y, z = q / norm
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def world_to_camera_from_opengl(value: Any, where: str, *, allow_3x4: bool = False) -> Float[np.ndarray, "4 4"]:
    """A JSON `transform_matrix` (camera to world, OpenGL axes) as our world_to_camera.

    Parameters
    ----------
    value : what the JSON file holds; must be four rows of four finite numbers, the last 0 0 0 1.
    where : names the file and the frame in the messages.
    allow_3x4 : accept a missing last row (some nerfstudio exporters).

    Raises
    ------
    UserError : wrong shape, not finite, mirrored, scaled or not orthonormal within 1e-3.
    """
    c2w = matrix_from_json(value, where, allow_3x4=allow_3x4)
    check_rotation(c2w[:3, :3], where)
    c2w[:3, 1:3] *= -1.0  # OpenGL (y up, z back) -> OpenCV (y down, z forward)
    R = c2w[:3, :3].T
    return world_to_camera_from(R, -R @ c2w[:3, 3])


def matrix_from_json(value: Any, where: str, *, allow_3x4: bool = False) -> Float[np.ndarray, "4 4"]:
    """A 4x4 affine matrix of finite numbers from nested JSON lists, or a UserError."""
    rows = value if isinstance(value, list) else []
    heights = (3, 4) if allow_3x4 else (4,)
    if len(rows) not in heights or not all(isinstance(row, list) and len(row) == 4 for row in rows):
        shape = f"{len(rows)}x{len(rows[0]) if rows and isinstance(rows[0], list) else 0}"
        raise UserError(f"{where}: transform_matrix is {shape}; a 4x4 matrix is needed")
    for number in (number for row in rows for number in row):
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise UserError(f"{where}: transform_matrix holds {number!r:.40}, which is not a number")
        if abs(number) > 1e30 or not isfinite(number):
            raise UserError(f"{where}: transform_matrix holds {number!r:.40}, not finite; fix or remove the frame")
    matrix = np.eye(4)
    matrix[: len(rows)] = np.array(rows, dtype=np.float64)
    if np.abs(matrix[3] - [0.0, 0.0, 0.0, 1.0]).max() > 1e-6:
        raise UserError(f"{where}: the last row of transform_matrix is {rows[3]}, not 0 0 0 1")
    return matrix


def check_rotation(R: Float[np.ndarray, "3 3"], where: str) -> None:
    """Refuse a 3x3 part that is scaled, mirrored or skewed: inverting it silently would misplace every ray."""
    if not np.isfinite(R).all():
        raise UserError(f"{where}: the pose is not finite; fix or remove the frame")
    gram = R @ R.T
    scale = float(np.sqrt(max(np.trace(gram) / 3.0, 0.0)))
    off = float(np.abs(gram - np.eye(3)).max())
    if off > ORTHONORMAL_TOLERANCE:
        if scale > 0 and np.abs(gram / scale**2 - np.eye(3)).max() <= ORTHONORMAL_TOLERANCE:
            raise UserError(f"{where}: the rotation is scaled by {scale:.6g}; divide the poses by it and export again")
        raise UserError(
            f"{where}: the rotation is not orthonormal (by {off:.3g}, {ORTHONORMAL_TOLERANCE:g} is allowed)"
        )
    if np.linalg.det(R) < 0:
        raise UserError(f"{where}: the rotation is mirrored (determinant -1); its axes are not OpenGL's")
