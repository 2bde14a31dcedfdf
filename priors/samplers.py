"""Systems that make HR frames from a prior, by name (--upsampler), behind the protocol of every upsampler.

Those that stand on whole models of the hub are here, the others in `published`. Networks of published models are
imported when asked for: they need optional packages.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arguments.priors import PriorParams
from arguments.upsampling import PROJECTING
from priors import published
from priors.ddnm import Settings as DDNMSettings
from priors.ddnm import ddnm, ddnm_flow
from priors.denoisers import sr3_unet, tiny
from priors.denoisers.loading import hub_state
from priors.denoisers.tiles import Tiled
from priors.enlarge import enlarged
from priors.interfaces import Cond, Process, ScorePrior, Space
from priors.making import (
    AS_IT_IS,
    SAMPLERS,
    Known,
    Loading,
    Maker,
    Window,
    sampler,
    saying,
    size_of,
    tiles_of,
    without_fresh_noise,
)
from priors.processes import time_at
from priors.sampler import HookCall, sample
from scene.lr_kernel import LRKernel, opaque_support_mask
from utils import rng
from utils.errors import UserError
from utils.plugins import source_files

HALF_LEVEL = 0.5 / 255  # what rounding to 8 bit leaves open


@dataclass(frozen=True, eq=False)
class PriorUpsampler:
    """An `upsampling.registry.Upsampler` of a system.

    Parameters
    ----------
    kernel : (kernel, border) of the LR views where frames shall say what these say, else None.
    tolerance : up to which they say it. samples : walks a frame, whose mean it is. shared : noise of all frames.
    masks : of each frame, where its LR view says nothing; () = they say all.
    wanted : positions of a clip whose frames are made, None = all.
    """

    maker: Maker
    scale: int
    kernel: tuple[str, str] | None
    tolerance: float
    samples: int
    shared: bool
    seed: int
    masks: tuple[Bool[Tensor, "h w"], ...] = ()
    wanted: frozenset[int] | None = None

    @property
    def colour_only(self) -> bool:
        """Whether an alpha channel is left to a filter: large models invent detail, of which an opacity has none."""
        return not isinstance(self.maker.prior, tiny.TinyPrior)

    @property
    def num_neighbours(self) -> int:
        """Frames on each side that the network is told."""
        return self.maker.frames // 2

    def seen(self, i: int, t: int) -> list[int]:
        """Positions of the frames from which frame i of a clip of t is made, in order."""
        reach = self.num_neighbours
        return [min(max(k, 0), t - 1) for k in range(i - reach, i + reach + 1)]

    def upsample(self, frames: Float[Tensor, "t 3 h w"], alignment: Any = None) -> Iterator[Float[Tensor, "3 H W"]]:
        """HR frames in order, black where they are not wanted; beyond a clip's ends its first and last frame stand."""
        t, _, h, w = frames.shape
        for i in range(t):
            if self.wanted is not None and i not in self.wanted:
                yield frames.new_zeros(()).expand(3, self.scale * h, self.scale * w)
                continue
            window = frames[self.seen(i, t)]
            mask = self.masks[i].to(frames.device) if self.masks else None
            known = self.known((self.scale * w, self.scale * h), (w, h), mask)
            with torch.no_grad():  # closed before the frame is handed out: the mode is that of the whole thread
                images = [self.maker.make(window, known, self._draws(frames[i], k)) for k in range(self.samples)]
                image = torch.stack(images).mean(0)
                image = (image if known is None else known.settled(image, frames[i])).float()
            yield image

    def only(self, wanted: frozenset[int]) -> "PriorUpsampler":
        """For a clip of which only the frames at these positions are looked at."""
        return replace(self, wanted=wanted)

    def masked(self, alphas: Sequence[Float[Tensor, "h w"]]) -> "PriorUpsampler":
        """For a clip whose frames have these alphas: consistency holds only where alpha is 0 or 1 all around."""
        if self.kernel is None:
            return self
        h, w = alphas[0].shape
        kernel = LRKernel(*self.kernel, (self.scale * w, self.scale * h), (w, h))
        return replace(self, masks=tuple(opaque_support_mask(kernel, alpha) for alpha in alphas))

    def known(
        self, size: tuple[int, int], lr_size: tuple[int, int], mask: Bool[Tensor, "h w"] | None = None
    ) -> Known | None:
        """What an LR view says of a frame; None where it is not to be said."""
        return Known(LRKernel(*self.kernel, size, lr_size), self.tolerance, mask) if self.kernel else None

    def _draws(self, frame: Float[Tensor, "3 h w"], walk: int) -> torch.Generator:
        """Of one walk; a frame's own noise depends on what it shows, not on its place in a call."""
        shown = () if self.shared else (hashlib.sha256(frame.cpu().contiguous().numpy().tobytes()).hexdigest(),)
        return rng.generator(self.seed, "prior", walk, *shown)


