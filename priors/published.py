"""Published systems as makers of frames: DiffuseHigh and the family of Stable Diffusion 2 (see `priors.samplers`).

Each builder takes a prior that is loaded, so that it says only how the system walks. `released` loads one from the
official files; their licences are shown and accepted there.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from arguments.priors import PriorParams
from priors import checkpoints, diffusehigh, post
from priors.denoisers import addsr, sd2
from priors.denoisers.controlnet_sr import DiffBIR
from priors.denoisers.resshift import ResShiftSR
from priors.denoisers.seesr import IMAGE, SeeSR, TagPrompter
from priors.denoisers.stablesr import StableSR
from priors.denoisers.tiles import Tiled
from priors.enlarge import enlarged
from priors.hooks import RefineCondition, RestorationGuidance
from priors.interfaces import Cond, ScorePrior
from priors.making import Known, Loading, Maker, Window, sampler, saying, size_of, tiles_of, without_fresh_noise
from priors.sampler import HookCall, sample
from priors.spaces import padded
from priors.verify import LOADERS, Options
from utils.errors import UserError
from utils.plugins import imported

TILE_PX = 512
_MODELS = {"ddnm_sd3": "sd3", "diffusehigh": "sdxl"}  # whose whole model has a name of its own in the table
RELEASES = {"diffbir": "diffbir_v2", "resshift": "resshift_bicsrx4_s4"}  # of several, unless --release names one


@sampler("diffusehigh")
def _diffusehigh(params: PriorParams, loading: Loading) -> Maker:
    from priors.denoisers import sdxl

    _diffusehigh_settings(params)  # refused before a model is loaded
    without_fresh_noise("diffusehigh", params)
    negative = params.negative_prompt or diffusehigh.NEGATIVE
    prior = sdxl.load_sdxl(params.model or sdxl.MODEL, **loading.options(params) | {"negative": negative})
    return diffusehigh_maker(prior, params, loading)


@sampler("stablesr")
def _stablesr(params: PriorParams, loading: Loading) -> Maker:
    return stablesr_maker(released("stablesr", params, loading), params, loading)


@sampler("stablesr_turbo")
def _stablesr_turbo(params: PriorParams, loading: Loading) -> Maker:
    return stablesr_maker(released("stablesr_turbo", params, loading), params, loading, steps=4)


@sampler("diffbir")
def _diffbir(params: PriorParams, loading: Loading) -> Maker:
    prior = replace(released("diffbir", params, loading), restore=loading.restore)
    return diffbir_maker(prior, params, loading)


@sampler("seesr")
def _seesr(params: PriorParams, loading: Loading) -> Maker:
    return seesr_maker(released("seesr", params, loading), params, loading, _tagger(params, loading))


@sampler("addsr")
def _addsr(params: PriorParams, loading: Loading) -> Maker:
    return addsr_maker(released("addsr", params, loading), params, loading, _tagger(params, loading))


@sampler("resshift")
def _resshift(params: PriorParams, loading: Loading) -> Maker:
    return resshift_maker(released("resshift", params, loading), params)


def released(name: str, params: PriorParams, loading: Loading) -> Any:
    """The prior of a published system, from its official files.

    Raises
    ------
    UserError : unknown release, licence not accepted, files missing, not vouched for, or not fitting.
    """
    found = _release(name, params)
    assert found is not None, name
    found.accepted(params.accept_licence)
    options = Options(
        *(params.model, params.base, loading.trust, params.accept_licence, loading.download, str(loading.device)),
        *(params.texts, params.prompt, params.negative_prompt, loading.dtype),
    )
    return LOADERS[found.family](found, options)[0]


def official_files(name: str, params: PriorParams, trust: tuple[str, ...] = (), download: bool = False) -> list[Path]:
    """The files of a published system, none of one that is a whole model or a folder.

    Parameters
    ----------
    download : fetch what is missing, so that they are the same before and after the first run.

    Raises
    ------
    UserError : unknown release; with `download` as `checkpoints.vouched`.
    """
    found = _release(name, params)
    if found is None:
        return []
    files = checkpoints.present(found, params.model)
    if len(files) < len(found.files) and download:
        checkpoints.vouched(found, params.model, trust, accept_licence=params.accept_licence, download=True)
        files = checkpoints.present(found, params.model)
    return files


def hub_ids(name: str, params: PriorParams) -> list[str]:
    """Ids on the hub of the whole models that a system stands on; none of a folder of the user's own.

    Raises
    ------
    UserError : unknown release.
    """
    found = _release(name, params)
    if found is None:
        return []
    ids = (found.model and (params.model or found.model), params.base or found.base)
    return [id for id in ids if id and not Path(id).exists()]


def _release(name: str, params: PriorParams) -> checkpoints.Checkpoint | None:
    """What is published of a system; None of networks of our own."""
    system = _MODELS.get(name, name)
    usual = RELEASES.get(system, system)
    if usual not in checkpoints.CHECKPOINTS:
        if params.release:
            raise UserError(f"--release {params.release}: --upsampler {name} has none; leave it away")
        return None
    found = checkpoints.checkpoint(params.release or usual)
    if found.name != system and not (system in RELEASES and found.name.startswith(f"{system}_")):
        raise UserError(f"--release {found.name}: is not one of --upsampler {name}")
    return found


def diffusehigh_maker(prior: ScorePrior, params: PriorParams, loading: Loading) -> Maker:
    """The LR view enlarged in one go; its low band is kept for the first steps. As a whole, as DiffuseHigh does it."""
    chosen = _diffusehigh_settings(params)
    seen = Tiled(prior, *tiles_of(prior.space, params.prior_tile, TILE_PX, 64)) if params.prior_tile else prior

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        width, height = size_of(window, loading.scale)
        lr = window[len(window) // 2][None]
        sized = replace(chosen, target_width=(width,), target_height=(height,))
        return diffusehigh.enlarged_to(seen, Cond(), lr, draws, sized)[0]

    return Maker(make, 0, 1, prior, told=saying(guidance=chosen.diffusehigh_guidance_scale))


def _diffusehigh_settings(params: PriorParams) -> diffusehigh.Settings:
    guidance = diffusehigh.Settings.diffusehigh_guidance_scale if params.guidance_scale < 0 else params.guidance_scale
    return diffusehigh.settings(
        num_inference_steps=params.prior_steps or diffusehigh.Settings.num_inference_steps,
        noising_steps=params.noising_steps,
        diffusehigh_guidance_scale=guidance,
        enable_dwt=params.dwt_steps > 0,
        dwt_steps=params.dwt_steps,
        dwt_level=params.dwt_level,
        dwt_wave=params.dwt_wave,
        dwt_mode=params.dwt_mode,
        enable_sharpening=params.sharpening_alpha > 0,
        sharpening_alpha=params.sharpening_alpha,
        sharpening_kernel_size=params.sharpening_kernel_size,
        sharpening_sigma=params.sharpening_sigma,
    )


def stablesr_maker(prior: StableSR, params: PriorParams, loading: Loading, steps: int = 200) -> Maker:
    """DDPM steps from the noised LR latent, decoded with controllable feature wrapping."""
    walk = _Walk(prior, params, loading, steps, tile=TILE_PX, overlap=TILE_PX // 2, guidance=1.0, eta=1.0)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        z, ready = walk.from_lr(walk.told(walk.view(window)), draws)
        assert ready.up is not None
        return walk.finished(prior.image(z, ready.up), window, known)

    return Maker(make, 0, 1, prior, told=walk.told)


def diffbir_maker(prior: DiffBIR, params: PriorParams, loading: Loading) -> Maker:
    """50 steps from noise, led by the restored LR view; --restoration_scale pulls estimates towards that one."""
    walk = _Walk(prior, params, loading, 50, tile=TILE_PX, overlap=TILE_PX // 2, guidance=4.0, eta=1.0)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        cond = walk.told(walk.view(window))
        assert cond.up is not None
        if prior.restore is not None:
            first = prior.restore(window[len(window) // 2][None], *size_of(window, loading.scale))
            cond = replace(cond, extra={IMAGE: padded(first, prior.space.factor)})
        cond = replace(prior.prepared(cond), lr=None)  # see sd2.walk_from_lr
        assert cond.up is not None
        hooks: tuple[HookCall, ...] = ()
        if params.restoration_scale:
            hooks = (RestorationGuidance(cond.extra[IMAGE], params.restoration_scale),)
        h, w = (side // prior.space.factor for side in cond.up.shape[-2:])
        times, shape = prior.process.times(walk.steps), (1, prior.space.channels, h, w)
        z = sample(walk.seen, cond, times, draws, hooks=hooks, eta=walk.eta, shape=shape)
        return walk.finished(prior.space.decode(z), window, known)

    return Maker(make, 0, 1, prior, told=walk.told)


def seesr_maker(prior: SeeSR, params: PriorParams, loading: Loading, tagger: TagPrompter) -> Maker:
    """50 steps from the noised LR latent, told the tags of the LR view."""
    walk = _Walk(prior, params, loading, 50, tile=768, overlap=32, guidance=5.5, eta=1.0)

    def told(cond: Cond) -> Cond:
        return prior.tagged(walk.told(cond), tagger)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        z, _ = walk.from_lr(told(walk.view(window)), draws)
        return walk.finished(prior.space.decode(z), window, known)

    return Maker(make, 0, 1, prior, told=told)


def addsr_maker(prior: SeeSR, params: PriorParams, loading: Loading, tagger: TagPrompter) -> Maker:
    """The student's four steps; from the second on it is led by its own prediction mixed with the LR view."""
    walk = _Walk(prior, params, loading, 4, tile=768, overlap=32, guidance=1.0, eta=1.0)
    hooks = (RefineCondition(params.psr_weight, IMAGE), addsr.RefineTags(tagger))

    def told(cond: Cond) -> Cond:
        return prior.tagged(walk.told(cond), tagger)

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        times = (*addsr.STUDENT_TIMES, prior.process.clean)
        z, _ = walk.from_lr(told(walk.view(window)), draws, times, hooks)
        return walk.finished(prior.space.decode(z), window, known)

    return Maker(make, 0, 1, prior, told=told)


