"""The JSON form of a training's settings: that of the multi-frame SR3 code with its // comments, and keys of our own.

DEFAULTS is that file with every key there is. A value must have its default's type; a key that is not listed is refused
with the nearest one; what this program has no use for is accepted and named in a notice, unless it would change the
result. Own keys: objective, prediction, stem, loss, seed, resshift, validation, and those marked "own".
"""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from priors.denoisers.tiny import PREDICTIONS, SCHEDULES, STEMS
from utils.atomic import parse_json
from utils.errors import UserError

OBJECTIVES = ("sr3", "resshift", "regression")
MAX_BYTES = 1 << 20
_DATA: dict[str, Any] = {
    "name": "",
    "mode": "HR",  # whether that program reads LR files; here the windows always are LR
    "dataroot": "",  # folder of prepare_frames; with "moving": skimage, or a folder of pictures
    "datatype": "img",  # own: "moving" = crops that move over pictures
    "l_resolution": 16,
    "r_resolution": 128,
    "batch_size": 16,
    "num_workers": 0,
    "use_shuffle": True,
    "data_len": -1,
    "stride": 1,  # own, between the frames of a window
    "hflip": True,  # own, training only
    "part": "",  # own, of pictures with "moving": train = left three quarters, val = the rest; "" = as the name says
}
_SCHEDULE: dict[str, Any] = {"schedule": "cosine", "n_timestep": 2000, "linear_start": 1e-6, "linear_end": 1e-2}
DEFAULTS: dict[str, Any] = {
    "name": "prior",
    "phase": "train",
    "multiframes": True,
    "gpu_ids": [0],
    "distributed": False,
    "objective": "sr3",
    "prediction": "",  # "" = eps for SR3 with the full stem, else x0
    "stem": "",  # "" = full where model.unet.in_channel is given, as in published files, else unshuffle
    "loss": "l1",
    "seed": 0,
    "path": {
        "log": "logs",
        "tb_logger": "tb_logger",
        "results": "results",
        "checkpoint": "checkpoint",
        "resume_state": "",
    },
    "datasets": {"train": _DATA, "val": _DATA | {"mode": "LRHR", "use_shuffle": False, "data_len": 100}},
    "model": {
        "which_model_G": "sr3",
        "finetune_norm": False,
        "unet": {
            "in_channel": 0,  # 0 = what the stem makes
            "out_channel": 3,
            "inner_channel": 64,
            "norm_groups": 32,
            "channel_multiplier": [1, 2, 4, 8, 8],
            "attn_res": [16],
            "res_blocks": 2,
            "dropout": 0.0,
        },
        "beta_schedule": {"train": _SCHEDULE, "val": _SCHEDULE},
        "resshift": {"steps": 15, "kappa": 2.0, "p": 0.3, "m": 0.04},
        "diffusion": {"image_size": 0, "channels": 3, "n_frames": 3, "conditional": True},
    },
    "train": {
        "n_iter": 100_000,
        "val_freq": 10_000,
        "save_checkpoint_freq": 10_000,
        "print_freq": 100,
        "keep_checkpoints": 2,  # own, 0 = all
        "optimizer": {"type": "adam", "lr": 1e-4, "schedule": "constant"},  # own: schedule, type adamw
        "ema": False,  # own; the published files list a scheduler that nothing uses
        "ema_scheduler": {"step_start_ema": 5000, "update_ema_every": 1, "ema_decay": 0.9999},
    },
    # own. steps: of sampling, 0 = every time of the process, -1 = 20 for SR3, else every one. count: samples looked at
    # while training. draws: of each view; their mean is scored, too. project: also with ProjectLR in each step.
    "validation": {"steps": -1, "eta": 1.0, "count": 3, "draws": 1, "project": False, "batch_size": 8},
    "wandb": {},
}
# Nothing here depends on them; a file that sets one to something else than that program's usual is told so.
_WITHOUT_USE = (
    *("phase", "gpu_ids", "distributed", "wandb", "path.log", "path.tb_logger"),
    *(f"datasets.{part}.{key}" for part in ("train", "val") for key in ("name", "mode", "num_workers")),
    *("datasets.val.batch_size", "datasets.val.use_shuffle", "datasets.val.hflip"),
)
_ONLY: dict[str, tuple[Any, str]] = {
    "multiframes": (True, "a single frame is n_frames = 1"),
    "model.which_model_G": ("sr3", "no other network is built"),
    "model.finetune_norm": (False, "all weights are trained"),
    "model.diffusion.conditional": (True, "a prior of super-resolution sees the LR view"),
    "model.diffusion.channels": (3, "images are RGB"),
    "model.unet.out_channel": (3, "images are RGB"),
}
_CHOICES: dict[str, tuple[str, ...]] = {
    "objective": OBJECTIVES,
    "prediction": ("", *PREDICTIONS),
    "stem": ("", *STEMS),
    "loss": ("l1", "l2"),
    "model.beta_schedule.train.schedule": SCHEDULES,
    "model.beta_schedule.val.schedule": SCHEDULES,
    "train.optimizer.type": ("adam", "adamw"),
    "train.optimizer.schedule": ("constant", "cosine"),
    "datasets.train.datatype": ("img", "moving"),
    "datasets.val.datatype": ("img", "moving"),
    "datasets.train.part": ("", "train", "val"),
    "datasets.val.part": ("", "train", "val"),
}
_AT_LEAST: dict[str, float] = {
    **dict.fromkeys(("train.n_iter", "train.val_freq", "train.save_checkpoint_freq", "train.print_freq"), 1),
    **dict.fromkeys((f"datasets.{part}.{key}" for part in ("train", "val") for key in ("batch_size", "stride")), 1),
    **dict.fromkeys(
        (f"datasets.{part}.{key}" for part in ("train", "val") for key in ("l_resolution", "r_resolution")), 1
    ),
    **dict.fromkeys(("train.ema_scheduler.update_ema_every", "validation.count", "validation.draws"), 1),
    **dict.fromkeys((f"model.beta_schedule.{part}.n_timestep" for part in ("train", "val")), 1),
    **dict.fromkeys(("validation.batch_size", "model.unet.inner_channel", "model.unet.norm_groups"), 1),
    "validation.steps": -1,
    **dict.fromkeys(("validation.eta", "train.keep_checkpoints", "seed"), 0),
    "train.optimizer.lr": 0,
}


