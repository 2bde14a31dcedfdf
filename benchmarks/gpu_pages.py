"""Take what scripts/gpu_check.sh found into the committed results, and from there into docs/experiments.md.

python -m benchmarks.gpu_pages FOLDER      FOLDER: its --out, or what its report/results.tar.gz holds
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gpu_run, kernel_times, priors, vsr
from utils import errors
from utils.atomic import read_json, write_text
from utils.command_line import Parser
from utils.errors import UserError

Found = dict[str, Any]
Results = dict[str, Found]  # by part of scripts/gpu_check.sh
NOTHING = """**Nothing of this has run on a GPU yet**: no machine with one was at hand. What is known of the CUDA half:
it compiles without a warning for every GPU of its list, and its formulas are those of the CPU and are tested there.
"""


def tests(found: Found) -> str:
    return "; ".join(found["summaries"]) + "\n"


def agreement(found: Found) -> str:
    pairs = list(next(iter(found["errors"].values())))
    lines = ["| | " + " | ".join(pairs) + " |", "|---" * (len(pairs) + 1) + "|"]
    for name, values in found["errors"].items():
        lines.append(f"| {name} | " + " | ".join(f"{values[p]:.1e}" if p in values else "-" for p in pairs) + " |")
    return "\n".join(lines) + "\n"


def rasterizer(found: Found) -> str:
    head, cases = gpu_run.heading(found), found["cases"]
    wanted = [entry for entry in cases if entry["scene"].endswith(("100k/800x800", "1M/1920x1080"))]
    kernels = [kernel_times.table(entry["scene"], entry["kernels"]) for entry in wanted]
    stages = map(gpu_run.stages_table, wanted)
    tables = [gpu_run.summary_table(cases), *stages, *kernels, gpu_run.spread_table(found["spread"])]
    return head + "\n" + "\n".join(tables).replace("### ", "")


def determinism(found: Found) -> str:
    words = "equal bits" if found["equal"] else "DIFFERENT bits"
    each = ", ".join(f"{psnr:.2f}" for psnr in found["fast_psnr"].values())
    return f"Two trainings with --deterministic: {words}. Without it, three seeds: {each} dB.\n"


def knn(found: Found) -> str:
    lines = ["| points | s | s on the CPU | largest relative difference |", "|---|---|---|---|"]
    for row in found["rows"]:
        lines.append(f"| {row['n']} | {row['wall_s']:.4f} | {row['cpu_wall_s']:.2f} | {row['difference']:.1e} |")
    return "\n".join(lines) + "\n"


def networks(found: Found) -> str:
    return vsr.table(found["rows"])


def small_priors(found: Found) -> str:
    return priors.table(found["rows"])


def scene(found: Found) -> str:
    quality = ", ".join(f"{name} {value:.4f}" for name, value in sorted(found["quality"].items()))
    minutes = ", ".join(f"{step} {value:.1f}" for step, value in found["minutes"].items())
    total = found["minutes_of_all_attempts"]
    return f"{found['iterations']} iterations: {quality}. Minutes: {minutes}; all attempts together {total:.1f}.\n"


# Part -> its heading and what is told of it.
PARTS: dict[str, tuple[str, Callable[[Found], str]]] = {
    "gpu-tests": ("Tests that need a GPU", tests),
    "suite-native": ("All tests: native packages", tests),
    "suite-training": ("All tests: training", tests),
    "suite-rest": ("All tests: the rest", tests),
    "agreement": ("Relative L2 distances: maps and gradients of CUDA, CPU and the float64 reference", agreement),
    "memcheck": ("compute-sanitizer memcheck", tests),
    "racecheck": ("compute-sanitizer racecheck", tests),
    "rasterizer": ("Rasterizer, ms", rasterizer),
    "determinism": ("Determinism of training", determinism),
    "knn": ("simple-knn", knn),
    "vsr": ("Networks", networks),
    "vsr-others": ("Networks, with random weights", networks),
    "priors": ("Small diffusion priors, with random weights", small_priors),
    "lego100": ("lego, 100 LR views, 200 -> 800", scene),
    "hr25": ("lego, 25 HR views", scene),
}


def block(results: Results) -> str:
    """What docs/experiments.md says; of parts without a result, that there is none."""
    if not results:
        return NOTHING
    any_gpu = next(iter(results.values()))["gpu"]
    texts = [f"{any_gpu['name']}, driver {any_gpu['driver']}, torch {any_gpu['torch']}, CUDA {any_gpu['cuda']}.\n"]
    for name, (title, tell) in PARTS.items():
        commit = f" (commit {results[name]['commit'][:12]})" if name in results else ""
        body = tell(results[name]) if name in results else "Not run on a GPU yet.\n"
        texts.append(f"**{title}**{commit}\n\n<!-- measured: scripts/gpu_check.sh run {name} -->\n{body}")
    return "\n".join(texts)


def committed(folder: Path) -> Results:
    """The results that are there, in the order of the parts."""
    return {name: read_json(path) for name in PARTS if (path := folder / f"{name}.json").is_file()}


def take(found: Path, folder: Path) -> list[str]:
    """Copy each part's result; the names of those that were there.

    Raises
    ------
    UserError : none.
    """
    taken = []
    for name in PARTS:
        if (path := found / name / "result.json").is_file():
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"{name}.json", path.read_text())
            taken.append(name)
    if not taken:
        raise UserError(f"{found}: no part of scripts/gpu_check.sh has a result there")
    return taken


def main() -> None:
    from benchmarks import pages  # which shows what this module says

    parser = Parser(prog="python -m benchmarks.gpu_pages", description="Take the GPU's results into the pages.")
    parser.add_argument("folder", type=Path)
    args = parser.parse_args(sys.argv[1:])
    print("taken:", ", ".join(take(args.folder, pages.RESULTS / "gpu")))
    pages.main()


if __name__ == "__main__":
    errors.run(main)
