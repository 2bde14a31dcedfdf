"""State dicts of networks: read from a verified file without running anything in it, and loaded strictly.

A state dict maps key paths ("trunk.main.0.weight") to tensors. Containers differ between publishers and are unwrapped.
"""

import io
import pickle
import warnings
import zipfile
from collections import defaultdict
from typing import Any

import safetensors
import safetensors.torch
import torch

from utils.errors import UserError
from utils.weights import ResolvedWeights

_CONTAINERS = ("params_ema", "params", "state_dict")
_PREFIXES = ("module.", "generator.")
_DROPPED = ("step_counter", "generator_ema.")
# What torch and safetensors raise on bytes that are not theirs, found by mutating real files.
_BROKEN: tuple[type[Exception], ...] = (
    *(pickle.UnpicklingError, zipfile.BadZipFile, safetensors.SafetensorError, UnicodeDecodeError, EOFError, OSError),
    *(RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, OverflowError),
    *(MemoryError, NotImplementedError),
)


def read_state_dict(weights: ResolvedWeights) -> dict[str, torch.Tensor]:
    """Read a .pth or .safetensors file into plain CPU tensors.

    Returns
    -------
    state : key -> dense contiguous CPU tensor, floating point (finite) or integer; publishers' prefixes are stripped.

    Raises
    ------
    UserError : not a file of tensors, or a tensor that is sparse, quantised, a view larger than its storage, not
        finite; or tensors larger than the file.
    """
    data, where = weights.read(), str(weights.path)
    try:
        if weights.path.suffix == ".safetensors":
            content: Any = safetensors.torch.load(data)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of unknown pickle protocols: what comes out is checked below
                content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except _BROKEN as error:
        first = str(error).strip().partition("\n")[0][:200]
        raise UserError(f"{where}: refused, not a plain file of tensors ({first})") from error
    state = _strip(_unwrap(content, where))
    for name, value in state.items():
        _check_tensor(value, name, where)
    if sum(v.numel() * v.element_size() for v in state.values()) > len(data):
        raise UserError(f"{where}: refused, its tensors are larger than the file")
    return state


def _unwrap(content: Any, where: str) -> dict[str, Any]:
    for key in _CONTAINERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not content or not all(isinstance(k, str) for k in content):
        raise UserError(f"{where}: refused, holds no state dict")
    return content


def _strip(state: dict[str, Any]) -> dict[str, Any]:
    """Remove a prefix only where every key has it, so that a network's own module of that name stays whole."""
    state = {k: v for k, v in state.items() if not k.startswith(_DROPPED)}
    for prefix in _PREFIXES:
        if state and all(k.startswith(prefix) for k in state):
            state = {k.removeprefix(prefix): v for k, v in state.items()}
    return state


def _check_tensor(value: Any, name: str, where: str) -> None:
    if not isinstance(value, torch.Tensor) or value.layout != torch.strided or value.is_quantized:
        raise UserError(f"{where}: refused, {name} is not a dense tensor")
    stored = value.untyped_storage().nbytes()
    if value.device.type != "cpu" or not value.is_contiguous() or stored != value.numel() * value.element_size():
        raise UserError(f"{where}: refused, {name} {tuple(value.shape)} does not fill its {stored} stored bytes")
    if value.is_complex() or (value.is_floating_point() and not bool(torch.isfinite(value).all())):
        raise UserError(f"{where}: refused, {name} holds values that are not finite")


def load_strictly(module: torch.nn.Module, state: dict[str, torch.Tensor], where: str) -> None:
    """Put `state` into `module` (on any device, also "meta"); key set and shapes must be equal.

    Raises
    ------
    UserError : lists missing, unexpected and mis-shaped keys by their first part.
    """
    wanted = module.state_dict()
    shapes = {k for k in wanted.keys() & state.keys() if wanted[k].shape != state[k].shape}
    problems = {
        "missing": wanted.keys() - state.keys(),
        "unexpected": state.keys() - wanted.keys(),
        "of another shape": shapes,
    }
    if any(problems.values()):
        report = "; ".join(f"{what}: {_groups(keys)}" for what, keys in problems.items() if keys)
        raise UserError(f"{where}: is not a {type(module).__name__} ({report})")
    floats = {k: v.to(wanted[k].dtype) for k, v in state.items()}
    module.load_state_dict(floats, strict=True, assign=True)


def _groups(keys: set[str]) -> str:
    groups: dict[str, list[str]] = defaultdict(list)
    for key in sorted(keys):
        groups[key.partition(".")[0]].append(key)
    return ", ".join(f"{name} {len(members)} (e.g. {members[0]})" for name, members in sorted(groups.items()))
