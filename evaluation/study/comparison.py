"""Results of a study put side by side: means, spread over seeds, paired differences to the baseline, cost."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from arguments.study import StudyTableParams
from evaluation.study.results import FIT, Result
from evaluation.study.spec import ALL
from evaluation.study.statistics import (
    Interval,
    carry_over,
    holm,
    paired_bootstrap,
    paired_differences,
    seed_mean,
    spread,
)

BySeed = dict[int, dict[str, float]]


@dataclass
class Row:
    """One line: a variant on one background, in one scene or in the mean over scenes (ALL)."""

    scene: str
    background: str
    variant: str
    seeds: tuple[int, ...]
    means: dict[str, float]
    sd: float | None
    frame_PSNR: float | None
    difference: Interval | None
    p: float | None = None
    carry: float | None = None
    cost: dict[str, float | None] | None = None
    facts: dict[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Return JSON values."""
        difference = None if self.difference is None else {k: round(v, 5) for k, v in vars(self.difference).items()}
        values: dict[str, Any] = {name: getattr(self, name) for name in ("scene", "background", "variant", "seeds")}
        values |= {"means": {k: round(v, 5) for k, v in self.means.items()}, "seed_sd": self.sd}
        values |= {"frame_PSNR": self.frame_PSNR, "difference": difference, "p_holm": self.p}
        return values | {"carry_over": self.carry, "cost": self.cost, **(self.facts or {})}


