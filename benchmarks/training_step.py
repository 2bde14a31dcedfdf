"""Where the time of one iteration of train.py goes: kernels, PyTorch's operators, Python.

    python -m benchmarks.training_step [--n 100000 300000] [--threads 1 2] [--rgba] [--two_term] [--device cuda]
        [--json FILE]

Our own scene (benchmarks.gen) from a few cameras, images as PNG files in a temporary folder, the loop of train.py with
its log. Learning rates are 0: the same work, but the scene stays as it is. Shares are of the iteration's time in the
same run: PyTorch's operators by torch.profiler, functions of Python by cProfile (own time; the kernels' is taken out of
the functions that call them). What comes every 100 or 1000 iterations is timed apart, its share is spread over them.

On a GPU iterations are timed in blocks, at whose end the GPU is waited for; the kernels' time is that of events around
their stages; shares are of the processor's time, in which it also waits. Not run on a GPU yet.
"""

import argparse
import cProfile
import itertools
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from arguments.flags import Parser, underscored
from arguments.loading import PipelineParams
from arguments.training import OptimizationParams
from benchmarks import device, gen, report
from benchmarks.cases import Case
from benchmarks.ours import LR_SCALE
from scene.cameras import Camera, intrinsics
from scene.gaussians import Gaussians
from scene.image_files import write_png
from scene.images import ImageStore
from scene.lr_kernel import LRKernel
from training import loop
from training.checkpoint import Checkpoints
from training.densify import densification
from training.engines import choose
from training.guard import Guard
from training.morton import reordered
from training.outputs import Log
from training.state import TrainState, apply
from training.trainer import Generators, Trainer, World
from training.views import TrainingViews, View
from utils import errors
from utils.atomic import write_text
from utils.compute import choose_device, use_device
from utils.log import Progress, set_quiet

VIEWS = 6
TURN = 0.06  # between neighbouring views [rad]
NEVER = 1 << 30
GPU_BLOCK = 10  # iterations timed together on a GPU
KERNELS = "diff_gaussian_rasterization"
SHOWN = 0.001  # smaller shares are left out
GROUPS = ("torch", "python")
Shares = dict[str, float]


