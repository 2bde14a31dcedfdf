"""The Python API that 3DGS code expects: GaussianRasterizationSettings and GaussianRasterizer."""

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from diff_gaussian_rasterization.cameras import FRUSTUM_MARGIN, MAX_SIDE_PX, ROW
from diff_gaussian_rasterization.checks import CPU, check_finite, check_range
from diff_gaussian_rasterization.operators import operator
from diff_gaussian_rasterization.ops import render, wants_gradient

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
        return (positions * view[:3, 2]).sum(dim=-1) + view[3, 2] > NEAR_Z

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
        rows = original_camera(
            s.viewmatrix.detach(),
            s.projmatrix.detach(),
            s.campos.detach(),
            s.bg.detach(),
            s.image_width,
            s.image_height,
            s.tanfovx,
            s.tanfovy,
            s.scale_modifier,
        )
        color, _, inverse_depth, _, _, radii, _ = render(
            rows,
            means3D,
            opacities,
            shs,
            colors_precomp,
            scales,
            rotations,
            cov3D_precomp,
            None,
            means2D,
            None,
            [s.image_width, s.image_height, s.sh_degree, int(bool(s.antialiasing))],
            int(s.antialiasing is not None),
            None,
            wants_gradient(means3D, means2D, opacities, shs, colors_precomp, scales, rotations, cov3D_precomp),
        )
        return (color, radii) if s.antialiasing is None else (color, radii, inverse_depth)


def _original_camera_fake(
    viewmatrix, projmatrix, campos, background, width, height, tanfovx, tanfovy, scale_modifier
):  # fmt: skip
    return torch.empty(ROW, dtype=torch.float64, device=CPU)


@operator(_original_camera_fake, dispatch_keys=("CompositeExplicitAutograd",))
def original_camera(
    viewmatrix: Tensor,
    projmatrix: Tensor,
    campos: Tensor,
    background: Tensor,
    width: int,
    height: int,
    tanfovx: float,
    tanfovy: float,
    scale_modifier: float,
) -> Tensor:
    """The original's settings as a row of cameras.py, float64 [28]; no gradient goes through.

    Raises
    ------
    ValueError : matrices of another shape or not finite, or projmatrix is no pinhole projection after viewmatrix.
    """
    check_range("image_width", width, 0, MAX_SIDE_PX)
    check_range("image_height", height, 0, MAX_SIDE_PX)
    check_range("tanfovx", tanfovx, 1e-9, 1e9)
    check_range("tanfovy", tanfovy, 1e-9, 1e9)
    check_finite("scale_modifier", scale_modifier)
    names = ("viewmatrix", "projmatrix", "campos", "bg")
    view, full, centre, colour = _values(names, (viewmatrix, projmatrix, campos, background), (16, 16, 3, 3))
    # The arguments are transposed: of column vectors, projmatrix = projection viewmatrix.
    projection = np.linalg.solve(np.reshape(view, (4, 4)), np.reshape(full, (4, 4))).T.tolist()
    (fx, skew_x, cx, shift_x), (skew_y, fy, cy, shift_y), _, (wx, wy, wz, shift_w) = projection
    off = max(map(abs, (skew_x, shift_x, skew_y, shift_y, wx, wy, wz - 1, shift_w)))
    if not off <= 1e-3 * max(1.0, *(abs(v) for line in projection for v in line)):
        raise ValueError("projmatrix: not viewmatrix times a pinhole projection with w = z and without skew")
    row = [
        *(view[4 * column + line] for line in range(3) for column in range(3)),
        *view[12:15],
        *centre,
        fx * width / 2,
        fy * height / 2,
        ((cx + 1) * width - 1) / 2,
        ((cy + 1) * height - 1) / 2,
        width / (2 * tanfovx),
        height / (2 * tanfovy),
        FRUSTUM_MARGIN * tanfovx,
        FRUSTUM_MARGIN * tanfovy,
        *colour,
        scale_modifier,
        DILATION_PX2,
    ]
    return torch.tensor(row, dtype=torch.float64, device=CPU)


def _values(names: tuple[str, ...], tensors: tuple[Tensor, ...], counts: tuple[int, ...]) -> list[list[float]]:
    """Values of each tensor, checked; read from their device at once."""
    for name, tensor, count in zip(names, tensors, counts, strict=True):
        if tensor.numel() != count:
            raise ValueError(f"{name}: expected {count} finite numbers, got shape {tuple(tensor.shape)}")
    flat = [tensor.detach().flatten() for tensor in tensors]
    if not all(tensor.is_cpu for tensor in tensors):  # one copy and one wait
        flat = list(torch.cat([t.to(flat[0].device, torch.float64) for t in flat]).cpu().split(counts))
    found: list[list[float]] = [t.tolist() for t in flat]
    for name, values in zip(names, found, strict=True):
        if not all(map(math.isfinite, values)):
            raise ValueError(f"{name}: expected {len(values)} finite numbers, got {values}")
    return found
