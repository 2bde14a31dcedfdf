"""A prior that looks at large images in overlapping tiles: memory and attention grow with the tile, not the image."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from priors.interfaces import Cond, Process, ScorePrior, Space
from priors.spaces import spans, window
from utils.errors import UserError


@dataclass(frozen=True, eq=False)
class Tiled:
    """Clean estimates of tiles, blended with Gaussian weights; the same as `prior` where one tile holds the image.

    Parameters
    ----------
    tile, overlap : side of a tile and what neighbours share, in elements of the space: StableSR 64, 32; SeeSR 96, 4.
    step : tiles begin and end at multiples of it, as the sides of x_t, tile and overlap do: elements per LR px.

    Raises
    ------
    UserError : not 0 <= overlap < tile, or one of them is no multiple of step.
    """

    prior: ScorePrior
    tile: int
    overlap: int
    step: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap < self.tile:
            raise UserError(f"tiles of {self.tile} that share {self.overlap}: 0 <= overlap < tile is expected")
        if self.tile % self.step or self.overlap % self.step:
            raise UserError(f"tiles of {self.tile} that share {self.overlap}: multiples of {self.step} are expected")

    @property
    def process(self) -> Process:
        return self.prior.process

    @property
    def space(self) -> Space:
        return self.prior.space

    @property
    def multiple(self) -> int:
        """Of which sides of x_t must be multiples, where one tile is the whole."""
        return int(getattr(self.prior, "multiple", 1))

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior. Every image of `cond` is cut like x_t, also those of Cond.extra; embeddings are not."""
        height, width = x_t.shape[-2:]
        rows, columns = (spans(size, self.tile, self.overlap, self.step) for size in (height, width))
        if len(rows) == len(columns) == 1:
            return self.prior.x0(x_t, t, cond)
        prepared = getattr(self.prior, "prepared", None)  # what must be drawn for the whole image
        cond = prepared(cond) if prepared else cond
        total, weights = torch.zeros_like(x_t), x_t.new_zeros(height, width)
        for top, bottom in rows:
            for left, right in columns:
                box = (top / height, bottom / height, left / width, right / width)
                part = self.prior.x0(x_t[..., top:bottom, left:right], t, cut(cond, box))
                weight = (window(bottom - top)[:, None] * window(right - left)).to(x_t)
                total[..., top:bottom, left:right] += weight * part
                weights[top:bottom, left:right] += weight
        return total / weights


def cut(cond: Cond, box: tuple[float, float, float, float]) -> Cond:
    """`cond` of a part of the image.

    Parameters
    ----------
    box : top, bottom, left, right as shares of the sides; each must fall between two pixels of every image.

    Raises
    ------
    UserError : it does not.
    """
    extra = {name: _cut(part, box) if part.ndim == 4 else part for name, part in cond.extra.items()}
    lr = None if cond.lr is None else _cut(cond.lr, box)
    return replace(cond, lr=lr, up=None if cond.up is None else _cut(cond.up, box), extra=extra)


def _cut(image: Tensor, box: tuple[float, float, float, float]) -> Tensor:
    height, width = image.shape[-2:]
    exact = (box[0] * height, box[1] * height, box[2] * width, box[3] * width)
    top, bottom, left, right = (round(at) for at in exact)
    if max(abs(round(at) - at) for at in exact) > 1e-6 * max(height, width):
        raise UserError(f"tiles: an image of {width}x{height} px cannot be cut at {exact}; choose another tile size")
    return image[..., top:bottom, left:right]
