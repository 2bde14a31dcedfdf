"""Settings that a command leaves out and a trained model remembers: its cfg_args and the record of its training."""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from arguments.cfg_args import read_cfg_args
from arguments.flags import as_flags
from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.steps import parse
from utils.record import read_record

RUN_STEPS = ("order", "lr_model", "geometry", "upsample", "train", "render", "metrics")
KEPT = ("data_device", "model_path")  # of the machine and the command, not of the model


def saved_settings(folder: Path) -> dict[str, Any]:
    """Return what a model folder says about loading and drawing, by flag name; {} for a folder without either file."""
    known = {f.name for cls in (ModelParams, PipelineParams) for f in fields(cls)} | {"compat"}
    record = read_record(folder, "train") or {}
    values: dict[str, Any] = dict(record.get("settings", {}))
    hr_root = record.get("notes", {}).get("hr_root")  # relative to the model, as records hold no absolute paths
    if hr_root:
        values["hr_root"] = os.path.normpath(folder / hr_root)
    if (folder / "cfg_args").is_file():
        values |= read_cfg_args(folder)
    return {k: v for k, v in values.items() if k in known and k not in KEPT and v not in ("", None)}


def step_records(folder: Path) -> dict[str, dict[str, Any]]:
    """Read the records of the finished steps that led to a folder of rendered views, in the pipeline's order."""
    render = read_record(folder, "render") or {}
    model = folder / str(render.get("notes", {}).get("model", "."))
    found = {name: read_record(folder, name) or read_record(model, name) for name in RUN_STEPS}
    found["lr_model"] = read_record(model / "lr_model", "train")  # a training in a folder of its own
    return {name: record for name, record in found.items() if record is not None}


def parse_with_saved(step: str, argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse a step's flags; those left out come from the model's folder (-m) before they fall to their defaults.

    A value that a --config file changes counts as given; the command line wins over everything.

    Raises
    ------
    UserError : unknown flag, wrong value, or a model folder whose files are refused.
    """
    given = parse(step, argv)
    model = next(group for group in given if isinstance(group, ModelParams))
    if not model.model_path:
        return given
    saved = saved_settings(Path(model.model_path))
    for group in given:
        if isinstance(group, CommonParams | ModelParams | PipelineParams):
            changed = {f.name for f in fields(group) if getattr(group, f.name) != f.default}
            saved = {name: value for name, value in saved.items() if name not in changed}
    return parse(step, [*as_flags(saved), *argv])
