"""Gaussians that are neighbours in space as neighbours in memory: the order of a Z-shaped curve (Morton 1966)."""

from dataclasses import replace

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from training.state import Change

BITS = 21  # of each axis; three of them fill an int64
FAR = 200  # one point in so many, at each end of an axis, may be an outlier that would squeeze all others together
# Spreading the bits of a number out to every third place, by halves: shift, and which bits are then right.
SPREAD = (
    (32, 0x1F00000000FFFF),
    (16, 0x1F0000FF0000FF),
    (8, 0x100F00F00F00F00F),
    (4, 0x10C30C30C30C30C3),
    (2, 0x1249249249249249),
)


def codes(points: Float[Tensor, "N 3"]) -> Int64[Tensor, " N"]:
    """Place of each point on the curve through the box of all but the outermost points; equal cells, equal codes."""
    finite = torch.nan_to_num(points, nan=0.0, posinf=0.0, neginf=0.0).clamp(-1e18, 1e18)
    outside = len(points) // FAR
    low, high = (_smallest(finite, k) for k in (1 + outside, len(points) - outside))
    share = (finite - low) / (high - low).clamp(min=torch.finfo(points.dtype).tiny)
    cells = share.clamp(0, 1) * (2**BITS - 1)
    code = torch.zeros(len(points), dtype=torch.int64, device=points.device)
    for axis, cell in enumerate(cells.to(torch.int64).unbind(1)):
        spread = cell
        for shift, mask in SPREAD:
            spread = (spread | spread << shift) & mask
        code |= spread << axis
    return code


def _smallest(values: Float[Tensor, "N 3"], k: int) -> Float[Tensor, "3"]:
    """The k-th smallest of each column; by sorting on a GPU, where PyTorch's selection has no fixed order."""
    return values.sort(dim=0).values[k - 1] if values.is_cuda else values.kthvalue(k, dim=0).values


def order(points: Float[Tensor, "N 3"]) -> Int64[Tensor, " N"]:
    """Indices of the points along the curve; ties stay in the order of the points."""
    if len(points) == 0:
        return torch.zeros(0, dtype=torch.int64, device=points.device)
    return torch.sort(codes(points), stable=True).indices


def reordered(means: Float[Tensor, "N 3"], change: Change) -> Change:
    """Return the same change of rows, its new rows along the curve.

    Parameters
    ----------
    means : of the old rows.

    Notes
    -----
    What is close on the screen is then close in memory. A whole iteration (lego after 1500 iterations, 800x800, CPU
    time of one thread) takes 0.98 of the time in the trained order with 100k Gaussians, 0.95 with 200k and 300k.
    """
    if change.source is None:
        return change
    moved = means[change.source]
    rows, values = change.values.get("means", (None, moved))
    moved[slice(None) if rows is None else rows] = values
    along = order(moved)  # new row -> row of `change`
    place = torch.empty_like(along)
    place[along] = torch.arange(len(along), device=along.device)
    return replace(
        change,
        source=change.source[along],
        fresh=None if change.fresh is None else change.fresh[along],
        values={
            name: (None, values[along]) if rows is None else (place[rows], values)
            for name, (rows, values) in change.values.items()
        },
    )
