"""Files that are there fully or not at all, and JSON read as strictly as it is written.

Every artefact is written to a temporary name in its own folder, flushed to disk, and renamed. A reader, or a
process killed at any moment, sees the old file or the new one and nothing between.
"""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from utils.errors import UserError

MAX_JSON_BYTES = 256 << 20
MAX_JSON_DEPTH = 64


@contextmanager
def writing(path: str | Path, expected_bytes: int = 0) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it becomes `path`, on any exception it is removed.

    Parameters
    ----------
    path : file to create or replace; its folder is made if needed. An existing symlink is refused, never followed.
    expected_bytes : size of what will be written, for an early and exact message on a full disk; 0 = unknown.

    Raises
    ------
    UserError : the file cannot be written (full disk, no permission, symlink); names the path and the free bytes.
    """
    path = Path(path)
    if path.is_symlink():
        raise UserError(f"{path}: is a symbolic link; results are never written through one, remove it")
    tmp = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield tmp
        _flush(tmp, os.O_RDWR)
        os.replace(tmp, path)
        _flush(path.parent, os.O_RDONLY)
    except OSError as error:
        raise _cannot_write(path, expected_bytes, error) from error
    finally:
        tmp.unlink(missing_ok=True)


def _flush(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _cannot_write(path: Path, expected_bytes: int, error: OSError) -> UserError:
    folder = next((p for p in [path.parent, *path.parent.parents] if p.is_dir()), Path("/"))
    needed = f"{expected_bytes} bytes needed, " if expected_bytes else ""
    reason = os.strerror(error.errno) if error.errno else str(error)
    advice = "free some space" if error.errno in (errno.ENOSPC, errno.EFBIG, errno.EDQUOT) else "check the folder"
    return UserError(f"cannot write {path}: {reason} ({needed}{shutil.disk_usage(folder).free} bytes free); {advice}")


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write `data` atomically. Raises UserError as `writing` does."""
    with writing(path, len(data)) as tmp, open(tmp, "xb") as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write UTF-8 text atomically. Raises UserError as `writing` does."""
    write_bytes(path, text.encode())


def write_json(path: str | Path, value: Any, indent: int | None = 2) -> None:
    """Write strict JSON (no NaN, no Infinity) atomically. Raises UserError as `writing` does."""
    write_text(path, json.dumps(value, indent=indent, allow_nan=False) + "\n")


def read_json(path: str | Path, max_bytes: int = MAX_JSON_BYTES, *, constants: bool = False) -> Any:
    """Read JSON strictly.

    Parameters
    ----------
    path, max_bytes : file and its largest size.
    constants : let NaN and Infinity through as floats, for readers that say in which record they stand.

    Raises
    ------
    UserError : missing, too large, not UTF-8, not JSON, NaN or Infinity, a key twice, nested deeper than 64.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise UserError(f"{path}: {size} bytes, more than the {max_bytes} that such a file may have")
        return parse_json(path.read_bytes().decode(), str(path), constants=constants)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as UTF-8 text ({error})") from error


def parse_json(text: str, where: str, *, constants: bool = False) -> Any:
    """Parse JSON as `read_json` does; `where` names the source in messages."""
    depth = 0
    in_string = escaped = False
    for char in text:  # json.loads recurses, so the nesting is bounded first
        if in_string:
            in_string, escaped = escaped or char != '"', char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char in "[{":
            depth += 1
            if depth > MAX_JSON_DEPTH:
                raise UserError(f"{where}: JSON nested deeper than {MAX_JSON_DEPTH} levels")
        elif char in "]}":
            depth -= 1
    try:
        return json.loads(text, parse_constant=float if constants else _refuse_constant, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: not valid JSON ({error})") from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        twice = sorted({k for k, _ in pairs if sum(k == other for other, _ in pairs) > 1})
        raise ValueError(f"key {twice[0]!r} occurs twice")
    return result
