"""Results of the study as the paper's tables: our rows, the published cells below, and what forbids a comparison."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from evaluation.formats import Table
from evaluation.order_quality import mean_of
from evaluation.paper.study import BLENDER, MIP360, DataSet, row_name
from evaluation.published import Entry, PublishedSet, load_published, load_published_frames
from evaluation.study.results import Result
from evaluation.tables import cell_text

METRICS = ("PSNR", "SSIM", "LPIPS")
BACKGROUND = "black"
JUMP_DEG = 45.0  # the paper's
NOT_PUBLIC = ("flowers", "treehill")  # of Mip-NeRF 360: a download of their own, so many report the other seven
TITLES = {"bicubic": "bicubic frames + 3DGS", "hr": "3DGS on true HR (bound)"}
KINDS = {"single": "frame by frame", "s": "S (greedy)", "als": "ALS"}
TABLE_4 = "table 4"


@dataclass(frozen=True)
class PaperTable:
    """layout: "means" over scenes, a column a metric; "scenes": a column a scene; "jumps": frames beside jumps."""

    title: str
    data: DataSet
    layout: str
    rows: tuple[str, ...]

    def variants(self, networks: Sequence[str]) -> dict[str, str]:
        """{variant of the study: title of its row}."""
        found = {}
        for kind in self.rows:
            if kind in TITLES:
                found[kind] = TITLES[kind]
            else:
                found |= {row_name(kind, network): f"{network}, {KINDS[kind]}" for network in networks}
        return found


TABLES = {
    "T2": PaperTable("frames beside jumps over 45 degrees of S", BLENDER, "jumps", ("s", "als")),
    "T3": PaperTable("test views, means over scenes", BLENDER, "means", ("bicubic", "als", "hr")),
    "T4": PaperTable("network x ordering, means over scenes", BLENDER, "means", ("single", "s", "als")),
    "T6-8": PaperTable("test views by scene", BLENDER, "scenes", ("bicubic", "single", "s", "als", "hr")),
    "T9-11": PaperTable("test views by scene", MIP360, "scenes", ("bicubic", "s", "als", "hr")),
}


class Cells:
    """Values by variant and scene: mean over seeds of the mean over views, None where a run is not finished."""

    def __init__(self, results: Sequence[Result], seeds: Sequence[int]) -> None:
        self.seeds = set(seeds)
        self.found: dict[tuple[str, str], list[Result]] = {}
        for result in results:
            self.found.setdefault((result.variant, result.scene), []).append(result)

    def value(self, variant: str, scene: str, metric: str) -> float | None:
        """One cell; None unless all seeds are finished and measured so."""
        runs = self.found.get((variant, scene), [])
        views = [run.views[BACKGROUND].values() for run in runs if BACKGROUND in run.views]
        if {run.seed for run in runs} != self.seeds or len(views) < len(runs):
            return None
        if any(metric not in view for run in views for view in run):
            return None
        return fmean(fmean(view[metric] for view in run) for run in views)

    def mean(self, variant: str, scenes: Sequence[str], metric: str) -> float | None:
        """Mean over scenes; None where one is missing."""
        return mean_of_all([self.value(variant, scene, metric) for scene in scenes])

    def test_views(self) -> set[int]:
        """Numbers of test views of the scenes."""
        return {len(run.views[BACKGROUND]) for runs in self.found.values() for run in runs if BACKGROUND in run.views}


def mean_of_all(values: Sequence[float | None]) -> float | None:
    """Mean, None where a value is missing or there are none."""
    there = [value for value in values if value is not None]
    return fmean(there) if there and len(there) == len(values) else None


def groups_of(data: DataSet, scenes: Sequence[str]) -> dict[str, list[str]]:
    """{column: scenes that it is the mean of}; the paper's nine and the public seven on Mip-NeRF 360."""
    groups = {f"mean of {len(scenes)}": list(scenes)}
    public = [scene for scene in scenes if scene not in NOT_PUBLIC]
    if data is MIP360 and 0 < len(public) < len(scenes):
        groups[f"mean of {len(public)}"] = public
    return groups


