"""One training run from settings to files: what train.py calls."""

import os
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from arguments.cfg_args import write_cfg_args
from arguments.loading import PipelineParams
from arguments.training import TrainingParams
from gaussian_renderer.backends import device_for
from scene import Scene, open_scene
from scene.hull import hull_points
from scene.points import random_points
from scene.trained_model import ply_path
from training import guidance, held_out, loop
from training.checkpoint import Checkpoints, check_fingerprint, load
from training.dry_run import describe
from training.estimate import estimate, megabytes
from training.guard import Guard
from training.job import Job, Settings, frames_folder
from training.outputs import Log, clear_earlier, clear_later, remove_leftovers, tensorboard, write_static
from training.signals import StopRequest
from training.views import Background, TrainingViews, training_views, with_depths
from utils import record, rng
from utils.compute import device_facts, set_threads, use_fixed_order
from utils.errors import UserError
from utils.folders import refuse_inside
from utils.log import note, say, warn

ON_DEVICE = ("device", "instruction set")  # in a fingerprint
UNUSED = ("ip", "port", "debug_from", "detect_anomaly", "disable_viewer")
FREE = frozenset({"save_iterations"})  # says what is kept, changes no number
State = tuple[dict[str, Tensor], dict[str, Any]]
MeasureFactory = Callable[[Scene, TrainingViews, PipelineParams, Background], loop.Measure]


def train(settings: Settings, out: Path, stop: StopRequest, measure: MeasureFactory) -> Path | None:
    """Train as the settings say, into `out`.

    Returns
    -------
    The last PLY; None when nothing was to do (--dry_run, or --skip_done and up to date).

    Raises
    ------
    UserError : bad input; names it. Interrupted, SystemExit : see training.loop.run.
    """
    common, model, optimisation = settings.common, settings.model, settings.optimisation
    _notice_unused(settings.training)
    job = open_job(settings, out)
    scene, device = job.scene, job.device
    if common.dry_run:
        if settings.training.choose_lambda:
            say(f"first {held_out.plan(job)}")
        trainer = job.trainer()
        describe(trainer, estimate(job.views, trainer.state.gaussians, optimisation.max_gaussians), out)
        return None
    inputs, code = job.inputs(), settings.code
    replaceable = common.overwrite or record.read_record(out, "train") is not None
    with record.step(out, "train", settings.results, inputs, code, common, ready=lambda: job.guidance) as run:
        if run.up_to_date:
            return None
        if settings.training.choose_lambda:
            choice = held_out.choose_lambda(job)
            job, run.outputs, run.notes["lambda"] = choice.job, [choice.path], choice.facts
            rng.seed_all(common.seed)  # as if the search had not been
        else:
            (out / held_out.FILE_NAME).unlink(missing_ok=True)  # an earlier run's choice, no result of this one
        run.outputs += _run(job, stop, measure, replaceable)
        run.notes |= device_facts(torch.device(device))
        run.notes |= {"deterministic": settings.training.deterministic or device == "cpu"}
        run.notes["models"] = guidance.prior_commits(settings.guidance)
        run.notes |= {"rasterizer": settings.pipeline.rasterizer, "extent": scene.extent}
        if model.hr_root:  # render.py and metrics.py find the truth again; relative, so that the record can be shared
            run.notes["hr_root"] = os.path.relpath(model.hr_root, out)
    return ply_path(out, optimisation.iterations)


def open_job(settings: Settings, out: Path) -> Job:
    """Seed, set up the device, load and check what a run is made from.

    Raises
    ------
    UserError : bad input; names it.
    """
    common, model, optimisation, training = settings.common, settings.model, settings.optimisation, settings.training
    rng.seed_all(common.seed)
    set_threads(common.threads)
    device = device_for(common.device, settings.pipeline.rasterizer)
    if training.deterministic:
        fix_order(device, settings.pipeline.rasterizer)
    scene = open_scene(model, common.compat)
    refuse_inside(out, scene.root, scene.hr_root)
    if training.init_points == "hull":
        scene.points = hull_points(scene, seed=common.seed)
    elif scene.points is None:
        scene.points = random_points(seed=common.seed)
    frames = frames_folder(training.frames, out)
    confidence = Path(training.confidence) if training.confidence else None
    # both terms are there for a search, whatever lambda_tex says
    compared = replace(optimisation, lambda_tex=0.5) if training.choose_lambda else optimisation
    views = training_views(scene, frames, model, compared, training.scale, device, confidence)
    views = with_depths(views, training.depths, optimisation)
    guidance.check(settings.guidance, views.lr is not None, scene.degradation is not None)
    job = Job(settings, out, scene, views, frames if views.hr is not scene.images else None, device)
    if 0 < optimisation.max_gaussians < training.init_gaussians:
        raise UserError(f"--init_gaussians {training.init_gaussians}: more than --max_gaussians allows")
    if training.choose_lambda:
        held_out.check(job)
    return job


