"""Put the committed measurements into the pages and draw the chart, so that no number is ever copied by hand.

    python -m benchmarks.rasterizer --goals --against DIR --repeats 15 --json benchmarks/results/goals.json
    python -m benchmarks.rasterizer --against DIR --n 10000 50000 100000 200000 300000 --size 400 800 --threads 1 2 \\
        --json benchmarks/results/stages.json
    python -m benchmarks.training_step --two_term --json benchmarks/results/training_step.json
    python -m benchmarks.alignment --lr_geometry DIR --json benchmarks/results/alignment.json
    python -m benchmarks.priors --size 100x100 200x200 --json benchmarks/results/priors.json
    python -m evaluation.study studies/NAME.toml table --json studies/results/NAME.json
    python -m benchmarks.pages

What a GPU gave comes from benchmarks/results/gpu, see benchmarks.gpu_pages; the table of published diffusion models is
their registry, see benchmarks.models.

What stands between `<!-- numbers: NAME -->` and `<!-- end of numbers -->` in a page is replaced. A test holds that
pages and files agree.
"""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from arguments.study import StudyTableParams
from benchmarks import alignment, gpu_pages, levers, models, priors, report, training_step
from benchmarks.chart import chart
from benchmarks.goals import Finding, goals_table
from evaluation.formats import FORMATS
from evaluation.study.results import read_results
from evaluation.study.spec import read_study
from evaluation.study.table import compared
from utils import errors
from utils.atomic import read_json, write_text
from utils.errors import UserError
from utils.provenance import PROJECT

RESULTS = PROJECT / report.RESULTS
CHART = PROJECT / "docs/images/rasterizer.svg"
PACKAGE = "submodules/diff-gaussian-rasterization/README.md"
PAGES = (PACKAGE, "docs/rasterizer.md", "docs/experiments.md", "docs/priors.md")
BLOCK = re.compile(r"(<!-- numbers: (\w+) -->\n).*?(<!-- end of numbers -->)", re.S)
STUDIES = "studies"
STUDY_BLOCKS = (
    *("finalists", "seqsplat", "peers", "alignment", "alignment_frames", "lambda", "estimates", "estimates_frames"),
    *("estimates_full", "backend", "ordering", "ordering_frames", "full_size", "lego_800_frames", "priors"),
)
COMPARED_WITH = {"alignment_frames": "single", "estimates_frames": "single-trained"}  # else the study's own baseline
SHOWN = {"priors": (("PSNR", "SSIM", "LPIPS_alex", "LR_PSNR"), ("fit_PSNR", "splats"))}  # else PSNR and LPIPS
FILES = ("goals", "stages", "training_step", "alignment", "priors")
Report = dict[str, Any]
Reports = dict[str, Report]  # by the names in FILES


def heading(found: Report) -> str:
    """The machine, and the comment that names the command."""
    return f"{report.machine_line(found['machine'])}\n<!-- measured: {found['command']} -->\n"


def goals_block(reports: Reports) -> str:
    """Every goal with its verdict."""
    goals = reports["goals"]
    return heading(goals) + goals_table([Finding(g["goal"], g["ratio"], g["detail"]) for g in goals["goals"]])


def stages_block(reports: Reports) -> str:
    """A row a scene."""
    stages = reports["stages"]
    table = report.summary_table(stages["cases"], report.our_runners(stages["settings"]["threads"]))
    return _under(stages, table)


def scaling_block(reports: Reports) -> str:
    """Whole steps over threads and N."""
    return _under(reports["stages"], report.scaling_table(reports["stages"]["scaling"]))


def training_step_block(reports: Reports) -> str:
    """What an iteration of train.py spends outside the kernels."""
    found = reports["training_step"]
    return heading(found) + training_step.summary(found["cases"])


def picture_block(reports: Reports) -> str:
    """The chart, with its numbers for those who do not see it."""
    cases = reports["stages"]["cases"]
    parts = (f"{c['kind']} {c['n']}/{c['size']} {c['ms']['ours']['min']['whole']:.1f} ms" for c in cases)
    return f"![Whole training steps: {', '.join(parts)}](../../docs/images/rasterizer.svg)\n"


