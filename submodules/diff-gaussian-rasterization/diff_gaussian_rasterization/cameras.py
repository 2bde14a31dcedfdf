"""Cameras as rows of numbers: what the kernels read, in one tensor that autograd and torch.compile can follow.

A row is float64 [28]: rotation 9 (world to camera, row major), translation 3, centre 3 (camera position in the world),
pinhole 4 (fx, fy, cx, cy in px, pixel centres at integers), Jacobian's focal lengths 2 [px], limits of x/z and y/z in
the Jacobian 2, background 3, scale modifier, dilation [px^2]. Several cameras are [C, 28].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diff_gaussian_rasterization.checks import CPU, check_finite, check_range

ROW = 28
POSE = 15  # leading entries that have a gradient: rotation, translation, centre
MAX_SIDE_PX = 1 << 15
FRUSTUM_MARGIN = 1.3  # J is linearised no further out than this times tan(fov / 2)


@dataclass(frozen=True, eq=False)
class RasterCamera:
    """A pinhole camera and how to draw with it.

    Parameters
    ----------
    width, height : [px]
    fx, fy, cx, cy : [px], corner-origin: the centre of the first pixel is at 0.5.
    world_to_camera : [4, 4], OpenCV axes (x right, y down, z forward); array or tensor. One that requires grad gets
        its gradient from `rasterize_extended`; the values of anything else are taken once, here.
    background : three values.
    sh_degree : bands used, 0 to 3; higher ones in `shN` are left out and get zero gradient.
    scale_modifier : factor on all scales.
    antialiasing : opacity is scaled by sqrt(det without / det with dilation), Mip-Splatting's 2D filter.
    dilation : [px^2], added to both screen variances; 0.3 in 3D Gaussian Splatting, 0.1 in Mip-Splatting.

    Raises
    ------
    ValueError : a value is out of range; the message names it.
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    world_to_camera: np.ndarray | Tensor
    background: Sequence[float] | Tensor = (0.0, 0.0, 0.0)
    sh_degree: int = 3
    scale_modifier: float = 1.0
    antialiasing: bool = False
    dilation: float = 0.3

    _row: Tensor | None = field(init=False, repr=False)
    _rest: Tensor | None = field(init=False, repr=False)  # what follows the pose, if there is no row

    def __post_init__(self) -> None:
        check_range("width", self.width, 0, MAX_SIDE_PX)
        check_range("height", self.height, 0, MAX_SIDE_PX)
        check_range("sh_degree", self.sh_degree, 0, 3)
        check_range("fx", self.fx, 1e-6, 1e9)
        check_range("fy", self.fy, 1e-6, 1e9)
        check_range("dilation", self.dilation, 0, 1e9)
        background = self.background
        background = background.tolist() if isinstance(background, Tensor) else [*map(float, background)]
        if len(background) != 3:
            raise ValueError(f"background: expected three values, got {len(background)}")
        values = {"cx": self.cx, "cy": self.cy, "scale_modifier": self.scale_modifier}
        for name, value in (*values.items(), *(("background", b) for b in background)):
            check_finite(name, value)
        pose = self.world_to_camera
        if tuple(pose.shape) != (4, 4):
            raise ValueError(f"world_to_camera: expected a [4, 4] matrix, got {list(pose.shape)}")
        lens = [self.fx, self.fy, self.cx - 0.5, self.cy - 0.5, self.fx, self.fy]
        lens += [FRUSTUM_MARGIN * self.width / (2 * self.fx), FRUSTUM_MARGIN * self.height / (2 * self.fy)]
        lens += [*background, self.scale_modifier, self.dilation]
        if isinstance(pose, Tensor) and (pose.requires_grad or torch.compiler.is_compiling()):
            row, rest = None, torch.tensor(lens, dtype=torch.float64, device=CPU)
        else:
            row, rest = torch.tensor([*_pose_values(pose), *lens], dtype=torch.float64, device=CPU), None
        object.__setattr__(self, "_row", row)
        object.__setattr__(self, "_rest", rest)

    @property
    def row(self) -> Tensor:
        """float64 [28], see the module docstring; differentiable in a `world_to_camera` that requires grad.

        Always on the CPU: the kernels get its values as arguments. A pose on a GPU is read from there each time.
        """
        if self._row is not None:
            return self._row
        assert isinstance(self.world_to_camera, Tensor)
        assert self._rest is not None
        pose = self.world_to_camera.to("cpu", torch.float64)
        rotation, translation = pose[:3, :3], pose[:3, 3]
        return torch.cat([rotation.reshape(9), translation, torch.linalg.solve(rotation, -translation), self._rest])


def _pose_values(pose: np.ndarray | Tensor) -> list[float]:
    array = np.asarray(pose.detach().cpu() if isinstance(pose, Tensor) else pose, dtype=np.float64)
    if not np.isfinite(array).all():
        raise ValueError("world_to_camera: expected a finite [4, 4] matrix")
    rotation, translation = array[:3, :3], array[:3, 3]
    try:
        centre = np.linalg.solve(rotation, -translation)
    except np.linalg.LinAlgError as error:
        raise ValueError(f"world_to_camera: its 3x3 part has no inverse ({error})") from error
    return [*rotation.ravel().tolist(), *translation.tolist(), *centre.tolist()]


def view_of(camera: RasterCamera | Sequence[RasterCamera]) -> tuple[Tensor, list[int]]:
    """What the operators take of one camera, or of several that share the view.

    Returns
    -------
    rows float64 [28], or [C, 28]; and the view: width, height, SH degree, antialiasing (0 or 1).

    Raises
    ------
    ValueError : an empty sequence, or cameras that differ in what they must share.
    """
    if isinstance(camera, RasterCamera):
        return camera.row, _view(camera)
    if not camera:
        raise ValueError("camera: expected a RasterCamera or a sequence of at least one")
    views = [_view(c) for c in camera]
    if any(view != views[0] for view in views):
        raise ValueError(f"camera: all of a call must have one width, height, sh_degree and antialiasing, got {views}")
    return torch.stack([c.row for c in camera]), views[0]


def _view(camera: RasterCamera) -> list[int]:
    return [camera.width, camera.height, camera.sh_degree, int(camera.antialiasing)]
