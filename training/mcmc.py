"""3DGS-MCMC: density control as sampling. The number of Gaussians only grows, to a cap; dead ones move to live ones.

Letters: N Gaussians, P places that are filled (dead rows, or rows to come), o an opacity, k the number of Gaussians
that share the place of one: itself and its copies. Opacities are written with exp, not sigmoid, whose last bit depends
on how PyTorch cuts the work into threads.

Kheradmand et al., "3D Gaussian Splatting as Markov Chain Monte Carlo", NeurIPS 2024, and its released code.
"""

import math
from dataclasses import dataclass, replace
from functools import cache

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from arguments.training import OptimizationParams
from scene.gaussians import Gaussians
from training.densify import logit, rotated
from training.state import Change, TrainState

MOST_SHARING = 51  # k beyond it counts as it, as in the released code
GROWTH = 1.05  # of the number, at each densification
STEEPNESS, THRESHOLD = 100.0, 0.005  # of the noise's gate: full under, none well over this opacity
STILL = 0.3  # opacity over which the noise is nothing
START_SIZE = 0.1
REGULARISED = ("log_scales", "logit_opacities")


@dataclass(frozen=True)
class Regularisers:
    """Weights of two more terms of the loss, opacity * mean o + scale * mean of all scales; section 3.4."""

    opacity: float
    scale: float

    def gradient(self, name: str, values: Float[Tensor, "N K"]) -> Float[Tensor, "N K"]:
        """Gradient with respect to a field of REGULARISED: o (1 - o) for logits, s for log s, over their number."""
        if name == "log_scales":
            return values.exp() * (self.scale / max(values.numel(), 1))
        ratio = (-values.abs()).exp()  # of o and 1 - o
        return ratio / (1 + ratio).square() * (self.opacity / max(values.numel(), 1))


def begun(gaussians: Gaussians) -> Gaussians:
    """Gaussians made from points as the released code starts with them: a tenth of the size, opacity 0.5."""
    smaller = gaussians.log_scales + math.log(START_SIZE)
    return replace(gaussians, log_scales=smaller, logit_opacities=torch.zeros_like(gaussians.logit_opacities))


def relocation(state: TrainState, settings: OptimizationParams, draws: torch.Generator) -> Change | None:
    """Return the change that moves dead Gaussians to live ones, drawn by opacity; None = nothing to move.

    Parameters
    ----------
    draws : CPU generator.

    Notes
    -----
    Dead: opacity of at most `min_opacity`. Section 3.3; a live one and those that come to it share its place by
    `shared`, and start without memory of gradients.
    """
    dead = state.gaussians.logit_opacities[:, 0] <= logit(settings.min_opacity)
    places, alive = dead.nonzero()[:, 0], (~dead).nonzero()[:, 0]
    if len(places) == 0 or len(alive) == 0:
        return None
    return _copied(state, places, alive[_drawn(state, alive, len(places), draws)], settings.min_opacity)


def growth(state: TrainState, settings: OptimizationParams, draws: torch.Generator) -> Change | None:
    """Return the change that adds 5 % of the Gaussians, up to `max_gaussians`, as `relocation` would move them."""
    present = state.gaussians.num
    count = min(settings.max_gaussians, int(GROWTH * present)) - present
    if count <= 0:
        return None
    rows = torch.arange(present + count, device=state.gaussians.means.device)
    return _copied(state, rows[present:], _drawn(state, rows[:present], count, draws), settings.min_opacity)


def diffuse(state: TrainState, rate: float, draws: torch.Generator) -> None:
    """Move the means in place by the noise of one step of Langevin dynamics: rate * gate(o) * Sigma eta, eta normal.

    Parameters
    ----------
    rate : noise_lr times the means' learning rate. draws : CPU generator; on a GPU one number of it seeds the device's.

    Notes
    -----
    Section 3.2, equation 8; gate(o) = 1 / (1 + exp(100 (o - 0.005))) as in the released code. Opacities over 0.3 are
    left out, whose gate is under 2e-13.
    """
    gaussians = state.gaussians
    rows = (gaussians.logit_opacities[:, 0] < logit(STILL)).nonzero()[:, 0]
    quats, opacities = gaussians.quats[rows], _opacities(gaussians.logit_opacities[rows])
    away = quats * quats.new_tensor([1.0, -1.0, -1.0, -1.0])
    along = rotated(away, _normal(len(rows), draws, rows.device)) * (2 * gaussians.log_scales[rows]).exp()
    gate = rate / (1 + (STEEPNESS * (opacities - THRESHOLD)).exp())
    gaussians.means[rows] += gate * rotated(quats, along)


