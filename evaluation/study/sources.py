"""What tasks read from outside the study's folder, known by its content: the scenes, and what else commands name."""

import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from evaluation.study.plan import Task, digest
from utils.provenance import PROJECT, sha256


def sources_of(task: Task, out: Path) -> dict[str, Path]:
    """{flag, or name of the command: path} of all that the words of a task's commands name by an absolute path.

    Parameters
    ----------
    out : folder of all tasks: what lies there, or around it, is no source.
    """
    found: dict[str, list[Path]] = {}
    for command in task.commands:
        for before, word in zip(("", *command.words), command.words, strict=False):
            flag, given, value = word.partition("=") if word.startswith("-") else (before, "", word)
            label = flag if given or before.startswith("-") else command.name
            path = Path(value)
            if path.is_absolute() and _exists(path) and not _around(path, out):
                places = found.setdefault(label, [])
                if path not in places:
                    places.append(path)
    return {f"{k} {i}" if i else k: path for k, paths in found.items() for i, path in enumerate(paths)}


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a command's text, too long for a name
        return False


def _around(path: Path, out: Path) -> bool:
    inside = path.is_relative_to(out) or path.resolve().is_relative_to(out.resolve())
    return inside or any(place.resolve().is_relative_to(path.resolve()) for place in (out, PROJECT))


def fingerprint(path: Path) -> dict[str, str]:
    """{"stamp": of names, sizes and times, "content": of names and contents} of a file or of all files in a folder."""
    return {"stamp": stamp(path), "content": content(path)}


def changed(path: Path, before: Mapping[str, str]) -> bool:
    """Whether there is other content than when a fingerprint was taken; files are read only where their times differ.

    What was read is kept: to be asked by a process that shows or plans.
    """
    return _stamp(path) != before["stamp"] and _content(path) != before["content"]


def stamp(path: Path) -> str:
    """Hash of the names, sizes and times of files; hidden ones are left out, here and below."""
    facts = {name: [(s := file.stat()).st_size, s.st_mtime_ns] for name, file in _files(path).items()}
    return digest(facts)


def content(path: Path) -> str:
    """Hash of the names and contents of files."""
    return digest({name: sha256(file) for name, file in _files(path).items()})


_stamp, _content = cache(stamp), cache(content)


def _files(path: Path) -> dict[str, Path]:
    if path.is_file():
        return {"": path}
    found: dict[str, Path] = {}
    for folder, inside, names in os.walk(path, followlinks=True):
        inside[:] = [name for name in inside if not name.startswith(".")]
        files = (Path(folder, name) for name in names if not name.startswith("."))
        found |= {file.relative_to(path).as_posix(): file for file in files if file.is_file()}
    return found
