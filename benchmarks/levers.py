"""What single levers brought, from the committed results of studies: pairs of variants of one study.

`carry_over`: how much of what frames gain the 3D model keeps, where both are trained alike and differ in their frames
alone. `no_gain`: what did not help.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arguments.study import StudyTableParams
from evaluation.formats import FORMATS, Table
from evaluation.study.comparison import Comparison, Row
from evaluation.study.results import read_results
from evaluation.study.spec import read_study
from evaluation.study.table import signed, trained_as, with_change
from utils.errors import UserError

BACKGROUND = "black"  # the one that all scenes have
SCENES = ("demo", "lego", "bonsai")
METRICS = ("PSNR", "LPIPS_alex")


@dataclass(frozen=True)
class Lever:
    """What is done, and the two variants of a study that show it."""

    name: str
    study: str
    variant: str
    reference: str


# Trained as Sequence Matters is, and as seqsplat is (`...-trained`; ordering, for a third of the iterations).
OF_FRAMES = (
    Lever("projection onto the LR views", "peers", "projected-bicubic", "bicubic"),
    Lever("a network of one image", "peers", "span", "bicubic"),
    Lever("a video network, one frame at a time", "finalists", "single", "bicubic"),
    Lever("order: S over one frame at a time", "finalists", "sm-s", "single"),
    Lever("order: ALS over S", "finalists", "sm-als", "sm-s"),
    Lever("geometry instead of learned flow, path", "alignment", "geometry-path", "learned-gated"),
    Lever("graph instead of path, learned flow", "alignment", "learned-graph", "learned-gated"),
    Lever("graph instead of path, geometry", "alignment", "geometry-graph", "geometry-path"),
    Lever("two rounds of the graph instead of one", "alignment", "geometry-graph", "geometry-graph-1"),
    Lever("geometry and graph", "seqsplat", "frames", "sm-als"),
    Lever("a video network, one frame at a time", "seqsplat", "single-trained", "bicubic-trained"),
    Lever("order: ALS over one frame at a time", "seqsplat", "sm-als-trained", "single-trained"),
    Lever("geometry and graph", "seqsplat", "seqsplat", "sm-als-trained"),
    Lever("order: greedy instead of random", "ordering", "greedy", "random"),
    Lever("geometry instead of learned flow, path", "ordering", "greedy-geometry", "greedy"),
    Lever("mean over the order and its reverse", "estimates", "both-orders", "seqsplat"),
    Lever("mean over four mirrored passes", "estimates", "flips", "seqsplat"),
    Lever("a 3D model of the LR loss, mixed in", "estimates", "internal-mix", "seqsplat"),
    Lever("a 3D model's own frames (refine)", "estimates", "refine", "seqsplat"),
    Lever("IE-SRGS's fusion", "estimates", "internal", "seqsplat"),
)

WITHOUT_GAIN = (
    Lever("ALS over S", "finalists", "sm-als", "sm-s"),
    Lever("ALS over a greedy order", "ordering", "als", "greedy"),
    Lever("a tour over a greedy order", "ordering", "tour", "greedy"),
    Lever("order by ORB instead of pose", "ordering", "greedy-orb", "greedy"),
    Lever("a third round of the graph", "alignment", "geometry-graph-3", "geometry-graph"),
    Lever("an order made by pose, for the graph", "alignment", "geometry-graph", "geometry-graph-random"),
    Lever("mean over the order and its reverse", "estimates", "both-orders", "seqsplat"),
    Lever("mean over four mirrored passes", "estimates", "flips", "seqsplat"),
    Lever("their disagreement as weights of pixels", "estimates", "flips-weighted", "flips"),
    Lever("projection of a network's frames onto the LR views", "estimates", "projected", "seqsplat"),
    Lever("IE-SRGS's fusion, on `seqsplat`'s frames", "estimates", "internal", "seqsplat"),
    Lever("IE-SRGS's fusion, on single frames", "peers", "ie-srgs", "single"),
    Lever("SRGS's average pooling in the LR loss", "lambda", "average-pooling", "lambda-0.6"),
    Lever("3DGS-MCMC", "backend", "mcmc", "seqsplat"),
    Lever("absolute gradients", "backend", "abs-grad", "seqsplat"),
    Lever("antialiased rasterization", "backend", "antialiased", "seqsplat"),
    Lever("antialiased, 3D filter from the frames' rate", "backend", "filter-3d", "seqsplat"),
    Lever("antialiased, 3D filter from the LR views' rate", "backend", "filter-3d-lr", "seqsplat"),
    Lever("depth regulariser against the LR model", "backend", "depth", "seqsplat"),
    Lever("exposure compensation", "backend", "exposure", "seqsplat"),
    Lever("Adam for visible Gaussians alone", "backend", "sparse-adam", "seqsplat"),
)


def carry_over(studies: Path, levers: Iterable[Lever] = OF_FRAMES) -> str:
    """One row a lever: gain of the frames -> gain of the model [dB], and their ratio where the frames gain enough.

    Parameters
    ----------
    studies : folder with NAME.toml and results/NAME.json.

    Raises
    ------
    UserError : a pair that is not there, or is not trained alike.
    """

    def cell(comparison: Comparison, row: Row, base: Row) -> str:
        frames = np.mean(list(comparison.differences(row.scene, row.variant, BACKGROUND, "frames").values()))
        kept = "" if row.carry is None else f" ({row.carry:.2f})"
        return f"{frames:+.2f} -> {row.difference.mean:+.2f}{kept}" if row.difference else "-"

    levers = tuple(levers)
    for lever in levers:
        if lever.variant not in trained_as(read_study(studies / f"{lever.study}.toml"), lever.reference):
            raise UserError(f"{lever.study}: {lever.variant} and {lever.reference} differ in more than their frames")
    return _table(["lever", "frames of", "instead of", "study", "seeds", *SCENES], studies, levers, cell)


def no_gain(studies: Path, levers: Iterable[Lever] = WITHOUT_GAIN) -> str:
    """One row a lever: difference of the models' PSNR [dB], and of their LPIPS in percent.

    Parameters
    ----------
    studies : folder with NAME.toml and results/NAME.json.

    Raises
    ------
    UserError : a pair that is not there.
    """

    def cell(comparison: Comparison, row: Row, base: Row) -> str:
        lpips = with_change(METRICS[1], row, base).partition("(")[2].rstrip(")")
        return f"{signed(row)}, {lpips}"

    header = ["tried", "variant", "instead of", "study", "seeds", *(f"{scene}: PSNR, LPIPS" for scene in SCENES)]
    return _table(header, studies, levers, cell)


def _table(
    header: list[str], studies: Path, levers: Iterable[Lever], cell: Callable[[Comparison, Row, Row], str]
) -> str:
    """One row a lever; `cell` says what stands below a scene that has the pair."""
    table = Table(header, [])
    for lever in levers:
        comparison, rows = _compared(studies, lever)
        pairs = [(pair.get(lever.variant), pair.get(lever.reference)) for pair in (rows.get(s, {}) for s in SCENES)]
        seeds = sorted({len(row.seeds) for row, _ in pairs if row})
        cells = [cell(comparison, row, base) if row and base else "-" for row, base in pairs]
        names = [f"`{lever.variant}`", f"`{lever.reference}`"]
        table.rows.append([lever.name, *names, lever.study, "-".join(map(str, seeds)), *cells])
    return FORMATS["markdown"](table)


def _compared(studies: Path, lever: Lever) -> tuple[Comparison, dict[str, dict[str, Row]]]:
    """The pair, and its rows by scene and variant."""
    results = read_results(studies / "results" / f"{lever.study}.json")
    pair = [lever.reference, lever.variant]
    for name in pair:
        if not any(r.variant == name for r in results):
            raise UserError(f"{lever.study}: no results of {name}")
    comparison = Comparison(results, pair, lever.reference, METRICS[0], pair)
    rows: dict[str, dict[str, Row]] = {}
    for row in comparison.rows(METRICS, StudyTableParams(background=(BACKGROUND,))):
        rows.setdefault(row.scene, {})[row.variant] = row
    return comparison, rows
