"""What metrics.py does: measure folders of rendered views and pseudo-HR frames, write results and reports."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from arguments.evaluation import MetricsParams
from arguments.flags import settings
from arguments.loading import CommonParams
from arguments.steps import STEPS
from evaluation.confidence import confidence_paths, measure_confidence
from evaluation.formats import FORMATS, Table, aligned
from evaluation.frames import frame_paths, measure_frames
from evaluation.lpips import Lpips
from evaluation.order_quality import measure_order
from evaluation.report import write_report
from evaluation.results import SPLITS, Rendered, find_rendered, measure_all, read_metrics, write_results
from evaluation.saved import saved_settings
from evaluation.tables import METRICS, cell_text, short_names
from scene import Scene, load_scene
from scene.sequences import FILE_NAME
from utils.compute import choose_device, device_facts, set_threads, use_device
from utils.errors import UserError
from utils.log import say, warn
from utils.record import Run, read_record, step


def measure_models(common: CommonParams, params: MetricsParams) -> list[Path]:
    """Measure every folder of -m and write its results; print one table of all.

    Returns
    -------
    The reports written (none with --no_report).

    Raises
    ------
    UserError : nothing rendered, files that do not match, or LPIPS weights that are missing (says how to get them).
    """
    if not params.model_paths:
        raise UserError("-m DIR...: which folders of rendered views are to be measured?")
    set_threads(common.threads)
    folders = [Path(path) for path in params.model_paths]
    splits = SPLITS if params.train else SPLITS[:1]
    rendered = {folder: find_rendered(folder, splits) for folder in folders}
    if common.dry_run:
        for r in (r for group in rendered.values() for r in group):
            say(f"{r.folder}/{r.split}/{r.method}: {len(r.files)} views; nothing was written")
        return []
    device = choose_device(common.device)
    use_device(device)
    lpips = None if params.no_lpips else _load_lpips(common, params)
    replacing = replace(common, overwrite=True)
    with ExitStack() as stack:
        runs: dict[Path, Run] = {}
        scenes = {folder: None if params.no_frames else frames_scene(folder, params) for folder in folders}
        for folder in folders:
            inputs = _inputs(folder, rendered[folder], scenes[folder])
            keys = settings(common, params)
            # Measuring again with other variants loses nothing that takes long, so no --overwrite is asked for.
            runs[folder] = stack.enter_context(step(folder, "metrics", keys, inputs, STEPS["metrics"].code, replacing))
        todo = [folder for folder in folders if not runs[folder].up_to_date]
        if todo:
            measure_all([r for folder in todo for r in rendered[folder]], lpips, device)
        for folder in todo:
            frames = _frames(folder, rendered[folder], scenes[folder], params.jump_deg)
            weights = lpips.weights if lpips else {}
            runs[folder].outputs += write_results(folder, rendered[folder], frames, weights)
            runs[folder].notes |= device_facts(device) | {"weights": weights}
    say(FORMATS["tsv"](summary(folders)) if params.tsv else aligned(summary(folders)))
    # After the records are complete, so that a report shows its own step's time too.
    return [] if params.no_report else [write_report(folder, link=params.link) for folder in folders]


def _load_lpips(common: CommonParams, params: MetricsParams) -> Lpips:
    try:
        return Lpips(tuple(dict.fromkeys(params.lpips)), choose_device(common.device))
    except UserError as error:
        raise UserError(f"{error}; or leave LPIPS out with --no_lpips") from error


def frames_scene(folder: Path, params: MetricsParams) -> tuple[Scene, Path] | None:
    """Find the pseudo-HR frames of a folder and the scene that holds their truth, None where there are none.

    Raises
    ------
    UserError : --frames was given, and the frames or the scene are not there.
    """
    notes = (read_record(folder, "render") or {}).get("notes", {})
    model = folder / str(notes.get("model", "."))
    frames = Path(params.frames) if params.frames else model / "hr"
    saved = saved_settings(model)
    if not frames.is_dir() or "source_path" not in saved:
        if params.frames:
            reason = "no such folder" if not frames.is_dir() else f"{model}/cfg_args does not say which scene"
            raise UserError(f"--frames {frames}: {reason}")
        return None
    recorded = str(notes.get("hr_root", ""))
    hr_root = params.hr_root or (str(folder / recorded) if recorded else saved.get("hr_root"))
    keys = ("images", "eval", "resolution", "allow_missing", "compat")
    options: dict[str, Any] = {key: saved[key] for key in keys if key in saved}
    return load_scene(saved["source_path"], hr_root=hr_root or None, **({"eval": False} | options)), frames


def _inputs(folder: Path, rendered: list[Rendered], scene: tuple[Scene, Path] | None) -> dict[str, list[Path]]:
    views = [r.path(kind, file) for r in rendered for kind in ("renders", "gt") for file in r.files]
    groups = {"views": views, "frames": list(frame_paths(*scene).values()) if scene else []}
    maps = list(confidence_paths(*scene).values()) if scene else []
    schedule = [scene[1].parent / FILE_NAME] if scene else []
    order = [path for path in schedule if path.is_file()]
    return groups | ({"confidence": maps} if maps else {}) | ({"order": order} if order else {})


def _frames(
    folder: Path, rendered: list[Rendered], scene: tuple[Scene, Path] | None, jump_deg: float
) -> dict[str, Any] | None:
    if scene is None:
        return None
    background = rendered[0].protocol().background
    if background not in ("white", "black"):
        warn(f"{folder}: no record says on which background it was rendered; frames are measured on black")
        background = "black"
    measured = measure_frames(*scene, background)
    if measured is None:
        return None
    order = measure_order(scene[1], measured["per_view"], jump_deg)
    return measured | {"order": order, "confidence": measure_confidence(*scene, background)}


def summary(folders: list[Path]) -> Table:
    """Put the means of all folders, methods and splits into one table (for the terminal; protocols may differ)."""
    rows, present = [], []
    for folder, name in zip(folders, short_names(folders), strict=True):
        content = read_metrics(folder)
        frames = content["frames"] or {}
        extra = {"frame_PSNR": frames.get("PSNR"), "bicubic_PSNR": frames.get("bicubic_PSNR")}
        for method, result in content["methods"].items():
            values = result["mean"] | {k: v for k, v in extra.items() if v is not None}
            rows.append((name, method, result["protocol"]["background"], values))
            present += values
    columns = [c for c in METRICS if c in present]
    header = ["folder", "views", "background", *columns]
    return Table(header, [[n, m, b, *(cell_text(c, v.get(c)) for c in columns)] for n, m, b, v in rows])
