"""What a system that makes HR frames of a prior is: a maker, where it is loaded, and the registry of names.

A *maker* turns one window of LR views into one HR image. A system is made by the decorator `sampler`.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arguments.priors import PriorParams
from priors import post
from priors.hooks import ProjectLR
from priors.interfaces import Cond, ScorePrior, Space
from scene.lr_kernel import LRKernel
from utils.errors import UserError

Window = Float[Tensor, "F 3 h w"]  # of LR views 0-1, the middle one is the view itself
Make = Callable[[Window, "Known | None", torch.Generator], Float[Tensor, "3 H W"]]


@dataclass(frozen=True, eq=False)
class Known:
    """What an LR view says of its frame.

    Parameters
    ----------
    kernel : A, of the frame's size. tolerance : up to which it is said, 0-1. mask : where False a pixel says nothing.
    """

    kernel: LRKernel
    tolerance: float = 0.0
    mask: Bool[Tensor, "h w"] | None = None

    @property
    def hook(self) -> ProjectLR:
        """For each step of a walk; of the LR view that the prior is told."""
        return ProjectLR(self.kernel, None, self.tolerance, 1, self.mask)

    def settled(self, image: Float[Tensor, "3 H W"], lr: Float[Tensor, "3 h w"]) -> Float[Tensor, "3 H W"]:
        """The image, clipped and saying it."""
        return post.project(image[None], self.kernel, lr[None], self.tolerance, mask=self.mask)[0]


def saying(**said: Any) -> Callable[[Cond], Cond]:
    """What adds these to what a prior is told."""
    return lambda cond: replace(cond, **said)


AS_IT_IS = saying()


@dataclass(frozen=True, eq=False)
class Maker:
    """A system that is ready.

    Parameters
    ----------
    make : (window, what the LR view says or None where it is not to be said, draws) -> image 0-1, not clamped.
    scale : magnification, 0 = any. frames : F of its windows. prior : what it is made of, for score distillation.
    renew : (window, image, level, what the LR view says, draws) -> image: noised to `level` of the walk, 0-1, and
        denoised from there; None where the system has no such walk.
    told : what the prior is told of (`lr`, `up`): with guidance, texts, noise. Also for score distillation.
    """

    make: Make
    scale: int
    frames: int
    prior: ScorePrior
    renew: "Renew | None" = None
    told: Callable[[Cond], Cond] = AS_IT_IS


Renew = Callable[[Window, Float[Tensor, "3 H W"], float, "Known | None", torch.Generator], Float[Tensor, "3 H W"]]
Build = Callable[[PriorParams, "Loading"], Maker]


@dataclass(frozen=True)
class Loading:
    """Where a system runs, and how its files are found.

    Parameters
    ----------
    scale : that is wanted. trust : SHA-256 of files that the user vouches for.
    dtype : of networks; autoencoders, and networks of our own that do not predict residuals, stay float32.
    restore : (LR views, width, height) -> images, of a system that has a first stage; None = the enlarged LR view.
    """

    device: torch.device
    scale: int = 4
    download: bool = False
    trust: tuple[str, ...] = ()
    restore: Callable[[Tensor, int, int], Tensor] | None = None
    dtype: torch.dtype = torch.float32

    def options(self, params: PriorParams) -> dict[str, Any]:
        """What every loader of a published model takes."""
        return {"download": self.download, "device": self.device, "dtype": self.dtype} | {
            "prompt": params.prompt,
            "negative": params.negative_prompt,
            "texts": params.texts or None,
        }


def listed(words: str) -> tuple[str, ...]:
    """The SHA-256 of --trust_weights, which commas part."""
    return tuple(filter(None, words.split(",")))


SAMPLERS: dict[str, Build] = {}


def sampler(name: str) -> Callable[[Build], Build]:
    """Make `build(params, loading) -> Maker` selectable as --upsampler NAME."""

    def add(build: Build) -> Build:
        if name in SAMPLERS:
            raise ValueError(f"sampler {name!r} registered twice")
        SAMPLERS[name] = build
        return build

    return add


def without_fresh_noise(name: str, params: PriorParams) -> None:
    """Raise UserError where fresh noise is asked of a system that has none in its steps."""
    if params.prior_eta > 0:
        raise UserError(f"--prior_eta {params.prior_eta:g}: {name} draws no noise in its steps; leave it away")


def size_of(window: Window, scale: int) -> tuple[int, int]:
    """Width and height of the image of a window."""
    return scale * window.shape[-1], scale * window.shape[-2]


def tiles_of(space: Space, wanted_px: int, own_px: int, overlap_px: int) -> tuple[int, int]:
    """Side of a system's tiles and what neighbours share, in elements of the space.

    Parameters
    ----------
    wanted_px : --prior_tile, 0 = `own_px`. overlap_px : what tiles of `own_px` share; others share as large a part.

    Raises
    ------
    UserError : a tile of less than one element.
    """
    tile = (wanted_px or own_px) // space.factor
    if not tile:
        raise UserError(f"--prior_tile {wanted_px}: {space.factor} px or more are expected")
    return tile, min(max(tile * overlap_px // own_px, 1), tile - 1)