def shared(
    logits: Float[Tensor, "R 1"], log_scales: Float[Tensor, "R 3"], sharing: Int64[Tensor, " R"], lowest: float
) -> tuple[Float[Tensor, "R 1"], Float[Tensor, "R 3"]]:
    """Logits and log scales of `sharing` Gaussians in one place that together look as the given one did alone.

    Parameters
    ----------
    sharing : k >= 1. lowest : smallest opacity that is given, as a dead one could not be moved on.

    Notes
    -----
    Equation 9: o' = 1 - (1 - o)^(1 / k), Sigma' = (o / d)^2 Sigma, d = sum_{i=1..k} sum_{j=0..i-1} C(i - 1, j) (-1)^j
    o'^(j + 1) / sqrt(j + 1). As sum_{i=j+1..k} C(i - 1, j) = C(k, j + 1), d is one sum of k terms.
    """
    k = sharing.clamp(max=MOST_SHARING)
    log_rest = -torch.logaddexp(logits.double()[:, 0], logits.new_zeros(1, dtype=torch.float64))  # log(1 - o)
    opacity = -(log_rest / k).expm1()
    powers = opacity[:, None] ** torch.arange(1, MOST_SHARING + 1, device=k.device)
    mass = (_series().to(k.device)[k] * powers).sum(dim=1)
    wider = (-log_rest.expm1() / mass).log()
    kept = opacity.clamp(lowest, 1 - torch.finfo(torch.float32).eps)
    return torch.logit(kept)[:, None].to(logits), log_scales + wider[:, None].to(log_scales)


@cache
def _series() -> Float[Tensor, "K J"]:
    """C(k, j) (-1)^(j - 1) / sqrt(j) in row k, column j - 1; float64."""
    table = torch.zeros(MOST_SHARING + 1, MOST_SHARING, dtype=torch.float64)
    for k in range(1, MOST_SHARING + 1):
        for j in range(1, k + 1):
            table[k, j - 1] = math.comb(k, j) * (-1) ** (j - 1) / math.sqrt(j)
    return table


def _copied(state: TrainState, places: Int64[Tensor, " P"], chosen: Int64[Tensor, " P"], lowest: float) -> Change:
    """Copies of the `chosen` rows in `places`; all that share a place are made fainter, and lose their moments."""
    present = state.gaussians.num
    source = torch.arange(max(present, int(places.max()) + 1), device=chosen.device)
    source[places] = chosen
    sharing = torch.bincount(chosen, minlength=present) + 1
    parents = (sharing > 1).nonzero()[:, 0]
    fresh = sharing[source] > 1
    values = {name: getattr(state.gaussians, name).clone() for name in REGULARISED}
    values["logit_opacities"][parents], values["log_scales"][parents] = shared(
        values["logit_opacities"][parents], values["log_scales"][parents], sharing[parents], lowest
    )
    rows = fresh.nonzero()[:, 0]
    return Change(source, fresh, {name: (rows, value[source[rows]]) for name, value in values.items()})


def _drawn(state: TrainState, rows: Int64[Tensor, " R"], count: int, draws: torch.Generator) -> Int64[Tensor, " P"]:
    """Places in `rows`, drawn with replacement by opacity; on the CPU, where sums have a fixed order."""
    opacities = _opacities(state.gaussians.logit_opacities[rows, 0].cpu().double())
    edges = opacities.cumsum(0)
    drawn = torch.rand(count, dtype=torch.float64, generator=draws) * edges[-1]
    return torch.searchsorted(edges, drawn, right=True).clamp(max=len(rows) - 1).to(rows.device)


def _opacities(logits: Tensor) -> Tensor:
    return 1 / (1 + (-logits).exp())


def _normal(count: int, draws: torch.Generator, device: torch.device) -> Float[Tensor, "N 3"]:
    if device.type == "cpu":
        return torch.randn(count, 3, generator=draws)
    seed = int(torch.randint(1 << 62, (), generator=draws))
    return torch.randn(count, 3, generator=torch.Generator(device).manual_seed(seed), device=device)
