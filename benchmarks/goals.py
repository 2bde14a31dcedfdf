"""The speeds that the rasterizer must reach, as ratios of minima from one interleaved run, and whether they are met.

`SCENES` are measured against the prototype; all other goals on `MAIN`. A goal whose other side is not there (no
prototype given, instruction set missing) is reported as not measured, never as met.
"""

import math
from dataclasses import dataclass
from typing import Any

from benchmarks.cases import Case, Measured, ratio

MAIN = Case("random", 100_000, 800)
SCENES = (
    Case("random", 50_000, 400),
    Case("random", 50_000, 800),
    Case("random", 200_000, 800),
    Case("random", 300_000, 800),
    Case("skewed", 100_000, 800),
    Case("skewed", 300_000, 800),
)


@dataclass(frozen=True)
class Goal:
    """What is asked for; at most `bound`, or at least where `faster` (a speed-up)."""

    what: str
    bound: float
    faster: bool = False

    def met(self, measured: float) -> bool:
        return measured >= self.bound if self.faster else measured <= self.bound

    def asked(self) -> str:
        return f"{'>=' if self.faster else '<='} {self.bound:g}x"


GOALS = {
    "whole": Goal(f"whole training iteration, {MAIN}, time / prototype's time", 1.0),
    "mean": Goal("geometric mean of that ratio over six more scenes", 1.0),
    "worst": Goal("the worst of them", 1.15),
    "autograd": Goal("autograd API forward + backward / prototype's render stages", 1.25),
    "two_term": Goal("two-term objective / HR term alone, whole iteration", 1.25),
    "threads": Goal("2 threads against 1, whole iteration", 1.8, faster=True),
    "avx2": Goal("AVX2 / AVX-512, whole iteration", 1.8),
    "loss": Goal("fused L1 + SSIM with gradient against PyTorch 11x11 with autograd, 3x800x800", 40.0, faster=True),
}


@dataclass(frozen=True)
class Finding:
    """A measured ratio (None = not measured) and, in words, what it was made from."""

    goal: str
    ratio: float | None
    detail: str = ""

    def entry(self) -> dict[str, Any]:
        """For the JSON report."""
        goal = GOALS[self.goal]
        met = None if self.ratio is None else goal.met(self.ratio)
        measured = None if self.ratio is None else round(self.ratio, 4)
        return {
            **{"goal": self.goal, "what": goal.what, "asked": goal.asked()},
            **{"ratio": measured, "met": met, "detail": self.detail},
        }

    def row(self) -> str:
        """A line of the table."""
        goal = GOALS[self.goal]
        if self.ratio is None:
            return f"| {goal.what} | {goal.asked()} | not measured | - | {self.detail} |"
        met = "yes" if goal.met(self.ratio) else "NO"
        return f"| {goal.what} | {goal.asked()} | {self.ratio:.3f}x | {met} | {self.detail} |"


def geometric_mean(ratios: list[float]) -> float:
    """The n-th root of the product."""
    return math.exp(sum(map(math.log, ratios)) / len(ratios))


def goals_table(findings: list[Finding]) -> str:
    """Markdown."""
    lines = [
        "| measured | goal | ratio | met | minima, ms; the same ratio in CPU time of all threads |",
        "|---|---|---|---|---|",
    ]
    return "\n".join([*lines, *(finding.row() for finding in findings)]) + "\n"


def whole_iterations(main: Measured, scenes: dict[str, Measured]) -> list[Finding]:
    """Against the prototype: the main scene, the geometric mean of the others, the worst of them."""
    ratios = {case: ratio(results, "ours", "prototype") for case, results in scenes.items()}
    worst = max(ratios, key=lambda case: ratios[case])
    each = ", ".join(f"{case} {value:.3f}" for case, value in ratios.items())
    if all("cpu" in times["min"] for results in scenes.values() for times in results.values()):
        cpu = geometric_mean([ratio(results, "ours", "prototype", "cpu") for results in scenes.values()])
        each += f"; CPU time {cpu:.3f}x"
    return [
        Finding("whole", ratio(main, "ours", "prototype"), minima(main, "ours", "prototype")),
        Finding("mean", geometric_mean(list(ratios.values())), each),
        Finding("worst", ratios[worst], f"{worst}: {minima(scenes[worst], 'ours', 'prototype')}"),
    ]


def minima(results: Measured, runner: str, other: str, stage: str = "whole") -> str:
    """The times behind a ratio, and what it is in CPU time."""
    times = ", ".join(f"{name} {results[name]['min'][stage]:.2f}" for name in (runner, other))
    if not all("cpu" in results[name]["min"] for name in (runner, other)):
        return times
    return f"{times}; CPU time {ratio(results, runner, other, 'cpu'):.3f}x"


def compared(goal: str, results: Measured, runner: str, other: str, stage: str = "whole") -> Finding:
    """Time of `runner` over time of `other`."""
    return Finding(goal, ratio(results, runner, other, stage), minima(results, runner, other, stage))


def unmeasured(goals: list[str], why: str) -> list[Finding]:
    """Goals whose other side is not there."""
    return [Finding(goal, None, why) for goal in goals]
