"""The table of a study: means, spread over seeds, paired differences to the baseline, cost, carry-over."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arguments.study import StudyTableParams
from evaluation.formats import FORMATS, Table
from evaluation.study.comparison import Comparison, Row
from evaluation.study.plan import Plan
from evaluation.study.results import (
    FIT,
    SCHEMA,
    Result,
    check_protocols,
    finished,
    mixtures,
    read_results,
    remark,
    states_of,
    to_content,
)
from evaluation.study.spec import ALL, SceneSpec, Study
from evaluation.study.statistics import holm, paired_bootstrap
from evaluation.tables import cell_text
from utils.atomic import write_json, write_text
from utils.errors import UserError
from utils.log import note, say

CLEAR = 0.05  # p under which a difference is marked
FRAME_FACTS = ("jump_PSNR", "mean_step_deg", "worst_step_deg", "step_px", "flow_px", "disagreement")
RARE_FACTS = ("confidence_pixel", "confidence_block")  # a column only where a variant has it
FINE_FACTS = ("disagreement", *RARE_FACTS)  # four decimals


def layout(rows: Sequence[Row], comparison: Comparison, metrics: Sequence[str], shown: Sequence[str]) -> Table:
    """Put rows into a table."""
    metric, compared = comparison.metric, any(row.difference for row in rows)
    difference = [f"{metric} - {comparison.baseline}", "interval", "p (Holm)"] if compared else []
    header = ["scene", "background", "variant", *shown, "seeds", *metrics[:1], "sd of seeds", *difference]
    header += [*metrics[1:], "frame_PSNR", "carry-over", "seconds", "cpu_seconds", "peak_MB", "splats", *FIT]
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
        cells += [_number(cost.get("peak_MB"), 0), *(cell_text(f, (row.facts or {}).get(f)) for f in ("splats", *FIT))]
        table.rows.append(cells)
    return table


def _number(value: float | None, decimals: int) -> str:
    return "-" if value is None else f"{value:.{decimals}f}"


def compact_table(
    rows: Sequence[Row], comparison: Comparison, metrics: Sequence[str], facts: Sequence[str] = ()
) -> Table:
    """One row a variant; of each scene the metrics, the differences, the frames, each on all backgrounds (a / b).

    facts : of the models, also shown.
    """
    scenes = [*([ALL] if len(comparison.scenes) > 1 else []), *comparison.scenes]
    found = {(row.scene, row.variant, row.background): row for row in rows}
    compared = any(row.difference for row in rows)
    differences = [f"- {comparison.baseline}"] if compared else []
    columns = [*metrics[:1], *differences, *metrics[1:], "frame_PSNR", *facts]
    header = [" ".join([scene, column]) for scene in scenes for column in columns]
    table = Table(["variant", "seeds", *header, *(["carry-over"] if compared else []), "cpu_seconds", "peak_MB"], [])
    for variant in comparison.variants:
        cells, own = [], [row for row in rows if row.variant == variant]
        for scene in scenes:
            backgrounds = dict.fromkeys(row.background for row in rows if row.scene == scene)
            pairs = [
                (row, found.get((scene, comparison.baseline, b)))
                for b in backgrounds
                if (row := found.get((scene, variant, b)))
            ]
            cells += [_beside([cell_text(m, row.means.get(m)) for row, _ in pairs]) for m in metrics[:1]]
            cells += [_beside([signed(row) for row, _ in pairs])] if compared else []
            cells += [_beside([with_change(m, row, base) for row, base in pairs]) for m in metrics[1:]]
            cells.append(_beside([cell_text("frame_PSNR", row.frame_PSNR) for row, _ in pairs]))
            of_model = (pairs[0][0].facts or {}) if pairs else {}  # alike on all backgrounds
            cells += [cell_text(name, of_model.get(name)) for name in facts]
        wide = [row for row in own if row.scene == scenes[0]]
        cells += [_beside([_number(row.carry, 2) for row in wide])] if compared else []
        results = [r for r in comparison.results if r.variant == variant]
        star = "*" if any(r.interrupted for r in results) else ""
        cells += [f"{np.mean([r.cpu_seconds for r in results]):.0f}{star}", f"{max(r.peak_MB for r in results):.0f}"]
        table.rows.append([variant, "-".join(map(str, sorted({len(row.seeds) for row in own}))), *cells])
    return table


def _beside(cells: Sequence[str]) -> str:
    return " / ".join(cells) if set(cells) - {"-"} else "-"


def with_change(metric: str, row: Row, base: Row | None) -> str:
    """A mean, and how many percent it lies above the baseline's."""
    text, mine = cell_text(metric, row.means.get(metric)), row.means.get(metric)
    if base is None or base is row or mine is None or not base.means.get(metric):
        return text
    return f"{text} ({100 * (mine / base.means[metric] - 1):+.0f} %)"


