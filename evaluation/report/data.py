"""What a report shows, read from the artefacts on disk; nothing is computed anew but small pictures of the LR views."""

import json
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8

from arguments.steps import LR_MODEL, STEPS
from evaluation.frames import bicubic_upsampled
from evaluation.logs import read_log
from evaluation.metrics import as_tensor
from evaluation.results import read_metrics
from evaluation.saved import saved_settings, step_records
from scene import Scene, load_scene
from scene.lr_kernel import BORDERS, KERNELS, LRKernel
from scene.sequences import FILE_NAME, Sequences, read_sequences
from utils.atomic import read_json
from utils.errors import UserError
from utils.log import warn
from utils.record import read_record


@dataclass
class RunData:
    """One folder of rendered views with the run that led to it.

    Parameters
    ----------
    folder : with metrics.json. model : the model's folder, often the same.
    metrics : content of metrics.json. records : of the finished steps, by name, in the pipeline's order.
    log : objects of log.jsonl. sequences, scene : where they are there and readable.
    frames : what upsampling left about its frames, by view, see `frame_facts`.
    """

    folder: Path
    model: Path
    metrics: dict[str, Any]
    records: dict[str, dict[str, Any]] = field(default_factory=dict)
    log: list[dict[str, Any]] = field(default_factory=list)
    sequences: Sequences | None = None
    scene: Scene | None = None
    frames: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def notes(self) -> dict[str, Any]:
        """What render.py noted."""
        return self.records.get("render", {}).get("notes", {})

    def changed_settings(self) -> dict[str, dict[str, Any]]:
        """Return the settings that differ from their defaults, by step."""
        found = {}
        for step, record in self.records.items():
            defaults = default_settings(step)
            given = record["settings"].items()
            found[step] = {k: v for k, v in given if k in defaults and v != defaults[k]}
        return {step: values for step, values in found.items() if values}


def default_settings(step: str) -> dict[str, Any]:
    """Return the defaults of a step's settings, tuples as lists, as run.json holds them."""
    groups = STEPS[step].groups if step in STEPS else STEPS["render"].groups
    values = {f.name: f.default for cls in groups for f in fields(cls)} | (LR_MODEL if step == "lr_model" else {})
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def load_run(folder: Path) -> RunData:
    """Read everything of a folder that metrics.py measured; what is optional and broken is left out with a warning.

    Raises
    ------
    UserError : no metrics.json.
    """
    notes = (read_record(folder, "render") or {}).get("notes", {})
    model = folder / str(notes.get("model", "."))
    data = RunData(folder, model, read_metrics(folder), step_records(folder))
    data.log = read_log(model / "log.jsonl")
    if (model / FILE_NAME).is_file():
        data.sequences = _optional(lambda: read_sequences(model / FILE_NAME))
    data.frames = frame_facts(model / "hr")
    if (model / "cfg_args").is_file():
        data.scene = _optional(lambda: _scene(folder, model, notes))
    return data


def frame_facts(hr: Path) -> dict[str, dict[str, Any]]:
    """Join consistency.json and alignment.json of a folder of frames.

    Returns
    -------
    {view: {"consistency": dB or None, "rms_levels", "max_levels": of 255, "flow_px", "disagreement", "neighbours":
    [...]}}, each where it is known.
    """
    facts: dict[str, dict[str, Any]] = {}
    for file, groups in (("consistency.json", ("frames", "errors")), ("alignment.json", ("views",))):
        content = _optional(lambda path=hr / file: read_json(path)) if (hr / file).is_file() else None
        for group in groups:
            views = content.get(group) if isinstance(content, dict) else None
            for name, value in views.items() if isinstance(views, dict) else ():
                found = {"consistency": value} if group == "frames" else value
                facts.setdefault(name, {}).update(found if isinstance(found, dict) else {})
    return facts


def _optional(read: Any) -> Any:
    try:
        return read()
    except UserError as error:
        warn(f"left out of the report: {error}")
        return None


def _scene(folder: Path, model: Path, notes: dict[str, Any]) -> Scene:
    saved = saved_settings(model)
    options = {k: saved[k] for k in ("images", "resolution", "allow_missing", "compat") if k in saved}
    hr_root = folder / notes["hr_root"] if notes.get("hr_root") else None
    return load_scene(saved["source_path"], eval=bool(saved.get("eval", False)), hr_root=hr_root, **options)


def curves(log: list[dict[str, Any]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Sort the log of training into charts: {chart: {curve: [(iteration, value)]}}; any number becomes a curve."""
    charts: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for line in log:
        if line.get("step", "train") != "train" or not isinstance(line.get("iteration"), int):
            continue
        group = line.get("views")
        for key, value in line.items():
            if key == "iteration" or isinstance(value, bool) or not isinstance(value, int | float):
                continue
            chart, curve = (f"{key} of views", str(group)) if group else _chart_of(key)
            charts.setdefault(chart, {}).setdefault(curve, []).append((float(line["iteration"]), float(value)))
    return charts


def _chart_of(key: str) -> tuple[str, str]:
    if "loss" in key or "l1" in key or "ssim" in key:
        return "objective", key
    return key, key


def lr_and_bicubic(
    truth: UInt8[np.ndarray, "H W 3"], protocol: dict[str, Any]
) -> tuple[UInt8[np.ndarray, "h w 3"], UInt8[np.ndarray, "H W 3"]] | None:
    """Make the LR picture of a view from its composed truth, and its bicubic enlargement, for display.

    None where the protocol says that no LR views were involved (scale 1), or nothing.
    """
    scale = float(protocol.get("scale", 0))
    if scale <= 1:
        return None
    height, width = truth.shape[:2]
    words = str(protocol.get("lr_kernel", "")).split(", ")
    kernel = words[0] if words[0] in KERNELS else KERNELS[0]
    border = words[1] if len(words) > 1 and words[1] in BORDERS else BORDERS[0]
    small = LRKernel(kernel, border, (width, height), (max(1, round(width / scale)), max(1, round(height / scale))))
    lr = (small.down(as_tensor(truth)).clamp(0, 1) * 255).round().byte().permute(1, 2, 0).numpy()
    return lr, bicubic_upsampled(lr, width, height)


def settings_text(value: Any) -> str:
    """Write a setting as a person would on the command line."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "none"
    if isinstance(value, bool):
        return "on" if value else "off"
    return (
        str(value) if isinstance(value, str | int | float) and value != "" else json.dumps(value) if value else "none"
    )