def resshift_maker(prior: ResShiftSR, params: PriorParams) -> Maker:
    """The steps that it was trained for, in the latents of its own autoencoder."""
    seen = Tiled(prior, *tiles_of(prior.space, params.prior_tile, TILE_PX, 64))
    eta = 1.0 if params.prior_eta < 0 else params.prior_eta

    def make(window: Window, known: Known | None, draws: torch.Generator) -> Float[Tensor, "3 H W"]:
        middle = window[len(window) // 2][None]
        cond = Cond(lr=middle[:, None], up=enlarged(middle, *size_of(window, prior.space.factor)))
        times = prior.process.times(params.prior_steps or round(prior.process.last - prior.process.clean))
        return prior.space.decode(sample(seen, cond, times, draws, eta=eta))[0]

    return Maker(make, prior.space.factor, 1, prior)


class _Walk:
    """What walks of this family share: the padded enlarged LR view, tiles, steps, and colours at the end."""

    def __init__(
        self,
        prior: Any,
        params: PriorParams,
        loading: Loading,
        steps: int,
        *,
        tile: int,
        overlap: int,
        guidance: float,
        eta: float,
    ) -> None:
        self.prior, self.scale, self.color_fix = prior, loading.scale, params.color_fix
        self.steps = params.prior_steps or steps
        self.guidance = guidance if params.guidance_scale < 0 else params.guidance_scale
        self.eta = eta if params.prior_eta < 0 else params.prior_eta
        self.tile, self.overlap = tiles_of(prior.space, params.prior_tile, tile, overlap)
        self.seen = Tiled(prior, self.tile, self.overlap)

    def view(self, window: Window) -> Cond:
        """The view, and its enlargement with sides that are whole latents."""
        middle = window[len(window) // 2][None]
        up = enlarged(middle, *size_of(window, self.scale)).clamp(0, 1)
        return Cond(lr=middle[:, None], up=padded(up, self.prior.space.factor))

    def told(self, cond: Cond) -> Cond:
        """See `Maker`."""
        return replace(cond, guidance=self.guidance)

    def from_lr(
        self,
        cond: Cond,
        draws: torch.Generator,
        times: tuple[float, ...] = (),
        hooks: tuple[HookCall, ...] = (),
    ) -> tuple[Float[Tensor, "1 C h w"], Cond]:
        """See `sd2.walk_from_lr`."""
        walked = times or self.prior.process.times(self.steps)
        options: dict[str, Any] = {"tile": self.tile, "overlap": self.overlap}
        return sd2.walk_from_lr(self.prior, cond, walked, draws, hooks=hooks, eta=self.eta, **options)

    def finished(
        self, image: Float[Tensor, "1 3 H2 W2"], window: Window, known: Known | None
    ) -> Float[Tensor, "3 H W"]:
        """Cut to size, with the colours of the LR view where no projection will give them."""
        width, height = size_of(window, self.scale)
        image = image[..., :height, :width]
        kind = ("wavelet" if known is None else "none") if self.color_fix == "auto" else self.color_fix
        up = enlarged(window[len(window) // 2][None], width, height)
        if kind == "adain":
            image = post.color_adain(image, up)
        elif kind == "wavelet":
            image = post.color_wavelet(image, up)
        return image[0]


def _tagger(params: PriorParams, loading: Loading) -> TagPrompter:
    if not params.tagger:
        raise UserError(
            "--tagger MODULE:NAME: this prior is told tags of the LR view; name a callable of yours that returns a "
            "tagger for a device (priors/denoisers/seesr.py::TagPrompter, such as DAPE)"
        )
    found: TagPrompter = imported("--tagger", params.tagger)(loading.device)
    return found
