"""The training losses alone: L1 + SSIM with its gradient against PyTorch, the LR term, threads, and their iteration.

    python -m benchmarks.losses [--size 800x800 800x533 400x400 200x200] [--threads 2] [--json FILE]

All runners of a table take turns. `isa` follows SPLAT_ISA. Times in milliseconds. The LR term alone keeps the matrices
of its taps from call to call, as in train.py; in the whole iteration with both terms they are made anew in each.
"""

import argparse
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import torch
from diff_gaussian_rasterization.fused import Workspace

from arguments.flags import Parser, underscored
from benchmarks import report
from benchmarks.cases import Case, Measured, Runner, Times, measure, ratio
from benchmarks.ours import LR_SCALE, Fused
from benchmarks.torch_loss import torch_loss
from scene.lr_kernel import LRKernel
from utils import errors
from utils.atomic import write_text

Size = tuple[int, int]  # width, height in px
HR, LR, HR_ONE, TORCH, ONE, TWO = "HR term", "LR term", "HR term, 1 thread", "PyTorch", "HR alone", "HR and LR"


class Loss:
    """One call of a loss that leaves the gradient of a random image.

    Parameters
    ----------
    what : HR or LR for ours, TORCH for the HR term written with PyTorch.
    """

    def __init__(self, what: str, size: Size, threads: int) -> None:
        (width, height), self.what, self.threads = size, what, threads
        g = torch.Generator().manual_seed(0)
        self.image, self.target = (torch.rand(3, height, width, generator=g) for _ in range(2))
        self.gradient, self.workspace = torch.zeros_like(self.image), Workspace()
        kernel = LRKernel("bicubic", "renormalise", size, (width // LR_SCALE, height // LR_SCALE))
        self.taps, self.lr_target = (kernel.taps("x"), kernel.taps("y")), kernel.down(self.target).contiguous()
        self.image.requires_grad_(what == TORCH)

    def step(self) -> Times:
        torch.set_num_threads(self.threads)
        self.image.grad = None
        start = time.perf_counter()
        if self.what == TORCH:
            torch_loss(self.image, self.target).backward()
        elif self.what == LR:
            self.workspace.lr_l1_ssim(self.image, self.lr_target, self.gradient, *self.taps, accumulate=True)
        else:
            self.workspace.l1_ssim(self.image, self.target, self.gradient)
        return {"loss": (time.perf_counter() - start) * 1e3}


def alone(size: Size, threads: int, repeats: int) -> Measured:
    """Times of the losses at one size."""
    runners: dict[str, Runner] = {what: Loss(what, size, threads) for what in (HR, LR, TORCH)}
    return measure({**runners, HR_ONE: Loss(HR, size, 1)}, repeats)


def iterations(case: Case, threads: int, repeats: int) -> Measured:
    """Times of the whole iteration with one term and with both."""
    return measure({ONE: Fused(case, threads), TWO: Fused(case, threads, two_term=True)}, repeats)


def table(title: str, results: Measured, stage: str, pairs: list[tuple[str, str]]) -> str:
    """Markdown: minimum and median of each runner and of the ratios of the pairs."""
    lines = [f"### {title}", "", "| | min | median |", "|---|---|---|"]
    for name, both in results.items():
        lines.append(f"| {name}, ms | {both['min'][stage]:.3f} | {both['median'][stage]:.3f} |")
    for name, other in pairs:
        cells = (f"{ratio(results, name, other, stage, statistic):.3f}" for statistic in ("min", "median"))
        lines.append(f"| {name} / {other} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.losses", description=__doc__.splitlines()[0], allow_abbrev=False)
    sizes = ["800x800", "800x533", "400x400", "200x200"]
    parser.add_argument("--size", nargs="+", default=sizes, metavar="WxH", help=f"(default: {' '.join(sizes)})")
    parser.add_argument("--n", type=int, default=100_000, help="Gaussians of the iteration (default: 100000)")
    parser.add_argument("--side", type=int, default=800, help="its image's side in pixels (default: 800)")
    parser.add_argument("--threads", type=int, default=2, help="(default: 2)")
    parser.add_argument("--repeats", type=int, default=15, help="counted rounds (default: 15)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(underscored(sys.argv[1:]))
    matches = [re.fullmatch(r"(\d{1,5})x(\d{1,5})", size) for size in args.size]
    args.size = [tuple(int(side) for side in m.groups()) for m in matches if m]
    if len(args.size) < len(matches) or any(side < LR_SCALE for size in args.size for side in size):
        raise errors.UserError(f"--size: WxH in pixels, each at least {LR_SCALE}, is expected, for example 800x533")
    return args


def main() -> None:
    args = parse()
    machine: dict[str, Any] = report.machine()
    print(report.machine_line(machine))
    found: dict[str, Any] = {"machine": machine, "threads": args.threads, "repeats": args.repeats}
    pairs = [(TORCH, HR), (HR_ONE, HR), (LR, HR)]
    for size in args.size:
        name = "{}x{}".format(*size)
        found[name] = {"load": report.load(), "ms": alone(size, args.threads, args.repeats)}
        print(table(f"{name} px, {args.threads} threads, load {report.load()}", found[name]["ms"], "loss", pairs))
    case = Case("random", args.n, args.side)
    found[str(case)] = {"load": report.load(), "ms": iterations(case, args.threads, args.repeats)}
    title = f"whole iteration, {case}, {args.threads} threads, load {report.load()}"
    print(table(title, found[str(case)]["ms"], "whole", [(TWO, ONE)]))
    if args.json:
        write_text(args.json, json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    errors.run(main)
