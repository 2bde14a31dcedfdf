"""Milliseconds and memory a frame of a super-resolution network, on frames of noise with its published weights.

    python -m benchmarks.vsr [--device cuda] [--size 200x200 618x411] [--frames 15] [--upsampler basicvsr] [--json FILE]

One clip, all of it at once; the first pass, in which cuDNN times its kernels, is not counted. Times are of whole clips,
on a GPU by CUDA events. Networks whose weights are not here run with --random_weights: values do not change the time.
"""

import argparse
import re
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import torch

from arguments.flags import Parser, underscored
from arguments.upsampling import UpsamplingParams
from benchmarks import device, report
from upsampling import load, resolve_weights
from upsampling.gpu import memory_bound, session
from upsampling.registry import Upsampler
from utils import errors
from utils.atomic import write_text
from utils.compute import choose_device, use_device
from utils.errors import UserError

SIZES = ("200x200", "618x411")
Row = dict[str, Any]


def size_of(text: str) -> tuple[int, int]:
    """Width and height in pixels of `618x411`."""
    found = re.fullmatch(r"([1-9]\d{0,4})x([1-9]\d{0,4})", text)
    if not found:
        raise UserError(f"--size {text}: WxH in pixels is expected, for example 618x411")
    return int(found[1]), int(found[2])


def network(name: str, precision: str, on: torch.device, random_weights: bool = False) -> Upsampler:
    """The network with its default weights, or with none."""
    settings = UpsamplingParams(upsampler=name, precision=precision, random_weights=random_weights)
    return load(settings, resolve_weights(settings), on)


def clip_s(net: Upsampler, frames: torch.Tensor) -> float:
    """Seconds of one pass over the clip."""
    if frames.is_cuda:
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        events[0].record()
    begin = time.perf_counter()
    for frame in net.upsample(frames):
        del frame
    if not frames.is_cuda:
        return time.perf_counter() - begin
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 1e3


def measure(net: Upsampler, size: tuple[int, int], count: int, repeats: int, on: torch.device) -> Row:
    """Milliseconds a frame, and on a GPU the most memory that PyTorch held."""
    width, height = size
    frames = torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0)).to(on)
    with torch.inference_mode():
        clip_s(net, frames)
        if on.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        rounds = [1e3 * clip_s(net, frames) / count for _ in range(repeats)]
    row: Row = {"width": width, "height": height, "frames": count}
    row |= {"median_ms": statistics.median(rounds), "min_ms": min(rounds)}
    return row | ({"peak_MB": torch.cuda.max_memory_allocated() / 1e6} if on.type == "cuda" else {})


def table(rows: list[Row]) -> str:
    """Markdown: a row a network, precision and size."""
    lines = ["| network | precision | LR frame | ms a frame, median | minimum | peak MB |", "|---|---|---|---|---|---|"]
    for row in rows:
        memory = f"{row['peak_MB']:.0f}" if "peak_MB" in row else "not measured"
        name = row["upsampler"] + (", random weights" if "weights" in row else "")
        cells = [name, row["precision"], f"{row['width']}x{row['height']}"]
        lines.append("| " + " | ".join([*cells, f"{row['median_ms']:.2f}", f"{row['min_ms']:.2f}", memory]) + " |")
    return "\n".join(lines) + "\n"


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.vsr", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add("--size", nargs="+", default=list(SIZES), metavar="WxH", help=f"LR frames (default: {' '.join(SIZES)})")
    add("--frames", type=int, default=15, help="of the clip (default: 15)")
    add("--upsampler", nargs="+", default=["basicvsr"], help="(default: basicvsr)")
    add("--random_weights", action="store_true", help="time networks whose weights are not here; rows say so")
    add("--precision", nargs="+", default=["auto", "fp32"], help="(default: auto fp32)")
    add("--repeats", type=int, default=5, help="counted passes (default: 5)")
    add("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(underscored(words))
    args.size = [size_of(text) for text in args.size]
    if min(args.frames, args.repeats) < 1:
        raise UserError("--frames and --repeats must be at least 1")
    return args


def measured(args: argparse.Namespace, on: torch.device) -> list[Row]:
    """A row a network, precision and size."""
    rows = []
    for name in args.upsampler:
        for precision in args.precision:
            net = network(name, precision, on, args.random_weights)
            for size in args.size:
                row = {"upsampler": name, "precision": precision, **measure(net, size, args.frames, args.repeats, on)}
                rows.append(row | ({"weights": "random"} if args.random_weights else {}))
    return rows


def write_rows(path: Path, module: str, rows: list[Row], on: torch.device) -> None:
    """Write the numbers with command, commit and machine."""
    machine = report.machine()
    head: Row = {"command": report.command(module), "commit": machine["commit"], "machine": machine}
    head |= {"gpu": device.facts()} if on.type == "cuda" else {}
    write_text(path, report.json_text(report.rounded_values({**head, "rows": rows})) + "\n")


def main() -> None:
    args = parse(sys.argv[1:])
    if args.device == "cuda":
        device.required("--device cuda")
    on = choose_device(args.device)
    use_device(on)
    with session(on, memory_bound(0, on)):
        rows = measured(args, on)
    print(table(rows))
    if args.json:
        write_rows(args.json, "benchmarks.vsr", rows, on)


if __name__ == "__main__":
    errors.run(main)
