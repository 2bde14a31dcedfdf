"""--dry_run: what a run would read, need and take, without writing anything."""

import time
from dataclasses import replace
from pathlib import Path

import torch

from training.estimate import Estimate, megabytes
from training.trainer import Trainer
from utils.log import duration, say

WARM_STEPS, TIMED_STEPS = 1, 3


def describe(trainer: Trainer, size: Estimate, out: Path) -> None:
    """Print sizes, peak memory and expected time; a few real steps are taken in memory to time them."""
    views, settings = trainer.views, trainer.settings
    camera, count = views.largest, trainer.state.gaussians.num
    mode = "the scene's own images" if views.lr is None else "pseudo-HR frames and LR views"
    if views.hr is None:
        mode = "LR views alone"
    say(f"{len(views.views)} training views, rendered at {camera.width}x{camera.height} px, compared with {mode}")
    view = next(iter(views.views.values()))
    if view.kernel is not None:
        width, height = view.kernel.lr_size
        say(f"LR kernel {view.kernel.kernel} ({view.kernel.border}), LR views of {width}x{height} px")
    cap = f"at most {settings.max_gaussians}" if settings.max_gaussians else "no cap (--max_gaussians)"
    say(f"{count} Gaussians to start with, {cap}")
    say(
        f"peak {size.of} about {megabytes(size.peak_bytes)} with {size.gaussians} Gaussians, "
        f"{megabytes(100_000 * size.bytes_per_gaussian)} more for each 100000"
        + ("" if trainer.guidance is None else "; what the prior of --sds needs is not in it")
    )
    say(f"two checkpoints of {megabytes(size.checkpoint_bytes)} each in {out / 'checkpoints'}")
    seconds, more = step_seconds(trainer)
    total = settings.iterations * seconds
    said = f"{settings.iterations} iterations at {1000 * seconds:.0f} ms {_worker(views.device)}"
    if trainer.guidance is not None:
        guided = settings.iterations // trainer.guidance.every
        total += guided * more
        said += f", {guided} of them with {1000 * more:.0f} ms of guidance"
    say(f"{said}: about {duration(total)}, more as Gaussians are added")
    say("nothing was written")


def _worker(device: torch.device) -> str:
    if device.type == "cuda":
        return f"on {torch.cuda.get_device_name(device)}"
    return f"with {torch.get_num_threads()} threads"


def step_seconds(trainer: Trainer) -> tuple[float, float]:
    """(seconds of an iteration without guidance, what guidance adds to one that has it)."""
    guidance, trainer.guidance = trainer.guidance, None
    plain = _seconds_a_step(trainer)
    if guidance is None:
        return plain, 0.0
    trainer.guidance = replace(guidance, every=1)  # else the few steps below may be those between two guided ones
    more = _seconds_a_step(trainer) - plain
    trainer.guidance = guidance
    return plain, max(more, 0.0)


def _seconds_a_step(trainer: Trainer) -> float:
    for _ in range(WARM_STEPS):
        trainer.step()
    begin = time.perf_counter()
    for _ in range(TIMED_STEPS):
        trainer.step()
    return (time.perf_counter() - begin) / TIMED_STEPS
