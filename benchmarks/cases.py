"""What is measured and how: scenes as cases, runners that take turns, minimum and median of every stage.

A runner carries out one step at a time and says how long each stage took. Learning rates are 0: the same work in every
step, but the scene stays as it is. Times are wall-clock milliseconds; `cpu` is what all threads of the process used,
the number to look at on a machine that is busy with something else.
"""

import statistics
import time
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from benchmarks import gen

Times = dict[str, float]
Measured = dict[str, dict[str, Times]]  # runner -> "min" or "median" -> stage -> ms

# Sums over the stages of native runners; runners behind another interface report the sums alone.
RENDER = ("preprocess", "sort_bin", "forward")
BACKWARD = ("blend_backward", "geometry")
STAGES = (*RENDER, "render", "loss", *BACKWARD, "backward", "raster", "adam", "whole", "cpu")


@dataclass(frozen=True)
class Case:
    """One scene of `gen`: kind, number of Gaussians, side of the square image [px]."""

    kind: str
    n: int
    size: int

    def __str__(self) -> str:
        count = f"{self.n // 1000}k" if self.n % 1000 == 0 else str(self.n)
        return f"{self.kind} {count}/{self.size}"

    @cached_property
    def values(self) -> gen.Arrays:
        """Raw parameters; copy before changing them."""
        return gen.scene(self.n, self.size, self.kind)

    @cached_property
    def target(self) -> np.ndarray:
        """The ground-truth picture, float32 [3, S, S]."""
        return gen.target(self.size)


class Runner(Protocol):
    """Something that carries out one step and says how long each stage took."""

    def step(self) -> Times: ...


def with_sums(times: Times) -> Times:
    """The same with `render`, `backward` and `raster` (both together: no loss, no separate optimizer) added up."""
    found = dict(times)
    for name, parts in (("render", RENDER), ("backward", BACKWARD), ("raster", ("render", "backward"))):
        if all(part in found for part in parts):
            found[name] = sum(found[part] for part in parts)
    return {stage: found[stage] for stage in STAGES if stage in found}


def measure(runners: dict[str, Runner], repeats: int) -> Measured:
    """Minimum and median of every stage over `repeats` rounds, in which every runner has one turn.

    A first round is not counted (memory is touched and caches are filled there). Each round begins with another runner,
    so that none always follows the same one.
    """
    rounds: dict[str, list[Times]] = {name: [] for name in runners}
    names = list(runners)
    for i in range(repeats + 1):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            rounds[name].append(with_sums(timed_step(runners[name])))
    return {name: summary(times[1:]) for name, times in rounds.items()}


def timed_step(runner: Runner) -> Times:
    """One step, with the `cpu` time of this process unless the runner works in another and tells its own."""
    start = time.process_time()
    times = runner.step()
    return {"cpu": (time.process_time() - start) * 1e3} | times


def summary(rounds: list[Times]) -> dict[str, Times]:
    """Minimum and median of every stage."""
    return {
        "min": {k: min(times[k] for times in rounds) for k in rounds[0]},
        "median": {k: statistics.median(times[k] for times in rounds) for k in rounds[0]},
    }


def ratio(results: Measured, runner: str, other: str, stage: str = "whole", statistic: str = "min") -> float:
    """Time of `runner` over time of `other`."""
    return results[runner][statistic][stage] / results[other][statistic][stage]
