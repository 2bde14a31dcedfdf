"""Parts of views: a box on the grid of LR pixels, and what a prior is told about it."""

from dataclasses import replace
from typing import NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from priors.interfaces import Cond
from utils.errors import UserError


class Box(NamedTuple):
    """Columns [left, left + width) and rows [top, top + height) of the LR view, of `view` = (width, height) LR px."""

    left: int
    top: int
    width: int
    height: int
    view: tuple[int, int]

    def scale(self, width: int, height: int) -> tuple[int, int]:
        """Px of an image of the view per LR px, along x and y.

        Raises
        ------
        UserError : the image's size is no whole multiple of the LR view's.
        """
        w, h = self.view
        if width % w or height % h:
            raise UserError(f"a part of {width}x{height} px: a whole multiple of the LR view, {w}x{h} px, is expected")
        return width // w, height // h

    def of(self, image: Shaped[Tensor, "*batch H W"]) -> Shaped[Tensor, "*batch h w"]:
        """The part of an image of the view. Raises UserError as `scale`."""
        x, y = self.scale(image.shape[-1], image.shape[-2])
        return image[..., y * self.top : y * (self.top + self.height), x * self.left : x * (self.left + self.width)]


@runtime_checkable
class Croppable(Protocol):
    """A hook that can also work on a part of its view."""

    def cropped(self, box: Box) -> "Croppable": ...


def box_size(view: tuple[int, int], side: int, multiple: int) -> tuple[int, int]:
    """Width and height of `random_box`."""
    width, height = (max(min(side, length) // multiple, 1) * multiple for length in view)
    return width, height


def random_box(view: tuple[int, int], side: int, multiple: int, generator: torch.Generator) -> Box:
    """A box of about `side` LR px, anywhere in the view.

    Parameters
    ----------
    view : width, height of the LR view. side : sides longer than the view's become the view's.
    multiple : of LR px, to which corners and sides are rounded down.
    """
    sides = box_size(view, side, multiple)
    places = [(length - size) // multiple + 1 for length, size in zip(view, sides, strict=True)]
    left, top = (multiple * int(torch.randint(count, (), generator=generator)) for count in places)
    return Box(left, top, *sides, view)


def cropped_cond(cond: Cond, box: Box, image_size: tuple[int, int]) -> Cond:
    """What the prior is told about the box: LR views, u and those extras that are images of the view's size.

    image_size : (width, height) of the view in HR px.
    """

    def part(value: Tensor) -> Tensor:
        size = (value.shape[-1], value.shape[-2])
        return box.of(value) if value.ndim == 4 and size in (box.view, image_size) else value

    return replace(
        cond,
        lr=None if cond.lr is None else box.of(cond.lr),
        up=None if cond.up is None else box.of(cond.up),
        extra={name: part(value) for name, value in cond.extra.items()},
    )
