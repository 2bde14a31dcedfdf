"""Sub-pixel information: how much of an HR frame the LR views of a scene determine, point by point of the surface.

An LR view samples a surface once a pixel. Another view that samples the same surface between those positions tells
something new, one that samples it at the same positions does not, however near it is. So cut each LR pixel of a view
into s x s cells, s the factor of super-resolution, and ask which of them hold a sample of any view:

    h    = M r + q k              r = (u, v, 1) a pixel of view i, q = 1 / z there; h = homogeneous pixel of view j
    M, k = K_j R K_i^-1, K_j t    of the relative pose; (u', v') = (h0, h1) / h2, depth in j = h2 z
    J    = d(u', v') / d(u, v)    from h and the slope of q, which is constant on a plane
    d    = J^-1 (c - (u', v'))    c = the pixel centre of j nearest to (u', v'): where j sampled, in pixels of i
    w    = min(1, smallest singular value of J)       below 1 where j sees the surface coarser than i does
    I    = 1 / s^2  sum over cells of max w over the samples in the cell;    i itself holds cell (0, 0) with w = 1

I is 1 / s^2 where one view alone sees the point, and 1 where the samples fill the grid: there an image finer by s is a
question of inverting the LR kernel. Elsewhere what a frame shows beyond LR is the network's knowledge of images.
Cells have their middles at multiples of 1 / s, so that cell (0, 0) lies around a pixel's centre.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from scene.cameras import Camera
from upsampling.geometry import visible

DEPTH_TOLERANCE = 0.03  # relative; what depth from a model trained on LR views needs
SLOPE_REACH_PX = 2  # the slope of 1 / z is fitted over 5 x 5 pixels
SAME_SURFACE = 0.05  # of 1 / z: pixels of the window that differ more lie on another surface


@dataclass(frozen=True, eq=False)
class SurfaceView:
    """What one LR view sees.

    Parameters
    ----------
    camera : at the size of `z`.
    z : [h, w] float32, depth along the camera axis in world units, 0 = background.
    """

    camera: Camera
    z: Float[Tensor, "h w"]


def information_maps(
    views: Mapping[str, SurfaceView],
    scale: int,
    among: Mapping[str, Sequence[str]] | None = None,
    tolerance: float = DEPTH_TOLERANCE,
) -> Iterator[tuple[str, Float[Tensor, "h w"]]]:
    """Compute the information map of every view.

    Parameters
    ----------
    views : by name, all on one device.
    scale : s, HR size / LR size, at least 2.
    among : names of the views that may sample for each; all others by default.
    tolerance : of the depth test, relative to the depth.

    Yields
    ------
    Name and map in the order of `views`: [h, w] float32, 0 on the background, else 1 / s^2 to 1.

    Notes
    -----
    Limits. A view that comes nearer than view i counts as one sample a pixel although it takes several: the map is
    then too low. A cell is 1 / s of an LR pixel wide: depth errors move the samples of views far apart by more than
    that, and the map then says how many cells are filled rather than which. Noise, the LR kernel's damping of what lies
    between the pixels, and gloss, which gives each view another colour of one point, are not in it.
    Cost: O(views^2 pixels), 2 to 3 ms for a pair of 200 x 200 px views on one core.
    """
    if scale < 2:
        raise ValueError(f"scale {scale}: there is nothing between the pixels")
    for name, view in views.items():
        surface = _surface(view)
        best = torch.zeros(scale * scale, len(surface.q), device=view.z.device)
        best[0] = 1.0
        others = views if among is None else among.get(name, ())
        for other in others:
            if other != name:
                _add_samples(best, surface, view.camera, views[other], scale, tolerance)
        found = torch.zeros_like(view.z)
        found[view.z > 0] = best.mean(0)
        yield name, found


@dataclass(frozen=True, eq=False)
class _Surface:
    """The P pixels of a view that see something: their centres, q = 1 / z, and its slope a pixel right and down."""

    u: Float[Tensor, "P"]
    v: Float[Tensor, "P"]
    q: Float[Tensor, "P"]
    right: Float[Tensor, "P"]
    down: Float[Tensor, "P"]

    def part(self, mask: Tensor) -> "_Surface":
        """The pixels of a mask [P]."""
        return _Surface(self.u[mask], self.v[mask], self.q[mask], self.right[mask], self.down[mask])


def _surface(view: SurfaceView) -> _Surface:
    rows, columns = torch.nonzero(view.z > 0, as_tuple=True)
    slope = inverse_depth_slope(view.z)[:, rows, columns]
    return _Surface(columns + 0.5, rows + 0.5, 1 / view.z[rows, columns], slope[0], slope[1])


def inverse_depth_slope(z: Float[Tensor, "h w"]) -> Float[Tensor, "2 h w"]:
    """Slope of 1 / z to the right and down, per pixel: a plane fitted over the window's pixels on the same surface.

    On a plane 1 / z is linear in the image, so the slope is exact there; 0 where the window does not determine it.
    """
    q = torch.where(z > 0, 1 / z.clamp_min(1e-12), 0.0)
    reach, (h, w) = SLOPE_REACH_PX, z.shape
    padded = torch.nn.functional.pad(q[None, None], (reach,) * 4)[0, 0]
    sums = torch.zeros(
        8, h, w, dtype=torch.float64, device=z.device
    )  # n, x, y, xx, xy, yy, xq, yq; q relative to the middle
    rise = torch.zeros(h, w, dtype=torch.float64, device=z.device)
    for y in range(-reach, reach + 1):
        for x in range(-reach, reach + 1):
            near = padded[reach + y : reach + y + h, reach + x : reach + x + w]
            on = ((near - q).abs() < SAME_SURFACE * q).double()
            step = on * (near - q)
            rise += step
            terms = (on, on * x, on * y, on * x * x, on * x * y, on * y * y, step * x, step * y)
            sums += torch.stack(terms)
    n, sx, sy, sxx, sxy, syy, sxq, syq = sums
    n = n.clamp_min(1)
    cxx, cxy, cyy = sxx - sx * sx / n, sxy - sx * sy / n, syy - sy * sy / n
    cxq, cyq = sxq - sx * rise / n, syq - sy * rise / n
    determinant = cxx * cyy - cxy * cxy
    known = determinant > 1e-6
    safe = torch.where(known, determinant, 1.0)
    slope = torch.stack([cyy * cxq - cxy * cyq, cxx * cyq - cxy * cxq]) / safe
    return torch.where(known, slope, 0.0).to(z.dtype)


def _add_samples(
    best: Float[Tensor, "cells P"], surface: _Surface, camera: Camera, other: SurfaceView, scale: int, tolerance: float
) -> None:
    """Enter the samples that one other view takes of the surface: `best` holds the weight of each pixel's cells."""
    move = other.camera.world_to_camera @ np.linalg.inv(camera.world_to_camera)
    matrix, shift = other.camera.K @ move[:3, :3] @ np.linalg.inv(camera.K), other.camera.K @ move[:3, 3]
    facing = _facing(surface, matrix, shift)
    pixels, on = torch.nonzero(facing)[:, 0], surface.part(facing)
    M, k = matrix.tolist(), shift.tolist()
    h0, h1, h2 = (M[r][0] * on.u + M[r][1] * on.v + (M[r][2] + k[r] * on.q) for r in range(3))
    front = torch.where(h2 > 1e-6, h2, torch.inf)
    x, y = h0 / front, h1 / front
    seen = visible(x, y, h2 / on.q, other.z, tolerance)
    pixels, x, y, h2, right, down = (values[seen] for values in (pixels, x, y, h2, on.right, on.down))
    xu, xv, yu, yv = (
        (M[r][c] + k[r] * slope - position * (M[2][c] + k[2] * slope)) / h2
        for r, position in ((0, x), (1, y))
        for c, slope in ((0, right), (1, down))
    )
    half_sum, half_difference = 0.5 * torch.hypot(xu + yv, yu - xv), 0.5 * torch.hypot(xu - yv, yu + xv)
    weight = (half_sum - half_difference).clamp(0, 1)  # the smaller singular value of a 2 x 2 matrix
    determinant = (xu * yv - xv * yu).clamp_min(1e-6)
    dx, dy = x.floor() + 0.5 - x, y.floor() + 0.5 - y
    column = torch.round(scale * (yv * dx - xv * dy) / determinant).remainder(scale)
    row = torch.round(scale * (xu * dy - yu * dx) / determinant).remainder(scale)
    cell = (row * scale + column).long()
    best[cell, pixels] = torch.maximum(best[cell, pixels], weight)


def _facing(surface: _Surface, matrix: Float[np.ndarray, "3 3"], shift: Float[np.ndarray, "3"]) -> Bool[Tensor, "P"]:
    """Which tangent planes does the other view see from the front? Half of the surface is done with after this.

    With q = right u + down v + rest on the plane, pixels map by the homography matrix + shift (right, down, rest)^T,
    whose determinant has the sign of J's: det matrix (1 + (right, down, rest) matrix^-1 shift).
    """
    a, b, c = np.linalg.solve(matrix, shift).tolist()
    rest = surface.q - surface.right * surface.u - surface.down * surface.v
    return a * surface.right + b * surface.down + c * rest > -1
