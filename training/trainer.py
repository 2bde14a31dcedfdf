"""One run of the optimisation: its state, one iteration of it, and all of it as tensors and JSON for a checkpoint.

The order within an iteration is the original code's: densification and opacity reset come before Adam, and the tensors
that they replaced sit that update out; the last iteration updates nothing.

On the GPU the numbers of an iteration (losses, whether all is finite) are looked at one iteration later, when they have
come without anybody waiting for them. The kernels have then long refused an update from a loss that is not finite.
"""

import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from arguments.training import OptimizationParams
from scene.gaussians import Gaussians
from training import mcmc, schedules
from training.densify import densification, opacity_reset
from training.engines import Engine
from training.exposure import PREFIX as EXPOSURE
from training.exposure import Exposures
from training.guidance import Guidance
from training.mcmc import Regularisers
from training.morton import reordered
from training.objective import Outcome, Terms, Weights
from training.reading import Reading
from training.sampler import ViewSampler
from training.smoothing import INTERVAL, baked, filters
from training.state import FILTER, TrainState, apply, first_broken
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


@dataclass
class Iteration:
    """One iteration; what is known last is read from the device by `Trainer.settle`.

    Attributes
    ----------
    number, view : which. outcome, sums : of the objective; of the parameters, by name, on their way.
    gaussians : their number after it. seconds : of the caller's time.
    terms, smoothed_loss : once they are read.
    """

    number: int
    view: str
    outcome: Outcome
    names: list[str]
    sums: Reading
    gaussians: int = 0
    seconds: float = 0.0
    terms: Terms | None = None
    smoothed_loss: float = 0.0


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
    noise: torch.Generator

    @classmethod
    def seeded(cls, seed: int) -> "Generators":
        """Streams derived from one seed."""
        return cls(*(rng.generator(seed, "training", name) for name in ("views", "split", "background", "noise")))


