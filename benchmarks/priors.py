"""Milliseconds a frame of the small priors: regression, SR3, ResShift, pixel DDNM, and a call of score distillation.

    python -m benchmarks.priors [--device cuda] [--size 100x100] [--repeats 3] [--json FILE]

Networks of configs/priors with random weights, x4, on an LR frame of noise; values do not change the time. A frame is
projected onto its LR view as `vsr_upsample.py --project_lr hard` does. "sds" is one pull on the whole render. The first
frame is not counted.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arguments.flags import underscored
from arguments.priors import PriorParams
from benchmarks import device
from benchmarks.vsr import size_of, write_rows
from priors.denoisers.tiny import TinyNet, save_prior
from priors.interfaces import Cond
from priors.making import Loading
from priors.samplers import PriorUpsampler, load_sampler
from priors.sds import SDSGuidance
from priors.train_config import read_config
from utils import errors
from utils.command_line import Parser
from utils.compute import choose_device, use_device
from utils.errors import UserError
from utils.provenance import PROJECT
from utils.rng import generator

CASES: dict[str, tuple[str, str, dict[str, Any]]] = {  # name: (configuration, --upsampler, settings)
    "regression, 1 frame": ("regression_f1", "small", {}),
    "regression, 3 frames": ("regression_f3", "small", {}),
    "regression, 5 frames": ("regression_f5", "small", {}),
    "SR3, 20 steps": ("sr3_f3", "small", {"prior_steps": 20}),
    "ResShift, 15 steps": ("resshift_f3", "small", {"prior_eta": 1.0}),
    "DDNM, 100 steps": ("sr3_f3", "ddnm", {}),
}
SDS = "sds, one pull"
Row = dict[str, Any]


def network_file(name: str, folder: Path) -> Path:
    """A network of configs/priors/NAME.json with random weights."""
    config, path = read_config(PROJECT / f"configs/priors/{name}.json"), folder / f"{name}.safetensors"
    torch.manual_seed(0)
    save_prior(path, TinyNet(config.network), config.process, {})
    return path


def pipelines(size: tuple[int, int], folder: Path, on: torch.device) -> dict[str, Callable[[], object]]:
    """What makes one frame of each case, of an LR frame of `size` (width, height)."""
    width, height = size
    lr = torch.rand((1, 3, height, width), generator=generator(0, "benchmark")).to(on)
    found: dict[str, Callable[[], object]] = {}
    for name, (config, upsampler, settings) in CASES.items():
        params = PriorParams(model=str(network_file(config, folder)), project_lr="hard", **settings)
        net = load_sampler(upsampler, params, Loading(on, 4), ("bicubic", "renormalise"))
        found[name] = partial(_frames, net, lr)
    prior = load_sampler("small", PriorParams(model=str(network_file("sr3_f1", folder))), Loading(on, 4)).maker.prior
    render = torch.rand((1, 3, 4 * height, 4 * width), generator=generator(1, "benchmark")).to(on)
    guidance, cond = SDSGuidance(prior, 20, 980), Cond(lr=lr[:, None], up=render)
    leaf = render.clone().requires_grad_()
    found[SDS] = lambda: torch.autograd.grad(guidance.loss(leaf, cond, 1, generator(0, "sds"), ["view"]), leaf)
    return found


def _frames(net: PriorUpsampler, lr: torch.Tensor) -> list[torch.Tensor]:
    return list(net.upsample(lr))


def milliseconds(make: Callable[[], object], repeats: int, on: torch.device) -> list[float]:
    """Of each of `repeats` frames, after one that is not counted."""
    rounds = []
    for _ in range(repeats + 1):
        begin = time.perf_counter()
        make()
        if on.type == "cuda":
            torch.cuda.synchronize(on)
        rounds.append(1e3 * (time.perf_counter() - begin))
    return rounds[1:]


def table(rows: list[Row]) -> str:
    """Markdown: a row a pipeline and size."""
    lines = ["| pipeline | LR frame | ms a frame, median | minimum |", "|---|---|---|---|"]
    for row in rows:
        size = f"{row['width']}x{row['height']}"
        lines.append(f"| {row['pipeline']} | {size} | {row['median_ms']:.1f} | {row['min_ms']:.1f} |")
    return "\n".join(lines) + "\n"


def parse(words: list[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.priors", description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    add = parser.add_argument
    add("--device", choices=["cpu", "cuda"], default="cpu", help="(default: cpu)")
    add("--size", nargs="+", default=["100x100"], metavar="WxH", help="LR frames (default: 100x100)")
    add("--threads", type=int, default=1, help="of the CPU (default: 1)")
    add("--repeats", type=int, default=3, help="counted frames (default: 3)")
    add("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(underscored(words))
    args.size = [size_of(text) for text in args.size]
    if min(args.threads, args.repeats) < 1:
        raise UserError("--threads and --repeats must be at least 1")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    if args.device == "cuda":
        device.required("--device cuda")
    on = choose_device(args.device)
    use_device(on)
    torch.set_num_threads(args.threads)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for width, height in args.size:
            for name, make in pipelines((width, height), Path(folder), on).items():
                rounds = milliseconds(make, args.repeats, on)
                row: Row = {"pipeline": name, "width": width, "height": height}
                rows.append(row | {"median_ms": statistics.median(rounds), "min_ms": min(rounds)})
    print(table(rows))
    if args.json:
        write_rows(args.json, "benchmarks.priors", rows, on)


if __name__ == "__main__":
    errors.run(main)
