"""The files that a step left: names, sizes and hashes, and which of them are no longer what was recorded."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from utils.provenance import sha256


def output_facts(out: Path, paths: Iterable[Path]) -> dict[str, Any]:
    """Sizes and hashes by path relative to OUT."""
    return {str(p.relative_to(out)): {"bytes": p.stat().st_size, "sha256": sha256(p)} for p in sorted({*paths})}


def damaged_outputs(out: Path, facts: Mapping[str, Any]) -> list[str]:
    """Recorded outputs that are missing or changed."""
    return [path for path, fact in facts.items() if not (out / path).is_file() or sha256(out / path) != fact["sha256"]]


def remove_outputs(out: Path, paths: Iterable[str]) -> None:
    """Remove outputs; what a strange record names outside OUT stays."""
    for path in paths:
        if (out / path).parent.resolve().is_relative_to(out.resolve()) and (out / path).is_file():
            (out / path).unlink()
