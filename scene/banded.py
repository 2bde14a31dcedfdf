"""Matrices whose rows use few neighbouring columns, applied to both axes of images.

A *band* is such a matrix cut into blocks of rows, each kept with the columns that it uses and no others. Within
a block the product is dense: a library's dense product of 16 rows is faster than its sparse one of the same row.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

ROWS, MORE_ROWS = 16, 64  # of a block, where the output is smaller than the input and where it is not


class Block(NamedTuple):
    """Consecutive rows, of which only columns [first, end) are kept."""

    first: int
    end: int
    weight: Tensor  # [rows, end - first]


@dataclass(frozen=True, eq=False)
class Band:
    """A matrix [n_out, n_in] and its transpose, in blocks of rows."""

    rows: tuple[Block, ...]
    transposed: tuple[Block, ...]
    shrinks: bool

    @classmethod
    def of(cls, matrix: Float64[np.ndarray, "n_out n_in"], dtype: torch.dtype, device: torch.device) -> "Band":
        """Entries below a hundredth of the type's resolution of the largest change no sum and are left out."""
        largest = np.abs(matrix).max()
        kept = np.where(np.abs(matrix) < 0.01 * torch.finfo(dtype).eps * largest, 0.0, matrix)
        return cls(_blocks(kept, dtype, device), _blocks(kept.T, dtype, device), len(matrix) < matrix.shape[1])

    @property
    def T(self) -> "Band":
        return Band(self.transposed, self.rows, not self.shrinks)


def separable(image: Float[Tensor, "*batch H W"], y: Band, x: Band) -> Float[Tensor, "*batch h w"]:
    """Y image X^T; differentiable, any number of times."""
    result: Tensor = _Separable.apply(image, y, x)
    return result


class _Separable(torch.autograd.Function):
    """Of a linear operator the gradient is its transpose; torch's own would fill an image with zeros for each block."""

    @staticmethod
    def forward(ctx: Any, image: Tensor, y: Band, x: Band) -> Tensor:
        ctx.bands = y, x
        # Cheapest with the larger image in rows, whose slices lie together in memory.
        return _across(_down(image, y), x) if y.shrinks else _down(_across(image, x), y)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        y, x = ctx.bands
        return separable(gradients[0], y.T, x.T), None, None


def _down(image: Tensor, y: Band) -> Tensor:
    return torch.cat([weight @ image[..., first:end, :] for first, end, weight in y.rows], -2)


def _across(image: Tensor, x: Band) -> Tensor:
    return torch.cat([image[..., first:end] @ weight.T for first, end, weight in x.rows], -1)


def _blocks(matrix: Float64[np.ndarray, "n_out n_in"], dtype: torch.dtype, device: torch.device) -> tuple[Block, ...]:
    size = ROWS if len(matrix) < matrix.shape[1] else MORE_ROWS
    blocks = []
    for start in range(0, len(matrix), size):
        rows = matrix[start : start + size]
        used = np.flatnonzero(rows.any(0))
        first, end = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        blocks.append(Block(first, end, torch.tensor(rows[:, first:end], dtype=dtype, device=device)))
    return tuple(blocks)
