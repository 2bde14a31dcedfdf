"""How much of what frames gain the 3D model keeps, lever by lever, from the committed results of studies.

Each lever is a pair of variants that are trained alike and differ in their frames alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from arguments.study import StudyTableParams
from evaluation.formats import FORMATS, Table
from evaluation.study.comparison import Comparison
from evaluation.study.results import read_results
from evaluation.study.spec import read_study
from evaluation.study.table import trained_as
from utils.errors import UserError

BACKGROUND = "black"  # the one that all scenes have
SCENES = ("demo", "lego", "bonsai")


@dataclass(frozen=True)
class Lever:
    """What makes better frames, and the two variants of a study that show it."""

    name: str
    study: str
    variant: str
    reference: str


# Trained as Sequence Matters is, and as seqsplat is (`...-trained`).
LEVERS = (
    Lever("projection onto the LR views", "peers", "projected-bicubic", "bicubic"),
    Lever("a network of one image", "peers", "span", "bicubic"),
    Lever("a video network, one frame at a time", "finalists", "single", "bicubic"),
    Lever("order: S over one frame at a time", "finalists", "sm-s", "single"),
    Lever("order: ALS over S", "finalists", "sm-als", "sm-s"),
    Lever("geometry and graph", "seqsplat", "frames", "sm-als"),
    Lever("a video network, one frame at a time", "seqsplat", "single-trained", "bicubic-trained"),
    Lever("order: ALS over one frame at a time", "seqsplat", "sm-als-trained", "single-trained"),
    Lever("geometry and graph", "seqsplat", "seqsplat", "sm-als-trained"),
    Lever("mean over the order and its reverse", "estimates", "both-orders", "seqsplat"),
    Lever("mean over four mirrored passes", "estimates", "flips", "seqsplat"),
    Lever("a 3D model of the LR loss, mixed in", "estimates", "internal-mix", "seqsplat"),
    Lever("a 3D model's own frames (refine)", "estimates", "refine", "seqsplat"),
    Lever("IE-SRGS's fusion", "estimates", "internal", "seqsplat"),
)


def table(studies: Path, levers: Iterable[Lever] = LEVERS) -> str:
    """One row a lever: gain of the frames -> gain of the model [dB], and their ratio where the frames gain enough.

    Parameters
    ----------
    studies : folder with NAME.toml and results/NAME.json.

    Raises
    ------
    UserError : a pair that is not there, or is not trained alike.
    """
    found = Table(["lever", "frames of", "instead of", "study", "seeds", *SCENES], [])
    for lever in levers:
        results = read_results(studies / "results" / f"{lever.study}.json")
        if lever.variant not in trained_as(read_study(studies / f"{lever.study}.toml"), lever.reference):
            raise UserError(f"{lever.study}: {lever.variant} and {lever.reference} differ in more than their frames")
        pair = [lever.reference, lever.variant]
        comparison = Comparison(results, pair, lever.reference, "PSNR", pair)
        every = comparison.rows(("PSNR",), StudyTableParams(background=(BACKGROUND,)))
        rows = {row.scene: row for row in every if row.variant == lever.variant}
        cells, seeds = [], set()
        for scene in SCENES:
            row = rows.get(scene)
            if row is None or row.difference is None:
                cells.append("-")
                continue
            frames = np.mean(list(comparison.differences(scene, lever.variant, BACKGROUND, "frames").values()))
            kept = "" if row.carry is None else f" ({row.carry:.2f})"
            cells.append(f"{frames:+.2f} -> {row.difference.mean:+.2f}{kept}")
            seeds.add(len(row.seeds))
        names = [f"`{name}`" for name in (lever.variant, lever.reference)]
        found.rows.append([lever.name, *names, lever.study, "-".join(map(str, sorted(seeds))), *cells])
    return FORMATS["markdown"](found)
