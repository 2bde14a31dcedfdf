"""What a training step takes beside parameters and moments, on a trained model, under each memory limit.

    python -m benchmarks.memory -s SCENE --ply PLY [--limit 0 400] [--threads 2] [--steps 16] [-r -1]

Steps are `fused.train_step` with both loss terms (the LR view is a quarter of the image) and the densification
statistics, on the training views; learning rates are 0. Each limit has a process of its own. Extra memory is the peak
of resident memory during the steps less what was resident before them: parameters, moments, statistics, images of the
views, and the program itself. 1 MB is 1e6 bytes. Linux only.
"""

import argparse
import contextlib
import itertools
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from diff_gaussian_rasterization import RasterCamera, fused
from torch import Tensor

from arguments.flags import Parser, underscored
from benchmarks import report
from benchmarks.ours import LAMBDA_TEX, LR_SCALE
from scene import load_scene
from scene.lr_kernel import LRKernel
from scene.ply import read_gaussians
from training.start import with_degree
from utils import errors
from utils.errors import UserError

MB = 1_000_000
VIEWS = 8  # of the training views, evenly spread
SH_DEGREE = 3


def resident_bytes(field: str = "VmRSS") -> int:
    """Resident memory of this process: VmRSS (now) or VmHWM (peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


def forget_peak() -> None:
    """Let the peak begin anew; where that is forbidden it stays that of the whole life, which is only more."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def both_terms(target: Tensor) -> list[fused.L1SSIM | fused.LowResolution]:
    """The paper's objective for one image [3, H, W], its LR view made from it."""
    height, width = target.shape[-2:]
    kernel = LRKernel("bicubic", "renormalise", (width, height), (width // LR_SCALE, height // LR_SCALE))
    lr_target = kernel.down(target).contiguous()
    taps = (fused.Taps.of(f"taps_{a}", kernel.taps(a), n // LR_SCALE, n) for a, n in (("x", width), ("y", height)))
    return [fused.L1SSIM(target, LAMBDA_TEX), fused.LowResolution(lr_target, *taps, weight=1 - LAMBDA_TEX)]


def probe(
    cameras: Sequence[RasterCamera], targets: Sequence[Tensor], six: list[Tensor], limit: int, steps: int = 3
) -> dict[str, Any]:
    """Take steps of training under a memory limit and measure them.

    Parameters
    ----------
    cameras, targets : of the views, which take turns; targets float32 [3, H, W].
    six : raw parameters; they and their moments are changed.
    limit : of the rasterizer's memory [bytes], 0 = none.

    Returns
    -------
    dict : extra [bytes]; facts of the last step: bytes, instances; bands (the most of all steps), count of Gaussians,
        seconds of the fastest step.
    """
    moments = [[torch.full_like(p, 1e-3) for p in six] for _ in range(2)]
    statistics = fused.Statistics(*(torch.ones(len(six[0])) for _ in range(3)))
    losses = [both_terms(target) for target in targets]
    workspace, seconds, bands = fused.Workspace(limit), [], []
    forget_peak()
    before = resident_bytes()
    for i, (camera, terms) in enumerate(itertools.islice(itertools.cycle(zip(cameras, losses, strict=True)), steps)):
        start = time.perf_counter()
        fused.train_step(
            camera,
            six,
            exp_avg=moments[0],
            exp_avg_sq=moments[1],
            learning_rates=(0.0,) * 6,
            step=i + 1,
            losses=terms,
            stats=statistics,
            workspace=workspace,
        )
        seconds.append(time.perf_counter() - start)
        bands.append(workspace.facts["bands"])
    extra = resident_bytes("VmHWM") - before
    facts = {k: workspace.facts[k] for k in ("bytes", "instances")}
    return {"extra": extra, "count": len(six[0]), "seconds": min(seconds), "bands": max(bands), **facts}


def of_scene(source: Path, resolution: int, ply: Path) -> tuple[list[RasterCamera], list[Tensor], list[Tensor]]:
    """Cameras and images of some training views, and the parameters in the PLY."""
    scene = load_scene(source, resolution=resolution)
    names = scene.train[:: max(1, len(scene.train) // VIEWS)]
    if not names:
        raise UserError(f"{source}: no training views")
    cameras = [
        RasterCamera(c.width, c.height, c.fx, c.fy, c.cx, c.cy, c.world_to_camera, sh_degree=SH_DEGREE)
        for c in (scene.cameras[name] for name in names)
    ]
    gaussians = with_degree(read_gaussians(ply), SH_DEGREE)
    six = [getattr(gaussians, name).contiguous() for name in fused.NAMES]
    return cameras, [scene.images.load(name).contiguous() for name in names], six


def run(args: argparse.Namespace, limit_mb: int) -> dict[str, Any]:
    """One limit, in this process."""
    torch.set_num_threads(args.threads)
    cameras, targets, six = of_scene(args.source_path, args.resolution, args.ply)
    return probe(cameras, targets, six, limit_mb * MB, args.steps) | {"size": f"{cameras[0].width}x{cameras[0].height}"}


def table(found: dict[int, dict[str, Any]]) -> str:
    """Markdown: a row a limit [MB]."""
    lines = ["| limit, MB | Gaussians | image | peak extra memory, MB | workspace, MB | bands | fastest step, s |"]
    lines.append("|---" * 7 + "|")
    for limit, row in found.items():
        cells = (str(limit) if limit else "none", row["count"], row["size"], f"{row['extra'] / MB:.0f}")
        rest = (f"{row['bytes'] / MB:.0f}", row["bands"], f"{row['seconds']:.3f}")
        lines.append("| " + " | ".join(map(str, (*cells, *rest))) + " |")
    return "\n".join(lines) + "\n"


def parse(words: list[str]) -> argparse.Namespace:
    """Flags of the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = Parser(prog="python -m benchmarks.memory", description=description, allow_abbrev=False)
    add = parser.add_argument
    add("--source_path", "-s", type=Path, required=True, help="folder of the scene")
    add("--ply", type=Path, required=True, help="the trained Gaussians")
    add("--resolution", "-r", type=int, default=-1, help="as that of train.py (default: -1)")
    add("--limit", type=int, nargs="+", default=[0, 400], help="memory limits in MB, 0 = none (default: 0 400)")
    add("--threads", type=int, default=2, help="(default: 2)")
    add("--steps", type=int, default=2 * VIEWS, help=f"(default: {2 * VIEWS})")
    args = parser.parse_args(underscored(words))
    if min(args.threads, args.steps) < 1 or min(args.limit) < 0:
        raise UserError("--threads and --steps must be at least 1, --limit at least 0")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    print(report.machine_line(report.machine()))
    found = {}
    for limit in args.limit:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            found[limit] = fresh.submit(run, args, limit).result()
    print(table(found))


if __name__ == "__main__":
    errors.run(main)
