"""The table of a study: means, spread over seeds, paired differences to the baseline, cost, carry-over."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from arguments.study import StudyTableParams
from evaluation.formats import FORMATS, Table
from evaluation.study.plan import Plan
from evaluation.study.results import SCHEMA, Result, check_protocols, finished, read_results
from evaluation.study.spec import Study
from evaluation.study.statistics import (
    Interval,
    carry_over,
    holm,
    paired_bootstrap,
    paired_differences,
    seed_mean,
    spread,
)
from evaluation.tables import cell_text
from utils.atomic import write_json, write_text
from utils.errors import UserError
from utils.log import note, say

ALL = "all"
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
    """Results of a study by scene, background and variant, and what follows from them."""

    def __init__(self, results: Sequence[Result], variants: Sequence[str], baseline: str, metric: str) -> None:
        self.results, self.baseline, self.metric = list(results), baseline, metric
        self.variants = [v for v in variants if any(r.variant == v for r in results)]
        self.scenes = list(dict.fromkeys(r.scene for r in results))

    def of(self, scene: str, variant: str) -> list[Result]:
        return [r for r in self.results if r.scene == scene and r.variant == variant]

    def by_seed(self, scene: str, variant: str, background: str, metric: str) -> BySeed:
        """{seed: {view: value}} of the renders."""
        tables = {r.seed: r.views.get(background, {}) for r in self.of(scene, variant)}
        return {s: {v: row[metric] for v, row in t.items()} for s, t in tables.items() if t and metric in _first(t)}

    def seeds(self, scenes: Sequence[str], variant: str) -> list[int]:
        """Seeds of a variant that all these scenes have."""
        return sorted(set.intersection(*({r.seed for r in self.of(s, variant)} for s in scenes)))

    def frame_psnr(self, scene: str, variant: str, background: str) -> float | None:
        """Mean PSNR of the frames over views and seeds [dB]; None where there is no truth or there are no frames."""
        tables = [r.frames[background] for r in self.of(scene, variant) if background in r.frames]
        return float(np.mean([np.mean([v["PSNR"] for v in t.values()]) for t in tables])) if tables else None

    def differences(self, scene: str, variant: str, background: str) -> dict[str, float]:
        """Difference to the baseline of each view of a scene."""
        sides = [self.by_seed(scene, name, background, self.metric) for name in (variant, self.baseline)]
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
        inside = [s for s in (self.scenes if scene == ALL else [scene]) if self._has(s, background)]
        rows = []
        for variant in self.variants:
            if all(background in self.backgrounds(s, variant) for s in inside) and self.seeds(inside, variant):
                rows.append(self._row(scene, inside, background, variant, metrics, params))
        corrected = holm({row.variant: row.difference.p for row in rows if row.difference})
        base = next((row for row in rows if row.variant == self.baseline), None)
        for row in rows:
            row.p = corrected.get(row.variant)
            if row.difference and base and None not in (row.frame_PSNR, base.frame_PSNR) and self.metric == "PSNR":
                row.carry = carry_over(row.difference.mean, (row.frame_PSNR or 0.0) - (base.frame_PSNR or 0.0))
        return rows

    def _has(self, scene: str, background: str) -> bool:
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
        means = {m: _mean(by_scene, seeds) for m, by_scene in tables.items() if all(by_scene)}
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
        facts |= {"interrupted": any(r.interrupted for r in results), "scenes": list(inside)}
        facts |= {f: getattr(protocol, f) for f in ("antialiasing", "dilation", "rasterizer") if protocol}
        frame = float(np.mean([f for f in frames if f is not None])) if None not in frames else None
        row = Row(scene, background, variant, tuple(seeds), means, spread(per_seed), frame, difference)
        row.cost, row.facts = cost, facts
        return row


def _first(table: Mapping[str, Any]) -> Any:
    return next(iter(table.values()))


def _mean(by_scene: Sequence[BySeed], seeds: Sequence[int]) -> float:
    """Mean over scenes of the mean over views of the mean over seeds."""
    return float(np.mean([np.mean(list(seed_mean(table, seeds).values())) for table in by_scene]))


def layout(rows: Sequence[Row], comparison: Comparison, metrics: Sequence[str], shown: Sequence[str]) -> Table:
    """Put rows into a table."""
    metric, compared = comparison.metric, any(row.difference for row in rows)
    difference = [f"{metric} - {comparison.baseline}", "interval", "p (Holm)"] if compared else []
    header = ["scene", "background", "variant", *shown, "seeds", *metrics[:1], "sd of seeds", *difference]
    header += [*metrics[1:], "frame_PSNR", "carry-over", "seconds", "cpu_seconds", "peak_MB", "splats"]
    table = Table(header, [])
    for row in rows:
        d = row.difference
        cells = [row.scene, row.background, row.variant, *(cell_text(f, (row.facts or {}).get(f)) for f in shown)]
        cells += [str(len(row.seeds)), cell_text(metric, row.means.get(metric)), _number(row.sd, 3)]
        if compared:
            interval = f"{d.low:+.3f} .. {d.high:+.3f}" if d else "-"
            cells += [f"{d.mean:+.3f}" if d else "-", interval, _number(row.p, 4)]
        cells += [cell_text(m, row.means.get(m)) for m in metrics[1:]]
        cells += [cell_text("frame_PSNR", row.frame_PSNR), _number(row.carry, 2)]
        cost, star = row.cost or {}, "*" if (row.facts or {}).get("interrupted") else ""
        cells += [_number(cost.get("seconds"), 0) + star, _number(cost.get("cpu_seconds"), 0) + star]
        cells += [_number(cost.get("peak_MB"), 0), cell_text("splats", (row.facts or {}).get("splats"))]
        table.rows.append(cells)
    return table


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def view_table(comparison: Comparison, backgrounds: Sequence[str]) -> Table:
    """Difference to the baseline of every view."""
    others = [v for v in comparison.variants if v != comparison.baseline]
    table = Table(["scene", "background", "view", *others], [])
    for scene in comparison.scenes:
        for background in dict.fromkeys(b for v in comparison.variants for b in comparison.backgrounds(scene, v)):
            if backgrounds and background not in backgrounds:
                continue
            found = {v: comparison.differences(scene, v, background) for v in others}
            for view in dict.fromkeys(view for views in found.values() for view in views):
                cells = [f"{found[v][view]:+.3f}" if view in found[v] else "-" for v in others]
                table.rows.append([scene, background, view, *cells])
    return table


def caption(comparison: Comparison, params: StudyTableParams, results: Sequence[Result]) -> str:
    """What a reader must know to read the numbers."""
    states = {(step, code) for r in results for step, code in r.code.items()}
    mixed = sorted({step for step, _ in states if sum(s == step for s, _ in states) > 1})
    words = [
        f"Interval: {100 * params.confidence:g} % paired bootstrap over views (several scenes: over scenes, then"
        " views), seeds averaged first; p corrected over the variants of one scene and background. The spread of seeds"
        " is no part of the interval."
    ]
    if any(r.interrupted for r in results):
        words.append("*: interrupted and gone on with, some time is missing.")
    if mixed:
        words.append(f"Not one code state: {', '.join(mixed)} ran with several.")
    return " ".join(words)


def show_table(study: Study, plan: Plan, params: StudyTableParams) -> None:
    """Read what is finished, compare, print or write.

    Raises
    ------
    UserError : nothing is finished, an unknown baseline or metric, or protocols that differ.
    """
    results = read_results(Path(params.results)) if params.results else list(finished(plan))
    if not results:
        raise UserError(f"study {study.name}: no run in {plan.out} is finished; status says more")
    if not params.results and len(results) < len(plan.runs):
        note(f"{len(plan.runs) - len(results)} of {len(plan.runs)} runs are not finished and left out")
    baseline = params.baseline or study.baseline
    variants = [v.name for v in study.variants]
    if baseline and baseline not in {r.variant for r in results}:
        raise UserError(f"baseline {baseline!r}: no finished run of that variant")
    known = {m for r in results for table in r.views.values() for m in _first(table)}
    wrong = [m for m in params.metrics if known and m not in known]
    if wrong:
        raise UserError(f"--metrics {wrong[0]}: measured are {', '.join(sorted(known))}")
    shown = check_protocols(results)
    comparison = Comparison(results, variants, baseline, params.metrics[0])
    rows = comparison.rows(params.metrics, params)
    single = len(comparison.scenes) == 1
    table = layout(
        [r for r in rows if (r.scene == ALL) != single or params.per_scene], comparison, params.metrics, shown
    )
    table.caption = caption(comparison, params, results)
    tables = [table, *([view_table(comparison, params.background)] if params.per_view else [])]
    text = "\n\n".join(FORMATS[params.format](t) for t in tables)
    if params.json:
        write_json(Path(params.json), to_json(study, comparison, rows, params))
        say(f"wrote {params.json}")
    if params.output:
        write_text(Path(params.output), text + "\n")
        say(f"wrote {params.output}")
    else:
        say(text)


def to_json(study: Study, comparison: Comparison, rows: Sequence[Row], params: StudyTableParams) -> dict[str, Any]:
    """Everything that the table rests on and says, for a file that can be committed and read again."""
    return {
        "schema": SCHEMA,
        "study": study.name,
        "baseline": comparison.baseline,
        "metric": comparison.metric,
        "confidence": params.confidence,
        "resamples": params.resamples,
        "rows": [row.to_json() for row in rows],
        "runs": [r.to_json() for r in comparison.results],
    }
