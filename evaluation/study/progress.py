"""How far a study is and when it will be done, from what tasks of the same kind took."""

import sys
import time
from collections.abc import Collection, Sequence
from typing import Any

from evaluation.study.plan import Plan, Task
from evaluation.study.state import read_manifest
from utils import log


class StudyProgress:
    """One line: rewritten each second on a terminal, a new one each 10 s (and after each task) in a file.

    Parameters
    ----------
    tasks : all that is asked for. done : those that were finished before. slots : tasks at the same time.
    """

    def __init__(self, plan: Plan, tasks: Sequence[Task], done: Collection[str], slots: int) -> None:
        self.plan, self.tasks, self.slots = plan, list(tasks), slots
        self.seconds: dict[tuple[str, ...], list[float]] = {}
        self.since: dict[str, float] = {}
        self.shown = 0.0
        self.terminal = sys.stderr.isatty()
        for name in done:
            self.learn(name)

    def learn(self, name: str) -> None:
        """Take a finished task's seconds as a guide for others: of its kind and scene, or of its kind."""
        manifest = read_manifest(self.plan.folder(name))
        if manifest is not None:
            for key in _likeness(self.plan.tasks[name]):
                self.seconds.setdefault(key, []).append(manifest["seconds"])

    def finished(self, name: str) -> None:
        """A task was finished now."""
        self.learn(name)
        self.shown = 0.0

    def expected(self, task: Task) -> float | None:
        """Seconds that a task will take, None where nothing like it was ever finished."""
        for key in _likeness(task):
            if key in self.seconds:
                return sum(self.seconds[key]) / len(self.seconds[key])
        return None

    def eta(self, running: Collection[str], done: Collection[str]) -> str:
        """Time to the end: what is left, over the slots; "> 5 s" or "?" where some tasks are like none before."""
        now = time.monotonic()
        total, unknown = 0.0, False
        for task in (t for t in self.tasks if t.id not in done):
            expected = self.expected(task)
            unknown |= expected is None
            spent = now - self.since[task.id] if task.id in running else 0.0
            total += max((expected or 0.0) - spent, 0.0)
        if unknown and not total:
            return "?"
        return ("> " if unknown else "") + log.duration(total / self.slots)

    def due(self) -> bool:
        """Whether `show` would show something."""
        period = log.TERMINAL_PERIOD_S if self.terminal else log.FILE_PERIOD_S
        return time.monotonic() - self.shown >= period and not log.is_quiet()

    def show(self, running: Collection[str], outcome: Any) -> None:
        """Show the line where it is time to."""
        now = time.monotonic()
        self.since = {name: self.since.get(name, now) for name in running}
        if not self.due():
            return
        self.shown = now
        over = outcome.done | outcome.failed.keys() | outcome.left.keys()
        words = [f"study  {len(outcome.done)}/{len(self.tasks)} tasks"]
        words += [f"{len(outcome.failed)} failed"] if outcome.failed else []
        words += [f"{name} {log.duration(now - since)}" for name, since in self.since.items()]
        words += [f"ETA {self.eta(running, over)}"]
        start, end = ("\r\033[K", "") if self.terminal else ("", "\n")
        print(start + "  ".join(words), end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line on a terminal."""
        if self.terminal and not log.is_quiet():
            print(file=sys.stderr, flush=True)


def _likeness(task: Task) -> list[tuple[str, ...]]:
    """What a task's time may be learned from, most alike first."""
    network = str(task.recipe["steps"].get("upsample", {}).get("upsampler", ""))
    return [(task.kind, task.scene, network), (task.kind, task.scene), (task.kind,)]
