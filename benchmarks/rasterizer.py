"""Stage times of one training step of the native rasterizer, and of a prototype of it in the same interleaved run.

    python -m benchmarks.rasterizer [--against DIR] [--n 100000] [--size 800] [--threads 2] [--json FILE]

One step = project, colour, sort, bin, blend, L1 + SSIM with gradient, backward, fused Adam, densification statistics.
Learning rates are 0: the same work, but the scene stays as it is. Times in milliseconds.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from diff_gaussian_rasterization import RasterCamera, isa
from diff_gaussian_rasterization.fused import Workspace

from arguments.flags import Parser, underscored
from benchmarks import gen
from benchmarks.prototype import Prototype, build
from utils import errors

STAGES = ("preprocess", "sort_bin", "forward", "loss", "blend_backward", "geometry")
Times = dict[str, float]


class Runner(Protocol):
    """Something that carries out one step and says how long each stage took."""

    def step(self) -> Times: ...


class Ours:
    """The fused interface of diff_gaussian_rasterization."""

    def __init__(self, values: gen.Arrays, target: np.ndarray) -> None:
        self.six = [torch.from_numpy(v.copy()) for v in values.values()]
        self.mean, self.square = ([torch.zeros_like(p) for p in self.six] for _ in range(2))
        size = target.shape[1]
        pose = np.eye(4)
        pose[2, 3] = gen.DISTANCE
        focal = gen.focal_px(size)
        self.camera = RasterCamera(size, size, focal, focal, size / 2, size / 2, pose)
        self.target, self.gradient = torch.from_numpy(target), torch.empty(target.shape)
        self.gradient_norms, self.counts, self.radii = (torch.zeros(len(self.six[0])) for _ in range(3))
        self.workspace = Workspace()

    def step(self) -> Times:
        start = time.perf_counter()
        image, _, _ = self.workspace.forward(self.camera, *self.six)
        self.workspace.l1_ssim(image, self.target, self.gradient)
        self.workspace.backward_adam(
            self.gradient,
            self.six,
            exp_avg=self.mean,
            exp_avg_sq=self.square,
            learning_rates=(0.0,) * 6,
            step=100,
            stats=(self.gradient_norms, self.counts, self.radii),
        )
        whole = (time.perf_counter() - start) * 1e3
        return {**self.workspace.facts["stage_ms"], "whole": whole}


def measure(runners: dict[str, Runner], repeats: int) -> dict[str, dict[str, Times]]:
    """Minimum and median of every stage; the runners take turns, the first round is not counted."""
    rounds: dict[str, list[Times]] = {name: [] for name in runners}
    for _ in range(repeats + 1):
        for name, runner in runners.items():
            rounds[name].append(runner.step())
    return {
        name: {
            "min": {k: min(t[k] for t in times[1:]) for k in (*STAGES, "whole")},
            "median": {k: statistics.median(t[k] for t in times[1:]) for k in (*STAGES, "whole")},
        }
        for name, times in rounds.items()
    }


def table(kind: str, n: int, size: int, results: dict[str, dict[str, Times]]) -> str:
    """Markdown: one row a runner and statistic, ratios of the minimum and median when there are two runners."""
    columns = (*STAGES, "whole")
    lines = [f"### {kind}, {n} Gaussians, {size} x {size}, ms", "", "| | " + " | ".join(columns) + " |"]
    lines.append("|---" * (len(columns) + 1) + "|")
    for name, both in results.items():
        for statistic, times in both.items():
            lines.append(f"| {name} {statistic} | " + " | ".join(f"{times[k]:.2f}" for k in columns) + " |")
    if len(results) == 2:
        ours, other = results.values()
        for statistic in ("min", "median"):
            ratios = (ours[statistic][k] / max(other[statistic][k], 1e-9) for k in columns)
            lines.append(f"| ratio of {statistic} | " + " | ".join(f"{r:.2f}" for r in ratios) + " |")
    return "\n".join(lines) + "\n"


def machine(threads: int) -> dict[str, object]:
    """What the numbers depend on."""
    cpu = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    git = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "cpu": cpu[0].split(":")[1].strip() if cpu else platform.processor(),
        "cores": os.cpu_count(),
        "load": os.getloadavg(),
        "isa": isa(),
        "threads": threads,
        "commit": git.stdout.strip(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def parse() -> argparse.Namespace:
    description = __doc__.splitlines()[0]
    parser = Parser(prog="python -m benchmarks.rasterizer", description=description, allow_abbrev=False)
    parser.add_argument("--against", type=Path, help="folder of the prototype; compiled in a temporary copy")
    parser.add_argument("--n", type=int, nargs="+", default=[100_000], help="numbers of Gaussians (default: 100000)")
    parser.add_argument("--size", type=int, nargs="+", default=[800], help="image sides in pixels (default: 800)")
    parser.add_argument("--kind", nargs="+", choices=list(gen.KINDS), default=list(gen.KINDS), help="(default: all)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--repeats", type=int, default=9, help="counted rounds (default: 9)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args(underscored(sys.argv[1:]))


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    report: dict[str, object] = {"machine": machine(args.threads), "repeats": args.repeats}
    cases = []
    print(json.dumps(report["machine"]))
    with tempfile.TemporaryDirectory() as folder:
        library = build(args.against, Path(folder)) if args.against else None
        for kind in args.kind:
            for n in args.n:
                for size in args.size:
                    values, target = gen.scene(n, size, kind), gen.target(size)
                    runners: dict[str, Runner] = {"ours": Ours(values, target)}
                    if library:
                        runners["prototype"] = Prototype(library, values, target, args.threads)
                    results = measure(runners, args.repeats)
                    cases.append({"kind": kind, "n": n, "size": size, "ms": results})
                    print(table(kind, n, size, results), flush=True)
    if args.json:
        args.json.write_text(json.dumps(report | {"cases": cases}, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
