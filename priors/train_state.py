"""Where a training stands: weights, moments, running mean, and the files that hold them.

All randomness of step k is a function of the seed and k alone, so weights, moments and k are everything there is to
keep: a run that was stopped goes on with the same bits. Files are named as in the SR3 code, I{iteration}_E{epoch}.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from priors.denoisers.tiny import TinyNet
from priors.train_config import TrainConfig, fingerprint
from utils.errors import UserError, one_line
from utils.log import warn
from utils.state import load_state, save_state

KIND = "seqsplat prior training"
SCHEMA = 1
NAME = re.compile(r"I(\d+)_E(\d+)\.safetensors")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(eq=False)
class State:
    """A training in memory.

    Parameters
    ----------
    done : finished iterations. mean : running mean of the weights by name, empty before it begins.
    log_bytes : length of log.jsonl when that was written.
    """

    net: TinyNet
    optimizer: torch.optim.Optimizer
    mean: dict[str, Tensor] = field(default_factory=dict)
    done: int = 0
    log_bytes: int = 0

    def update_mean(self, start: int, every: int, decay: float) -> None:
        """After iteration `done`: begin at `start`, then move towards the weights each `every` iterations."""
        if self.done < start or self.done % every:
            return
        now = self.net.state_dict()
        if not self.mean:
            self.mean = {name: value.detach().clone() for name, value in now.items()}
        for name, value in now.items():
            self.mean[name].lerp_(value.detach(), 1 - decay)


def new_state(config: TrainConfig, device: torch.device) -> State:
    """The beginning of a training."""
    net = TinyNet(config.network, config.seed).to(device)
    kind = torch.optim.AdamW if config.optimizer == "adamw" else torch.optim.Adam
    return State(net, kind(net.parameters(), lr=config.learning_rate))


def facts(config: TrainConfig, data: Mapping[str, object]) -> dict[str, Any]:
    """What a run is made from; see `check_same`."""
    return fingerprint(config) | {"data": dict(data)}


def write(folder: Path, state: State, made_of: dict[str, Any], epoch: int, keep: int) -> Path:
    """Write I{iteration}_E{epoch}.safetensors, read it back, then drop files beyond the last `keep` (0 = none).

    Raises
    ------
    UserError : it cannot be written; the older ones are then still there.
    """
    tensors = {f"param.{name}": value for name, value in state.net.state_dict().items()}
    tensors |= {f"mean.{name}": value for name, value in state.mean.items()}
    names = [name for name, _ in state.net.named_parameters()]
    for index, moments in state.optimizer.state_dict()["state"].items():
        tensors |= {f"{moment}.{names[index]}": moments[moment] for moment in MOMENTS}
    path = folder / f"I{state.done}_E{epoch}.safetensors"
    info = {"kind": KIND, "schema": SCHEMA, "iteration": state.done, "log_bytes": state.log_bytes, "made_of": made_of}
    save_state(path, tensors, info)
    load_state(path)
    for old in found(folder)[: -keep or None] if keep else []:
        if old != path:
            old.unlink(missing_ok=True)
    return path


def found(folder: Path) -> list[Path]:
    """Checkpoints of a folder, the oldest first."""
    matches = ((NAME.fullmatch(p.name), p) for p in folder.glob("I*_E*.safetensors"))
    return [path for _, path in sorted((int(match[1]), path) for match, path in matches if match)]


def newest(folder: Path, device: torch.device) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
    """The newest checkpoint that can be read, or None where there is none at all.

    Raises
    ------
    UserError : there are some and none can be read.
    """
    failure: UserError | None = None
    for path in reversed(found(folder)):
        try:
            return path, *load(path, device)
        except UserError as error:
            warn(f"{error}; trying the one before")
            failure = error
    if failure:
        raise failure
    return None


def named(text: str) -> Path:
    """The file that path.resume_state or --resume means: `.../I200_E3` or with its suffix.

    Raises
    ------
    UserError : no such file, or a pickle.
    """
    path = Path(text)
    if path.suffix in (".pth", ".pt", ".ckpt", ".pkl") or path.with_name(f"{path.name}_gen.pth").is_file():
        raise UserError(f"{path}: pickled checkpoints are not read; name one that this program wrote")
    with_suffix = path if path.suffix == ".safetensors" else path.with_name(f"{path.name}.safetensors")
    if not with_suffix.is_file():
        raise UserError(f"{with_suffix}: no such checkpoint to resume from")
    return with_suffix


def load(path: Path, device: torch.device) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, info) of a checkpoint. Raises UserError where it is none of ours, or damaged."""
    tensors, info = load_state(path)
    good = isinstance(info, dict) and info.get("kind") == KIND and info.get("schema") == SCHEMA
    if not good or not all(type(info.get(key)) is int and info[key] >= 0 for key in ("iteration", "log_bytes")):
        raise UserError(f"{path}: not a checkpoint of priors.train_sr of schema {SCHEMA}")
    return {name: value.to(device) for name, value in tensors.items()}, info


def check_same(path: Path, info: Mapping[str, Any], made_of: Mapping[str, Any]) -> None:
    """Refuse to go on with what was made from other settings or data. Raises UserError naming the first difference."""
    before = _flat(info["made_of"]) if isinstance(info.get("made_of"), dict) else {}
    now = _flat(made_of)
    for name in [*now, *before]:
        if before.get(name) != now.get(name):
            raise UserError(
                f"{path} was made with {name} = {before.get(name)!r}, now it is {now.get(name)!r}; use the same "
                "configuration or another --out"
            )


def restore(state: State, tensors: Mapping[str, Tensor], info: Mapping[str, Any], where: Path) -> None:
    """Continue from a checkpoint. Raises UserError where its tensors are not those of the network."""
    weights, mean = _part(tensors, "param."), _part(tensors, "mean.")
    names = [name for name, _ in state.net.named_parameters()]
    try:
        state.net.load_state_dict(weights)
        moments = {
            index: _moments(tensors, name, weights[name]) for index, name in enumerate(names) if info["iteration"]
        }
        groups = state.optimizer.state_dict()["param_groups"]
        state.optimizer.load_state_dict({"state": moments, "param_groups": groups})
    except (RuntimeError, KeyError, ValueError) as error:
        raise UserError(f"{where}: its tensors are not those of the network ({one_line(error)[:200]})") from error
    state.mean, state.done, state.log_bytes = mean, info["iteration"], info["log_bytes"]


def _moments(tensors: Mapping[str, Tensor], name: str, weight: Tensor) -> dict[str, Tensor]:
    """Adam's state of one weight; it counts steps on the CPU."""
    values = {moment: tensors[f"{moment}.{name}"] for moment in MOMENTS}
    if any(values[moment].shape != weight.shape for moment in MOMENTS[1:]):
        raise ValueError(f"moments of {name} have another shape")
    return values | {"step": values["step"].cpu()}


def averaged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights to use: their running mean where there is one."""
    return _part(tensors, "mean.") or _part(tensors, "param.")


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _flat(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{path}{key}.") if isinstance(value, dict) else {f"{path}{key}": value}
    return flat
