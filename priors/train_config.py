"""Settings of a training: what the JSON form of `train_form` means, and which values go together."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from priors.denoisers.tiny import ProcessSpec, TinyConfig
from priors.train_form import complete, read_form
from utils.errors import UserError

SR3_STEPS = 20  # of a respaced walk


@dataclass(frozen=True)
class DataConfig:
    """One part of the data; fields as the keys of DEFAULTS."""

    kind: str
    root: str
    lr_px: int
    hr_px: int
    batch: int
    shuffle: bool
    limit: int
    stride: int
    hflip: bool
    part: str


@dataclass(frozen=True)
class Validation:
    """How samples are drawn and scored; see DEFAULTS."""

    steps: int
    eta: float
    count: int
    draws: int
    project: bool
    batch_size: int


@dataclass(frozen=True)
class Ema:
    """A running mean of the weights; used where `on`."""

    on: bool
    start: int
    every: int
    decay: float


@dataclass(frozen=True)
class TrainConfig:
    """Everything that a training is made of; see DEFAULTS for what each means."""

    name: str
    objective: str
    loss: str
    seed: int
    network: TinyConfig
    process: ProcessSpec
    val_process: ProcessSpec
    train: DataConfig
    val: DataConfig
    iterations: int
    val_every: int
    save_every: int
    log_every: int
    keep: int
    optimizer: str
    learning_rate: float
    lr_schedule: str
    ema: Ema
    validation: Validation
    results: str
    checkpoints: str
    resume: str
    notes: tuple[str, ...] = ()


def read_config(path: str | Path) -> TrainConfig:
    """Read and check a configuration.

    Raises
    ------
    UserError : not readable, not JSON, an unknown key, a wrong value, or values that do not go together; names the key.
    """
    return make_config(read_form(path), str(path))


def make_config(given: Mapping[str, Any], where: str) -> TrainConfig:
    """The settings that `given`, in the form of DEFAULTS, says. Raises UserError as `read_config`."""
    values, flat, unused = complete(given, where)
    try:
        return _config(values, flat, unused)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error


def _config(values: dict[str, Any], flat: dict[str, Any], unused: list[str]) -> TrainConfig:
    spec, val_spec = (_process(values, flat["objective"], part) for part in ("train", "val"))
    optimizer, ema = values["train"]["optimizer"], values["train"]["ema_scheduler"]
    notes = [f"without effect here: {', '.join(unused)}"] if unused else []
    return TrainConfig(
        name=values["name"],
        objective=values["objective"],
        loss=values["loss"],
        seed=values["seed"],
        network=_network(values),
        process=spec,
        val_process=val_spec,
        train=_data(values, "train"),
        val=_data(values, "val"),
        iterations=flat["train.n_iter"],
        val_every=flat["train.val_freq"],
        save_every=flat["train.save_checkpoint_freq"],
        log_every=flat["train.print_freq"],
        keep=flat["train.keep_checkpoints"],
        optimizer=optimizer["type"],
        learning_rate=float(optimizer["lr"]),
        lr_schedule=optimizer["schedule"],
        ema=Ema(values["train"]["ema"], ema["step_start_ema"], ema["update_ema_every"], float(ema["ema_decay"])),
        validation=_validation(values, val_spec),
        results=_folder(flat, "path.results"),
        checkpoints=_folder(flat, "path.checkpoint"),
        resume=flat["path.resume_state"],
        notes=tuple(notes),
    )


def _validation(values: dict[str, Any], process: ProcessSpec) -> Validation:
    found = Validation(**values["validation"])
    own = min(SR3_STEPS, process.steps) if values["objective"] == "sr3" else 0
    return found if found.steps >= 0 else replace(found, steps=own)


def _process(values: dict[str, Any], objective: str, part: str) -> ProcessSpec:
    if objective == "regression":
        return ProcessSpec("none")
    if objective == "resshift":
        shift = values["model"]["resshift"]
        return ProcessSpec(
            "resshift", shift["steps"], kappa=float(shift["kappa"]), power=float(shift["p"]), least=float(shift["m"])
        )
    beta = values["model"]["beta_schedule"][part]
    return ProcessSpec(
        "vp", beta["n_timestep"], beta["schedule"], float(beta["linear_start"]), float(beta["linear_end"])
    )


def _network(values: dict[str, Any]) -> TinyConfig:
    unet, data, objective = values["model"]["unet"], values["datasets"], values["objective"]
    stem = values["stem"] or ("full" if unet["in_channel"] else "unshuffle")
    high, low = data["train"]["r_resolution"], data["train"]["l_resolution"]
    if [data["val"][key] for key in ("l_resolution", "r_resolution")] != [low, high]:
        raise UserError("datasets.train and datasets.val have other resolutions; one network makes one step")
    size = values["model"]["diffusion"]["image_size"]
    if size not in (0, high):
        raise UserError(f"model.diffusion.image_size = {size}, but r_resolution = {high}; give the same")
    if high % low or high <= low:
        raise UserError(f"l_resolution = {low}, r_resolution = {high}; a multiple is expected")
    prediction = values["prediction"] or ("eps" if (objective, stem) == ("sr3", "full") else "x0")
    if objective == "resshift" and prediction != "x0":
        raise UserError(f'prediction = {prediction!r}: objective "resshift" predicts "x0"')
    multiplier = unet["channel_multiplier"]
    inside = high if stem == "full" else low
    config = TinyConfig(
        frames=values["model"]["diffusion"]["n_frames"],
        scale=high // low,
        stem=stem,
        prediction=prediction,
        noisy=objective != "regression",
        widths=tuple(unet["inner_channel"] * m for m in multiplier),
        blocks=unet["res_blocks"],
        attention=tuple(inside // 2**i in unet["attn_res"] for i in range(len(multiplier))),
        groups=unet["norm_groups"],
        dropout=float(unet["dropout"]),
    )
    if unet["in_channel"] not in (0, config.in_channels):
        raise UserError(
            f"model.unet.in_channel = {unet['in_channel']}: objective {objective!r} with stem {stem!r} and "
            f"{config.frames} frames has {config.in_channels} (or leave it out)"
        )
    return config


def _data(values: dict[str, Any], part: str) -> DataConfig:
    data = values["datasets"][part]
    if not data["dataroot"]:
        raise UserError(f"datasets.{part}.dataroot is missing; scripts/prepare_frames.py makes such a folder")
    if data["data_len"] < -1 or data["data_len"] == 0:
        raise UserError(f"datasets.{part}.data_len = {data['data_len']}; -1 (all) or a number of samples is expected")
    if data["part"] and data["datatype"] != "moving":
        raise UserError(f'datasets.{part}.part = {data["part"]!r}: only "datatype": "moving" parts its pictures')
    return DataConfig(
        kind=data["datatype"],
        root=data["dataroot"],
        lr_px=data["l_resolution"],
        hr_px=data["r_resolution"],
        batch=data["batch_size"],
        shuffle=data["use_shuffle"],
        limit=data["data_len"],
        stride=data["stride"],
        hflip=data["hflip"] and part == "train",
        part=data["part"] or part,
    )


def _folder(flat: dict[str, Any], key: str) -> str:
    """A plain name, so that nothing is written outside the run's folder."""
    name = flat[key]
    if not name or name != Path(name).name or name.startswith("."):
        raise UserError(f"{key} = {name!r}; the name of a folder in --out is expected")
    return name


def fingerprint(config: TrainConfig) -> dict[str, Any]:
    """What decides the weights after a number of iterations, as JSON values: a run goes on only with the same."""
    left_out = {"name", "val", "val_process", "iterations", "val_every", "save_every", "log_every", "keep"}
    left_out |= {"validation", "results", "checkpoints", "resume", "notes"}
    names = [f.name for f in fields(config) if f.name not in left_out]
    values = {name: getattr(config, name) for name in names}
    if config.lr_schedule == "cosine":  # its end decides its beginning
        values["iterations"] = config.iterations
    return json.loads(json.dumps(values, default=vars))
