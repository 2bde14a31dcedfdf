"""Stage times of one training step of the native rasterizer, and of others in the same interleaved run.

    python -m benchmarks.rasterizer --against DIR --n 50000 100000 --size 400 800 --threads 1 2 --json FILE
    python -m benchmarks.rasterizer --goals --against DIR
    python -m benchmarks.rasterizer --device cuda [--case 100k/800x800 1000k/1920x1080] [--kind random] [--json FILE]

One step = project, colour, sort, bin, blend, L1 + SSIM with gradient, backward, fused Adam, densification statistics.
All runners take turns in every round, so that load on the machine hits them alike. Times in milliseconds.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import diff_gaussian_rasterization
import torch
from diff_gaussian_rasterization import isa_supported

from arguments.flags import Parser, underscored
from benchmarks import device, gen, gpu, gpu_run, report
from benchmarks.cases import Case, Measured, measure
from benchmarks.goal_runs import GoalRuns
from benchmarks.goals import goals_table
from benchmarks.modules import Rasterization, Training, import_original, original_render, reference_render
from benchmarks.ours import Fused, Worker, Written
from benchmarks.prototype import Prototype, build
from utils import errors
from utils.atomic import write_text
from utils.errors import UserError
from utils.provenance import PROJECT

MODULE = "module:"
REFERENCE = "reference"
ISAS = ("avx512", "avx2", "scalar")
GOAL_REPEATS = 5
WRITTEN = ", gradients written"  # appended to a runner's name: no Adam, so that its share can be told


def parse(words: list[str]) -> argparse.Namespace:
    description = (__doc__ or "").splitlines()[0]
    parser = Parser(prog="python -m benchmarks.rasterizer", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--against", nargs="+", default=[], metavar="WHAT", help="DIR of the prototype, module:PACKAGE, or reference")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add(
        "--case",
        nargs="+",
        default=list(gpu_run.CASES),
        help=f"with --device cuda (default: {' '.join(gpu_run.CASES)})",
    )
    add("--goals", action="store_true", help="only the speed goals, as a table")
    add("--n", type=int, nargs="+", default=[100_000], help="numbers of Gaussians (default: 100000)")
    add("--size", type=int, nargs="+", default=[800], help="image sides in pixels (default: 800)")
    add("--kind", nargs="+", choices=list(gen.KINDS), default=list(gen.KINDS), help="(default: all)")
    add("--threads", type=int, nargs="+", default=[2], help="ours once for each; others use the most (default: 2)")
    add("--isa", nargs="+", default=[], choices=ISAS, help="ours again with each of these, in processes of their own")
    add("--autograd", action="store_true", help="also ours through the API that 3DGS code knows")
    add("--two_term", action="store_true", help="also ours with the paper's objective, HR and LR")
    add("--repeats", type=int, default=9, help="counted rounds (default: 9)")
    add("--rounds", type=int, default=3, help=f"with --device cuda: blocks of {gpu.BLOCK} steps (default: 3)")
    add("--json", type=Path, help=f"also write the numbers here (with --device cuda: {report.RESULTS}/cuda.json)")
    args = parser.parse_args(underscored(words))
    if min(args.n + args.size + args.threads + [args.repeats, args.rounds]) < 1:
        raise UserError("--n, --size, --threads, --repeats and --rounds must be at least 1")
    for text in args.case:
        gpu_run.case_of(text, args.kind[0])
    if args.device == "cuda":
        device.required("--device cuda")
    if args.goals and args.repeats < GOAL_REPEATS:
        raise UserError(f"--goals: at least {GOAL_REPEATS} --repeats are asked for")
    missing = [name for name in args.isa if not isa_supported(name)]
    if missing:
        raise UserError(f"--isa {missing[0]}: this processor or this build does not have it")
    return args


def prototype_of(against: list[str], folder: str) -> Path | None:
    """The compiled prototype where `against` names its folder.

    Raises
    ------
    UserError : more than one folder, or it is not there.
    """
    places = [Path(word) for word in against if word != REFERENCE and not word.startswith(MODULE)]
    if not places:
        return None
    if len(places) > 1 or not (places[0] / "Makefile").is_file():
        raise UserError(f"--against {places[-1]}: one folder with the prototype's Makefile is expected")
    return build(places[0], Path(folder))


def runners_of(args: argparse.Namespace, case: Case, library: Path | None) -> dict[str, Any]:
    """All runners that were asked for, on one scene."""
    most = max(args.threads)
    runners: dict[str, Any] = {name: Fused(case, t) for name, t in report.our_runners(args.threads).items()}
    runners["ours" + WRITTEN] = Written(case, most)
    if args.two_term:
        runners["ours, two terms"] = Fused(case, most, two_term=True)
    if args.autograd:
        runners["ours, autograd"] = Rasterization(diff_gaussian_rasterization, case, most)
    for isa in args.isa:
        runners[f"ours, {isa}"] = Worker(case, most, isa)
    if library:
        runners["prototype"] = Prototype(library, case, most)
        runners["prototype" + WRITTEN] = Prototype(library, case, most, adam=False)
    for word in args.against:
        if word.startswith(MODULE):
            render = original_render(import_original(word.removeprefix(MODULE)), case)
            runners[word] = Training(render, case, most)
        elif word == REFERENCE:
            runners[word] = Training(reference_render(case), case, most)
    return runners


def ratios_of(args: argparse.Namespace, runners: dict[str, Any]) -> list[report.Ratio]:
    """What is compared with what: label, runner, other, stage."""
    found: list[report.Ratio] = []
    for name in ("prototype", *args.against):
        if name in runners:
            found.append((f"ours / {name}", "ours", name, "whole"))
    if args.autograd and "prototype" in runners:
        other = "prototype" + WRITTEN
        found.append((f"ours, autograd / {other}", "ours, autograd", other, "raster"))
    if args.two_term:
        found.append(("two terms / one", "ours, two terms", "ours", "whole"))
    most = max(args.threads)
    found += [
        (f"{t} threads / {most} threads", report.our_name(t, most), "ours", "whole")
        for t in sorted(args.threads)
        if t != most
    ]
    found += [(f"{isa} / {args.isa[0]}", f"ours, {isa}", f"ours, {args.isa[0]}", "whole") for isa in args.isa[1:]]
    return found


def tell_adam(results: Measured) -> None:
    """Adam's share where it is fused: the geometry stage with it, less the one that writes the gradients instead."""
    for name in [name for name in results if name + WRITTEN in results]:
        for statistic, times in results[name].items():
            times["adam"] = times["geometry"] - results[name + WRITTEN][statistic]["geometry"]