def quality_tables(table: PaperTable, networks: Sequence[str], scenes: Sequence[str], cells: Cells) -> list[Table]:
    """One table of means, or one a metric with a column a scene."""
    variants, published = table.variants(networks), load_published(table.data.published, set())
    views = cells.test_views()
    if table.layout == "means":
        columns = list(METRICS)
        rows = [
            [title, *(cell_text(m, cells.mean(variant, scenes, m)) for m in columns)]
            for variant, title in variants.items()
        ]
        made = Table(["row", *columns], rows)
        entries = [e for e in published.entries if _belongs(table, e)]
        _publish(made, published, entries, views, lambda entry: [cell_text(m, entry.cell(m)) for m in columns])
        made.caption = f"{_means_of(scenes, table.data)}. {published.general}"
        return [made]
    return [_by_scene(metric, variants, table.data, scenes, cells, published) for metric in METRICS]


def _belongs(table: PaperTable, entry: Entry) -> bool:
    """Whether a published row of means is one of this table of the paper, or of another paper beside its table 3."""
    if table is TABLES["T4"]:
        return entry.background == BACKGROUND
    return TABLE_4 not in entry.source


def _by_scene(
    metric: str,
    variants: Mapping[str, str],
    data: DataSet,
    scenes: Sequence[str],
    cells: Cells,
    published: PublishedSet,
) -> Table:
    groups, place = groups_of(data, scenes), METRICS.index(metric)

    def line(values: Mapping[str, float | None]) -> list[str]:
        means = [mean_of_all([values.get(scene) for scene in group]) for group in groups.values()]
        return [cell_text(metric, value) for value in (*(values.get(scene) for scene in scenes), *means)]

    rows = [
        [title, *line({scene: cells.value(variant, scene, metric) for scene in scenes})]
        for variant, title in variants.items()
    ]
    made = Table([metric, *scenes, *groups], rows)
    entries = [entry for entry in published.entries if entry.scenes]
    _publish(made, published, entries, cells.test_views(), lambda e: line({s: v[place] for s, v in e.scenes.items()}))
    made.caption = published.general
    return made


def _publish(table: Table, published: PublishedSet, entries: Sequence[Entry], views: set[int], line: Any) -> None:
    for entry in entries:
        number = table.add_note(published.note(entry, {BACKGROUND}, views))
        table.below.append([f"{entry.name} [{number}]", *line(entry)])


def _means_of(scenes: Sequence[str], data: DataSet) -> str:
    text = f"Means over {', '.join(scenes)}"
    missing = [scene for scene in data.scenes if scene not in scenes]
    return text + (f"; published means are over all {len(data.scenes)}: NOT COMPARABLE" if missing else "")


def jump_table(
    table: PaperTable, networks: Sequence[str], scenes: Sequence[str], frames: Mapping[tuple[str, str], Any]
) -> Table:
    """PSNR of the frames beside the jumps of S, in S's frames and in those of ALS.

    Parameters
    ----------
    frames : {(variant, scene): what was measured of its frames, with `order`}, finished ones only.
    """
    made = Table(["PSNR [dB] of frames", *scenes, f"mean of {len(scenes)}"], [])
    for network in networks:
        simple = row_name("s", network)
        beside = {s: _jump_views(frames.get((simple, s))) for s in scenes}
        for variant, title in table.variants([network]).items():
            values = [_frames_mean(frames.get((variant, scene)), beside[scene]) for scene in scenes]
            made.rows.append([title, *(cell_text("PSNR", v) for v in (*values, mean_of_all(values)))])
        counts = [len(views) if (views := beside[scene]) is not None else None for scene in scenes]
        total = None if None in counts else sum(c for c in counts if c is not None)
        made.rows.append([f"{network}, number of these frames", *(cell_text("", n) for n in (*counts, total))])
    for entry in load_published_frames():
        number = made.add_note(f"{entry.source}; {entry.caveat}")
        values = [entry.scenes.get(scene) for scene in scenes]
        made.below.append([f"{entry.name} [{number}]", *(cell_text("PSNR", v) for v in (*values, mean_of_all(values)))])
    made.caption = (
        f"Training views beside a step of more than {JUMP_DEG:g} degrees of S, the same views in each row of a network."
    )
    return made


def _jump_views(measured: Mapping[str, Any] | None) -> list[str] | None:
    order = (measured or {}).get("order")
    return None if order is None else list(order["jumps"]["views"])


def _frames_mean(measured: Mapping[str, Any] | None, views: Sequence[str] | None) -> float | None:
    if measured is None or views is None:
        return None
    return mean_of(measured["per_view"], views).get("PSNR")
