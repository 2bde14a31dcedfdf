"""How the values of a degradation are drawn: the tables of Real-ESRGAN and of a milder set, and classical ones.

Wang et al., "Real-ESRGAN", ICCVW 2021: two rounds of blur, resize, noise and JPEG, then the exact LR size and a sinc.
The milder set is that of StableSR (Wang et al., IJCV 2024).
"""

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from arguments.degrade import KINDS, MODES, DegradeParams
from scene.degrade_kernels import Blur
from scene.degrade_steps import Jpeg, Noise, Resize, Step

T = TypeVar("T")
Range = tuple[float, float]
GAUSSIAN_KINDS = KINDS[:6]
KIND_CHANCES = (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)
SIZES = tuple(range(7, 22, 2))
SINC_CHANCE, FINAL_SINC_CHANCE = 0.1, 0.8
GAUSSIAN_CHANCE, GREY_CHANCE, LAST_JPEG_CHANCE = 0.5, 0.4, 0.5
BETA_GENERALISED, BETA_PLATEAU = (0.5, 4.0), (1.0, 2.0)


@dataclass(frozen=True)
class Round:
    """One round of a preset.

    Parameters
    ----------
    blur : chance that it blurs. sigma : px.
    resize_chances : of larger, smaller, as it is. resize : smallest and largest factor.
    gaussian : standard deviation in levels of 255. poisson : scale. jpeg : quality.
    """

    blur: float
    sigma: Range
    resize_chances: tuple[float, float, float]
    resize: Range
    gaussian: Range
    poisson: Range
    jpeg: Range


@dataclass(frozen=True)
class Preset:
    """Two rounds, and the chance that a view is only made small."""

    rounds: tuple[Round, Round]
    clean: float = 0.0


_UP_DOWN, _UP_DOWN_AGAIN = (0.2, 0.7, 0.1), (0.3, 0.4, 0.3)
PRESETS = {
    "realesrgan": Preset(
        (
            Round(1.0, (0.2, 3.0), _UP_DOWN, (0.15, 1.5), (1, 30), (0.05, 3.0), (30, 95)),
            Round(0.8, (0.2, 1.5), _UP_DOWN_AGAIN, (0.3, 1.2), (1, 25), (0.05, 2.5), (30, 95)),
        )
    ),
    "mild": Preset(
        (
            Round(1.0, (0.2, 3.0), _UP_DOWN, (0.3, 1.5), (1, 15), (0.05, 2.0), (60, 95)),
            Round(0.5, (0.2, 1.5), _UP_DOWN_AGAIN, (0.6, 1.2), (1, 12), (0.05, 1.0), (60, 100)),
        ),
        clean=0.01,
    ),
}


def drawn(preset: Preset, rng: np.random.Generator) -> tuple[Step, ...]:
    """Draw every value of a degradation that ends at the LR size.

    Notes
    -----
    The second round's JPEG comes last, or before the last resize and sinc, with equal chance.
    """
    if rng.random() < preset.clean:
        return (Resize("antialiased"),)
    first, second = preset.rounds
    steps = [*_round(first, "hr", rng), Jpeg(_quality(first.jpeg, rng)), *_round(second, "lr", rng)]
    last: list[Step] = [Resize(_one_of(MODES, rng))]
    if rng.random() < FINAL_SINC_CHANCE:
        size = _one_of(SIZES, rng)
        last.append(Blur("sinc", size, cutoff=rng.uniform(math.pi / 3, math.pi)))
    jpeg = Jpeg(_quality(second.jpeg, rng))
    return (*steps, *last, jpeg) if rng.random() < LAST_JPEG_CHANCE else (*steps, jpeg, *last)


def _round(table: Round, of: str, rng: np.random.Generator) -> list[Step]:
    """Blur, resize and noise of one round."""
    steps: list[Step] = [_blur(table, rng)] if rng.random() < table.blur else []
    low, high = table.resize
    change = _one_of(("up", "down", "keep"), rng, table.resize_chances)
    factor = {"up": rng.uniform(1, max(high, 1)), "down": rng.uniform(low, 1), "keep": 1.0}[change]
    steps.append(Resize(_one_of(MODES, rng), factor, of))
    grey = bool(rng.random() < GREY_CHANCE)
    if rng.random() < GAUSSIAN_CHANCE:
        return [*steps, Noise("gaussian", rng.uniform(*table.gaussian) / 255, grey)]
    return [*steps, Noise("poisson", rng.uniform(*table.poisson), grey)]


def _blur(table: Round, rng: np.random.Generator) -> Blur:
    size = _one_of(SIZES, rng)
    if rng.random() < SINC_CHANCE:
        return Blur("sinc", size, cutoff=rng.uniform(math.pi / (3 if size < 13 else 5), math.pi))
    kind = _one_of(GAUSSIAN_KINDS, rng, KIND_CHANCES)
    sigma = rng.uniform(*table.sigma)
    both, rotation = (sigma, sigma), 0.0
    if kind.endswith("aniso"):
        both, rotation = (sigma, rng.uniform(*table.sigma)), rng.uniform(-math.pi, math.pi)
    beta = 1.0
    if not kind.startswith(("iso", "aniso")):
        low, high = BETA_PLATEAU if kind.startswith("plateau") else BETA_GENERALISED
        beta = rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)  # half of the draws on each side
    return Blur(kind, size, both, rotation, beta)


def _quality(bounds: Range, rng: np.random.Generator) -> int:
    return round(rng.uniform(*bounds))


def _one_of(values: tuple[T, ...], rng: np.random.Generator, chances: tuple[float, ...] | None = None) -> T:
    return values[int(rng.choice(len(values), p=chances))]


def classical(params: DegradeParams) -> tuple[Step, ...]:
    """The degradation that the flags of --preset classical spell out: blur, LR size, noise, JPEG."""
    steps: list[Step] = []
    if params.blur != "none":
        sigma = params.sigma if len(params.sigma) == 2 else params.sigma * 2
        rotation = math.radians(params.rotation_deg)
        steps.append(
            Blur(params.blur, params.blur_px, (sigma[0], sigma[1]), rotation, params.beta, math.pi * params.cutoff)
        )
    steps.append(Resize(params.resize))
    if params.noise:
        steps.append(Noise("gaussian", params.noise / 255, params.grey_noise))
    if params.poisson:
        steps.append(Noise("poisson", params.poisson, params.grey_noise))
    return (*steps, Jpeg(params.jpeg)) if params.jpeg else tuple(steps)