def signed(row: Row) -> str:
    """The difference to the baseline; * where it is clear: over scenes by its interval, in one by its corrected p."""
    if row.difference is None:
        return "-"
    clear = row.difference.low * row.difference.high > 0 if row.scene == ALL else row.p is not None and row.p < CLEAR
    return f"{row.difference.mean:+.2f}{'*' * clear}"


def frame_table(comparison: Comparison, params: StudyTableParams) -> Table:
    """Frames against the truth, scene by scene: gain over the baseline's frames, and what the order and flow were."""
    header = ["scene", "background", "frames of", "PSNR", f"PSNR - {comparison.baseline}", "interval", "p (Holm)"]
    known = {name for r in comparison.results for facts in r.frame_facts.values() for name in facts}
    columns = [*FRAME_FACTS, *(name for name in RARE_FACTS if name in known)]
    table = Table([*header, *columns], [])
    for scene in comparison.scenes:
        for background in dict.fromkeys(b for v in comparison.variants for b in comparison.backgrounds(scene, v)):
            if not params.background or background in params.background:
                table.rows += _frame_rows(comparison, scene, background, columns, params)
    return table


def _frame_rows(
    comparison: Comparison, scene: str, background: str, columns: Sequence[str], params: StudyTableParams
) -> list[list[str]]:
    gains, same = {}, same_frames(comparison, scene)
    for variant in same:
        found = comparison.differences(scene, variant, background, "frames")
        if found and variant != comparison.baseline:
            gains[variant] = paired_bootstrap([np.array(list(found.values()))], params.confidence, params.resamples)
    corrected = holm({variant: gain.p for variant, gain in gains.items()})
    rows = []
    for variant, others in same.items():
        psnr = comparison.frame_psnr(scene, variant, background)
        if psnr is None:
            continue
        gain = gains.get(variant)
        cells = [scene, background, ", ".join([variant, *others]), f"{psnr:.2f}", f"{gain.mean:+.3f}" if gain else "-"]
        cells += [f"{gain.low:+.3f} .. {gain.high:+.3f}" if gain else "-", _number(corrected.get(variant), 4)]
        facts = [r.frame_facts.get(background, {}) for r in comparison.of(scene, variant)]
        for name in columns:
            values = [fact[name] for fact in facts if name in fact]
            cells.append(_number(float(np.mean(values)), 4 if name in FINE_FACTS else 2) if values else "-")
        rows.append(cells)
    return rows


def same_frames(comparison: Comparison, scene: str) -> dict[str, list[str]]:
    """Variants of a scene with the others that have their frames; the baseline stands for all that have its."""
    first: dict[tuple[str, ...], str] = {}
    found: dict[str, list[str]] = {}
    for variant in sorted(comparison.variants, key=lambda name: name != comparison.baseline):
        results = comparison.of(scene, variant)
        key = tuple(r.tasks.get("frames", f"{variant} {r.seed}") for r in results)
        if results and first.setdefault(key, variant) != variant:
            found[first[key]].append(variant)
        elif results:
            found[variant] = []
    return {variant: found[variant] for variant in comparison.variants if variant in found}


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
    mixed = mixtures([r.code for r in results])
    different = mixtures([r.made_with for r in results])
    words = [
        f"Interval: {100 * params.confidence:g} % paired bootstrap over views (several scenes: over scenes, then"
        " views), seeds averaged first; p: sign flips of the views' differences, corrected over the variants of one"
        " scene and background. The spread of seeds is no part of either."
    ]
    if params.compact:
        words.append(
            f"* after a difference: clear (one scene: p under {CLEAR:g}; {ALL}: the interval leaves out 0); (+x %):"
            " against the baseline."
        )
    everywhere = {b: [s for s in comparison.scenes if comparison.has(s, b)] for r in results for b in r.views}
    if any(len(scenes) < len(comparison.scenes) for scenes in everywhere.values()):
        words += [f"{ALL}, {background}: {', '.join(scenes)}." for background, scenes in everywhere.items()]
    if any(r.interrupted for r in results):
        words.append("* after a time: interrupted and resumed, part of it is missing.")
    if mixed:
        words.append(f"Not one code state: {', '.join(mixed)} ran with several.")
    if different:
        named = [f"{name} {', '.join(values)}" for name, values in different.items()]
        words.append(f"Not alike everywhere: {'; '.join(named)}.")
    return " ".join(filter(None, [*words, remark(states_of(results))]))


