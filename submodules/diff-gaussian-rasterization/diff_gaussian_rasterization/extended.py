"""Rendering with pinhole cameras: colour, alpha, depths and normals, all differentiable, the camera's pose too."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization.cameras import RasterCamera, view_of
from diff_gaussian_rasterization.checks import check_range
from diff_gaussian_rasterization.ops import render, wants_gradient

MAPS = {"inverse_depth": 1, "all": 2}


class RasterOutput(NamedTuple):
    """What `rasterize_extended` returns; with a sequence of C cameras every tensor has a leading axis C.

    color [3, H, W], background composed; alpha [H, W], 1 - transmittance; inverse_depth [H, W], sum of T alpha / z;
    radii int32 [N], 0 = not visible; with maps="all" also depth [H, W], the expected z = sum of T alpha z / sum of
    T alpha (0 where alpha is 0), and normal [3, H, W], sum of T alpha n in world axes, n the axis of the smallest scale
    turned towards the camera. Background counts 0 in depths and normals.
    """

    color: Tensor
    alpha: Tensor
    inverse_depth: Tensor
    radii: Tensor
    depth: Tensor | None = None
    normal: Tensor | None = None


def rasterize_extended(
    camera: RasterCamera | Sequence[RasterCamera],
    means: Tensor,
    opacities: Tensor,
    means2d: Tensor | None = None,
    *,
    sh: Tensor | None = None,
    colors: Tensor | None = None,
    scales: Tensor | None = None,
    quats: Tensor | None = None,
    covariances: Tensor | None = None,
    filter_3d: Tensor | None = None,
    means2d_abs: Tensor | None = None,
    maps: Literal["inverse_depth", "all"] = "inverse_depth",
    memory_limit: int | None = None,
) -> RasterOutput:
    """Render activated Gaussians; autograd reaches every tensor, except filter_3d, from all maps.

    Parameters
    ----------
    camera : RasterCamera, or C of them with one size, SH degree and antialiasing. A `world_to_camera` that requires
        grad gets its gradient.
    means [N, 3]; opacities [N, 1], 0-1; either sh [N, K, 3] or colors [N, 3]; either scales [N, 3] and quats [N, 4]
    (w x y z, any length) or covariances [N, 6] (xx xy xz yy yz zz).
    means2d : [N, 3] ([C, N, 3]) or None; its gradient becomes (dL/dx W/2, dL/dy H/2, 0), x and y in pixels.
    means2d_abs : the same shape or None; its gradient becomes the sums over pixels of the absolute values of these.
    filter_3d : [N] or None, standard deviation [world units] of the 3D smoothing filter, see `fused.filter_3d`.
    maps : "all" for depth and normals too; normals need scales and quats.
    memory_limit : [bytes] of each camera's scratch memory, 0 = none; None = that of `set_memory_limit`.
    All tensors are float32 on one device, which may be a GPU; there sh may be float16 where no gradient is wanted.

    Raises
    ------
    TypeError, ValueError : an argument does not fit; the message names it. MemoryError : the limit is too small.
    """
    if maps not in MAPS:
        raise ValueError(f"maps: expected one of {list(MAPS)}, got {maps!r}")
    if memory_limit is not None:
        check_range("memory_limit", memory_limit, 0, 1 << 62)
    rows, view = view_of(camera)
    color, transmittance, inverse_depth, depth_sum, normal, radii, _ = render(
        rows,
        means,
        opacities,
        sh,
        colors,
        scales,
        quats,
        covariances,
        filter_3d,
        means2d,
        means2d_abs,
        view,
        MAPS[maps],
        memory_limit,
        wants_gradient(rows, means, opacities, sh, colors, scales, quats, covariances, means2d, means2d_abs),
    )
    alpha = 1 - transmittance
    if maps == "inverse_depth":
        return RasterOutput(color, alpha, inverse_depth, radii)
    depth = depth_sum / torch.where(alpha > 0, alpha, 1.0)
    return RasterOutput(color, alpha, inverse_depth, radii, depth, normal)
