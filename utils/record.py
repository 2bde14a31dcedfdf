"""run.json: one record a step, written last. It says what a result was made from and decides what may be skipped.

A step's key: settings, seed, hashes of inputs and code. Same key and intact outputs = up to date. A step cut short
leaves `.NAME.started.json` with its key: only an attempt with the same key may keep partial outputs."""

import json
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.locks import locked
from utils.log import note
from utils.provenance import hash_code, hash_files, process_facts, sha256

RECORD_NAME = "run.json"
SCHEMA = 1
GROUND = ("scene", "arguments", "utils")  # below every step


@runtime_checkable
class Common(Protocol):
    """What a step needs of the flags that all scripts share (arguments.loading.CommonParams)."""

    @property
    def seed(self) -> int: ...
    @property
    def skip_done(self) -> bool: ...
    @property
    def overwrite(self) -> bool: ...


@dataclass
class Run:
    """A step under way. The script adds `outputs` (paths under OUT) and `notes` (any JSON) before it ends."""

    up_to_date: bool = False
    resume: bool = False
    outputs: list[Path] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)


@contextmanager
def step(
    out: str | Path,
    name: str,
    settings: Mapping[str, Any],
    inputs: Mapping[str, Iterable[str | Path]],
    code: Sequence[str],
    common: Common,
) -> Iterator[Run]:
    """Lock OUT, decide whether step `name` must run, and record it when the body ends without an exception.

    Parameters
    ----------
    settings : every setting that changes the result, JSON values.
    inputs : files read, by group; their contents are hashed, not their names' folders.
    code : packages that make the result; those of GROUND are always added.

    Raises
    ------
    UserError : OUT holds this step's results with other settings and no --overwrite; OUT is in use or not writable.
    """
    out = Path(out)
    with locked(out):
        key = _key(settings, inputs, code, common.seed)
        started = out / f".{name}.started.json"
        old = read_record(out, name)
        reason = _why(old, key, out)
        run = Run(up_to_date=reason is None and common.skip_done)
        if run.up_to_date:
            note(f"{name}: up to date")
            yield run
            return
        if old and old["settings"] != key["settings"] and not common.overwrite:
            raise UserError(f"{out} holds step {name} made with other settings ({reason}); --overwrite replaces it")
        before = (read_json(started) if started.exists() else old) or {}
        run.resume = all(before.get(name) == value for name, value in key.items())
        note(f"{name}: {'continues' if run.resume and not old else 'runs'} because {reason or 'it was asked for'}")
        write_json(started, key)
        if old and reason:
            _write_record(out, name, None)  # from here on its files may be a mixture
        begin = time.time()
        yield run
        _write_record(out, name, key | _facts(out, run, begin))
        started.unlink(missing_ok=True)


def read_record(out: str | Path, name: str) -> dict[str, Any] | None:
    """The finished record of step `name` in OUT/run.json, or None."""
    return _read(Path(out))["steps"].get(name)


def _read(out: Path) -> dict[str, Any]:
    path = out / RECORD_NAME
    if not path.exists():
        return {"schema": SCHEMA, "steps": {}}
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or not isinstance(content.get("steps"), dict):
        raise UserError(f"{path}: not a run record of schema {SCHEMA}; use another output folder")
    return content


def _write_record(out: Path, name: str, record: dict[str, Any] | None) -> None:
    content = _read(out)
    content["steps"].pop(name, None)
    if record is not None:
        content["steps"][name] = record
    write_json(out / RECORD_NAME, content)


def _key(settings: Mapping, inputs: Mapping, code: Sequence[str], seed: int) -> dict[str, Any]:
    key = {
        "settings": settings,
        "seed": seed,
        "inputs": {group: hash_files(paths) for group, paths in inputs.items()},
        "code": hash_code({*code, *GROUND}),
    }
    return json.loads(json.dumps(key))  # tuples become lists, as they do in the file it is compared with


def _why(old: dict[str, Any] | None, key: dict[str, Any], out: Path) -> str | None:
    """Why the step must run; None when its results are there and were made from the same things."""
    if old is None:
        return "its results are not there"
    before, now = old["settings"] | {"seed": old["seed"]}, key["settings"] | {"seed": key["seed"]}
    for name in sorted({*before, *now}):
        if before.get(name) != now.get(name):
            return f"setting {name} was {before.get(name)!r} and is {now.get(name)!r}"
    changed = [group for group in key["inputs"] if old["inputs"].get(group) != key["inputs"][group]]
    if changed:
        return f"its input {changed[0]} changed"
    if old["code"] != key["code"]:
        return "the code changed"
    for path, facts in old["outputs"].items():
        if not (out / path).is_file() or sha256(out / path) != facts["sha256"]:
            return f"{path} is missing or changed"
    return None


def _facts(out: Path, run: Run, begin: float) -> dict[str, Any]:
    files = sorted({Path(p) for p in run.outputs})
    return process_facts(begin) | {
        "notes": run.notes,
        "outputs": {str(p.relative_to(out)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in files},
    }
