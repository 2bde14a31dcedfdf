"""Where a process noises: pixels in [-1, 1], or the latents of an autoencoder, large images in blended tiles."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import pad

from utils.errors import UserError

WINDOW_VARIANCE = 0.01  # of the blending weights, in tile sides squared (StableSR's release)


@dataclass(frozen=True)
class PixelSpace:
    """Images as they are, from 0-1 to [-1, 1]."""

    channels: int = 3
    factor: int = 1

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return 2 * image - 1

    def decode(self, z: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B 3 H W"]:
        return (z + 1) / 2


@dataclass(frozen=True, eq=False)
class LatentSpace:
    """Latents of a diffusers autoencoder: encode = (mode - shift) scale of 2 image - 1, decode its inverse.

    Parameters
    ----------
    vae : has `encode(x).latent_dist.mode()` (AutoencoderKL) or `.latents` (VQModel), and `decode(z).sample`; `dtype`
        where it is not the image's.
    scale, shift : Stable Diffusion 0.18215, 0; SDXL 0.13025, 0; Stable Diffusion 3 1.5305, 0.0609.
    channels, factor : of the latents, and image px per latent; 0 = as vae.config has them.
    tile_px, overlap_px : side of a tile and what neighbours share, in image px, multiples of factor; 0 = no tiles.
        Tiles see nothing beyond their sides: 512 and 64 or more keep the seams of usual autoencoders out of sight.

    Raises
    ------
    UserError : tile and overlap are no multiples of factor, or overlap >= tile.
    """

    vae: Any
    scale: float = 1.0
    shift: float = 0.0
    channels: int = 0
    factor: int = 0
    tile_px: int = 0
    overlap_px: int = 0

    def __post_init__(self) -> None:
        if not self.channels:
            object.__setattr__(self, "channels", int(self.vae.config.latent_channels))
        if not self.factor:
            object.__setattr__(self, "factor", 2 ** (len(self.vae.config.block_out_channels) - 1))
        tile, overlap = self.tile_px, self.overlap_px
        if tile % self.factor or overlap % self.factor or not 0 <= overlap < max(tile, 1):
            raise UserError(
                f"latent tiles of {tile} px that share {overlap} px: multiples of {self.factor} px with overlap < tile "
                "are expected"
            )

    def encode(self, image: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B C h w"]:
        """The mode of each image's latents.

        Raises
        ------
        UserError : H or W is no multiple of factor (see `padded`).
        """
        if image.shape[-2] % self.factor or image.shape[-1] % self.factor:
            raise UserError(
                f"an image of {image.shape[-1]}x{image.shape[-2]} px has no latents: sides must be multiples of "
                f"{self.factor} px"
            )
        return tiled(self._encode, image, self.tile_px, self.overlap_px, shrink=self.factor)

    def decode(self, z: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 H W"]:
        tile, overlap = self.tile_px // self.factor, self.overlap_px // self.factor
        return tiled(self._decode, z, tile, overlap, grow=self.factor)

    def _encode(self, image: Tensor) -> Tensor:
        coded = self.vae.encode((2 * image - 1).to(self._dtype(image)))
        latent = coded.latent_dist.mode() if hasattr(coded, "latent_dist") else coded.latents
        return (latent.to(image.dtype) - self.shift) * self.scale

    def _decode(self, z: Tensor) -> Tensor:
        image = self.vae.decode((z / self.scale + self.shift).to(self._dtype(z))).sample
        return (image.to(z.dtype) + 1) / 2

    def _dtype(self, like: Tensor) -> torch.dtype:
        return getattr(self.vae, "dtype", like.dtype)


def padded(image: Float[Tensor, "B C H W"], multiple: int) -> Float[Tensor, "B C H2 W2"]:
    """Sides rounded up to multiples by repeating the last row and column; [..., :H, :W] is the image."""
    height, width = image.shape[-2:]
    return pad(image, (0, -width % multiple, 0, -height % multiple), mode="replicate")


def spans(size: int, tile: int, overlap: int, step: int = 1) -> list[tuple[int, int]]:
    """[first, end) of the fewest tiles that cover `size`, evenly spread, each sharing >= overlap with the next.

    Parameters
    ----------
    tile : side of each, `size` where that is smaller or tile is 0. step : all of them, and size, are multiples of it.
    """
    if not tile or tile >= size:
        return [(0, size)]
    count = math.ceil((size - overlap) / (tile - overlap))
    free = (size - tile) // step
    firsts = [step * (free * k // (count - 1)) for k in range(count)]
    return [(first, first + tile) for first in firsts]


def window(size: int) -> Float[Tensor, "size"]:
    """Weights of one axis of a tile: a Gaussian around its middle, largest near 1."""
    at = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    return torch.exp(-(at**2) / (2 * WINDOW_VARIANCE))


def tiled(
    apply: Callable[[Tensor], Tensor],
    x: Float[Tensor, "B C H W"],
    tile: int,
    overlap: int,
    *,
    shrink: int = 1,
    grow: int = 1,
) -> Float[Tensor, "B D h w"]:
    """`apply` on overlapping tiles, blended with Gaussian weights that sum to 1; on the whole where one tile holds it.

    Parameters
    ----------
    tile, overlap : in elements of x, multiples of shrink; tile 0 = the whole.
    shrink, grow : output elements are x's times grow / shrink along each axis. Differentiable where apply is.
    """
    rows, columns = (_axis(size, tile, overlap, shrink, grow) for size in x.shape[-2:])
    if len(rows) == len(columns) == 1:
        return apply(x)
    total: Tensor | None = None
    for row in rows:
        for column in columns:
            part = apply(x[..., row.source, column.source])
            if total is None:
                total = part.new_zeros(*part.shape[:2], *(size * grow // shrink for size in x.shape[-2:]))
            share = row.share[:, None] * column.share
            total[..., row.goal, column.goal] += share.to(part) * part
    assert total is not None
    return total


class _Tile(NamedTuple):
    """Along one axis: elements of the input, of the output, and what part of these the tile contributes."""

    source: slice
    goal: slice
    share: Tensor


def _axis(size: int, tile: int, overlap: int, shrink: int, grow: int) -> list[_Tile]:
    inside = spans(size, tile, overlap, shrink)
    goals = [slice(first * grow // shrink, end * grow // shrink) for first, end in inside]
    total = torch.zeros(size * grow // shrink, dtype=torch.float64)
    for goal in goals:
        total[goal] += window(goal.stop - goal.start)
    return [
        _Tile(slice(*span), goal, window(goal.stop - goal.start) / total[goal])
        for span, goal in zip(inside, goals, strict=True)
    ]
