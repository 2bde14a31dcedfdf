"""The four affine processes x_t = a x0 + b u + s eps, their times, and the ways from a network's output to x0.

| process  | a            | b   | s                      | r (earlier -> t)        | time                         |
| VP       | sqrt(abar)   | 0   | sqrt(1 - abar)         | sqrt(abar_t / abar_t')  | 0 .. T - 1, clean = -1       |
| EDM      | 1            | 0   | sqrt((1 - abar)/abar)  | 1                       | s itself, clean = 0          |
| Flow     | 1 - sigma    | 0   | sigma                  | 0, or (1 - t)/(1 - t')  | sigma in [0, 1], clean = 0   |
| ResShift | 1 - eta      | eta | kappa sqrt(eta)        | 1                       | 0 .. T, clean = 0            |

abar is the product of 1 - beta up to a time (Ho et al. 2020), EDM that of Karras et al. 2022 seen from a VP network,
Flow the straight path of Liu et al. 2022 (as in Stable Diffusion 3), ResShift that of Yue et al. 2023.
All numbers here are Python floats or float64, so that a step is as exact as its tensors.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float, Float64
from torch import Tensor

from priors.interfaces import Coefficients, Process
from utils.errors import UserError

SPACINGS = ("trailing", "leading", "linspace")
ZERO_SNR_FLOOR = 2.0**-24  # abar of a schedule without signal at its end, as diffusers' Euler scheduler has it


@dataclass(frozen=True)
class VP:
    """Variance-preserving diffusion (DDPM), discrete betas; between whole times log abar is linear.

    Parameters
    ----------
    betas : of times 0 .. T - 1, each in [0, 1).
    spacing : where `times` lie when fewer than T are asked for. "trailing" ends one stride above clean and begins at
        T - 1 (Lin et al. 2024), "leading" begins at `offset` and may leave out the noisiest, "linspace" has both ends.
    offset : lowest time of "leading"; Stable Diffusion has 1.

    Raises
    ------
    UserError : no betas, one outside [0, 1), or an unknown spacing.
    """

    betas: tuple[float, ...] = field(repr=False)
    spacing: str = "trailing"
    offset: int = 0
    log_abar: Float64[np.ndarray, "T1"] = field(init=False, repr=False, compare=False)  # of times -1 .. T - 1

    clean = -1.0
    uses_up = False

    def __post_init__(self) -> None:
        betas = np.asarray(self.betas, np.float64)
        if not betas.size or not (np.all(betas >= 0) and np.all(betas < 1)):
            raise UserError(f"VP process: {betas.size} betas; one or more in [0, 1) are expected")
        if self.spacing not in SPACINGS:
            raise UserError(f"VP process: spacing {self.spacing!r}; one of {', '.join(SPACINGS)} is expected")
        object.__setattr__(self, "log_abar", np.concatenate([[0.0], np.cumsum(np.log1p(-betas))]))

    @classmethod
    def linear(cls, T: int, first: float, last: float) -> "VP":
        """Betas linear in time: DDPM 1e-4 .. 2e-2 (T = 1000), SR3 1e-6 .. 1e-2 (T = 2000)."""
        return cls(tuple(np.linspace(first, last, T).tolist()))

    @classmethod
    def scaled_linear(cls, T: int, first: float, last: float) -> "VP":
        """Square roots of the betas linear in time: Stable Diffusion 0.00085 .. 0.012 (T = 1000)."""
        return cls(tuple((np.linspace(math.sqrt(first), math.sqrt(last), T) ** 2).tolist()))

    @classmethod
    def cosine(cls, T: int, s: float = 8e-3) -> "VP":
        """abar = cos^2((t / T + s) / (1 + s) pi / 2), betas at most 0.999 (Nichol and Dhariwal 2021, equation 17)."""
        abar = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
        return cls(tuple(np.minimum(1 - abar[1:] / abar[:-1], 0.999).tolist()))

    @property
    def last(self) -> float:
        return float(len(self.betas) - 1)

    def coefficients(self, t: float) -> Coefficients:
        log_abar = self._log_abar(t)
        return Coefficients(math.exp(log_abar / 2), 0.0, math.sqrt(-math.expm1(log_abar)))

    def ratio(self, t: float, earlier: float) -> float:
        return math.exp((self._log_abar(t) - self._log_abar(earlier)) / 2)

    def times(self, steps: int, start: float | None = None) -> list[float]:
        """Whole numbers, which networks were trained at; `start` is rounded, too.

        Raises
        ------
        UserError : steps < 1, or more steps than times from `start` down.
        """
        count = len(self.betas)
        first = self.last if start is None else start
        if not 1 <= steps <= math.ceil(first) + 1 or first > self.last:
            raise UserError(f"{steps} steps from time {first:g} on: the process has {count} times, 0 to {count - 1}")
        lowest = 0.0
        if self.spacing == "trailing":
            lowest = first - (steps - 1) * (first + 1) / steps
        elif self.spacing == "leading":
            stride = count // steps if start is None else 1
            lowest = min(float(self.offset), first - (steps - 1) * stride)
            first = lowest + (steps - 1) * stride if start is None else first
        return [math.floor(t + 0.5) + 0.0 for t in np.linspace(first, lowest, steps)] + [self.clean]

    def network_time(self, t: float) -> float:
        return t

    def network_scale(self, t: float) -> float:
        return 1.0

    def time_of(self, log_abar: float) -> float:
        """The time at which log abar is this; the nearest end beyond the schedule."""
        return float(np.interp(-log_abar, -self.log_abar, np.arange(-1.0, len(self.betas))))

    def _log_abar(self, t: float) -> float:
        return float(np.interp(t, np.arange(-1.0, len(self.betas)), self.log_abar))


@dataclass(frozen=True)
class EDM:
    """A VP network in coordinates x / sqrt(abar), in which noise is only added; the time is its standard deviation.

    Parameters
    ----------
    vp : the process that the network was trained with; it is told the time of `vp` with the same noise.
    """

    vp: VP

    clean = 0.0
    uses_up = False

    @property
    def last(self) -> float:
        return self.sigma(self.vp.last)

    def coefficients(self, t: float) -> Coefficients:
        return Coefficients(1.0, 0.0, t)

    def ratio(self, t: float, earlier: float) -> float:
        return 1.0

    def times(self, steps: int, start: float | None = None) -> list[float]:
        """The noise at the times of `vp`. Raises UserError as `VP.times`."""
        times = self.vp.times(steps, None if start is None else self.network_time(start))
        return [self.sigma(t) for t in times[:-1]] + [self.clean]

    def network_time(self, t: float) -> float:
        return self.vp.time_of(-math.log1p(t * t))

    def network_scale(self, t: float) -> float:
        return 1 / math.sqrt(1 + t * t)

    def sigma(self, t: float) -> float:
        """The noise at a time of `vp`."""
        a, _, s = self.vp.coefficients(t)
        return s / a


@dataclass(frozen=True)
class Flow:
    """The straight path from data to noise (rectified flow); a network for it returns eps - x0.

    Parameters
    ----------
    shift : moves `times` towards noise: sigma -> shift sigma / (1 + (shift - 1) sigma); 3 in Stable Diffusion 3.
    levels : of noise in training; the lowest time is shifted(1 / levels), shifted once more, as diffusers has it.
    fresh : a stochastic step of `sampler.step` with eta = 1 replaces all noise (r = 0); False = what the path as a
        Markov chain would replace. The same at eta = 0.

    Raises
    ------
    UserError : shift is not above 0.
    """

    shift: float
    levels: int = 1000
    fresh: bool = True

    clean = 0.0
    last = 1.0
    uses_up = False

    def __post_init__(self) -> None:
        if not self.shift > 0:
            raise UserError(f"flow process: shift {self.shift:g} must be above 0")

    def coefficients(self, t: float) -> Coefficients:
        return Coefficients(1 - t, 0.0, t)

    def ratio(self, t: float, earlier: float) -> float:
        return 0.0 if self.fresh else (1 - t) / (1 - earlier)

    def times(self, steps: int, start: float | None = None) -> list[float]:
        """Equal strides of the time before the shift. Raises UserError where steps < 1 or start is not in (0, 1]."""
        first = self.last if start is None else start
        if steps < 1 or not 0 < first <= 1:
            raise UserError(f"{steps} steps from sigma {first:g} on: at least one, from above 0 and up to 1")
        unshifted = first / (self.shift - (self.shift - 1) * first)
        lowest = min(self._shifted(1 / self.levels), unshifted)
        times = [self._shifted(t) for t in np.linspace(unshifted, lowest, steps).tolist()]
        return [first, *times[1:], self.clean]

    def network_time(self, t: float) -> float:
        return 1000 * t

    def network_scale(self, t: float) -> float:
        return 1.0

    def _shifted(self, t: float) -> float:
        return self.shift * t / (1 + (self.shift - 1) * t)


@dataclass(frozen=True)
class ResShift:
    """A chain from x0 to its enlarged LR view u, under noise kappa sqrt(eta) (Yue et al. 2023).

    sqrt(eta_t) = e_1 (e_T / e_1)^(((t - 1) / (T - 1))^p), e_1 = min(first / kappa, first), e_T = 0.99. Between 0 and 1,
    where no step ends, sqrt(eta) is linear in t.

    Parameters
    ----------
    steps : T; 15 or 4 in the release. kappa : noise at eta = 1, in space units; 2.
    p : > 0, smaller = more of the shift early; 0.3.
    first : least noise that may hide the shift, in space units (the release's min_noise_level): 0.04 (T = 15), 0.2 (4).

    Raises
    ------
    UserError : a value out of its range.
    """

    steps: int
    kappa: float
    p: float
    first: float

    clean = 0.0
    uses_up = True

    def __post_init__(self) -> None:
        least = min(self.first / self.kappa, self.first) if self.kappa > 0 else 0.0
        if self.steps < 1 or not 0 < least < 0.99 or not self.p > 0:
            raise UserError(f"{self}: steps >= 1, kappa > 0, p > 0 and first in (0, 0.99 min(1, kappa)) are expected")

    @property
    def last(self) -> float:
        return float(self.steps)

    def sqrt_eta(self, t: float) -> float:
        """Square root of the share of u at time t, 0 <= t <= steps."""
        least = min(self.first / self.kappa, self.first)
        if self.steps == 1:
            return 0.99 * t
        if t <= 1:
            return least * t
        return math.exp(math.log(least) + math.log(0.99 / least) * ((t - 1) / (self.steps - 1)) ** self.p)

    def coefficients(self, t: float) -> Coefficients:
        root = self.sqrt_eta(t)
        return Coefficients(1 - root * root, root * root, self.kappa * root)

    def ratio(self, t: float, earlier: float) -> float:
        return 1.0

    def times(self, steps: int, start: float | None = None) -> list[float]:
        """Whole numbers, evenly spread. Raises UserError where there are not so many from `start` down."""
        first = self.last if start is None else start
        if not 1 <= steps <= math.ceil(first) or first > self.last:
            raise UserError(f"{steps} steps from time {first:g} on: the process has times 1 to {self.steps}")
        return [math.floor(t + 0.5) + 0.0 for t in np.linspace(first, 0.0, steps + 1)]

    def network_time(self, t: float) -> float:
        return t - 1

    def network_scale(self, t: float) -> float:
        return 1 / math.hypot(1.0, self.kappa * self.sqrt_eta(t))


def time_at(process: Process, level: float) -> float:
    """The time at `level`, 0-1, of the way from clean to the noisiest; of counted times one above clean at the least.

    Noise of EDM at the same place of its schedule, which is not the same part of the largest one.
    """
    if isinstance(process, EDM):
        return process.sigma(time_at(process.vp, level))
    least = 1.0 if isinstance(process, VP | ResShift) else 0.0
    return process.clean + max(level * (process.last - process.clean), least)


def x0_from_eps(
    x_t: Float[Tensor, "*shape"],
    eps: Float[Tensor, "*shape"],
    c: Coefficients,
    u: Float[Tensor, "*shape"] | None = None,
) -> Float[Tensor, "*shape"]:
    """(x_t - b u - s eps) / a; u is left out where b = 0."""
    shifted = x_t if u is None else x_t - c.b * u
    return (shifted - c.s * eps) / c.a


def x0_from_v(x_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], c: Coefficients) -> Float[Tensor, "*shape"]:
    """a x_t - s v of a VP network that returns v = a eps - s x0 (Salimans and Ho 2022), with a^2 + s^2 = 1.

    In other coordinates (EDM) x_t, a and s are first divided by sqrt(a^2 + s^2), the norm that the network knows.
    """
    norm = math.hypot(c.a, c.s)
    return (c.a / norm * x_t - c.s * v) / norm


def x0_from_flow(x_t: Float[Tensor, "*shape"], v: Float[Tensor, "*shape"], sigma: float) -> Float[Tensor, "*shape"]:
    """x_t - sigma v of a network that returns v = eps - x0."""
    return x_t - sigma * v


def from_scheduler(config: Mapping[str, Any]) -> Process:
    """The process of a diffusers scheduler, from the values of its scheduler_config.json.

    Parameters
    ----------
    config : `_class_name` and what that scheduler reads; Euler schedulers become EDM, FlowMatchEuler becomes Flow, the
        others VP. The sampling method is ours; what the network returns (`prediction_type`) is the caller's to read.

    Raises
    ------
    UserError : a scheduler or a schedule that is not known here.

    Notes
    -----
    `rescale_betas_zero_snr`: the last abar is 2^-24 instead of 0, so that x0 can be had of eps.
    """
    name = str(config.get("_class_name", ""))
    if name == "FlowMatchEulerDiscreteScheduler":
        unknown = [key for key in _FLOW_VARIANTS if config.get(key)]
        if unknown:
            raise UserError(f"scheduler {name}: {', '.join(unknown)} is not known here")
        return Flow(float(config.get("shift", 1.0)), int(config.get("num_train_timesteps", 1000)))
    if name not in _VP_SCHEDULERS + _EDM_SCHEDULERS:
        known = ", ".join((*_VP_SCHEDULERS, *_EDM_SCHEDULERS, "FlowMatchEulerDiscreteScheduler"))
        raise UserError(f"scheduler {name or 'without _class_name'}: one of {known} is expected")
    spacing = str(config.get("timestep_spacing", _DEFAULT_SPACING.get(name, "linspace")))
    vp = VP(_betas(config, name), spacing, int(config.get("steps_offset", 0)))
    return EDM(vp) if name in _EDM_SCHEDULERS else vp


_VP_SCHEDULERS = ("DDPMScheduler", "DDIMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler")
_EDM_SCHEDULERS = ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler")
_DEFAULT_SPACING = dict.fromkeys(("DDPMScheduler", "DDIMScheduler", "PNDMScheduler"), "leading")
_FLOW_VARIANTS = (
    *("use_dynamic_shifting", "shift_terminal", "invert_sigmas", "stochastic_sampling"),
    *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
)
_SCHEDULES: dict[str, Callable[[int, float, float], VP]] = {
    "linear": VP.linear,
    "scaled_linear": VP.scaled_linear,
    "squaredcos_cap_v2": lambda count, first, last: VP.cosine(count),
}


def _betas(config: Mapping[str, Any], name: str) -> tuple[float, ...]:
    """Of a scheduler whose missing values are diffusers' defaults."""
    if config.get("trained_betas") is not None:
        betas = tuple(float(beta) for beta in config["trained_betas"])
    else:
        schedule = str(config.get("beta_schedule", "linear"))
        if schedule not in _SCHEDULES:
            raise UserError(f"scheduler {name}: beta_schedule {schedule!r}; one of {', '.join(_SCHEDULES)} is expected")
        ends = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
        betas = _SCHEDULES[schedule](int(config.get("num_train_timesteps", 1000)), *ends).betas
    return _without_signal_at_the_end(betas) if config.get("rescale_betas_zero_snr") else betas


def _without_signal_at_the_end(betas: tuple[float, ...]) -> tuple[float, ...]:
    """sqrt(abar) shifted to 0 at the end and scaled to keep its beginning (Lin et al. 2024, algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - np.asarray(betas)))
    root = (root - root[-1]) * root[0] / (root[0] - root[-1])
    abar = np.maximum(root**2, ZERO_SNR_FLOOR)
    return tuple((1 - abar / np.concatenate([[1.0], abar[:-1]])).tolist())
