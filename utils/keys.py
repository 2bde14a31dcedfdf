"""A step's key: its settings, seed, and hashes of inputs and code. What differs between two keys, in words."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.provenance import hash_code, hash_files

GROUND = ("scene", "arguments", "utils")  # below every step
# What builds of the native packages leave beside their sources.
BUILT = tuple(f"submodules/{name}/build" for name in ("diff-gaussian-rasterization", "simple-knn"))
# Of the folders whose code is in keys, what can change no result: what is said to people, and what starts steps and
# compares their results from outside. No step imports the latter (a test looks).
NO_RESULT = (
    *("utils/log.py", "utils/command_line.py", "arguments/next_step.py"),
    *("arguments/study.py", "arguments/paper.py", "evaluation/study", "evaluation/paper", "examples/demo.py"),
    *BUILT,
)


def make_key(
    settings: Mapping[str, Any], inputs: Mapping[str, Iterable[str | Path]], code: Sequence[str], seed: int
) -> dict[str, Any]:
    """Return the key as JSON values: tuples become lists, as they do in the file that it is compared with."""
    key = {
        "settings": settings,
        "seed": seed,
        "inputs": {group: hash_files(paths) for group, paths in inputs.items()},
        "code": hash_code({*code, *GROUND}, NO_RESULT),
    }
    return json.loads(json.dumps(key))


def same_key(before: Mapping[str, Any], key: Mapping[str, Any]) -> bool:
    """Whether a record, or the mark of an attempt, holds exactly this key."""
    return all(before.get(name) == value for name, value in key.items())


def difference(before: Mapping[str, Any], key: Mapping[str, Any]) -> str | None:
    """Say what differs between a record and a key first; None where nothing does that the key names."""
    old, now = before["settings"] | {"seed": before["seed"]}, key["settings"] | {"seed": key["seed"]}
    for name in sorted({*old, *now}):
        if old.get(name) != now.get(name):
            return f"setting {name} was {old.get(name)!r} and is {now.get(name)!r}"
    changed = [group for group in key["inputs"] if before["inputs"].get(group) != key["inputs"][group]]
    if changed:
        return f"its input {changed[0]} changed"
    return "the code changed" if before["code"] != key["code"] else None
