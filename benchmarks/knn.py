"""Seconds and memory of simple_knn on uniform random points.

    python -m benchmarks.knn [--n 1000000 10000000] [--threads 2] [--repeats 3]

Minima over the repeats, all threads' CPU time beside the wall clock. Memory is the growth of the process during the
first call, the result included, the points not; each number of points has a process of its own. Linux only.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from simple_knn._C import distCUDA2

from arguments.flags import Parser, underscored
from benchmarks import report
from benchmarks.memory import MB, forget_peak, resident_bytes
from utils import errors
from utils.errors import UserError


def measure(n: int, threads: int, repeats: int) -> dict[str, float]:
    """Wall and CPU seconds of a call and growth of the process [MB], in this process."""
    torch.set_num_threads(threads)
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    distCUDA2(points[:1000].contiguous())  # the library and its threads are there
    rounds, growth = [], []
    for _ in range(repeats):
        forget_peak()
        before, start, cpu = resident_bytes(), time.perf_counter(), time.process_time()
        found = distCUDA2(points)
        rounds.append((time.perf_counter() - start, time.process_time() - cpu))
        growth.append(resident_bytes("VmHWM") - before)
        del found
    wall, cpu = (min(column) for column in zip(*rounds, strict=True))
    return {"wall_s": wall, "cpu_s": cpu, "mb": growth[0] / MB}


def parse(words: list[str]) -> argparse.Namespace:
    """Flags of the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = Parser(prog="python -m benchmarks.knn", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--n", type=int, nargs="+", default=[1_000_000, 10_000_000], help="points (default: 1000000 10000000)")
    add("--threads", type=int, default=2, help="(default: 2)")
    add("--repeats", type=int, default=3, help="(default: 3)")
    args = parser.parse_args(underscored(words))
    if min(args.n + [args.threads, args.repeats]) < 1:
        raise UserError("--n, --threads and --repeats must be at least 1")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    print(report.machine_line(report.machine()))
    print(f"| points | wall s, {args.threads} threads | CPU s | MB |\n|---|---|---|---|")
    for n in args.n:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found = fresh.submit(measure, n, args.threads, args.repeats).result()
        print(f"| {n} | {found['wall_s']:.2f} | {found['cpu_s']:.2f} | {found['mb']:.0f} |", flush=True)


if __name__ == "__main__":
    errors.run(main)