@dataclass
class Trainer:
    """The optimisation under way.

    Attributes
    ----------
    guidance : of a prior, which pulls on renders; None = there is none.
    iteration : finished iterations.
    smoothed_loss : exponential mean of the loss.
    skipped : iterations whose view was left out because it gave NaN or Inf.
    view : name of the view of the last iteration.
    lag : iterations whose numbers may still be under way.
    pending, finished : iterations before and after their numbers were read, oldest first.
    """

    views: TrainingViews
    engine: Engine
    state: TrainState
    settings: OptimizationParams
    world: World
    generators: Generators
    guidance: Guidance | None = None
    iteration: int = 0
    smoothed_loss: float = 0.0
    skipped: set[int] = field(default_factory=set)
    view: str = ""
    lag: int = 0
    pending: deque[Iteration] = field(default_factory=deque)
    finished: deque[Iteration] = field(default_factory=deque)

    def __post_init__(self) -> None:
        self.sampler = ViewSampler(list(self.views.views), self.generators.views)
        self.lag = 1 if self.state.gaussians.means.is_cuda else 0
        self._smooth()
        self._expose()

    @property
    def drawn(self) -> Gaussians:
        """The Gaussians as any renderer draws them: with their filters, where there are some, made a part of them."""
        gaussians, widths = self.state.gaussians, self.state.filter_3d
        return gaussians if widths is None else baked(gaussians, widths)

    def step(self) -> Terms | None:
        """Carry out the next iteration and wait for its terms; None when its view is one of those left out.

        Raises
        ------
        NonFinite : see `settle`.
        """
        self.advance()
        self.settle()
        last = self.finished.pop() if self.finished else None
        self.finished.clear()
        return last.terms if last and last.number == self.iteration else None

    def advance(self) -> None:
        """Carry out the next iteration; its numbers come to `finished` as soon as `lag` more have been begun.

        Raises
        ------
        NonFinite : see `settle`.
        """
        begin = time.perf_counter()
        now = self.iteration + 1
        self.view, background = self.sampler.next(), self._background()
        made = None if now in self.skipped else self._optimise(now, background)
        if schedules.densifies(self.settings, now):
            self._change_density(now)
        if schedules.resets_opacity(self.settings, now, self.world.white_background):
            apply(self.state, opacity_reset(self.state))
        if self.settings.densification == "mcmc" and now < self.settings.iterations:
            rate = schedules.learning_rates(self.settings, now, self.world.extent)["means"]
            mcmc.diffuse(self.state, self.settings.noise_lr * rate, self.generators.noise)
        if self.state.filter_3d is None or now % INTERVAL == 0:
            self._smooth()
        self.iteration = now
        if made:
            made.gaussians, made.seconds = self.state.gaussians.num, time.perf_counter() - begin

    def _change_density(self, now: int) -> None:
        settings, draws = self.settings, self.generators.split
        if settings.densification == "mcmc":
            for kind in (mcmc.relocation, mcmc.growth):
                moved = kind(self.state, settings, draws)
                if moved:
                    apply(self.state, reordered(self.state.gaussians.means, moved))
            return
        large = schedules.prunes_large(settings, now)
        change = densification(self.state, settings, self.world.extent, large, draws)
        apply(self.state, reordered(self.state.gaussians.means, change))

    def _smooth(self) -> None:
        if self.settings.filter_3d:
            cameras = (view.camera for view in self.views.views.values())
            trust = self.views.trust(self.settings.filter_3d_rate)
            self.state.filter_3d = filters(cameras, self.state.gaussians.means, trust)

    def _expose(self) -> None:
        wanted = self.settings.exposure_lr_init > 0
        if wanted and self.state.exposures is None:
            self.state.exposures = Exposures.start(list(self.views.views), self.state.gaussians.means.device)
        elif not wanted:
            self.state.exposures = None

    def settle(self, leave: int = 0) -> None:
        """Read the numbers of all pending iterations but the last `leave`; they move to `finished`.

        Raises
        ------
        NonFinite : the loss or a parameter is NaN or Inf; the state is then not to be used any more.
        """
        while len(self.pending) > leave:
            of = self.pending.popleft()
            of.terms = of.outcome()
            broken = first_broken(of.names, of.sums.values()) if of.terms.finite else "loss"
            if broken:
                raise NonFinite(of.number, of.view, broken, of.terms)
            self.smoothed_loss += SMOOTHING * (of.terms.loss - self.smoothed_loss)
            of.smoothed_loss = self.smoothed_loss
            self.finished.append(of)

    def degree(self, iteration: int) -> int:
        """SH degree in use at `iteration`."""
        return schedules.sh_degree(iteration, self.settings.sh_interval, self.world.sh_degree)

    def _optimise(self, now: int, background: Background) -> Iteration:
        view, targets = self.views.views[self.view], self.views.targets(self.view, background)
        step = Step(
            background=background,
            sh_degree=self.degree(now),
            weights=Weights(schedules.texture_weight(self.settings, now), self.settings.lambda_dssim),
            learning_rates=self._learning_rates(now),
            statistics=schedules.gathers_statistics(self.settings, now),
            visible_only=self.settings.optimizer_type == "sparse_adam",
            absolute=self.settings.abs_grad,
            exposure_rate=schedules.exposure_rate(self.settings, now),
            depth_weight=schedules.depth_weight(self.settings, now),
            regularisers=self._regularisers(),
            guide=None if self.guidance is None else self.guidance.guide(now, view, targets),
        )
        outcome = self.engine.step(self.state, view, targets, step)
        names, sums = self.state.sums()
        made = Iteration(now, self.view, outcome, names, Reading(sums))
        self.pending.append(made)
        self.settle(self.lag)
        return made

    def _regularisers(self) -> Regularisers | None:
        settings = self.settings
        return Regularisers(settings.opacity_reg, settings.scale_reg) if settings.densification == "mcmc" else None

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
        """All that the rest of the run depends on, once all is settled; the tensors are the live ones, not copies."""
        assert not self.pending, "settle first"
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
        if f"{EXPOSURE}values" in tensors and len(tensors[f"{EXPOSURE}values"]) != len(self.sampler.names):
            raise UserError("the checkpoint's exposures belong to another number of training views")
        if tensors["param.shN"].shape[1] != coefficients:
            raise UserError(f"the checkpoint has another SH degree than --sh_degree {self.world.sh_degree}")
        device = self.state.gaussians.means.device
        self.state = TrainState.from_tensors(
            {name: value for name, value in tensors.items() if name.startswith(("param.", "exp_avg", "stat.", FILTER))},
            info["adam_steps"],
            device,
        )
        if f"{EXPOSURE}values" in tensors:
            self.state.exposures = Exposures.from_tensors(tensors, list(self.views.views), device)
        self._expose()
        rng.restore({n.removeprefix("rng."): v for n, v in tensors.items() if n.startswith("rng.")}, info)
        for name, value in vars(self.generators).items():
            value.set_state(tensors[f"generator.{name}"])
        if not self.settings.filter_3d:
            self.state.filter_3d = None
        elif self.state.filter_3d is None:
            self._smooth()
        self.pending.clear()
        self.finished.clear()
        self.iteration = info["iteration"]
        self.sampler.left = list(info["views_left"])
        self.smoothed_loss = info["smoothed_loss"]
        self.skipped = set(info["skipped"])