def run_cases(args: argparse.Namespace, library: Path | None) -> dict[str, Any]:
    """Measure all scenes; the report's `cases` and `scaling`."""
    cases = []
    for case in (Case(kind, n, size) for kind in args.kind for n in args.n for size in args.size):
        runners = runners_of(args, case, library)
        try:
            results = measure(runners, args.repeats)
        finally:
            for runner in runners.values():
                if isinstance(runner, Worker):
                    runner.close()
        tell_adam(results)
        facts = {name: runner.facts for name, runner in runners.items() if isinstance(runner, Fused | Worker)}
        cases.append(
            {
                **{"kind": case.kind, "n": case.n, "size": case.size, "load": report.load()},
                **{"facts": facts, "ms": report.rounded(results)},
            }
        )
        print(report.table(case, results, ratios_of(args, runners)), flush=True)
    ours = report.our_runners(args.threads)
    print(report.summary_table(cases, ours), flush=True)
    scaling = report.scaling(cases, ours)
    if len(scaling) > 1 or len(set(args.threads)) > 1:
        print(report.scaling_table(scaling), flush=True)
    return {"cases": cases, "scaling": scaling}


def run_goals(args: argparse.Namespace, library: Path | None) -> dict[str, Any]:
    """Measure the goals; the report's `goals` and all times behind them."""
    runs = GoalRuns(library, args.repeats, lambda text: print(text, file=sys.stderr, flush=True))
    findings = runs.findings()
    print(goals_table(findings), flush=True)
    return {
        "goals": [finding.entry() for finding in findings],
        "measured": {k: {"load": runs.loads[k], "ms": report.rounded(v)} for k, v in runs.measured.items()},
    }


def on_gpu(args: argparse.Namespace) -> None:
    """Measure on the GPU; the report goes to --json, else where measurements are committed."""
    head = {"format": report.FORMAT, "command": report.command(), "machine": report.machine()}
    body = gpu_run.run(args.kind, args.case, args.rounds, lambda text: print(text, flush=True))
    path = args.json or PROJECT / report.RESULTS / "cuda.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, report.json_text(report.rounded_values({**head, **body})) + "\n")


def main() -> None:
    args = parse(sys.argv[1:])
    if args.device == "cuda":
        on_gpu(args)
        return
    if "OMP_WAIT_POLICY" not in os.environ:
        # Threads that wait must not burn the cores of the runner whose turn it is; OpenMP reads this when it is loaded.
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"})
    torch.set_num_threads(max(args.threads))
    settings = {k: v for k, v in vars(args).items() if k not in ("json", "against")}
    machine = report.machine()
    head = {"format": report.FORMAT, "command": report.command(), "machine": machine, "settings": settings}
    print(report.machine_line(machine), flush=True)
    with tempfile.TemporaryDirectory() as folder:
        library = prototype_of(args.against, folder)
        body = run_goals(args, library) if args.goals else run_cases(args, library)
    if args.json:
        write_text(args.json, report.json_text({**head, "load_at_end": report.load(), **body}) + "\n")


if __name__ == "__main__":
    errors.run(main)