def _run(job: Job, stop: StopRequest, measure: MeasureFactory, replaceable: bool) -> Iterator[Path]:
    settings, out = job.settings, job.out
    remove_leftovers(out)
    training, optimisation = settings.training, settings.optimisation
    checkpoints = Checkpoints(out / "checkpoints", frozenset(training.checkpoint_iterations), job.fingerprint())
    trainer = job.trainer()
    size = estimate(job.views, trainer.state.gaussians, optimisation.max_gaussians)
    checkpoints.check_space(size.checkpoint_bytes)
    saved = frozenset(
        i for i in (*training.save_iterations, optimisation.iterations) if 0 < i <= optimisation.iterations
    )
    note(f"peak {size.of} about {megabytes(size.peak_bytes)} with {size.gaussians} Gaussians, --dry_run says more")
    begun = _begun(job, checkpoints, saved, replaceable)
    log_bytes, rollbacks = begun[1]["log_bytes"] if begun else 0, begun[1]["rollbacks"] if begun else 0
    if begun is None or _foreign(training.start_checkpoint, checkpoints):
        log_bytes = clear_earlier(out)
    if begun is not None:
        trainer.restore(*begun)
        if not training.start_checkpoint or training.start_checkpoint == "latest":
            clear_later(out, trainer.iteration)
        note(f"continuing after iteration {trainer.iteration}")
    yield write_cfg_args(out, settings.model)
    yield from write_static(out, job.scene, job.views)
    log = Log(out / "log.jsonl", log_bytes, training.log_interval, tensorboard(out) if training.tensorboard else None)
    tested = frozenset(training.test_iterations)
    plan = loop.Plan(
        out,
        optimisation.iterations,
        saved,
        tested,
        checkpoints,
        training.checkpoint_interval,
        measure(job.scene, job.views, settings.pipeline, job.background),
        f"train {job.scene.root.name}",
    )
    try:
        yield from loop.run(trainer, plan, log, Guard(out / "nan_report.json", rollbacks), stop)
    finally:
        log.close()


def _begun(job: Job, checkpoints: Checkpoints, saved: frozenset[int], replaceable: bool) -> State | None:
    """Where to continue from; None = start anew.

    Raises
    ------
    UserError : the named checkpoint cannot be used, or an unfinished run of other settings would be overwritten.
    """
    training, wanted = job.settings.training, job.settings.training.start_checkpoint
    if wanted and wanted != "latest":
        named = load(wanted)
        made, now = named[1]["fingerprint"], checkpoints.fingerprint
        check_fingerprint(made, now, _free(job, named[1]) | _moved(made, now), training.allow_mismatch)
        return named
    for begun in checkpoints.newest_first():
        info = begun[1]
        made, now = info["fingerprint"], checkpoints.fingerprint
        try:
            check_fingerprint(made, now, FREE | _length(job) | _moved(made, now), training.allow_mismatch)
        except UserError:
            if wanted or not replaceable:
                raise
            return None
        missing = [i for i in saved if i <= info["iteration"] and not ply_path(job.out, i).is_file()]
        past = info["iteration"] > job.settings.optimisation.iterations
        if (wanted or not missing) and not past and (training.allow_mismatch or not _ends_short(job, info)):
            return begun
    if wanted:
        raise UserError(
            f"--start_checkpoint latest: no checkpoint in {checkpoints.folder} that this run can go on from"
        )
    return None


def fix_order(device: str, rasterizer: str) -> None:
    """Carry out --deterministic; on the CPU nothing ever depends on an order.

    Raises
    ------
    UserError : the rasterizer has no fixed order on a GPU.
    """
    if device == "cpu":
        return
    if rasterizer != "native":
        raise UserError(
            f"--deterministic: on a GPU --rasterizer {rasterizer} has no fixed order; use native, or --device cpu"
        )
    use_fixed_order()


def _moved(saved: dict[str, Any], now: dict[str, Any]) -> frozenset[str]:
    """What may differ where a run goes on on another kind of device: numbers are the same there but for rounding."""
    if saved.get("device") == now.get("device"):
        return frozenset()
    warn(f"the checkpoint was made on {saved.get('device')}, the run goes on on {now.get('device')}: not bit for bit")
    return frozenset(ON_DEVICE)


def _length(job: Job) -> frozenset[str]:
    """A longer run has the same beginning, unless a weight or a rate follows the length."""
    optimisation = job.settings.optimisation
    follows = optimisation.lambda_tex_final >= 0 or optimisation.exposure_lr_init > 0 or job.settings.training.depths
    return frozenset(() if follows else {"iterations"})


def _free(job: Job, info: dict[str, Any]) -> frozenset[str]:
    return FREE if _ends_short(job, info) else FREE | _length(job)


def _ends_short(job: Job, info: dict[str, Any]) -> bool:
    """Whether a checkpoint is the end of a shorter run: the last iteration had no update, which a longer run makes."""
    made = info["fingerprint"].get("settings")
    end = made.get("iterations") if isinstance(made, dict) else None
    return isinstance(end, int) and info["iteration"] >= end and job.settings.optimisation.iterations != end


def _foreign(wanted: str, checkpoints: Checkpoints) -> bool:
    """Whether the checkpoint named by --start_checkpoint is another folder's: its log is not ours."""
    return wanted not in ("", "latest") and Path(wanted).resolve().parent != checkpoints.folder.resolve()


def _notice_unused(training: TrainingParams) -> None:
    defaults = {f.name: f.default for f in fields(training)}
    given = [f"--{name}" for name in UNUSED if getattr(training, name) != defaults[name]]
    if given:
        note(f"{', '.join(given)}: accepted for scripts written for 3DGS, no effect here")