def up_to_date(results: Sequence[Result]) -> list[Result]:
    """Results that the present tree would make so again (--fresh).

    Raises
    ------
    UserError : there are none.
    """
    kept = [r for r in results if r.fresh]
    if not kept:
        raise UserError(
            f"--fresh: none of {len(results)} finished runs is up to date; status says why, run --stale redoes them"
        )
    if len(kept) < len(results):
        note(f"{len(results) - len(kept)} of {len(results)} finished runs are not up to date and left out")
    return kept


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
    results = up_to_date(results) if params.fresh else results
    baseline = params.baseline or study.baseline
    variants = [v.name for v in study.variants]
    if baseline and baseline not in {r.variant for r in results}:
        if params.baseline not in ("", *variants):
            raise UserError(f"--baseline {baseline!r} is not known; there are {', '.join(variants)}")
        note(f"no finished run of the baseline {baseline!r}: no differences to it")
    comparison, rows, tables = compared(study, results, params)
    text = "\n\n".join(FORMATS[params.format](t) for t in tables)
    if params.json:
        write_json(Path(params.json), to_json(study, comparison, rows, params), indent=None)
        say(f"wrote {params.json}")
    if params.output:
        write_text(Path(params.output), text + "\n")
        say(f"wrote {params.output}")
    else:
        say(text)


def compared(
    study: Study, results: Sequence[Result], params: StudyTableParams
) -> tuple[Comparison, list[Row], list[Table]]:
    """Compare results: every row, and the tables that are asked for.

    Raises
    ------
    UserError : an unknown metric, or protocols that differ.
    """
    known = {m for r in results for table in r.views.values() for row in table.values() for m in row}
    wrong = [m for m in params.metrics if known and m not in known]
    if wrong and params.metrics == StudyTableParams.metrics:  # nobody asked for it: what there is instead
        others = sorted(m for m in known if m.startswith("LPIPS"))
        params = replace(params, metrics=tuple(m for m in (*params.metrics, *others) if m in known))
    elif wrong:
        raise UserError(f"--metrics {wrong[0]}: measured are {', '.join(sorted(known))}")
    shown = check_protocols(results)
    names = [v.name for v in study.variants]
    baseline = params.baseline or study.baseline
    comparison = Comparison(results, names, baseline, params.metrics[0], trained_as(study, baseline))
    rows = comparison.rows(params.metrics, params)
    single = len(comparison.scenes) == 1
    if params.compact:
        table = compact_table(rows, comparison, params.metrics, params.facts)
    else:
        some = [r for r in rows if (r.scene == ALL) != single or params.per_scene]
        table = layout(some, comparison, params.metrics, shown)
    table.caption = caption(comparison, params, results)
    tables = [table]
    if params.frames:
        tables.append(frame_table(comparison, params))
        tables[-1].caption = caption(comparison, replace(params, compact=False), results)
    if params.per_view:
        tables.append(view_table(comparison, params.background))
    return comparison, rows, tables


def trained_as(study: Study, baseline: str) -> list[str]:
    """Variants whose models differ from the baseline's by their frames alone."""
    scenes = study.scenes or (SceneSpec("", ""),)
    like = [(v.source, [study.settings(s, v, "train") for s in scenes]) for v in study.variants]
    own = dict(zip((v.name for v in study.variants), like, strict=True))
    return [name for name, training in own.items() if training == own.get(baseline)]


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
        **to_content(comparison.results),
    }
