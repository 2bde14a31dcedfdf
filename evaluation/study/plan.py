"""The nouns of a study that is carried out: commands, tasks, runs, and the plan that holds them."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from evaluation.study.spec import BACKGROUNDS

OWN_COMMAND = "command"  # name of those of the study file
MEASURE_FRAMES = "frames"  # name of the one that measures them


@dataclass(frozen=True)
class Command:
    """One process of a task.

    Parameters
    ----------
    name : of the step, OWN_COMMAND, or MEASURE_FRAMES.
    words : the script and its arguments; a worker puts in `{device}` and `{threads}`.
    record : (folder relative to the task's, step) of the run.json record that it leaves, () = none.
    """

    name: str
    words: tuple[str, ...]
    record: tuple[str, str] | tuple[()] = ()


@dataclass(frozen=True)
class Task:
    """A folder to be filled.

    Parameters
    ----------
    id : KIND-HASH, its folder's name. kind : scene, lr, frames, model or views.
    seed : None = the result does not depend on one.
    recipe : all that is in the hash.
    needs : ids of tasks whose results it reads.
    measured : backgrounds for which it has results.
    """

    id: str
    kind: str
    scene: str
    seed: int | None
    recipe: Mapping[str, Any]
    needs: tuple[str, ...]
    commands: tuple[Command, ...]
    measured: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """One scene, variant and seed: the tasks that give its frames, its model and its renders, "" where it has none."""

    scene: str
    variant: str
    seed: int
    frames: str
    model: str
    views: str
    backgrounds: tuple[str, ...] = BACKGROUNDS

    @property
    def tasks(self) -> tuple[str, ...]:
        """Return the tasks that it consists of, beside what they need."""
        return tuple(task for task in (self.frames, self.model, self.views) if task)


@dataclass
class Plan:
    """All runs, and their tasks in an order in which each comes after what it needs.

    sources : folders of scenes that are not made by the study itself.
    """

    out: Path
    runs: list[Run] = field(default_factory=list)
    tasks: dict[str, Task] = field(default_factory=dict)
    sources: set[str] = field(default_factory=set)

    def folder(self, task: str) -> Path:
        """Return the folder of a task."""
        return self.out / task

    def closure(self, wanted: Iterable[str]) -> list[Task]:
        """Return tasks and all that they need, each after its needs."""
        found: dict[str, Task] = {}

        def add(name: str) -> None:
            if name not in found:
                for need in self.tasks[name].needs:
                    add(need)
                found[name] = self.tasks[name]

        for name in wanted:
            add(name)
        return list(found.values())


def digest(value: Any) -> str:
    """12 hex digits of the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:12]