def alignment_block(reports: Reports) -> str:
    """Errors of depth, of flow, and what frames lose by them."""
    found = reports["alignment"]
    return heading(found) + alignment.summary(found)


def small_priors_block(reports: Reports) -> str:
    """What a frame of a small prior costs."""
    return heading(reports["priors"]) + priors.table(reports["priors"]["rows"])


def levers_block(table: Callable[[Path], str]) -> Callable[[Reports], str]:
    """What single levers brought in the committed studies."""
    command = "python -m evaluation.study studies/NAME.toml run"
    return lambda reports: f"<!-- measured: {command} -->\n{table(PROJECT / STUDIES)}\n"


def gpu_block(reports: Reports) -> str:
    """What was run on a GPU, or that nothing was."""
    return gpu_pages.block(reports["gpu"])


def study_block(name: str) -> Callable[[Reports], str]:
    """A study's compact table, and with `_frames` at the end of a block's name that of its frames."""

    def block(reports: Reports) -> str:
        table, frames = name.removesuffix("_frames"), name.endswith("_frames")
        metrics, facts = SHOWN.get(name, (("PSNR", "LPIPS_alex"), ()))
        params = StudyTableParams(
            metrics=metrics, compact=True, frames=frames, baseline=COMPARED_WITH.get(name, ""), facts=facts
        )
        results = read_results(PROJECT / STUDIES / "results" / f"{table}.json")
        tables = compared(read_study(PROJECT / STUDIES / f"{table}.toml"), results, params)[2]
        run, then = f"{STUDIES}/{table}.toml run", f"table --json {STUDIES}/results/{table}.json"
        then += f"{' --frames' * frames} --compact --metrics {' '.join(metrics)}"
        then += f" --facts {' '.join(facts)}" if facts else ""
        return f"<!-- measured: python -m evaluation.study {run}, then {then} -->\n{FORMATS['markdown'](tables[-1])}\n"

    return block


BLOCKS: dict[str, Callable[[Reports], str]] = {
    "goals": goals_block,
    "stages": stages_block,
    "scaling": scaling_block,
    "training_step": training_step_block,
    "picture": picture_block,
    "alignment": alignment_block,
    "small_priors": small_priors_block,
    "gpu": gpu_block,
    "published_models": lambda reports: models.table(),
    "carry_over": levers_block(levers.carry_over),
    "no_gain": levers_block(levers.no_gain),
    **{f"study_{name}": study_block(name) for name in STUDY_BLOCKS},
}


def _under(found: Report, table: str) -> str:
    """A table of the report below the machine; its own heading becomes a sentence."""
    title, _, rows = table.partition("\n\n")
    return f"{title.lstrip('# ')}. {heading(found)}{rows}"


def filled(text: str, reports: Reports) -> str:
    """The page with its blocks renewed.

    Raises
    ------
    UserError : a block of a name that is not known.
    """

    def renew(match: re.Match[str]) -> str:
        if match[2] not in BLOCKS:
            raise UserError(f"numbers: {match[2]}: one of {', '.join(BLOCKS)} is expected")
        return f"{match[1]}{BLOCKS[match[2]](reports)}{match[3]}"

    return BLOCK.sub(renew, text)


def outputs(results: Path) -> dict[Path, str]:
    """What every page and the chart must say, from the files in `results`."""
    reports: Reports = {name: read_json(results / f"{name}.json") for name in FILES}
    reports["gpu"] = gpu_pages.committed(results / "gpu")
    pages = {PROJECT / page: filled((PROJECT / page).read_text(), reports) for page in PAGES}
    return {**pages, CHART: chart(reports["stages"])}


def main() -> None:
    for path, text in outputs(RESULTS).items():
        write_text(path, text)


if __name__ == "__main__":
    errors.run(main)
