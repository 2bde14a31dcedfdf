"""A prior's pull on renders, beside the losses of the views: GaussianSR (Hu et al. 2024) and its kin.

In each guided iteration the render of the view, or a random part of it, is noised to a drawn level, the prior says what
is clean, and the difference is a gradient on the render (`priors.sds`). The prior is told the LR view on the background
of the iteration, and that view enlarged. Draws depend on seed and iteration alone, so that a run goes on as it was.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arguments.guidance import GuidanceParams
from priors.enlarge import enlarged
from priors.hooks import ProjectLR
from priors.interfaces import Cond, Process, ScorePrior
from priors.processes import VP, ResShift
from priors.sds import SDSGuidance
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
    project : whether clean estimates are moved onto the LR view. noise_level : that the prior is told.
    """

    sds: SDSGuidance
    frames: int
    weight: float
    every: int
    project: bool
    seed: int
    noise_level: float = 0.0

    @classmethod
    def of(
        cls, prior: ScorePrior, frames: int, settings: GuidanceParams, seed: int, noise_level: float = 0.0
    ) -> "Guidance":
        """Guidance as the flags say; their levels are of 1000, of which a process with fewer times has as many."""
        levels = levels_of(prior.process)
        lowest, highest = (
            round(level * (levels - 1) / (LEVELS - 1)) for level in (settings.sds_tmin, settings.sds_tmax)
        )
        anneal = math.ceil(settings.sds_anneal * LEVELS / levels)
        sds = SDSGuidance(prior, lowest, highest, levels, anneal, crop=settings.sds_crop)
        return cls(sds, frames, settings.sds_lambda, settings.sds_every, settings.sds_project, seed, noise_level)

    def guide(self, iteration: int, view: View, targets: Targets) -> Guide | None:
        """What pulls on the render of `view` in this iteration; None where nothing does."""
        if iteration % self.every or not self.weight:
            return None
        assert targets.lr is not None, "see `check`"
        assert view.kernel is not None, "an LR target comes with its kernel"
        sds, lr = self.sds, targets.lr[None]
        hooks = (ProjectLR(view.kernel),) if self.project else ()
        up = enlarged(lr, view.camera.width, view.camera.height)
        cond = Cond(lr[:, None].expand(-1, self.frames, -1, -1, -1), up, noise_level=self.noise_level)
        draws = rng.generator(self.seed, "sds", iteration)

        def pull(image: Float[Tensor, "3 H W"]) -> tuple[Float[Tensor, "3 H W"], Float[Tensor, ""]]:
            with torch.enable_grad():
                leaf = image.detach()[None].requires_grad_()
                (gradient,) = torch.autograd.grad(
                    sds.loss(leaf, cond, iteration, draws, [view.camera.name], hooks), leaf
                )
            _, _, height, width = gradient.shape
            seen = min(sds.crop or height, height) * min(sds.crop or width, width)
            size = (gradient.square().sum() / (3 * seen)).sqrt()
            return (gradient[0] * (self.weight / (3 * seen))).contiguous(), size

        return pull


def levels_of(process: Process) -> int:
    """1000, or the number of the process's own times where these are counted and fewer."""
    return min(LEVELS, round(process.last - process.clean)) if isinstance(process, VP | ResShift) else LEVELS


def check(settings: GuidanceParams, uses_lr: bool, degraded: bool = False) -> None:
    """Refuse guidance where there is nothing to tell the prior.

    Raises
    ------
    UserError : no LR views take part in the objective, or projection onto degraded ones.
    """
    if settings.sds_project and degraded:
        raise UserError("--sds_project: the LR views were degraded (scene.degrade), nothing is projected onto them")
    if settings.sds and not uses_lr:
        raise UserError(
            f"--sds {settings.sds}: the prior is told the LR views, and none are used; train at the HR size with "
            "frames or --scale, and with --lambda_tex below 1"
        )


def load_guidance(settings: GuidanceParams, seed: int, device: str) -> Guidance | None:
    """The guidance that --sds names; None without it.

    Raises
    ------
    UserError : an unknown name, or its model is not there.
    """
    if not settings.sds:
        return None
    from priors.samplers import load_guiding

    maker = load_guiding(settings.sds, settings.sds_model, device)
    return Guidance.of(maker.prior, maker.frames, settings, seed, maker.noise_level)


def prior_files(settings: GuidanceParams) -> list[Path]:
    """Files of --sds_model as inputs of the step."""
    if not settings.sds:
        return []
    from priors.samplers import model_files

    return model_files(settings.sds_model)
