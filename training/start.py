"""Where the optimisation starts: Gaussians made from points, or those of a PLY."""

import torch

from scene.gaussians import Gaussians
from scene.ply import read_gaussians
from scene.points import PointCloud
from utils.errors import UserError


def initial_gaussians(points: PointCloud | None, init_ply: str, sh_degree: int, device: str) -> Gaussians:
    """Return the first Gaussians, with room for `sh_degree`.

    Parameters
    ----------
    points : coloured points; unused when `init_ply` names a file.

    Raises
    ------
    UserError : no points and no PLY, or a PLY that cannot be read.
    """
    if init_ply:
        gaussians = with_degree(read_gaussians(init_ply), sh_degree)
    elif points is None or len(points.xyz) == 0:
        raise UserError("the scene has no points to start from; give the Gaussians of a PLY with --init_ply")
    else:
        from simple_knn._C import distCUDA2

        gaussians = Gaussians.from_points(points, sh_degree, distCUDA2(torch.from_numpy(points.xyz).contiguous()))
    return Gaussians(**{name: value.to(device).contiguous() for name, value in vars(gaussians).items()})


def with_degree(gaussians: Gaussians, sh_degree: int) -> Gaussians:
    """Return Gaussians with room for exactly `sh_degree`: higher bands are dropped, missing ones are zero."""
    coefficients = (sh_degree + 1) ** 2 - 1
    kept = gaussians.shN[:, :coefficients]
    missing = kept.new_zeros(gaussians.num, coefficients - kept.shape[1], 3)
    return Gaussians(**vars(gaussians) | {"shN": torch.cat([kept, missing], dim=1)})
