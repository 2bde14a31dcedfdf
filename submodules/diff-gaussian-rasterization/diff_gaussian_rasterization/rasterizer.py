"""The Python API that 3DGS code expects: GaussianRasterizationSettings and GaussianRasterizer."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diff_gaussian_rasterization import _native
from diff_gaussian_rasterization.autograd import Splats, rasterize
from diff_gaussian_rasterization.checks import check_range
from diff_gaussian_rasterization.fused import FRUSTUM_MARGIN, MAX_SIDE_PX

NEAR_Z = 0.2
DILATION_PX2 = 0.3


class GaussianRasterizationSettings(NamedTuple):
    """A camera in the original's terms.

    Parameters
    ----------
    viewmatrix, projmatrix : [4, 4], transposed: points are rows, p_camera = [x y z 1] @ viewmatrix; projmatrix is the
        product of view and projection. Pixel positions come from it, so off-centre principal points work.
    tanfovx, tanfovy : half the image size over the focal length; used for the Jacobian, as in the original.
    prefiltered, debug : accepted and not needed.
    antialiasing : None = the 2023 generation, which returns (color, radii); True or False = the newer one, which
        returns (color, radii, inverse_depth).
    """

    image_height: int
    image_width: int
    tanfovx: float
    tanfovy: float
    bg: Tensor
    scale_modifier: float
    viewmatrix: Tensor
    projmatrix: Tensor
    sh_degree: int
    campos: Tensor
    prefiltered: bool = False
    debug: bool = False
    antialiasing: bool | None = None


class GaussianRasterizer(nn.Module):
    """Renders Gaussians with fixed settings."""

    def __init__(self, raster_settings: GaussianRasterizationSettings) -> None:
        super().__init__()
        self.raster_settings = raster_settings

    @torch.no_grad()
    def markVisible(self, positions: Tensor) -> Tensor:
        """Bool [N]: in front of the near plane, the original's only frustum test."""
        view = self.raster_settings.viewmatrix.to(positions)
        return positions @ view[:3, 2] + view[3, 2] > NEAR_Z

    def forward(
        self,
        means3D: Tensor,
        means2D: Tensor,
        opacities: Tensor,
        shs: Tensor | None = None,
        colors_precomp: Tensor | None = None,
        scales: Tensor | None = None,
        rotations: Tensor | None = None,
        cov3D_precomp: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """Render; see README.md for the shapes.

        Returns
        -------
        color [3, H, W], radii int32 [N], and inverse_depth [H, W] when the settings have an antialiasing value.

        Raises
        ------
        TypeError, ValueError : an argument or the settings do not fit; the message names it.
        """
        s = self.raster_settings
        splats = Splats(means3D, opacities, shs, colors_precomp, scales, rotations, cov3D_precomp).checked(s.sh_degree)
        maps = rasterize(
            native_camera(s), (s.image_height, s.image_width), splats, means2D, inverse_depth=s.antialiasing is not None
        )
        if maps.inverse_depth is None:
            return maps.color, maps.radii
        return maps.color, maps.radii, maps.inverse_depth


def native_camera(s: GaussianRasterizationSettings) -> Any:
    """The kernels' camera.

    Raises
    ------
    ValueError : matrices of another shape or not finite, or projmatrix is no pinhole projection after viewmatrix.
    """
    check_range("image_width", s.image_width, 0, MAX_SIDE_PX)
    check_range("image_height", s.image_height, 0, MAX_SIDE_PX)
    check_range("sh_degree", s.sh_degree, 0, 3)
    check_range("tanfovx", s.tanfovx, 1e-9, 1e9)
    check_range("tanfovy", s.tanfovy, 1e-9, 1e9)
    view, full = _matrix("viewmatrix", s.viewmatrix, (4, 4)).T, _matrix("projmatrix", s.projmatrix, (4, 4)).T
    projection = full @ np.linalg.inv(view)
    fixed = projection[[0, 0, 1, 1, 3, 3, 3, 3], [1, 3, 0, 3, 0, 1, 2, 3]]
    if not np.allclose(fixed, [0, 0, 0, 0, 0, 0, 1, 0], atol=1e-3 * max(1.0, float(np.abs(projection).max()))):
        raise ValueError("projmatrix: not viewmatrix times a pinhole projection with w = z and without skew")
    width, height = s.image_width, s.image_height
    return _native.make_camera(
        width=width,
        height=height,
        rotation=view[:3, :3].ravel().tolist(),
        translation=view[:3, 3].tolist(),
        centre=_matrix("campos", s.campos, (3,)).tolist(),
        pinhole=[
            projection[0, 0] * width / 2,
            projection[1, 1] * height / 2,
            ((projection[0, 2] + 1) * width - 1) / 2,
            ((projection[1, 2] + 1) * height - 1) / 2,
        ],
        jacobian_focal=[width / (2 * s.tanfovx), height / (2 * s.tanfovy)],
        slope_limit=[FRUSTUM_MARGIN * s.tanfovx, FRUSTUM_MARGIN * s.tanfovy],
        background=_matrix("bg", s.bg, (3,)).tolist(),
        scale_modifier=s.scale_modifier,
        dilation=DILATION_PX2,
        sh_degree=s.sh_degree,
        antialiasing=bool(s.antialiasing),
    )


def _matrix(name: str, value: Tensor, shape: tuple[int, ...]) -> np.ndarray:
    array = torch.as_tensor(value).detach().cpu().double().reshape(-1).numpy()
    if array.size != int(np.prod(shape)) or not np.isfinite(array).all():
        raise ValueError(f"{name}: expected {shape} finite numbers, got shape {tuple(torch.as_tensor(value).shape)}")
    return array.reshape(shape)
