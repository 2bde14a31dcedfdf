"""What StableSR, DiffBIR, SeeSR and AddSR share: Stable Diffusion 2 as their base, and how their walks begin.

The maker of Stable Diffusion 2 withdrew it from the hub in November 2025; mirrors serve the same files.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers import loading
from priors.denoisers.tiles import Tiled
from priors.extra import needed
from priors.interfaces import Cond, Process, ScorePrior
from priors.processes import VP
from priors.sampler import HookCall, sample


def skeleton(
    model: str | Path, kind: str, subfolder: str, change: Callable[[Any], Any] | None = None, *, download: bool = False
) -> Any:
    """A network of a model without its weights, on the meta device: to be filled strictly.

    Parameters
    ----------
    change : what is done to it there (modules that are put in); its result is left aside.
    """
    config = loading.config(model, subfolder, "config.json", download=download)
    with torch.device("meta"), loading.quiet():
        network = getattr(needed("diffusers"), kind).from_config(config)
        if change:
            change(network)
    return network


def placed(network: nn.Module, device: torch.device | str, dtype: torch.dtype) -> Any:
    """A filled network for inference."""
    return loading.frozen(network.to(device=device, dtype=dtype))


def both_ends(process: Process) -> Process:
    """Times spread as IDDPM does (Nichol and Dhariwal 2021), from the noisiest to the least: StableSR and DiffBIR."""
    return replace(process, spacing="linspace") if isinstance(process, VP) else process


def walk_from_lr(
    prior: ScorePrior,
    cond: Cond,
    times: Sequence[float],
    generator: torch.Generator,
    *,
    hooks: Sequence[HookCall] = (),
    eta: float = 1.0,
    tile: int = 0,
    overlap: int = 0,
) -> tuple[Float[Tensor, "B C h w"], Cond]:
    """A walk that begins with the latent of the enlarged LR view under the first time's noise ("LR embedding").

    The noisiest time of Stable Diffusion 2 leaves some signal; pure noise would be what the network never saw, and
    colours drift.

    Parameters
    ----------
    cond : with `up`, its sides multiples of the space's factor. tile, overlap : see `tiles.Tiled`; 0 = none.

    Returns
    -------
    The end of the walk, and `cond` with all that the prior made of it once (`prepared`).
    """
    assert cond.up is not None
    ready = getattr(prior, "prepared", lambda told: told)(cond)
    ready = replace(ready, lr=None)  # of another size than whole latents, it could not be cut into tiles
    seen = Tiled(prior, tile, overlap) if tile else prior
    with torch.no_grad():
        begin = prior.space.encode(cond.up)
    return sample(seen, ready, times, generator, hooks=hooks, eta=eta, begin=begin), ready
