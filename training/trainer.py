"""One run of the optimisation: its state, one iteration of it, and all of it as tensors and JSON for a checkpoint.

The order within an iteration is the original code's: densification and opacity reset come before Adam, and the tensors
that they replaced sit that update out; the last iteration updates nothing.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arguments.training import OptimizationParams
from training import schedules
from training.densify import densification, opacity_reset
from training.engines import Engine
from training.morton import reordered
from training.objective import Terms, Weights
from training.sampler import ViewSampler
from training.state import TrainState, apply
from training.step import Step
from training.views import Background, TrainingViews
from utils import rng
from utils.errors import UserError

BLACK: Background = (0.0, 0.0, 0.0)
WHITE: Background = (1.0, 1.0, 1.0)
SMOOTHING = 0.4  # of the new loss in the smoothed one, as in the original progress bar


class NonFinite(Exception):
    """A loss, gradient or parameter is NaN or Inf.

    Parameters
    ----------
    iteration, view : where. what : the tensor or "loss". terms : of the objective.
    """

    def __init__(self, iteration: int, view: str, what: str, terms: Terms | None) -> None:
        super().__init__(f"iteration {iteration}, view {view}: {what} is not finite")
        self.iteration, self.view, self.what, self.terms = iteration, view, what, terms


@dataclass(frozen=True)
class World:
    """What does not change in a run: extent [world units], highest SH degree, whether the background is white."""

    extent: float
    sh_degree: int
    white_background: bool


@dataclass
class Generators:
    """One random stream for each purpose, so that none disturbs another."""

    views: torch.Generator
    split: torch.Generator
    background: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> "Generators":
        """Streams derived from one seed."""
        return cls(*(rng.generator(seed, "training", name) for name in ("views", "split", "background")))


@dataclass
class Trainer:
    """The optimisation under way.

    Attributes
    ----------
    iteration : finished iterations.
    smoothed_loss : exponential mean of the loss.
    skipped : iterations whose view was left out because it gave NaN or Inf.
    view : name of the view of the last iteration.
    """

    views: TrainingViews
    engine: Engine
    state: TrainState
    settings: OptimizationParams
    world: World
    generators: Generators
    iteration: int = 0
    smoothed_loss: float = 0.0
    skipped: set[int] = field(default_factory=set)
    view: str = ""

    def __post_init__(self) -> None:
        self.sampler = ViewSampler(list(self.views.views), self.generators.views)

    def step(self) -> Terms | None:
        """Carry out the next iteration; None when its view is one of those left out.

        Raises
        ------
        NonFinite : the loss or a parameter is NaN or Inf; the state is then not to be used any more.
        """
        now = self.iteration + 1
        self.view, background = self.sampler.next(), self._background()
        terms = None if now in self.skipped else self._optimise(now, background)
        if schedules.densifies(self.settings, now):
            large = schedules.prunes_large(self.settings, now)
            change = densification(self.state, self.settings, self.world.extent, large, self.generators.split)
            apply(self.state, reordered(self.state.gaussians.means, change))
        if schedules.resets_opacity(self.settings, now, self.world.white_background):
            apply(self.state, opacity_reset(self.state))
        self.iteration = now
        return terms

    def degree(self, iteration: int) -> int:
        """SH degree in use at `iteration`."""
        return schedules.sh_degree(iteration, self.settings.sh_interval, self.world.sh_degree)

    def _optimise(self, now: int, background: Background) -> Terms:
        step = Step(
            background=background,
            sh_degree=self.degree(now),
            weights=Weights(schedules.texture_weight(self.settings, now), self.settings.lambda_dssim),
            learning_rates=self._learning_rates(now),
            statistics=schedules.gathers_statistics(self.settings, now),
        )
        targets = self.views.targets(self.view, background)
        terms = self.engine.step(self.state, self.views.views[self.view], targets, step)
        broken = self.state.first_broken(thorough=False) if terms.finite else "loss"
        if broken:
            raise NonFinite(now, self.view, broken, terms)
        self.smoothed_loss += SMOOTHING * (terms.loss - self.smoothed_loss)
        return terms

    def _learning_rates(self, now: int) -> dict[str, float]:
        """Rates of the fields that this iteration updates."""
        if now >= self.settings.iterations or schedules.densifies(self.settings, now):
            return {}
        rates = schedules.learning_rates(self.settings, now, self.world.extent)
        if schedules.resets_opacity(self.settings, now, self.world.white_background):
            del rates["logit_opacities"]
        return rates

    def _background(self) -> Background:
        if self.settings.random_background:
            red, green, blue = torch.rand(3, generator=self.generators.background).tolist()
            return red, green, blue
        return WHITE if self.world.white_background else BLACK

    def capture(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """All that the rest of the run depends on; the tensors are the live ones, not copies."""
        states, info = rng.capture()
        tensors = self.state.tensors() | {f"rng.{name}": value for name, value in states.items()}
        tensors |= {f"generator.{name}": value.get_state() for name, value in vars(self.generators).items()}
        info |= {
            "iteration": self.iteration,
            "sh_degree_in_use": self.degree(self.iteration),
            "extent": self.world.extent,
            "adam_steps": self.state.steps,
            "views_left": self.sampler.left,
            "smoothed_loss": self.smoothed_loss,
            "skipped": sorted(self.skipped),
        }
        return tensors, info

    def restore(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> None:
        """Continue from what `capture` returned.

        Raises
        ------
        UserError : it belongs to other views, or to another SH degree.
        """
        coefficients = (self.world.sh_degree + 1) ** 2 - 1
        if max(info["views_left"], default=0) >= len(self.sampler.names):
            raise UserError("the checkpoint belongs to a scene with more training views")
        if tensors["param.shN"].shape[1] != coefficients:
            raise UserError(f"the checkpoint has another SH degree than --sh_degree {self.world.sh_degree}")
        device = self.state.gaussians.means.device
        self.state = TrainState.from_tensors(
            {name: value for name, value in tensors.items() if name.startswith(("param.", "exp_avg", "stat."))},
            info["adam_steps"],
            device,
        )
        rng.restore({n.removeprefix("rng."): v for n, v in tensors.items() if n.startswith("rng.")}, info)
        for name, value in vars(self.generators).items():
            value.set_state(tensors[f"generator.{name}"])
        self.iteration = info["iteration"]
        self.sampler.left = list(info["views_left"])
        self.smoothed_loss = info["smoothed_loss"]
        self.skipped = set(info["skipped"])