def read_form(path: str | Path) -> dict[str, Any]:
    """The object in a JSON file with comments, not yet checked.

    Raises
    ------
    UserError : not readable, too large, or not a JSON object.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise UserError(f"{path}: larger than {MAX_BYTES >> 20} MiB; no configuration is")
        text = path.read_bytes().decode()
    except FileNotFoundError:
        raise UserError(f"{path}: no such configuration file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error
    values = parse_json(without_comments(text), str(path))
    if not isinstance(values, dict):
        raise UserError(f"{path}: a JSON object is expected")
    return values


def without_comments(text: str) -> str:
    """JSON without // comments; two slashes inside a string stay, and so do the numbers of lines."""
    kept: list[str] = []
    in_string = escaped = comment = False
    for char, after in zip(text, text[1:] + "\n", strict=False):
        comment = (comment or (not in_string and char == after == "/")) and char != "\n"
        if comment:
            continue
        if in_string:
            in_string, escaped = escaped or char != '"', char == "\\" and not escaped
        elif char == '"':
            in_string = True
        kept.append(char)
    return "".join(kept)


def complete(given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], dict[str, Any], list[str]]:
    """DEFAULTS with `given` over them, checked key by key.

    Returns
    -------
    The values in the form of DEFAULTS, the same by dotted name, and the names that have no effect.

    Raises
    ------
    UserError : an unknown key, or a value of a wrong type or out of its range.
    """
    unused: list[str] = []
    values = _merged(DEFAULTS, given, where, "", unused)
    flat = dict(_flat(values))
    for key, choices in _CHOICES.items():
        if flat[key] not in choices:
            known = ", ".join(choice for choice in choices if choice)
            raise UserError(f"{where}: {key} = {flat[key]!r}; one of {known} is expected")
    for key, (only, why) in _ONLY.items():
        if flat[key] != only:
            raise UserError(f"{where}: {key} = {json.dumps(flat[key])}; only {json.dumps(only)} works here: {why}")
    for key, least in _AT_LEAST.items():
        if not flat[key] >= least:
            raise UserError(f"{where}: {key} = {flat[key]}; {least} or more is expected")
    if not 0 <= flat["train.ema_scheduler.ema_decay"] < 1 or flat["validation.eta"] > 1:
        raise UserError(f"{where}: ema_decay in [0, 1) and validation.eta in [0, 1] are expected")
    return values, flat, unused


def _merged(
    default: dict[str, Any], given: Mapping[str, Any], where: str, path: str, unused: list[str]
) -> dict[str, Any]:
    """`default` with `given` over it, all keys known, all values of their default's type."""
    result = {key: dict(value) if isinstance(value, dict) else value for key, value in default.items()}
    for key, value in given.items():
        name = f"{path}{key}"
        if name in _WITHOUT_USE:
            if value not in (None, default.get(key)) and key not in ("name", "mode", "phase", "use_shuffle"):
                unused.append(name)
            continue
        if key not in default:
            near = difflib.get_close_matches(key, default, n=1)
            raise UserError(f"{where}: unknown key {name!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        if isinstance(default[key], dict):
            if not isinstance(value, dict):
                raise UserError(f"{where}: {name} = {value!r}; an object is expected")
            result[key] = _merged(default[key], value, where, f"{name}.", unused)
        else:
            result[key] = _value(default[key], value, f"{where}: {name}")
    return result


def _value(default: Any, value: Any, where: str) -> Any:
    if value is None and isinstance(default, str):
        return default  # "resume_state": null
    fits = type(value) is type(default) or (isinstance(default, float) and type(value) is int)
    if isinstance(value, list):
        fits = fits and len(value) <= 16 and all(type(v) is int and 0 < v < 2**16 for v in value)
    if not fits or (isinstance(value, int | float) and not -(2**31) < value < 2**31):
        word = {bool: "true or false", int: "a whole number", float: "a number", str: "a text", list: "a list"}
        raise UserError(f"{where} = {value!r}; {word[type(default)]} is expected")
    return value


def _flat(values: Mapping[str, Any], path: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{path}{key}"
        pairs += _flat(value, f"{name}.") if isinstance(value, dict) and value else [(name, value)]
    return pairs
