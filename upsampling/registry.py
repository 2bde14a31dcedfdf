"""Upsamplers by name: --upsampler NAME picks an entry, --upsampler MODULE:NAME any importable callable.

An entry is made by the decorator `network`; its module is imported by name in `upsampling/__init__.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arguments.priors import PriorParams
from arguments.upsampling import PRIORS, SINGLE_IMAGE, UpsamplingParams
from upsampling.alignment import Alignment
from upsampling.precision import precision
from utils.errors import UserError
from utils.log import warn
from utils.plugins import imported
from utils.rng import seed_all
from utils.state_dicts import load_strictly, read_state_dict
from utils.weights import WEIGHTS, ResolvedWeights, resolve

State = dict[str, Tensor]
Build = Callable[[UpsamplingParams, torch.device, "State | None"], "Upsampler"]
RANDOM = "RANDOM WEIGHTS"


@runtime_checkable
class Upsampler(Protocol):
    """LR frames in, HR frames out: single-image networks, video networks and filters are all one of these.

    Attributes
    ----------
    scale : magnification, a whole number.
    num_neighbours : frames on each side that matter to a frame; 0 = every frame by itself. Chunks overlap by as many.

    Notes
    -----
    Optional: `overlap` (LR px that matter around a pixel; tiles overlap by as many) and
    `working_bytes(t, h, w)` (memory that a clip of t frames needs, on the device). Without them clips are never cut.
    `multiple`: tiles begin at LR px that are multiples of it. `graph_bytes(t, h, w, in_file, learned)` (memory that a
    graph needs, its features in memory or in a file, its flow learned or known): the network takes a `Graph` for
    `alignment` too. `visits`: how often `alignment.tick` is called for each frame along a path (in a graph: for each of
    its visits), so that the time that is left is known before the first frame is there. `only(wanted)`: the same for a
    clip of which only the frames at these positions are looked at; what it yields elsewhere is dropped.
    """

    scale: int
    num_neighbours: int

    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """HR frames in order, float32, RGB, not clamped; `frames` are float32 RGB in [0, 1] on the device."""
        ...


@dataclass(frozen=True)
class Entry:
    """A registered upsampler. `weights`: id of its default checkpoint in the table of weights, "" = needs none."""

    name: str
    build: Build
    weights: str = ""


NETWORKS: dict[str, Entry] = {}


def network(name: str, weights: str = "") -> Callable[[Build], Build]:
    """Make `build(settings, device, state)` selectable as --upsampler NAME."""

    def add(build: Build) -> Build:
        if name in NETWORKS:
            raise ValueError(f"upsampler {name!r} registered twice")
        NETWORKS[name] = Entry(name, build, weights)
        return build

    return add


def resolve_weights(settings: UpsamplingParams) -> ResolvedWeights | None:
    """The verified checkpoint that `settings` ask for; None where none is needed (filters, callables, random weights).

    Raises
    ------
    UserError : its weights are not found, not the published ones, or another network's.
    """
    if ":" in settings.upsampler or settings.upsampler in PRIORS:
        return None
    entry = NETWORKS[settings.upsampler]
    if not entry.weights or settings.random_weights:
        return None
    id, path = entry.weights, None
    if settings.weights in WEIGHTS:
        id = settings.weights
        if WEIGHTS[id].arch != WEIGHTS[entry.weights].arch:
            raise UserError(f"--weights {id}: belongs to {WEIGHTS[id].arch}, not to --upsampler {entry.name}")
    elif settings.weights:
        path = Path(settings.weights)
        if not path.is_file():
            fitting = [s.id for s in WEIGHTS.values() if s.arch == WEIGHTS[entry.weights].arch]
            raise UserError(f"--weights {path}: neither a file nor one of {', '.join(fitting)}")
    return resolve(id, path, download=settings.download, trust=settings.trust_weights)


def weight_files(settings: UpsamplingParams, weights: ResolvedWeights | None, prior: PriorParams) -> list[Path]:
    """Inputs of the step: the checkpoint, or all files of a diffusion prior."""
    if settings.upsampler not in PRIORS:
        return [weights.path] if weights else []
    from priors.making import listed
    from priors.samplers import input_files

    return input_files(settings.upsampler, prior, listed(settings.trust_weights), settings.download)


def made_of(settings: UpsamplingParams, weights: ResolvedWeights | None, prior: PriorParams) -> dict[str, Any]:
    """For the record of a step: the checkpoint, and {id: commit} of models of the hub."""
    models: dict[str, str] = {}
    if settings.upsampler in PRIORS:
        from priors.samplers import hub_commits

        models = hub_commits(settings.upsampler, prior)
    return {"weights": weights.record() if weights else None, "models": models}


def load(
    settings: UpsamplingParams,
    weights: ResolvedWeights | None,
    device: torch.device,
    seed: int = 0,
    prior: PriorParams | None = None,
    kernel: tuple[str, str] | None = None,
) -> Upsampler:
    """Build the upsampler on `device`.

    Parameters
    ----------
    weights : of `resolve_weights(settings)`.
    seed : of --random_weights, and of what priors draw.
    prior, kernel : settings of a diffusion prior; how the LR views were made, None = not known.

    Raises
    ------
    UserError : the file does not fit the network, the scale is not the network's, or a callable that cannot be used.
    """
    if ":" in settings.upsampler:
        upsampler = _imported(settings, device)
    elif settings.upsampler in PRIORS:
        from priors.making import Loading, listed
        from priors.samplers import load_sampler

        trust = listed(settings.trust_weights)
        restore = _restoring(settings, prior, device) if prior and prior.restoration else None
        dtype = precision(settings.precision, device)
        loading = Loading(device, settings.scale, settings.download, trust, restore, dtype)
        found = load_sampler(settings.upsampler, prior or PriorParams(), loading, kernel, seed)
        upsampler = cast(Upsampler, found)
    else:
        if settings.random_weights:
            warn(f"{RANDOM}: the results are meaningless and are stamped so")
            seed_all(seed)
        state = read_state_dict(weights) if weights else None
        upsampler = NETWORKS[settings.upsampler].build(settings, device, state)
    if upsampler.scale != settings.scale:
        own = upsampler.scale
        raise UserError(f"--scale {settings.scale}: {settings.upsampler} magnifies {own} times; give --scale {own}")
    return upsampler


def _restoring(
    settings: UpsamplingParams, prior: PriorParams, device: torch.device
) -> Callable[[Tensor, int, int], Tensor]:
    """The single-image upsampler of --restoration as a first stage: LR views [B, 3, h, w] to images of a size."""
    if prior.restoration not in SINGLE_IMAGE:
        raise UserError(f"--restoration {prior.restoration}: one of {', '.join(SINGLE_IMAGE)} is expected")
    own = replace(settings, upsampler=prior.restoration, weights="", trust_weights="")
    net = load(own, resolve_weights(own), device)

    def restored(lr: Float[Tensor, "B 3 h w"], width: int, height: int) -> Float[Tensor, "B 3 H W"]:
        images = torch.stack([next(iter(net.upsample(view[None]))) for view in lr])
        return torch.nn.functional.interpolate(images, (height, width), mode="bicubic", antialias=True).clamp(0, 1)

    return restored


def filled(make: Callable[[], nn.Module], state: State | None, device: torch.device, name: str) -> Any:
    """A network with `state` loaded strictly, in evaluation mode; without a state its values are random."""
    if state is None:
        module = make()
    else:
        with torch.device("meta"):  # no value exists that does not come from the file
            module = make()
        load_strictly(module, state, name)
    return module.to(device).eval().requires_grad_(False)


def _imported(settings: UpsamplingParams, device: torch.device) -> Upsampler:
    upsampler = imported("--upsampler", settings.upsampler)(settings, device)
    if not isinstance(upsampler, Upsampler):
        raise UserError(f"--upsampler {settings.upsampler}: returned no Upsampler (scale, num_neighbours, upsample)")
    return upsampler