def cameras(size: int) -> dict[str, Camera]:
    """A few cameras side by side, all looking at the centre of the scene."""
    focal, found = gen.focal_px(size), {}
    for i in range(VIEWS):
        angle = TURN * (i - VIEWS // 2)
        pose = np.eye(4)
        pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
        pose[2, 3] = gen.DISTANCE
        found[f"{i}"] = Camera(f"{i}", size, size, intrinsics(focal, focal, size / 2, size / 2), pose)
    return found


def write_images(folder: Path, size: int, rgba: bool) -> ImageStore:
    """A picture of its own for each camera."""
    folder.mkdir(exist_ok=True)
    paths = {name: folder / f"{name}.png" for name in cameras(size)}
    for i, path in enumerate(paths.values()):
        image = np.rint(255 * gen.target(size, seed=i).clip(0, 1)).astype(np.uint8).transpose(1, 2, 0)
        alpha = np.roll(image[..., :1], size // 3, axis=0)
        write_png(path, np.concatenate([image, alpha], axis=2) if rgba else image)
    return ImageStore(paths)


def training_views(folder: Path, size: int, rgba: bool, two_term: bool, device: str = "cpu") -> TrainingViews:
    """Images at full size; with two terms also at a quarter of it, and the kernel between them."""
    kernel = LRKernel("bicubic", "renormalise", (size,) * 2, (size // LR_SCALE,) * 2) if two_term else None
    views = {name: View(camera, kernel) for name, camera in cameras(size).items()}
    lr = write_images(folder / "lr", size // LR_SCALE, rgba) if two_term else None
    return TrainingViews(views, write_images(folder / "hr", size, rgba), lr, torch.device(device))


def make_trainer(
    folder: Path, n: int, size: int, kind: str, *, rgba: bool = False, two_term: bool = False, device: str = "cpu"
) -> Trainer:
    """A run of train.py on images in `folder` that changes no parameter and does not densify by itself."""
    settings = OptimizationParams(
        iterations=NEVER,
        densify_from_iter=NEVER - 1,
        densify_until_iter=NEVER,
        opacity_reset_interval=NEVER,
        sh_interval=1,
        position_lr_init=0.0,
        feature_lr=0.0,
        opacity_lr=0.0,
        scaling_lr=0.0,
        rotation_lr=0.0,
    )
    values = {name: torch.from_numpy(value).to(device) for name, value in gen.scene(n, size, kind).items()}
    return Trainer(
        training_views(folder, size, rgba, two_term, device),
        choose(PipelineParams(), device),
        TrainState.start(Gaussians(**values)),
        settings,
        World(extent=4.0, sh_degree=3, white_background=True),
        Generators.seeded(0),
        iteration=3,  # all bands in use
    )


class Run:
    """The loop of train.py, one iteration at a time."""

    def __init__(self, folder: Path, trainer: Trainer) -> None:
        self.trainer = trainer
        self.plan = loop.Plan(
            folder, NEVER, frozenset(), frozenset(), Checkpoints(folder, frozenset(), {}), NEVER, None, "benchmark"
        )
        self.log = Log(folder / "log.jsonl", 0, 10)
        self.guard = Guard(folder / "nan_report.json")
        self.progress = Progress("benchmark", NEVER)
        self.on_gpu = trainer.state.gaussians.means.is_cuda
        self.block = GPU_BLOCK if self.on_gpu else 1
        trainer.engine.workspace.timing = True  # type: ignore[attr-defined]

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize(self.trainer.state.gaussians.means.device)

    def iterate(self, times: int) -> None:
        for _ in range(times):
            loop.iterate(self.trainer, self.plan, self.log, self.guard, self.progress)

    def kernel_ms(self) -> float:
        """Time within the kernels in the last iteration."""
        return sum(self.trainer.engine.workspace.facts["stage_ms"].values())  # type: ignore[attr-defined]


def whole(run: Run, repeats: int) -> dict[str, float]:
    """Milliseconds of an iteration, and how much of it is spent within the kernels."""
    rounds, inside = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        run.iterate(run.block)
        run.wait()
        rounds.append(1e3 * (time.perf_counter() - start) / run.block)
        inside.append(run.kernel_ms())
    return {
        "min_ms": min(rounds),
        "median_ms": statistics.median(rounds),
        "kernels": sum(inside) / sum(rounds),
    }


def torch_shares(run: Run, repeats: int) -> Shares:
    """Share of each PyTorch operator in the time of the iterations; our own kernels are no part of it."""
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiler:  # else torch 2.11 warns
        start = time.perf_counter()
        run.iterate(repeats)
        run.wait()
        total_us = 1e6 * (time.perf_counter() - start)
    events = profiler.key_averages()
    # torch.ops' own spelling, aten.sum; in our pages two colons stand between a file and what it holds
    own = {e.key.replace("::", "."): e.self_cpu_time_total / total_us for e in events if KERNELS not in e.key}
    return _largest(own)


def python_shares(run: Run, repeats: int) -> Shares:
    """Share of each function of Python, own time; functions of the rasterizer's package are one, less the kernels."""
    profiler, kernel_s = cProfile.Profile(), 0.0
    for _ in range(repeats):
        profiler.runcall(run.iterate, 1)
        kernel_s += 0.0 if run.on_gpu else run.kernel_ms() / 1e3
    own: Shares = {}
    for (path, _, function), (_, _, seconds, _, _) in pstats.Stats(profiler).stats.items():  # type: ignore[attr-defined]
        name = KERNELS if KERNELS in path + function else function if path == "~" else f"{Path(path).name}:{function}"
        own[name] = own.get(name, 0.0) + seconds
    total = sum(own.values())
    own[KERNELS] = max(own.get(KERNELS, 0.0) - kernel_s, 0.0)
    return _largest({name: seconds / total for name, seconds in own.items()})


def _largest(shares: Shares) -> Shares:
    return {k: v for k, v in sorted(shares.items(), key=lambda item: -item[1]) if v >= SHOWN}


def now_and_then(
    folder: Path, trainer: Trainer, repeats: int, wait: Callable[[], None] = lambda: None
) -> dict[str, dict[str, float]]:
    """Milliseconds of what does not come in each iteration, and the iterations from one to the next."""
    trainer.settle()
    guard, checkpoints = Guard(folder / "nan_report.json"), Checkpoints(folder, frozenset(), {})

    def densify() -> None:  # one Gaussian in twenty is split or cloned
        state = trainer.state
        state.view_count.fill_(1.0)
        state.grad_norm_sum.zero_()
        state.grad_norm_sum[::20] = 1.0
        change = densification(state, trainer.settings, trainer.world.extent, False, trainer.generators.split)
        apply(state, reordered(state.gaussians.means, change))

    def checkpoint() -> None:
        tensors, info = trainer.capture()
        checkpoints.write(tensors, info | {"log_bytes": 0, "rollbacks": 0})

    parts: dict[str, tuple[Callable[[], None], int]] = {
        "good state": (lambda: guard.keep(trainer, 0), 1000),
        "checkpoint": (checkpoint, 1000),
        "densification": (densify, 100),
    }
    return {name: {"ms": _median_ms(part, repeats, wait), "every": every} for name, (part, every) in parts.items()}


def _median_ms(part: Callable[[], None], repeats: int, wait: Callable[[], None]) -> float:
    rounds = []
    for _ in range(repeats):
        start = time.perf_counter()
        part()
        wait()
        rounds.append(1e3 * (time.perf_counter() - start))
    return statistics.median(rounds)


def measure(
    n: int, size: int, kind: str, *, rgba: bool, two_term: bool, repeats: int, device: str = "cpu"
) -> dict[str, Any]:
    """All numbers of one scene on a device, with the present number of threads."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run = Run(folder, make_trainer(folder, n, size, kind, rgba=rgba, two_term=two_term, device=device))
        run.iterate(2 * VIEWS)  # every image is decoded, every buffer is there
        run.wait()
        step = whole(run, repeats)
        result: dict[str, Any] = {
            "kind": kind,
            "n": n,
            "size": size,
            "device": device,
            "threads": torch.get_num_threads(),
            "rgba": rgba,
            "two_term": two_term,
            "step": step,
        }
        result |= {"torch": torch_shares(run, repeats), "python": python_shares(run, repeats)}
        rare = now_and_then(folder, run.trainer, 3, run.wait)
        for part in rare.values():
            part["share"] = part["ms"] / part["every"] / step["median_ms"]
        return result | {"now_and_then": rare}


def table(result: dict[str, Any]) -> str:
    """As people read it."""
    step = result["step"]
    what = "RGBA" if result["rgba"] else "RGB"
    terms = "two terms" if result["two_term"] else "one term"
    lines = [
        f"### {result['kind']}, {result['n']} Gaussians, {result['size']} x {result['size']} {what}, {terms}, "
        f"{_where(result)}: {step['min_ms']:.1f} ms (median {step['median_ms']:.1f}), "
        f"kernels {100 * step['kernels']:.1f} %"
    ]
    lines += ["", "| what | share |", "|---|---|"]
    for group in GROUPS:
        lines += [f"| {group}: {name} | {100 * share:.2f} % |" for name, share in result[group].items()]
    for name, part in result["now_and_then"].items():
        lines.append(f"| {name}: {part['ms']:.1f} ms every {part['every']} | {100 * part['share']:.2f} % |")
    return "\n".join(lines) + "\n"


def _where(result: dict[str, Any]) -> str:
    """The device, or how many threads of the processor."""
    return f"{result['threads']} threads" if result.get("device", "cpu") == "cpu" else str(result["device"])


def summary(cases: list[dict[str, Any]]) -> str:
    """A row a scene, and below them the largest share that any operator or function outside the kernels takes.

    Parameters
    ----------
    cases : what `measure` returned.
    """
    lines = ["| scene | threads | terms | iteration, min / median, ms | kernels | largest PyTorch operator "]
    lines[0] += "| largest Python function | densification, every 100 |"
    lines.append("|---" * lines[0].count(" |") + "|")
    largest = []
    for case in cases:
        step, (torch_top, python_top) = case["step"], (max(case[k].items(), key=lambda e: e[1]) for k in GROUPS)
        largest += [torch_top, python_top]
        cells = [
            str(Case(case["kind"], case["n"], case["size"])),
            _where(case).removesuffix(" threads"),
            str(1 + case["two_term"]),
            *(f"{step['min_ms']:.1f} / {step['median_ms']:.1f}", f"{100 * step['kernels']:.1f} %"),
            *(f"`{name}` {100 * share:.2f} %" for name, share in (torch_top, python_top)),
            f"{100 * case['now_and_then']['densification']['share']:.2f} %",
        ]
        lines.append("| " + " | ".join(cells) + " |")
    name, share = max(largest, key=lambda e: e[1])
    lines += ["", f"The largest share outside the kernels is that of `{name}`: {100 * share:.2f} % of an iteration."]
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = Parser(
        prog="python -m benchmarks.training_step", description=(__doc__ or "").splitlines()[0], allow_abbrev=False
    )
    parser.add_argument("--n", type=int, nargs="+", default=[100_000, 300_000], help="(default: 100000 300000)")
    parser.add_argument("--size", type=int, default=800, help="image side in pixels (default: 800)")
    parser.add_argument("--kind", choices=list(gen.KINDS), default="random", help="(default: random)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="(default: 1 2)")
    parser.add_argument("--device", default="cpu", help="cpu, or cuda[:N] (default: cpu)")
    parser.add_argument("--rgba", action="store_true", help="images with alpha, composed on white")
    parser.add_argument("--two_term", action="store_true", help="also with the paper's objective, HR and LR")
    parser.add_argument("--repeats", type=int, default=15, help="counted iterations (default: 15)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    return parser.parse_args(underscored(sys.argv[1:]))


def main() -> None:
    args = parse()
    set_quiet(True)
    place = choose_device(args.device)
    machine, cases = report.machine(), []
    if place.type == "cuda":
        device.required("benchmarks.training_step")
        use_device(place)
        machine["gpu"] = device.facts()
        args.threads = [torch.get_num_threads()]
    for n, threads, two_term in itertools.product(args.n, args.threads, [False, True] if args.two_term else [False]):
        torch.set_num_threads(threads)
        options = {"rgba": args.rgba, "two_term": two_term, "repeats": args.repeats, "device": str(place)}
        found = measure(n, args.size, args.kind, **options)
        cases.append(found)
        print(table(found), flush=True)
    print(summary(cases))
    if args.json:
        found = {"machine": machine, "command": report.command("benchmarks.training_step"), "cases": cases}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        write_text(args.json, report.json_text(report.rounded_values(found)) + "\n")


if __name__ == "__main__":
    errors.run(main)
