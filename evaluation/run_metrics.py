"""What metrics.py does: measure folders of rendered views and pseudo-HR frames, write results and reports."""

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from arguments.evaluation import MetricsParams
from arguments.flags import settings
from arguments.loading import CommonParams
from arguments.steps import STEPS
from evaluation.extra_metrics import load_extra
from evaluation.formats import FORMATS, Table, aligned
from evaluation.frame_folders import FrameFolders, frame_folders
from evaluation.information import Kinds, write_maps
from evaluation.lpips import Lpips
from evaluation.report import write_report
from evaluation.results import SPLITS, Rendered, find_rendered, measure_all, read_metrics, write_results
from evaluation.tables import FRAMES, METRICS, cell_text, short_names
from utils.compute import choose_device, device_facts, set_threads, use_device
from utils.errors import UserError
from utils.log import say, warn
from utils.record import Run, step


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
    extra = load_extra(params, device)
    replacing = replace(common, overwrite=True)
    with ExitStack() as stack:
        runs: dict[Path, Run] = {}
        frames = {folder: None if params.no_frames else frame_folders(folder, params) for folder in folders}
        for folder in folders:
            inputs = _inputs(rendered[folder], frames[folder]) | ({"extra": extra.files} if extra else {})
            keys = settings(common, params)
            # Measuring again with other variants loses nothing that takes long, so no --overwrite is asked for.
            runs[folder] = stack.enter_context(step(folder, "metrics", keys, inputs, STEPS["metrics"].code, replacing))
        todo = [folder for folder in folders if not runs[folder].up_to_date]
        if todo:
            measure_all([r for folder in todo for r in rendered[folder]], lpips, device, extra)
        maps: dict[Path, Kinds] = {}
        for folder in todo:
            weights = (lpips.weights if lpips else {}) | (extra.weights if extra else {})
            of_frames, pictures = _of_frames(folder, rendered[folder], frames[folder], maps, device)
            runs[folder].outputs += pictures + write_results(folder, rendered[folder], of_frames, weights)
            runs[folder].notes |= device_facts(device) | {"weights": weights}
    say(FORMATS["tsv"](summary(folders)) if params.tsv else aligned(summary(folders)))
    # After the records are complete, so that a report shows its own step's time too.
    return [] if params.no_report else [write_report(folder, link=params.link) for folder in folders]


def _load_lpips(common: CommonParams, params: MetricsParams) -> Lpips:
    try:
        return Lpips(tuple(dict.fromkeys(params.lpips)), choose_device(common.device))
    except UserError as error:
        raise UserError(f"{error}; or leave LPIPS out with --no_lpips") from error


def _inputs(rendered: list[Rendered], frames: FrameFolders | None) -> dict[str, list[Path]]:
    views = [r.path(kind, file) for r in rendered for kind in ("renders", "gt") for file in r.files]
    return {"views": views, "frames": []} | (frames.inputs() if frames else {})


def _of_frames(
    folder: Path,
    rendered: list[Rendered],
    frames: FrameFolders | None,
    maps: dict[Path, Kinds],
    device: torch.device,
) -> tuple[dict[str, Any], list[Path]]:
    """Measure the frames: their keys of metrics.json, and the pictures written.

    maps : by the folder of their depths, so that folders of one model (white, black) share them.
    """
    if frames is None:
        return {"frames": None, "information": None}, []
    background = rendered[0].protocol().background
    if background not in ("white", "black"):
        warn(f"{folder}: no record says on which background it was rendered; frames are measured on black")
        background = "black"
    key = frames.geometry.resolve()
    if key not in maps:
        maps[key] = frames.maps(device)
    found = maps[key]
    measured = {"frames": frames.measure(background), "information": frames.information(found, background)}
    return measured, write_maps(folder, found)


def summary(folders: list[Path]) -> Table:
    """Put the means of all folders, methods and splits into one table (for the terminal; protocols may differ)."""
    rows, present = [], []
    for folder, name in zip(folders, short_names(folders), strict=True):
        content = read_metrics(folder)
        frames = content["frames"] or {}
        extra = {column: frames.get(key) for column, key in FRAMES.items()}
        for method, result in content["methods"].items():
            values = result["mean"] | {k: v for k, v in extra.items() if v is not None}
            rows.append((name, method, result["protocol"]["background"], values))
            present += values
    columns = [c for c in METRICS if c in present]
    header = ["folder", "views", "background", *columns]
    return Table(header, [[n, m, b, *(cell_text(c, v.get(c)) for c in columns)] for n, m, b, v in rows])
