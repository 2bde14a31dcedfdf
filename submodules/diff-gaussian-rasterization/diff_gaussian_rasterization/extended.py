"""Rendering with a pinhole camera: colour, alpha and inverse depth, all differentiable."""

from typing import NamedTuple

from torch import Tensor

from diff_gaussian_rasterization.autograd import Splats, rasterize
from diff_gaussian_rasterization.fused import RasterCamera


class RasterOutput(NamedTuple):
    """color [3, H, W], background composed; alpha [H, W]; inverse_depth [H, W], sum of T alpha / z; radii int32 [N]."""

    color: Tensor
    alpha: Tensor
    inverse_depth: Tensor
    radii: Tensor


def rasterize_extended(
    camera: RasterCamera,
    means: Tensor,
    opacities: Tensor,
    means2d: Tensor | None = None,
    *,
    sh: Tensor | None = None,
    colors: Tensor | None = None,
    scales: Tensor | None = None,
    quats: Tensor | None = None,
    covariances: Tensor | None = None,
) -> RasterOutput:
    """Render activated Gaussians; autograd reaches every tensor from all three maps.

    Parameters
    ----------
    camera : RasterCamera.
    means [N, 3]; opacities [N, 1], 0-1; either sh [N, K, 3] or colors [N, 3]; either scales [N, 3] and quats [N, 4]
    (w x y z, any length) or covariances [N, 6] (xx xy xz yy yz zz).
    means2d : [N, 3] or None; its gradient becomes (dL/dx W/2, dL/dy H/2, 0), x and y in pixels.

    Raises
    ------
    TypeError, ValueError : an argument does not fit; the message names it.
    """
    splats = Splats(means, opacities, sh, colors, scales, quats, covariances).checked(camera.sh_degree)
    maps = rasterize(camera.native(), (camera.height, camera.width), splats, means2d, inverse_depth=True)
    assert maps.inverse_depth is not None
    return RasterOutput(maps.color, 1 - maps.transmittance, maps.inverse_depth, maps.radii)
