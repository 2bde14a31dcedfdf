"""Where models lie in an output folder: point_cloud/iteration_N/point_cloud.ply, as 3DGS has it."""

from pathlib import Path

from utils.errors import UserError


def ply_path(folder: Path, iteration: int) -> Path:
    """Where the model of one iteration lies."""
    return folder / "point_cloud" / f"iteration_{iteration}" / "point_cloud.ply"


def find_model(folder: Path, iteration: int = -1) -> tuple[Path, int]:
    """Find the PLY of an iteration (-1 = the latest).

    Raises
    ------
    UserError : the folder holds no such model; says which iterations there are.
    """
    parent = folder / "point_cloud"
    numbers = (path.parent.name.removeprefix("iteration_") for path in parent.glob("iteration_*/point_cloud.ply"))
    found = sorted(int(number) for number in numbers if number.isdigit())
    if not found:
        raise UserError(f"{parent}: no iteration_N/point_cloud.ply in it; train first: train.py -m {folder}")
    chosen = found[-1] if iteration == -1 else iteration
    if chosen not in found:
        raise UserError(f"{parent}: no iteration {chosen}; there are {', '.join(map(str, found))}")
    return ply_path(folder, chosen), chosen
