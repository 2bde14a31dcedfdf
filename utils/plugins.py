"""What a flag names: one of a list of known names, or MODULE:NAME, anything importable on Python's path."""

import difflib
import importlib.util
from collections.abc import Iterable
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from utils.errors import UserError


def check_name(flag: str, value: str, known: Iterable[str]) -> None:
    """Raise UserError unless `value` is known or has the form MODULE:NAME; names the nearest."""
    known = list(known)
    module, colon, name = value.partition(":")
    if value in known or (module and colon and name):
        return
    near = difflib.get_close_matches(value, known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}, or MODULE:NAME"
    raise UserError(f"{flag} {value}: unknown; {hint}")


def imported(flag: str, value: str) -> Any:
    """What MODULE:NAME names.

    Raises
    ------
    UserError : not of this form, the module is not on Python's path, is no Python, has no such name, or that is no
        callable.
    """
    module, _, name = value.partition(":")
    if not name or not all(module.split(".")):
        raise UserError(f"{flag} {value}: MODULE:NAME is expected")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{flag} {value}: cannot be imported ({error}); is its folder in PYTHONPATH?") from error
    except SyntaxError as error:
        raise UserError(f"{flag} {value}: {error.filename}, line {error.lineno}: {error.msg}") from error
    if not callable(found):
        raise UserError(f"{flag} {value}: a callable is expected, not {type(found).__name__}")
    return found


def source_files(*values: str) -> list[Path]:
    """Files of the modules among `values` that are MODULE:NAME, so that a step is done again when one changes."""
    specs = [_spec(value.partition(":")[0]) for value in values if ":" in value]
    return [Path(spec.origin) for spec in specs if spec is not None and spec.origin and Path(spec.origin).is_file()]


def _spec(module: str) -> ModuleSpec | None:
    try:
        return importlib.util.find_spec(module)
    except (ImportError, ValueError):  # not there, or not a name: `imported` says so
        return None
