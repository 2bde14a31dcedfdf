"""Seconds and memory of simple_knn on uniform random points.

    python -m benchmarks.knn [--n 1000000 10000000] [--threads 2] [--repeats 3]
    python -m benchmarks.knn --device cuda [--json FILE]

Minima over the repeats, all threads' CPU time beside the wall clock. Memory is the growth of the process during the
first call, the result included, the points not; each number of points has a process of its own. Linux only. With
--device cuda the wall clock of a call on the GPU, the most memory that PyTorch held there (the points not), and the
largest relative difference from the CPU's result on the same points.
"""

import argparse
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from simple_knn._C import distCUDA2

from arguments.flags import Parser, underscored
from benchmarks import device, report
from benchmarks.memory import MB, forget_peak, resident_bytes
from utils import errors
from utils.atomic import write_text
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


def measure_on(on: torch.device, n: int, repeats: int) -> dict[str, float]:
    """Wall seconds of a call on a device, memory there [MB], and how far it lies from the CPU's values."""
    points = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    start = time.perf_counter()
    wanted = distCUDA2(points)
    cpu_wall = time.perf_counter() - start
    there, rounds, mb = points.to(on), [], 0.0
    for _ in range(repeats + 1):
        if there.is_cuda:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            mb = -torch.cuda.memory_allocated() / MB
        start = time.perf_counter()
        found = distCUDA2(there)
        if there.is_cuda:
            torch.cuda.synchronize()
            mb += torch.cuda.max_memory_allocated() / MB
        rounds.append(time.perf_counter() - start)
    difference = float(((found.cpu() - wanted).abs() / wanted).max())
    return {"n": n, "wall_s": min(rounds[1:]), "cpu_wall_s": cpu_wall, "mb": mb, "difference": difference}


def on_gpu(args: argparse.Namespace) -> None:
    """The table of --device cuda."""
    torch.set_num_threads(args.threads)
    found = {"command": report.command("benchmarks.knn"), "commit": report.machine()["commit"], "gpu": device.facts()}
    rows = []
    print(f"| points | s | s on the CPU, {args.threads} threads | MB | largest difference |\n|---|---|---|---|---|")
    for n in args.n:
        row = measure_on(torch.device("cuda:0"), n, args.repeats)
        rows.append(row)
        print(f"| {n} | {row['wall_s']:.4f} | {row['cpu_wall_s']:.2f} | {row['mb']:.0f} | {row['difference']:.1e} |")
    if args.json:
        write_text(args.json, report.json_text({**found, "rows": rows}) + "\n")


def parse(words: list[str]) -> argparse.Namespace:
    """Flags of the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = Parser(prog="python -m benchmarks.knn", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--n", type=int, nargs="+", default=[1_000_000, 10_000_000], help="points (default: 1000000 10000000)")
    add("--threads", type=int, default=2, help="(default: 2)")
    add("--repeats", type=int, default=3, help="(default: 3)")
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add("--json", type=Path, help="also write the numbers here (with --device cuda)")
    args = parser.parse_args(underscored(words))
    if min(args.n + [args.threads, args.repeats]) < 1:
        raise UserError("--n, --threads and --repeats must be at least 1")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    if args.device == "cuda":
        device.required("--device cuda")
        return on_gpu(args)
    print(report.machine_line(report.machine()))
    print(f"| points | wall s, {args.threads} threads | CPU s | MB |\n|---|---|---|---|")
    for n in args.n:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found = fresh.submit(measure, n, args.threads, args.repeats).result()
        print(f"| {n} | {found['wall_s']:.2f} | {found['cpu_s']:.2f} | {found['mb']:.0f} |", flush=True)


if __name__ == "__main__":
    errors.run(main)
