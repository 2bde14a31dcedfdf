"""run.json: one record a step, written last. It says what a result was made from and decides what may be skipped.

Same key (utils.keys) and intact outputs = up to date. A step cut short leaves `.NAME.started.json` with its key: only
an attempt with the same key may keep partial outputs, one with another key removes them and leaves its own mark."""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.keys import difference, make_key, same_key
from utils.locks import locked
from utils.log import note
from utils.outputs import damaged_outputs, output_facts, remove_outputs
from utils.provenance import process_facts

RECORD_NAME = "run.json"
SCHEMA = 1


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
    """A step under way. The script adds `outputs` (paths under OUT) and `notes` (any JSON) before it ends.

    up_to_date : nothing to do. resume : partial outputs may be kept. edited : only check and record the outputs again.
    """

    up_to_date: bool = False
    resume: bool = False
    edited: bool = False
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
    *,
    clear: Callable[[], None] = lambda: None,
    ready: Callable[[], object] = lambda: None,
    editable: bool = False,
) -> Iterator[Run]:
    """Lock OUT, decide whether step `name` must run, and record it when the body ends without an exception.

    Parameters
    ----------
    settings : every setting that changes the result, JSON values.
    inputs : files read, by group; their contents are hashed, not their names' folders.
    code : packages that make the result; those of utils.keys.GROUND are always added.
    clear : removes what an attempt could keep; called before one that may keep nothing.
    ready : loads what may refuse to; called where the step must run, before anything earlier is touched.
    editable : outputs that were changed by hand since are used, not made again.

    Raises
    ------
    UserError : OUT holds this step's results with other settings and no --overwrite; OUT is in use or not writable.
    """
    out = Path(out)
    with locked(out):
        key = make_key(settings, inputs, code, common.seed)
        old = read_record(out, name)
        reason = difference(old, key) if old else "its results are not there"
        damaged = [] if old is None or reason else damaged_outputs(out, old["outputs"])
        run = Run(edited=editable and bool(damaged) and all((out / path).is_file() for path in damaged))
        begin = time.time()
        if run.edited:  # the record stays until the script has found the files fit for use
            note(f"{name}: {damaged[0]} was edited by hand and is used; remove it to {name} anew")
            yield run
            _end(out, name, key, run, begin)
            return
        reason = f"{damaged[0]} is missing or changed" if damaged else reason
        run.up_to_date = reason is None and common.skip_done
        if run.up_to_date:
            note(f"{name}: up to date")
            yield run
            return
        if old and old["settings"] != key["settings"] and not common.overwrite:
            raise UserError(f"{out} holds step {name} made with other settings ({reason}); --overwrite replaces it")
        ready()
        run.resume = same_key(old or _mark(out, name), key)
        note(f"{name}: {'continues' if run.resume and not old else 'runs'} because {reason or 'it was asked for'}")
        if run.resume:
            remove_outputs(out, damaged)
        if old and reason:
            _write_record(out, name, None)  # from here on its files may be a mixture
        if not run.resume:
            _started(out, name).unlink(missing_ok=True)
            clear()
        write_json(_started(out, name), key)
        yield run
        _end(out, name, key, run, begin)


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
    content["steps"] |= {} if record is None else {name: record}
    write_json(out / RECORD_NAME, content)


def _started(out: Path, name: str) -> Path:
    return out / f".{name}.started.json"


def _mark(out: Path, name: str) -> dict[str, Any]:
    """The key of the attempt that was cut short, {} where there is none."""
    path = _started(out, name)
    return read_json(path) if path.exists() else {}


def _end(out: Path, name: str, key: dict[str, Any], run: Run, begin: float) -> None:
    facts = process_facts(begin) | {"notes": run.notes, "outputs": output_facts(out, map(Path, run.outputs))}
    _write_record(out, name, key | facts)
    _started(out, name).unlink(missing_ok=True)
