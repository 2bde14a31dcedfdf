"""Any single-image network that the package spandrel knows: it tells from a file which one it is, and builds it.

The package needs torchvision, which is broken on many machines without a GPU; both are imported only when this network
is asked for. It always runs in float32, for what networks do in half precision differs.
"""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment
from upsampling.registry import State, Upsampler, network
from utils.errors import UserError

# What networks that are not the file's raise while they are built from it.
_UNFIT = (RuntimeError, KeyError, IndexError, ValueError, TypeError, AttributeError, AssertionError)


class SpandrelUpsampler:
    """A model of spandrel as an Upsampler; the scale is the model's.

    Notes
    -----
    Nothing is known of its memory, so frames are never cut into tiles.
    """

    num_neighbours = 0

    def __init__(self, model: Any) -> None:
        self.model = model
        self.scale: int = model.scale

    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See registry.Upsampler. The model itself extends images that are too small for it."""
        for frame in frames:
            with torch.inference_mode():
                result = self.model(frame[None])[0]
            yield result


@network("spandrel", "swinir_x4")
def load_spandrel(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    """Build the network of `state`.

    Raises
    ------
    UserError : the package cannot be imported, or does not know the network; or it is not one of RGB images.
    """
    if state is None:
        raise UserError("--random_weights: spandrel builds a network from a file alone; give --weights FILE")
    spandrel = _package()
    try:
        model = spandrel.ModelLoader(device).load_from_state_dict(state)
    except (spandrel.UnsupportedModelError, *_UNFIT) as error:
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise UserError(f"--weights {settings.weights}: no network that spandrel knows ({reason})") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise UserError(
            f"--weights {settings.weights}: {model.architecture.name} does not map RGB images to RGB images"
        )
    model.eval().model.requires_grad_(False)
    return SpandrelUpsampler(model)


def _package() -> Any:
    try:
        import spandrel
    except (ImportError, RuntimeError, OSError) as error:  # torchvision that was built for another torch
        reason = str(error).strip().partition("\n")[0]
        raise UserError(
            f"--upsampler spandrel: the package cannot be imported ({reason}). To install it and the torchvision "
            f"that fits torch {torch.__version__}: {to_install(torch.__version__)}, then pip install spandrel"
        ) from error
    return spandrel


def to_install(torch_version: str) -> str:
    """Command that installs the torchvision of a torch, with where it must come from: 2.13.0+cpu takes 0.28 for cpu."""
    release, _, build = torch_version.partition("+")
    minor = int(release.split(".")[1]) + 15  # torch 2.N goes with torchvision 0.(N + 15)
    return f"pip install 'torchvision==0.{minor}.*'" + (f" (its {build} build, from where torch came)" if build else "")
