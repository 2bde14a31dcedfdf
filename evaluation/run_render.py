"""What render.py does: load model and scene, decide what is asked for, render it, keep the record."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch

from arguments.flags import settings
from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.render import RenderParams
from arguments.steps import STEPS
from evaluation.flight import write_flight
from evaluation.method_folders import keep_only, method_folder, remove_orphans
from evaluation.rendering import (
    Job,
    comparable_views,
    describe,
    geometry_paths,
    hr_frame_paths,
    load_job,
    render_geometry,
    render_hr_frames,
    render_split,
    to_8bit,
    view_camera,
)
from evaluation.sampling import render_sampling_weights, sampling_paths
from gaussian_renderer.backends import device_for
from scene import Scene, open_scene
from scene.trained_model import find_model
from utils.compute import device_facts, set_threads
from utils.errors import UserError
from utils.folders import refuse_inside
from utils.log import say
from utils.record import Run, read_record, step

CODE = STEPS["render"].code
FILES = {"geometry": geometry_paths, "hr_frames": hr_frame_paths, "sampling": sampling_paths}  # of steps of one kind


def render_model(common: CommonParams, model: ModelParams, pipeline: PipelineParams, render: RenderParams) -> Path:
    """Render what the settings ask for into --output_path, or the model's folder.

    Returns
    -------
    The folder written to.

    Raises
    ------
    UserError : no model, no scene, nothing to render, or the folder holds renders of other settings.
    """
    if not model.model_path:
        raise UserError("-m MODEL: which trained model is to be rendered?")
    if not model.source_path:
        raise UserError(f"{model.model_path}: no cfg_args says which scene it was trained on; give -s SCENE")
    set_threads(common.threads)
    out = Path(render.output_path or model.model_path)
    ply, _ = find_model(Path(model.model_path), render.iteration)
    scene = open_scene(model, common.compat)
    refuse_inside(out, scene.root, scene.hr_root)
    device = device_for(common.device, pipeline.rasterizer)
    job = load_job(scene, model, pipeline, render, device)
    if common.dry_run:
        views = f"{len(scene.train)} train and {len(scene.test)} test views"
        say(f"{ply}: {job.gaussians.num} splats, {views}; nothing was written")
        return out
    name, groups = _step(scene, ply, render)
    earlier = (read_record(out, name) or {}).get("notes", {}).get("methods", {})  # the step takes its record away
    removes = partial(_clear, name, job, out, render)
    with step(out, name, settings(common, model, pipeline, render), groups, CODE, common, clear=removes) as run:
        if not run.up_to_date:
            _work(name, job, out, render, run, earlier)
            run.notes |= device_facts(torch.device(device))
    return out


def _step(scene: Scene, ply: Path, render: RenderParams) -> tuple[str, dict[str, list[Path]]]:
    """Name the step and its inputs. Splits are inputs, so that asking for one more split is more work, no conflict."""
    if render.geometry:
        return "geometry", {"model": [ply]}
    if render.hr_frames:
        return "hr_frames", {"model": [ply]}
    if render.sampling_weights:
        return "sampling", {"model": [ply]}
    if render.flight:
        return "flight", {"model": [ply]}
    groups = {"model": [ply]}
    for split in _splits(scene, render):
        groups[split] = [scene.hr_path(name) or scene.images.path(name) for name in comparable_views(scene, split)]
    if len(groups) == 1:
        raise UserError(
            f"{scene.root}: no view to render; the scene has {len(scene.train)} train and {len(scene.test)} test views "
            "(test views need --eval)"
        )
    return "render", groups


def _splits(scene: Scene, render: RenderParams) -> list[str]:
    wanted = {"test": not render.skip_test and scene.test, "train": not render.skip_train and scene.train}
    return [split for split, yes in wanted.items() if yes]


def _clear(name: str, job: Job, out: Path, render: RenderParams) -> None:
    """Remove what `_work` would keep of an earlier attempt."""
    if name in FILES:
        for path in FILES[name](job.scene, out).values():
            path.unlink(missing_ok=True)
    elif name == "render":
        for split in _splits(job.scene, render):
            keep_only(method_folder(out, split, job.iteration))


def _work(name: str, job: Job, out: Path, render: RenderParams, run: Run, earlier: dict[str, Any]) -> None:
    run.notes |= {
        "model": os.path.relpath(job.model.model_path, out),
        "source_path": os.path.relpath(job.scene.root, out),
        "hr_root": os.path.relpath(job.scene.hr_root, out) if job.scene.hr_root else "",
    }
    if name == "geometry":
        run.outputs += render_geometry(job, out, keep=run.resume)
    elif name == "hr_frames":
        run.outputs += render_hr_frames(job, out, render.hr_frames, keep=run.resume)
    elif name == "sampling":
        scale, ratio = render.sampling_weights, render.sampling_ratio
        run.outputs += render_sampling_weights(job, out, scale, ratio, run.notes)
    elif name == "flight":
        camera = view_camera(job.scene, job.scene.train[0])
        cameras = [job.scene.cameras[view] for view in job.scene.train]
        size, length = (camera.width, camera.height), (render.flight_seconds, render.flight_fps)
        path = write_flight(lambda c: to_8bit(job.draw(c).color), cameras, out, *length, size)
        run.outputs += [path] if path.is_file() else sorted(path.iterdir())
    else:
        remove_orphans(out, Path(job.model.model_path))
        methods = {key: value for key, value in earlier.items() if (out / key / "renders").is_dir()}
        for split in _splits(job.scene, render):
            run.outputs += render_split(job, split, out, render, keep=run.resume)
            methods[f"{split}/{job.method}"] = describe(job, split, render)
        run.notes["methods"] = methods
