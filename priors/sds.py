"""Score distillation: the gradient that makes an image likelier to a prior (Poole et al. 2023; GaussianSR 2024).

At a drawn time t the clean image x is noised to x_t, the prior says x0, and

    g = w(t) (eps_hat - eps) = w(t) (a / s) (x - x0),   x_t = a x + b u + s eps,

which is the gradient of w (s / a) KL(q(x_t | x) || p_t) to x in the mean over eps. The prior is called without a graph.
Hooks change x0 first. With `ProjectLR` among them A g = w (a / s) (A x - y): where x already meets its LR view, g lies
in the null space of A and cannot pull against an LR loss.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float
from torch import Tensor

from priors.crops import Box, Croppable, box_size, cropped_cond, random_box
from priors.interfaces import Coefficients, Cond, ScorePrior, StepContext
from priors.sampler import HookCall, noised, standard_noise, up_coordinates
from utils.errors import UserError


def noise_share(c: Coefficients) -> float:
    """w = s^2 / (a^2 + s^2): 1 - abar of VP in any coordinates (DreamFusion's weight)."""
    return c.s**2 / (c.a**2 + c.s**2)


def unit_weight(c: Coefficients) -> float:
    """w = 1."""
    return 1.0


@dataclass(frozen=True, eq=False)
class SDSGuidance:
    """Draws of t and noise, and the gradient at them.

    Times are those of `prior.process.times(levels)`, counted from the cleanest, 0, to levels - 1: of VP with as many
    levels as betas, t itself.

    Parameters
    ----------
    lowest, highest : t_min and T, levels between which t is drawn, both included; 0 <= lowest < highest < levels.
    levels : of the grid of times.
    anneal : N, iterations after which the lower bound falls by one level (GaussianSR's annealing); 0 = off.
    weight : w, of the coefficients at t.
    hooks : on the clean estimate. With crops each must be `Croppable`, or work on a part as on the whole.
    crop : side of the random part of each image that the prior sees, HR px; 0 = all, or the largest part that is whole
        latents. Parts lie on the LR grid and on that of the latents. Needs `cond.lr`.

    Raises
    ------
    UserError : the bounds are not in this order.
    """

    prior: ScorePrior
    lowest: int = 20
    highest: int = 980
    levels: int = 1000
    anneal: int = 0
    weight: Callable[[Coefficients], float] = noise_share
    hooks: Sequence[HookCall] = ()
    crop: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.lowest < self.highest < self.levels:
            raise UserError(
                f"SDS between levels {self.lowest} and {self.highest} of {self.levels}: 0 <= lowest < highest < levels "
                "is expected"
            )

    def lower_bound(self, iteration: int) -> float:
        """LB = clamp(T - iteration / N, t_min, T - 1), or t_min without annealing. Level, not rounded."""
        if not self.anneal:
            return float(self.lowest)
        return float(min(max(self.highest - iteration / self.anneal, self.lowest), self.highest - 1))

    def draw_level(self, iteration: int, generator: torch.Generator) -> int:
        """Uniform over the whole levels from the lower bound to `highest`."""
        first = math.ceil(self.lower_bound(iteration))
        return int(torch.randint(first, self.highest + 1, (), generator=generator))

    @cached_property
    def times(self) -> tuple[float, ...]:
        """The process's times by level."""
        return tuple(self.prior.process.times(self.levels)[-2::-1])

    @torch.no_grad()
    def gradient(
        self,
        x: Float[Tensor, "B C h w"],
        cond: Cond,
        t: float,
        noise: Float[Tensor, "B C h w"],
        names: Sequence[str] = (),
        hooks: Sequence[HookCall] | None = None,
    ) -> Float[Tensor, "B C h w"]:
        """g = w (a / s) (x - x0) of each image, in space coordinates; no graph.

        Parameters
        ----------
        x : clean, space coordinates. noise : eps. names : the views, for the hooks. hooks : instead of the own ones.
        """
        prior = self.prior
        c = prior.process.coefficients(t)
        x_t = noised(prior.process, x, t, noise, up_coordinates(prior, cond))
        x0 = prior.x0(x_t, t, cond)
        context = StepContext(prior, cond, 0, 1, t, prior.process.clean, names)
        for hook in self.hooks if hooks is None else hooks:
            x0 = hook(x0, context)
        return self.weight(c) * (c.a / c.s) * (x - x0)

    def loss(
        self,
        image: Float[Tensor, "B 3 H W"],
        cond: Cond,
        iteration: int,
        generator: torch.Generator,
        names: Sequence[str] = (),
        hooks: Sequence[HookCall] | None = None,
    ) -> Float[Tensor, ""]:
        """sum(g x) / B with g held fixed, whose gradient to the image is g / B through the encoder.

        Parameters
        ----------
        image : 0-1 with a graph, such as renders. cond : of the same views, all of each.
        generator : of crop, time and noise, one time and one crop for the batch; on the CPU.
        hooks : of these views, instead of the own ones.

        Returns
        -------
        Its value means nothing, only its gradient.

        Raises
        ------
        UserError : the image is no whole multiple of its LR view, or a crop's latents would be no whole ones.
        ValueError : crops without cond.lr.
        """
        hooks, size = self.hooks if hooks is None else hooks, (image.shape[-1], image.shape[-2])
        if not self._sees_all(size):
            if cond.lr is None:
                raise ValueError("crops need cond.lr")
            view = (cond.lr.shape[-1], cond.lr.shape[-2])
            box = random_box(view, *self._side(size, view), generator)
            cond = cropped_cond(cond, box, size)
            image = box.of(image)
            hooks = [_on(hook, box) for hook in hooks]
        x = self.prior.space.encode(image)
        t = self.times[self.draw_level(iteration, generator)]
        noise = standard_noise(x, generator)
        return (self.gradient(x.detach(), cond, t, noise, names, hooks) * x).sum() / len(x)

    def seen(self, size: tuple[int, int], view: tuple[int, int]) -> tuple[int, int]:
        """Width and height of what the prior sees of an image of `size`, whose LR view has the size `view`; px."""
        if self._sees_all(size):
            return size
        width, height = box_size(view, *self._side(size, view))
        return width * (size[0] // view[0]), height * (size[1] // view[1])

    def _sees_all(self, size: tuple[int, int]) -> bool:
        return not self.crop and not any(side % self.prior.space.factor for side in size)

    def _side(self, size: tuple[int, int], view: tuple[int, int]) -> tuple[int, int]:
        """Side of a part and of what it is a multiple, LR px."""
        scale = Box(0, 0, *view, view).scale(*size)
        # LR px after which HR px are multiples of the latents' factor, along both axes
        factor = self.prior.space.factor
        multiple = math.lcm(*(factor // math.gcd(factor, s) for s in scale))
        return self.crop // max(scale) if self.crop else max(view), multiple


def _on(hook: HookCall, box: Box) -> HookCall:
    return hook.cropped(box) if isinstance(hook, Croppable) else hook
