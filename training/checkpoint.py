"""checkpoints/iteration_N.safetensors: everything an exact resume needs, written whole or not at all.

Rolling checkpoints: the last two are kept, an older one is removed only after the new one was written and read back.
A `fingerprint` says what the run is made from (settings, seed, hashes of views and frames, ISA, device); continuing
from a checkpoint of another fingerprint would not give the same bits, so it is refused unless asked for. Only from one
kind of device to another a run goes on as it is, with a notice: the tensors are those of main memory.
"""

import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scene.gaussians import FIELDS
from training.exposure import PREFIX as EXPOSURE
from training.state import FILTER, STATISTICS
from utils.errors import UserError
from utils.log import warn
from utils.state import load_state, save_state

KIND = "seqsplat training checkpoint"
SCHEMA = 1
ROLLING_KEPT = 2
NAME = re.compile(r"iteration_(\d+)\.safetensors")
GENERATORS = ("rng.torch", "generator.views", "generator.split", "generator.background", "generator.noise")
TAILS = {"means": (3,), "log_scales": (3,), "quats": (4,), "logit_opacities": (1,), "sh0": (1, 3)}  # [N, ...]
SH_REST = tuple((degree + 1) ** 2 - 1 for degree in range(4))


def _count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**53


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_count, value))


def _python_state(value: Any) -> bool:
    """What random.getstate() gives, as JSON."""
    return isinstance(value, list) and len(value) == 3 and value[0] == 3 and _counts(value[1]) and len(value[1]) == 625


INFO_CHECKS: dict[str, Callable[[Any], bool]] = {
    "iteration": _count,
    "adam_steps": lambda v: isinstance(v, dict) and set(v) == set(FIELDS) and _counts(list(v.values())),
    "views_left": _counts,
    "smoothed_loss": lambda v: isinstance(v, int | float),
    "skipped": _counts,
    "rollbacks": _count,
    "log_bytes": _count,
    "python": _python_state,
    "fingerprint": lambda v: isinstance(v, dict),
}


@dataclass(frozen=True)
class Checkpoints:
    """The folder of one run's checkpoints.

    Attributes
    ----------
    folder : OUT/checkpoints. named : iterations that are kept for good. fingerprint : JSON values.
    """

    folder: Path
    named: frozenset[int]
    fingerprint: dict[str, Any]

    def path(self, iteration: int) -> Path:
        """File of one iteration."""
        return self.folder / f"iteration_{iteration}.safetensors"

    def write(self, tensors: dict[str, Tensor], info: dict[str, Any]) -> Path:
        """Write a checkpoint, read it back, then remove rolling ones beyond the last two.

        Raises
        ------
        UserError : it cannot be written; the older ones are then still there.
        """
        path = self.path(info["iteration"])
        save_state(path, tensors, {"kind": KIND, "schema": SCHEMA, "fingerprint": self.fingerprint} | info)
        load_state(path)  # checks size, header and the tensors' checksum
        rolling = [p for n, p in self.found() if n not in self.named]
        for old in rolling[:-ROLLING_KEPT]:
            if old != path:
                old.unlink(missing_ok=True)
        return path

    def found(self) -> list[tuple[int, Path]]:
        """(iteration, path) of every checkpoint in the folder, ascending."""
        matches = ((NAME.fullmatch(p.name), p) for p in self.folder.glob("iteration_*"))
        return sorted((int(match[1]), path) for match, path in matches if match)

    def newest_first(self) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]]]:
        """Every checkpoint that can be read, the newest first; nothing where there is none at all.

        Raises
        ------
        UserError : checkpoints are there and not one can be read.
        """
        failure: UserError | None = None
        readable = 0
        for _, path in reversed(self.found()):
            try:
                state = load(path)
            except UserError as error:
                warn(f"{error}; trying the one before")
                failure = error
                continue
            readable += 1
            yield state
        if failure and not readable:
            raise failure

    def check_space(self, size_bytes: int) -> None:
        """Refuse to start what cannot keep two checkpoints of `size_bytes` each.

        Raises
        ------
        UserError : fewer than 2.05 times the bytes are free.
        """
        parent = next(p for p in [self.folder, *self.folder.parents] if p.is_dir())
        needed, free = int(2.05 * size_bytes), shutil.disk_usage(parent).free
        if free < needed:
            raise UserError(f"{self.folder}: two checkpoints need {needed} bytes, {free} are free; free some space")