def walked(
    prior: ScorePrior,
    window: Window,
    size: tuple[int, int],
    steps: int,
    eta: float,
    draws: torch.Generator,
    hooks: tuple[HookCall, ...] = (),
    begin: tuple[Float[Tensor, "3 H W"], float] | None = None,
    told: Callable[[Cond], Cond] = AS_IT_IS,
) -> Float[Tensor, "3 H W"]:
    """One walk to the image of a window: from noise, or from an image that is noised to a level of the walk.

    Parameters
    ----------
    size : width and height of the image. begin : image 0-1 and level, 0-1 of all times; None = from noise.
        told : see `Maker`.
    """
    width, height = size
    up = enlarged(window[len(window) // 2][None], width, height)
    space = prior.space
    shape = (1, space.channels, height // space.factor, width // space.factor)
    cond = told(Cond(lr=window[None], up=up))
    if begin is None:
        x = sample(prior, cond, prior.process.times(steps), draws, hooks=hooks, eta=eta, shape=shape)
    else:
        image, level = begin
        times = prior.process.times(max(round(steps * level), 1), time_at(prior.process, level))
        x = sample(prior, cond, times, draws, hooks=hooks, eta=eta, begin=space.encode(image[None]))
    return space.decode(x)[0]


def _projecting(known: Known | None) -> tuple[HookCall, ...]:
    return () if known is None else (known.hook,)


@dataclass(frozen=True, eq=False)
class Clamped:
    """A prior in pixels whose estimates are images: divided by a small a, an error of eps is far outside."""

    prior: tiny.TinyPrior

    @property
    def process(self) -> Process:
        return self.prior.process

    @property
    def space(self) -> Space:
        return self.prior.space

    def x0(self, x_t: Float[Tensor, "B C h w"], t: float, cond: Cond) -> Float[Tensor, "B C h w"]:
        """See ScorePrior."""
        return self.prior.x0(x_t, t, cond).clamp(-1, 1)


def _in_tiles(prior: tiny.TinyPrior, params: PriorParams, loading: Loading) -> ScorePrior:
    """Its estimates of tiles of --prior_tile, cut between LR px; 0 = of the whole frame, which such networks can hold.

    Whatever is projected is projected over the whole frame, so that no border of a tile is seen in the LR view.
    """
    seen, side = cast(ScorePrior, Clamped(prior)), max(params.prior_tile // loading.scale, 1)  # LR px
    if not params.prior_tile:
        return seen
    return cast(ScorePrior, Tiled(seen, loading.scale * side, loading.scale * (side // 4), loading.scale))


@sampler("small")
def _small(params: PriorParams, loading: Loading) -> Maker:
    """A network of `priors.train_sr`: a regressor answers in one step, SR3 and ResShift walk."""
    prior = _small_prior(params, loading)
    config, process, seen = prior.net.config, prior.process, _in_tiles(prior, params, loading)
    own = round(process.last - process.clean) if process.uses_up else 20
    if not config.noisy:
        _without_steps(params)
    steps = (params.prior_steps or own) if config.noisy else 1
    eta = max(params.prior_eta, 0.0)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        size = size_of(window, loading.scale)
        return walked(seen, window, size, steps, eta, draws, _projecting(known))

    def renew(
        window: Window, image: Tensor, level: float, known: Known | None, draws: torch.Generator
    ) -> Float[Tensor, "3 H W"]:
        size = size_of(window, loading.scale)
        return walked(seen, window, size, steps, eta, draws, _projecting(known), (image, level))

    return Maker(make, config.scale, config.frames, prior, renew if config.noisy else None)


def _without_steps(params: PriorParams) -> None:
    """Raise UserError where a regressor is asked for what only walks have."""
    without_fresh_noise(f"{params.model}, a regressor,", params)
    if params.prior_steps:
        raise UserError(
            f"--prior_steps {params.prior_steps}: {params.model} is a regressor, which has one; leave it away"
        )


@sampler("ddnm")
def _ddnm(params: PriorParams, loading: Loading) -> Maker:
    """The null-space walk in pixels, with a network of `priors.train_sr`."""
    prior = _small_prior(params, loading)
    if prior.process.uses_up or not prior.net.config.noisy:
        raise UserError(f"--model {params.model}: ddnm walks from noise to images; give an SR3 network")
    seen = _in_tiles(prior, params, loading)
    settings = DDNMSettings(steps=params.prior_steps or 100, eta=0.85 if params.prior_eta < 0 else params.prior_eta)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        up = enlarged(window[len(window) // 2][None], *size_of(window, loading.scale))
        assert known is not None, "see load_sampler"
        of = (seen, Cond(lr=window[None], up=up), known.kernel, draws, settings)
        return ddnm(*of, tolerance=known.tolerance, mask=known.mask)[0]

    return Maker(make, prior.net.config.scale, prior.net.config.frames, prior)


@sampler("ddnm_sd3")
def _ddnm_sd3(params: PriorParams, loading: Loading) -> Maker:
    """The null-space walk in the latents of Stable Diffusion 3."""
    from priors.denoisers import sd3

    without_fresh_noise("ddnm_sd3", params)
    prior = sd3.load_sd3(params.model or sd3.MODEL, **loading.options(params))
    tile, overlap = tiles_of(prior.space, params.prior_tile, prior.side, prior.side // 8)
    told = saying(guidance=1.0 if params.guidance_scale < 0 else params.guidance_scale)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        assert known is not None, "see load_sampler"
        return ddnm_flow(
            prior,
            told(Cond(lr=window[None])),
            known.kernel,
            draws,
            steps=params.prior_steps or 8,
            strength=params.ddnm_lambda,
            tile=tile,
            overlap=overlap,
            tolerance=known.tolerance,
            mask=known.mask,
        )[0]

    return Maker(make, 0, 1, prior, told=told)


@sampler("ldm_sr")
def _ldm_sr(params: PriorParams, loading: Loading) -> Maker:
    """Latent diffusion for x4 (Apache-2.0)."""
    from priors.denoisers import ldm_sr

    options = loading.options(params)
    prior = ldm_sr.load_ldm_sr(params.model or ldm_sr.MODEL, **{k: options[k] for k in ("download", "device", "dtype")})
    return _latent(prior, params, loading, steps=100, tile=512)


@sampler("sd_x4")
def _sd_x4(params: PriorParams, loading: Loading) -> Maker:
    """Stable Diffusion's x4 upscaler."""
    from priors.denoisers import sd_x4

    prior = sd_x4.load_sd_x4(params.model or sd_x4.MODEL, **loading.options(params))
    level = sd_x4.NOISE_LEVEL if params.noise_level < 0 else params.noise_level
    prior.check_level(level)
    return _latent(prior, params, loading, steps=75, tile=512, noise_level=float(level))


def _latent(prior: ScorePrior, params: PriorParams, loading: Loading, steps: int, tile: int, **said: Any) -> Maker:
    """A latent prior that is told the LR view, in tiles of `tile` image px."""
    factor = prior.space.factor
    seen = Tiled(prior, *tiles_of(prior.space, params.prior_tile, tile, tile // 4))
    told = saying(guidance=1.0 if params.guidance_scale < 0 else params.guidance_scale, **said)
    eta = max(params.prior_eta, 0.0)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        # Projecting in each step would go through the autoencoder twice a step; the end is projected by PriorUpsampler.
        count = params.prior_steps or steps
        return walked(seen, window, size_of(window, factor), count, eta, draws, told=told)

    def renew(
        window: Window, image: Tensor, level: float, known: Known | None, draws: torch.Generator
    ) -> Float[Tensor, "3 H W"]:
        count, size = params.prior_steps or steps, size_of(window, factor)
        return walked(seen, window, size, count, eta, draws, begin=(image, level), told=told)

    return Maker(make, factor, 1, prior, renew, told)


def _small_prior(params: PriorParams, loading: Loading) -> tiny.TinyPrior:
    if not params.model:
        raise UserError("--model FILE: which network? `python -m priors.train_sr --config F train` makes one")
    if params.model.endswith(sr3_unet.SUFFIX):
        return sr3_unet.load_sr3(params.model, loading.trust[0] if loading.trust else "", loading.device)
    return tiny.load_prior(params.model, loading.device, loading.dtype)


def input_files(name: str, params: PriorParams, trust: tuple[str, ...] = (), download: bool = False) -> list[Path]:
    """The files that a system is made of, as inputs of a step; of a hub's id the one that holds its commit.

    Parameters
    ----------
    trust, download : see `published.official_files`, as what it raises.
    """
    official = published.official_files(name, params, trust, download)
    named = (params.base,) if official else (params.model, params.base)
    states = [file for model in published.hub_ids(name, params) for file in hub_state(model, download)[1]]
    return [*official, *(path for model in named for path in _files(model)), *states, *source_files(params.tagger)]


def hub_commits(name: str, params: PriorParams) -> dict[str, str]:
    """{id: commit} of models of the hub that a system was made of, for the record of a step."""
    return {id: commit for id in published.hub_ids(name, params) if (commit := hub_state(id)[0])}


def _files(model: str) -> list[Path]:
    path = Path(model)
    if not model or not path.exists():
        return []
    return [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())


def load_sampler(
    name: str,
    params: PriorParams,
    loading: Loading,
    kernel: tuple[str, str] | None = None,
    seed: int = 0,
) -> PriorUpsampler:
    """The upsampler `name`.

    Parameters
    ----------
    kernel : (kernel, border) of the LR views, None = not known.

    Raises
    ------
    UserError : files or packages missing, another scale, projection without a kernel, or more steps than times.
    """
    if params.project_lr in ("hard", "soft") and kernel is None:
        raise UserError(
            f"--project_lr {params.project_lr}: no LR kernel is known; say with --lr_kernel how the LR views were "
            "made: bicubic, area or a JSON file (views of scene.degrade have none: leave it away)"
        )
    projects = kernel is not None and params.project_lr != "off"
    if name in PROJECTING and not projects:
        raise UserError(
            "--project_lr: this prior works by projection and must know how the LR views were made; say so with "
            "--lr_kernel bicubic, area or a JSON file, and leave --project_lr off away"
        )
    maker = SAMPLERS[name](params, loading)
    if maker.scale and maker.scale != loading.scale:
        raise UserError(f"--scale {loading.scale}: {name} magnifies {maker.scale} times; give --scale {maker.scale}")
    if params.prior_steps:
        try:
            maker.prior.process.times(params.prior_steps)
        except UserError as error:
            raise UserError(f"--prior_steps {params.prior_steps}: {error}") from error
    tolerance = HALF_LEVEL if params.project_lr == "soft" else 0.0
    shared = params.prior_noise == "shared"
    return PriorUpsampler(
        maker, loading.scale, kernel if projects else None, tolerance, params.prior_samples, shared, seed
    )
