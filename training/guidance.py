"""A prior's pull on renders, beside the losses of the views: GaussianSR (Hu et al. 2024) and its kin.

In each guided iteration the render of the view, or a random part of it, is noised to a drawn level, the prior says what
is clean, and the difference is a gradient on the render (`priors.sds`). The prior is told the LR view on the background
of the iteration, and that view enlarged. Draws depend on seed and iteration alone, so that a run goes on as it was.
"""

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arguments.guidance import GuidanceParams
from arguments.priors import PriorParams
from priors.enlarge import enlarged
from priors.hooks import ProjectLR, ProjectLRLatent
from priors.interfaces import Cond, Process, ScorePrior, Space
from priors.making import AS_IT_IS, Loading, listed
from priors.processes import VP, ResShift
from priors.sampler import HookCall
from priors.sds import SDSGuidance
from priors.spaces import PixelSpace
from scene.lr_kernel import LRKernel
from training.step import Guide
from training.views import Targets, View
from utils import rng
from utils.errors import UserError

LEVELS = 1000


@dataclass(frozen=True, eq=False)
class Guidance:
    """Score distillation by one prior.

    Parameters
    ----------
    sds : times, annealing and crop; its hooks are set for each view.
    frames : LR views that the prior is told; where it wants several, all are the view itself.
    weight : of the gradient, which is a mean over what the prior sees. every : iterations between two guided ones.
    project : whether clean estimates are moved onto the LR view. told : see `priors.making.Maker`.
    """

    sds: SDSGuidance
    frames: int
    weight: float
    every: int
    project: bool
    seed: int
    told: Callable[[Cond], Cond] = AS_IT_IS

    @classmethod
    def of(
        cls,
        prior: ScorePrior,
        frames: int,
        settings: GuidanceParams,
        seed: int,
        told: Callable[[Cond], Cond] = AS_IT_IS,
        degraded: bool = False,
    ) -> "Guidance":
        """Guidance as the flags say; their levels are of 1000, of which a process with fewer times has as many.

        Parameters
        ----------
        degraded : whether the LR views have no linear LR operator. --sds_project auto is off there and in latents,
            where projection costs a decoding and two encodings and is not exact.
        """
        levels = levels_of(prior.process)
        lowest, highest = (
            round(level * (levels - 1) / (LEVELS - 1)) for level in (settings.sds_tmin, settings.sds_tmax)
        )
        anneal = math.ceil(settings.sds_anneal * LEVELS / levels)
        sds = SDSGuidance(prior, lowest, highest, levels, anneal, crop=settings.sds_crop)
        automatic = not degraded and isinstance(prior.space, PixelSpace)
        project = automatic if settings.sds_project == "auto" else settings.sds_project == "on"
        return cls(sds, frames, settings.sds_lambda, settings.sds_every, project, seed, told)

    def guide(self, iteration: int, view: View, targets: Targets) -> Guide | None:
        """What pulls on the render of `view` in this iteration; None where nothing does."""
        if iteration % self.every or not self.weight:
            return None
        assert targets.lr is not None, "see `check`"
        assert view.kernel is not None, "an LR target comes with its kernel"
        sds, lr, camera = self.sds, targets.lr[None], view.camera
        hooks = (_projection(sds.prior.space, view.kernel),) if self.project else ()
        up = enlarged(lr, camera.width, camera.height)
        with torch.no_grad():  # a tagger may have weights
            cond = self.told(Cond(lr[:, None].expand(-1, self.frames, -1, -1, -1), up))
        draws = rng.generator(self.seed, "sds", iteration)
        elements = 3 * math.prod(sds.seen((camera.width, camera.height), (lr.shape[-1], lr.shape[-2])))

        def pull(image: Float[Tensor, "3 H W"]) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, ""]]:
            with torch.enable_grad():
                leaf = image.detach()[None].requires_grad_()
                (gradient,) = torch.autograd.grad(sds.loss(leaf, cond, iteration, draws, [camera.name], hooks), leaf)
            size = (gradient.square().sum() / elements).sqrt()
            return (gradient[0] * (self.weight / elements)).contiguous(), size

        return pull