class Comparison:
    """Results of a study by scene, background and variant, and what follows from them.

    Parameters
    ----------
    results : of one protocol. variants : in the order of rows. baseline : what all are compared with. metric : by what.
    alike : variants that are trained as the baseline is, so that only their frames differ: those have a carry-over.
    """

    def __init__(
        self, results: Sequence[Result], variants: Sequence[str], baseline: str, metric: str, alike: Collection[str]
    ) -> None:
        self.results, self.baseline, self.metric, self.alike = list(results), baseline, metric, alike
        self.variants = [v for v in variants if any(r.variant == v for r in results)]
        self.scenes = list(dict.fromkeys(r.scene for r in results))

    def of(self, scene: str, variant: str) -> list[Result]:
        return [r for r in self.results if r.scene == scene and r.variant == variant]

    def by_seed(self, scene: str, variant: str, background: str, metric: str, kind: str = "views") -> BySeed:
        """{seed: {view: value}} of the renders, or of the frames (kind = "frames"), of seeds with a value for each."""
        tables = {r.seed: getattr(r, kind).get(background, {}) for r in self.of(scene, variant)}
        measured = {s: t for s, t in tables.items() if t and all(metric in row for row in t.values())}
        return {s: {v: row[metric] for v, row in t.items()} for s, t in measured.items()}

    def seeds(self, scenes: Sequence[str], variant: str) -> list[int]:
        """Seeds of a variant that all these scenes have."""
        return sorted(set.intersection(*({r.seed for r in self.of(s, variant)} for s in scenes)))

    def frame_psnr(self, scene: str, variant: str, background: str) -> float | None:
        """Mean PSNR of the frames over views and seeds [dB]; None where there is no truth or there are no frames."""
        tables = [r.frames[background] for r in self.of(scene, variant) if background in r.frames]
        return float(np.mean([np.mean([v["PSNR"] for v in t.values()]) for t in tables])) if tables else None

    def differences(self, scene: str, variant: str, background: str, kind: str = "views") -> dict[str, float]:
        """Difference to the baseline of each view of a scene, or of each frame's PSNR."""
        metric = self.metric if kind == "views" else "PSNR"
        sides = [self.by_seed(scene, name, background, metric, kind) for name in (variant, self.baseline)]
        return paired_differences(*sides)

    def backgrounds(self, scene: str, variant: str) -> list[str]:
        found = [b for r in self.of(scene, variant) for b in (*r.views, *r.frames)]
        return list(dict.fromkeys(found))

    def rows(self, metrics: Sequence[str], params: StudyTableParams) -> list[Row]:
        """Rows of the mean over scenes, then of each scene."""
        found: list[Row] = []
        for scene in (ALL, *self.scenes):
            inside = self.scenes if scene == ALL else [scene]
            backgrounds = dict.fromkeys(b for s in inside for v in self.variants for b in self.backgrounds(s, v))
            for background in backgrounds:
                if not params.background or background in params.background:
                    found += self._group(scene, background, metrics, params)
        return found

    def _group(self, scene: str, background: str, metrics: Sequence[str], params: StudyTableParams) -> list[Row]:
        """Rows that are compared with each other; one family of Holm's correction."""
        inside = [s for s in (self.scenes if scene == ALL else [scene]) if self.has(s, background)]
        rows = []
        for variant in self.variants:
            if all(background in self.backgrounds(s, variant) for s in inside) and self.seeds(inside, variant):
                rows.append(self._row(scene, inside, background, variant, metrics, params))
        corrected = holm({row.variant: row.difference.p for row in rows if row.difference})
        for row in rows:
            row.p = corrected.get(row.variant)
            gains = [list(self.differences(s, row.variant, background, "frames").values()) for s in inside]
            if row.difference and self.metric == "PSNR" and all(gains) and row.variant in self.alike:
                frames = float(np.mean([np.mean(gain) for gain in gains]))
                row.carry = carry_over(row.difference.mean, frames)  # both paired by seed
        return rows

    def has(self, scene: str, background: str) -> bool:
        """Whether there is anything of a scene on a background."""
        return any(background in self.backgrounds(scene, variant) for variant in self.variants)

    def _row(
        self,
        scene: str,
        inside: Sequence[str],
        background: str,
        variant: str,
        metrics: Sequence[str],
        params: StudyTableParams,
    ) -> Row:
        results = [r for s in inside for r in self.of(s, variant)]
        seeds = self.seeds(inside, variant)
        tables = {m: [self.by_seed(s, variant, background, m) for s in inside] for m in metrics}
        measured = {m: by for m, by in tables.items() if all(table.keys() >= {*seeds} for table in by)}
        means = {m: _mean(by_scene, seeds) for m, by_scene in measured.items()}
        per_seed = [_mean(tables[self.metric], [seed]) for seed in seeds if self.metric in means]
        frames = [self.frame_psnr(s, variant, background) for s in inside]
        difference = None
        if variant != self.baseline:
            groups = [np.array(list(self.differences(s, variant, background).values())) for s in inside]
            if groups and all(len(group) for group in groups):
                difference = paired_bootstrap(groups, params.confidence, params.resamples)
        cost: dict[str, float | None] = {
            "seconds": float(np.mean([r.seconds for r in results])),
            "cpu_seconds": float(np.mean([r.cpu_seconds for r in results])),
            "peak_MB": max(r.peak_MB for r in results),
        }
        splats = [r.splats for r in results if r.splats]
        protocol = results[0].protocols.get(background)
        facts: dict[str, Any] = {"splats": round(float(np.mean(splats))) if splats else None}
        facts |= {name: self._fit(inside, variant, group) for name, group in FIT.items()}
        facts |= {"interrupted": any(r.interrupted for r in results), "scenes": list(inside)}
        facts |= {f: getattr(protocol, f) for f in ("antialiasing", "dilation", "rasterizer") if protocol}
        frame = float(np.mean([f for f in frames if f is not None])) if None not in frames else None
        row = Row(scene, background, variant, tuple(seeds), means, spread(per_seed), frame, difference)
        row.cost, row.facts = cost, facts
        return row

    def _fit(self, inside: Sequence[str], variant: str, group: str) -> float | None:
        """Mean over scenes of the mean over seeds; None where a model did not measure it."""
        found = [[r.fit.get(group) for r in self.of(scene, variant)] for scene in inside]
        known = [[value for value in values if value is not None] for values in found]
        return float(np.mean([np.mean(values) for values in known])) if known == found else None


def _mean(by_scene: Sequence[BySeed], seeds: Sequence[int]) -> float:
    """Mean over scenes of the mean over views of the mean over seeds."""
    return float(np.mean([np.mean(list(seed_mean(table, seeds).values())) for table in by_scene]))