def load(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint and check that it is one.

    Raises
    ------
    UserError : not a checkpoint of ours, torn, or its tensors do not fit together; names the file.
    """
    if Path(path).suffix in (".pth", ".pt", ".ckpt", ".pkl"):
        raise UserError(f"{path}: pickled checkpoints are not read; start from that run's PLY with --init_ply")
    tensors, info = load_state(path)
    if not isinstance(info, dict) or info.get("kind") != KIND or info.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a training checkpoint of schema {SCHEMA}")
    for name, fits in INFO_CHECKS.items():
        if not fits(info.get(name)):
            raise UserError(f"{path}: {name} is missing or malformed; use another checkpoint")
    _check_tensors(path, tensors)
    return tensors, info


def _check_tensors(path: str | Path, tensors: dict[str, Tensor]) -> None:
    expected = [f"{kind}.{name}" for kind in ("param", "exp_avg", "exp_avg_sq") for name in FIELDS]
    missing = {*expected, *(f"stat.{name}" for name in STATISTICS), *GENERATORS} - tensors.keys()
    if missing:
        raise UserError(f"{path}: tensor {min(missing)} is missing; use another checkpoint")
    rows = tensors["param.means"].shape[:1]
    rest = tensors["param.shN"].shape[1:]
    if rest not in {(count, 3) for count in SH_REST}:
        raise UserError(f"{path}: param.shN has room for no degree of spherical harmonics; use another checkpoint")
    for kind in ("param", "exp_avg", "exp_avg_sq"):
        for name in FIELDS:
            value = tensors[f"{kind}.{name}"]
            if value.shape != (*rows, *TAILS.get(name, rest)) or value.dtype != torch.float32:
                raise UserError(f"{path}: {kind}.{name} has the wrong shape or type; use another checkpoint")
            if not torch.isfinite(value.sum()):
                raise UserError(f"{path}: {kind}.{name} holds NaN or Inf; use another checkpoint")
    for name in STATISTICS:
        value = tensors[f"stat.{name}"]
        if value.shape != rows or value.dtype != torch.float32:
            raise UserError(f"{path}: stat.{name} has the wrong shape or type; use another checkpoint")
    if FILTER in tensors and (tensors[FILTER].shape != rows or tensors[FILTER].dtype != torch.float32):
        raise UserError(f"{path}: {FILTER} has the wrong shape or type; use another checkpoint")
    if any(name.startswith(EXPOSURE) for name in tensors):
        _check_exposures(path, tensors)
    for name in GENERATORS:
        if tensors[name].shape != torch.Generator().get_state().shape or tensors[name].dtype != torch.uint8:
            raise UserError(f"{path}: {name} is not the state of a generator; use another checkpoint")


def _check_exposures(path: str | Path, tensors: dict[str, Tensor]) -> None:
    three = [tensors.get(f"{EXPOSURE}{name}") for name in ("values", "exp_avg", "exp_avg_sq")]
    steps = tensors.get(f"{EXPOSURE}steps")
    whole = all(t is not None and t.dtype == torch.float32 and t.shape[1:] == (3, 4) for t in three)
    whole = whole and len({len(t) for t in three if t is not None}) == 1
    if not whole or steps is None or steps.shape != (1,) or not 0 <= float(steps) < 2**24:
        raise UserError(
            f"{path}: {EXPOSURE}values and its moments have the wrong shape or type; use another checkpoint"
        )
    if not all(t is not None and torch.isfinite(t.sum()) for t in three):
        raise UserError(f"{path}: {EXPOSURE}values or its moments hold NaN or Inf; use another checkpoint")


def check_fingerprint(saved: dict[str, Any], now: dict[str, Any], free: Iterable[str], allow: bool) -> None:
    """Refuse to continue a run that was made from other things.

    Parameters
    ----------
    saved, now : fingerprints, nested by one level. free : keys that may differ. allow : --allow_mismatch, warn only.

    Raises
    ------
    UserError : names the first thing that differs.
    """
    before, after = _flat(saved), _flat(now)
    different = [k for k in sorted({*before, *after}) if before.get(k) != after.get(k) and k not in set(free)]
    if not different:
        return
    name = different[0]
    text = f"the checkpoint was made with {name} = {before.get(name)!r}, now it is {after.get(name)!r}"
    if not allow:
        raise UserError(f"{text}; use the same, --overwrite to start anew, or --allow_mismatch to continue anyway")
    warn(f"{text}; continuing because of --allow_mismatch, the result is not that of an unbroken run")


def _flat(fingerprint: dict[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in fingerprint.items():
        flat |= value if isinstance(value, dict) else {key: value}
    return flat