def _projection(space: Space, kernel: LRKernel) -> HookCall:
    return ProjectLR(kernel) if isinstance(space, PixelSpace) else ProjectLRLatent(kernel, strength=1.0)


def levels_of(process: Process) -> int:
    """1000, or the number of the process's own times where these are counted and fewer."""
    return min(LEVELS, round(process.last - process.clean)) if isinstance(process, VP | ResShift) else LEVELS


def check(settings: GuidanceParams, uses_lr: bool, degraded: bool = False) -> None:
    """Refuse guidance where there is nothing to tell the prior.

    Raises
    ------
    UserError : no LR views take part in the objective, or projection onto degraded ones.
    """
    if settings.sds_project == "on" and degraded:
        raise UserError("--sds_project: the LR views were degraded (scene.degrade), nothing is projected onto them")
    if settings.sds and not uses_lr:
        raise UserError(
            f"--sds {settings.sds}: the prior is told the LR views, and none are used; train at the HR size with "
            "frames or --scale, and with --lambda_tex below 1"
        )


def load_guidance(
    settings: GuidanceParams, seed: int, device: str, degraded: bool = False, kernel: LRKernel | None = None
) -> Guidance | None:
    """The guidance that --sds names; None without it.

    Parameters
    ----------
    degraded : see `Guidance.of`. kernel : from renders to LR views, None = not known yet.

    Raises
    ------
    UserError : its model is not there, not vouched for, its licence not accepted, no diffusion model, or made for
        another magnification.
    """
    if not settings.sds:
        return None
    from priors.denoisers.tiny import TinyPrior
    from priors.samplers import SAMPLERS

    trust = listed(settings.sds_trust_weights)
    loading = Loading(torch.device(device), download=settings.sds_download, trust=trust)
    with _in_our_flags():
        maker = SAMPLERS[settings.sds](settings.prior, loading)
    if isinstance(maker.prior, TinyPrior) and not maker.prior.net.config.noisy:
        raise UserError(
            f"--sds {settings.sds}: {settings.sds_model} is a regressor, which knows no noise; give an SR3 or ResShift "
            "network"
        )
    if kernel is not None and maker.scale and kernel.scale != (maker.scale, maker.scale):
        (width, height), (w, h) = kernel.hr_size, kernel.lr_size
        raise UserError(
            f"--sds {settings.sds}: magnifies {maker.scale} times; renders of {width}x{height} px and LR views of "
            f"{w}x{h} px need another"
        )
    return Guidance.of(maker.prior, maker.frames, settings, seed, maker.told, degraded)


@contextmanager
def _in_our_flags() -> Iterator[None]:
    """A prior's UserError names its flags as training calls them."""
    try:
        yield
    except UserError as error:
        raise UserError(_as_guidance(str(error))) from error


def _as_guidance(message: str) -> str:
    named = {f.name: f"sds_{f.name.removesuffix('_scale')}" for f in fields(PriorParams)}
    named |= {name: f"sds_{name}" for name in ("download", "trust_weights")} | {"upsampler": "sds"}
    ours = {f.name for f in fields(GuidanceParams)}
    return re.sub(r"(?<=--)[a-z_]+", lambda flag: new if (new := named.get(flag[0], "")) in ours else flag[0], message)


def prior_commits(settings: GuidanceParams) -> dict[str, str]:
    """{id: commit} of models of the hub that the prior was made of."""
    if not settings.sds:
        return {}
    from priors.samplers import hub_commits

    with _in_our_flags():
        return hub_commits(settings.sds, settings.prior)


def prior_files(settings: GuidanceParams) -> list[Path]:
    """The files of the prior, as inputs of the step."""
    if not settings.sds:
        return []
    from priors.samplers import input_files

    with _in_our_flags():
        return input_files(settings.sds, settings.prior, listed(settings.sds_trust_weights), settings.sds_download)
