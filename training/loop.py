"""The training loop: steps, and what happens between them - models, measurements, checkpoints, signals, NaN."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from scene.gaussians import Gaussians
from scene.trained_model import ply_path
from training.checkpoint import Checkpoints
from training.exposure import FILE_NAME as EXPOSURES
from training.exposure import Exposures
from training.guard import GOOD_STATE_INTERVAL, Guard
from training.objective import Terms
from training.outputs import Log, save_ply
from training.schedules import texture_weight
from training.signals import StopRequest
from training.trainer import Iteration, NonFinite, Trainer
from utils.errors import Interrupted
from utils.log import Progress, note, say, warn
from utils.provenance import peak_bytes


@dataclass(frozen=True)
class Measured:
    """Mean L1 and PSNR [dB] of one group of views ("test", "train", "frames", "lr")."""

    group: str
    l1: float
    psnr: float


# Model, SH degree in use, and the training views' exposures -> one result a group
Measure = Callable[[Gaussians, int, Exposures | None], list[Measured]]


@dataclass(frozen=True)
class Plan:
    """When a run stops to do something else.

    Attributes
    ----------
    iterations : the last one. save, test : iterations that begin with a PLY, a measurement.
    checkpoints : where they go; `checkpoints.named` are kept for good. interval : iterations between rolling ones.
    measure : measures views; None = never.
    """

    out: Path
    iterations: int
    save: frozenset[int]
    test: frozenset[int]
    checkpoints: Checkpoints
    interval: int
    measure: Measure | None
    label: str


def run(trainer: Trainer, plan: Plan, log: Log, guard: Guard, stop: StopRequest) -> list[Path]:
    """Train up to `plan.iterations`.

    Returns
    -------
    The PLY files of the run, in the order of their iterations, and the exposures where there are some.

    Raises
    ------
    Interrupted : a signal came; the iteration was finished and a checkpoint written.
    SystemExit : code 3, too many NaN (guard.py).
    """
    progress = Progress(plan.label, plan.iterations, done=trainer.iteration)
    stop.deferred = True
    try:
        guard.keep(trainer, log.lines.size())
        while trainer.iteration < plan.iterations:
            try:
                iterate(trainer, plan, log, guard, progress)
                if stop.signum:
                    _settle(trainer, log)
            except NonFinite as error:
                guard.roll_back(trainer, error)
                log.cut(guard.good_log_bytes)
            if stop.signum:
                _interrupt(trainer, plan, log, guard, stop.signum)
    finally:
        stop.deferred = False
        progress.close()
    if trainer.engine.culled:
        warn(f"the last view left out {trainer.engine.culled} Gaussians with values that cannot be drawn")
    # A run that started from another folder's checkpoint has not the models that came before it.
    written = [*(ply_path(plan.out, i) for i in sorted(plan.save)), plan.out / EXPOSURES]
    return [path for path in written if path.is_file()]


def iterate(trainer: Trainer, plan: Plan, log: Log, guard: Guard, progress: Progress) -> None:
    """One iteration; as in the original code its PLY and its measurements are those before its update."""
    now = trainer.iteration + 1
    saves, measures = now in plan.save, now in plan.test and plan.measure
    if saves or measures:
        _settle(trainer, log)
    if saves:
        save_ply(plan.out, now, trainer.drawn)
        if trainer.state.exposures is not None:
            trainer.state.exposures.write(plan.out)
        say(f"[ITER {now}] Saving Gaussians")
    if measures and plan.measure:
        _measure(trainer, plan.measure, log, now)
    trainer.advance()
    checkpoints = now % plan.interval == 0 or now in plan.checkpoints.named
    if checkpoints or now % GOOD_STATE_INTERVAL == 0 or now == plan.iterations:
        _settle(trainer, log)
    else:
        _log_finished(trainer, log)
    if checkpoints:
        guard.keep(trainer, log.lines.size())
        _checkpoint(trainer, plan, log, guard)
    elif now % GOOD_STATE_INTERVAL == 0:
        guard.keep(trainer, log.lines.size())
    if progress.due(now):
        progress.update(now, **_shown(trainer))


def _settle(trainer: Trainer, log: Log) -> None:
    """Wait for the numbers of all iterations, and log them: what follows rests on them.

    Raises
    ------
    NonFinite : one of them is none.
    """
    trainer.settle()
    _log_finished(trainer, log)


def _log_finished(trainer: Trainer, log: Log) -> None:
    while trainer.finished:
        of = trainer.finished.popleft()
        if of.terms is not None:
            log.iteration(of.number, of.terms, of.seconds, **_facts(trainer, of, of.terms))


def _facts(trainer: Trainer, of: Iteration, terms: Terms) -> dict[str, object]:
    facts: dict[str, object] = {"view": of.view, "smoothed_loss": of.smoothed_loss}
    if terms.lr_l1 is not None:
        facts["lambda_tex"] = texture_weight(trainer.settings, of.number)
    return facts | {"gaussians": of.gaussians, "sh_degree": trainer.degree(of.number)}


def _shown(trainer: Trainer) -> dict[str, str]:
    count = trainer.state.gaussians.num
    device = trainer.state.gaussians.means.device
    memory_gb = (torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()) / 1e9
    splats = f"{count / 1000:.0f}k" if count >= 10_000 else str(count)
    return {"loss": f"{trainer.smoothed_loss:.4f}", "splats": splats, "GB": f"{memory_gb:.1f}"}


def _measure(trainer: Trainer, measure: Measure, log: Log, now: int) -> None:
    for result in measure(trainer.drawn, trainer.degree(now), trainer.state.exposures):
        say(f"[ITER {now}] Evaluating {result.group}: L1 {result.l1:.6f} PSNR {result.psnr:.4f}")
        shown = result.psnr if math.isfinite(result.psnr) else 100.0  # equal images; JSON has no infinity
        log.measured(now, result.group, result.l1, shown, trainer.state.gaussians.num)


def _checkpoint(trainer: Trainer, plan: Plan, log: Log, guard: Guard) -> Path:
    tensors, info = trainer.capture()
    return plan.checkpoints.write(tensors, info | {"log_bytes": log.lines.size(), "rollbacks": guard.rollbacks})


def _interrupt(trainer: Trainer, plan: Plan, log: Log, guard: Guard, signum: int) -> None:
    path = plan.checkpoints.path(trainer.iteration)
    if not path.exists():
        path = _checkpoint(trainer, plan, log, guard)
    note(f"stopped after iteration {trainer.iteration}; {path} keeps it, the same command continues")
    raise Interrupted(signum)
