"""Tensors and a JSON object in one safetensors file: checkpoints and converted weights without pickle.

Letters: `tensors` maps names to dense CPU tensors, `info` is any JSON value; it travels as one string in the
file's metadata, together with a checksum of the tensors' bytes, which is checked on reading.
"""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file

from utils.atomic import parse_json, writing
from utils.errors import UserError


def save_state(path: str | Path, tensors: dict[str, torch.Tensor], info: Any) -> None:
    """Write `tensors` and `info` atomically.

    Raises
    ------
    UserError : the file cannot be written (utils.atomic.writing).
    """
    dense = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    metadata = {"info": json.dumps(info, allow_nan=False), "digest": _digest(dense)}
    size = sum(value.numel() * value.element_size() for value in dense.values())
    with writing(path, size) as tmp:
        try:
            save_file(dense, tmp, metadata)
        except safetensors.SafetensorError as error:  # it wraps the system's own error
            raise OSError(*_errno(str(error))) from error


def load_state(path: str | Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Read what `save_state` wrote.

    Returns
    -------
    tensors, info

    Raises
    ------
    UserError : missing, truncated, changed after it was written, or not one of ours.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from error
    if "info" not in metadata or metadata.get("digest") != _digest(tensors):
        raise UserError(f"{path}: not written by this project, or changed since; use another checkpoint")
    return tensors, parse_json(metadata["info"], str(path))


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _errno(text: str) -> tuple[int, str]:
    """(errno, message) out of safetensors' words "I/O error: ... (os error 28)"."""
    number = text.rpartition("os error ")[2].rstrip(")} ")
    code = int(number) if number.isdigit() else 5
    return code, os.strerror(code)
