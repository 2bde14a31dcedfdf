"""Where the optimisation starts: Gaussians made from points, or those of a PLY."""

from pathlib import Path

import torch

from arguments.training import TrainingParams
from scene.gaussians import Gaussians
from scene.ply import read_gaussians
from scene.points import PointCloud
from scene.trained_model import find_model
from utils.errors import UserError

LR_MODEL = "lr_model"  # of an output folder, and the word of --init_points for a start from it


def start_file(training: TrainingParams, out: Path) -> Path | None:
    """The PLY whose Gaussians a run starts from; None = from points.

    Raises
    ------
    UserError : it is to be the model of the LR views, and there is none.
    """
    if training.init_ply:
        return Path(training.init_ply)
    if training.init_points != LR_MODEL:
        return None
    try:
        return find_model(out / LR_MODEL)[0]
    except UserError as error:
        raise UserError(
            f"--init_points {LR_MODEL}: there is no model in {out / LR_MODEL}; run.py makes it (its step lr_model), or "
            "start from a PLY (--init_ply), or from points (--init_points scene)"
        ) from error


def initial_gaussians(points: PointCloud | None, ply: Path | None, sh_degree: int, device: str) -> Gaussians:
    """Return the first Gaussians, with room for `sh_degree`.

    Parameters
    ----------
    points : coloured points; unused when `ply` names a file.

    Raises
    ------
    UserError : no points and no PLY, or a PLY that cannot be read.
    """
    if ply:
        gaussians = with_degree(read_gaussians(ply), sh_degree)
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
