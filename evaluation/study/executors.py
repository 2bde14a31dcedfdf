"""Who carries tasks out: worker processes on this machine, or Ray. No state of theirs is needed to go on later.

A worker is `python -m evaluation.study.tasks FOLDER`. It ends when its executor is gone, and its commands end with it.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from arguments.study import ExecutorParams
from evaluation.study.plan import Plan, Task
from evaluation.study.progress import StudyProgress
from evaluation.study.state import read_manifest, stale
from evaluation.study.tasks import BUSY, failure, write_order
from utils.errors import Interrupted
from utils.log import note
from utils.provenance import PROJECT

POLL_S = 0.1
BUSY_WAIT_S = 5.0  # before a task that another process has is looked at again


@dataclass
class Outcome:
    """What became of the tasks of a plan: done (before or now), made (now), failed {task: why}, left {task: why}."""

    done: set[str] = field(default_factory=set)
    made: set[str] = field(default_factory=set)
    failed: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether nothing failed and nothing was left out."""
        return not self.failed and not self.left


def unfinished(plan: Plan, tasks: Sequence[Task], redo_stale: bool) -> dict[str, bool]:
    """{task to be done: whether it was finished before and is redone}, in the plan's order."""
    todo: dict[str, bool] = {}
    for task in tasks:
        manifest = read_manifest(plan.folder(task.id))
        if manifest is None:
            todo[task.id] = False
        elif redo_stale and (stale(plan, task, manifest) or any(need in todo for need in task.needs)):
            todo[task.id] = True
    return todo


def worker_command(folder: Path, params: ExecutorParams, device: str, threads: int, again: bool) -> list[str]:
    """Command line of a worker that ends when this process does."""
    command = [sys.executable, "-m", "evaluation.study.tasks", str(folder), f"--device={device}"]
    command += [f"--threads={threads}", f"--parent={os.getpid()}"]
    command += ["--again"] * again + ["--keep_checkpoints"] * params.keep_checkpoints
    return command


def worker_environment() -> dict[str, str]:
    """Environment in which a worker finds this project."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}


def threads_of(params: ExecutorParams) -> int:
    """CPU threads of each task."""
    return params.threads or max(1, (os.cpu_count() or 1) // params.slots)


class Local:
    """Tasks as processes of this machine, so many at a time as there are slots."""

    def __init__(self, plan: Plan, params: ExecutorParams) -> None:
        self.plan, self.params, self.outcome = plan, params, Outcome()
        self.running: dict[int, tuple[str, subprocess.Popen[bytes]]] = {}  # by slot
        self.deaths: dict[str, int] = {}
        self.busy_until: dict[str, float] = {}
        self.signum = 0
        self.again: Mapping[str, bool] = {}

    def run(self, tasks: Sequence[Task]) -> Outcome:
        """Carry out tasks (each after what it needs); failing ones keep back only what needs them.

        Raises
        ------
        Interrupted : SIGINT or SIGTERM, after all workers have ended; the same call goes on from there.
        """
        waiting = {task.id: task for task in tasks}
        self.again = unfinished(self.plan, tasks, self.params.stale)
        self.outcome.done |= waiting.keys() - self.again.keys()
        waiting = {name: task for name, task in waiting.items() if name in self.again}
        progress = StudyProgress(self.plan, tasks, self.outcome.done, self.params.slots)
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            while (waiting or self.running) and not (self.signum and not self.running):
                self._drop(waiting)
                self._start(waiting)
                self._collect(waiting, progress)
                progress.show({name for name, _ in self.running.values()}, self.outcome)
                time.sleep(POLL_S)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            progress.close()
        if self.signum:
            raise Interrupted(self.signum)
        return self.outcome

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        """First signal: workers end in good order; second: they are killed, and the kernel ends their commands."""
        for _, worker in self.running.values():
            worker.send_signal(signal.SIGKILL if self.signum else signal.SIGTERM)
        self.signum = signum

    def _drop(self, waiting: dict[str, Task]) -> None:
        """Leave out what needs something that failed."""
        lost = self.outcome.failed.keys() | self.outcome.left.keys()
        for name in [n for n, task in waiting.items() if lost.intersection(task.needs)]:
            self.outcome.left[name] = f"needs {next(n for n in waiting[name].needs if n in lost)}"
            del waiting[name]

    def _start(self, waiting: dict[str, Task]) -> None:
        now = time.monotonic()
        for slot in range(self.params.slots):
            if self.signum or slot in self.running:
                continue
            free = [n for n, t in waiting.items() if self._ready(t) and self.busy_until.get(n, 0) <= now]
            if not free:
                return
            task = waiting.pop(free[0])
            folder = write_order(self.plan, task)
            device = self.params.devices[slot % len(self.params.devices)]
            command = worker_command(folder, self.params, device, threads_of(self.params), self.again[task.id])
            # A session of its own: Ctrl-C on a terminal reaches the executor alone, which passes it on in good order.
            worker = subprocess.Popen(
                command, env=worker_environment(), stdin=subprocess.DEVNULL, start_new_session=True
            )
            self.running[slot] = (task.id, worker)

    def _ready(self, task: Task) -> bool:
        return all(need in self.outcome.done for need in task.needs if need in self.plan.tasks)

    def _collect(self, waiting: dict[str, Task], progress: StudyProgress) -> None:
        for slot, (name, worker) in list(self.running.items()):
            code: int | None = worker.poll()
            if code is None:
                continue
            del self.running[slot]
            verdict = self._verdict(name, code)
            if verdict == "again":
                waiting[name] = self.plan.tasks[name]
            elif verdict:
                self.outcome.failed[name] = verdict
                note(f"{name}: failed: {verdict}")
            elif not code:
                self.outcome.done.add(name)
                self.outcome.made.add(name)
                progress.finished(name)

    def _verdict(self, name: str, code: int) -> str:
        """ "" where all is well or we are stopping, "again", or why the task failed."""
        if code == 0 or self.signum:
            return ""
        if code == BUSY:
            self.busy_until[name] = time.monotonic() + BUSY_WAIT_S
            return "again"
        if code < 0 or code > 128:
            self.deaths[name] = self.deaths.get(name, 0) + 1
            if self.deaths[name] <= self.params.retries:
                note(f"{name}: its worker was ended by signal {-code if code < 0 else code - 128}; it is started again")
                return "again"
            return f"its worker was ended by a signal {self.deaths[name]} times (too little memory?)"
        return describe_failure(self.plan.folder(name))


def describe_failure(folder: Path) -> str:
    """Why a task failed, with the log that says more."""
    found: dict[str, Any] | None = failure(folder)
    if found is None:
        return f"see {folder}/logs"
    return f"{found['command']} ended with exit code {found['code']}: {found['error']} (log: {found['log']})"


def execute(plan: Plan, tasks: Sequence[Task], params: ExecutorParams) -> Outcome:
    """Carry out tasks with the executor that was asked for."""
    makers: dict[str, Callable[[], Any]] = {"local": lambda: Local(plan, params), "ray": lambda: _ray(plan, params)}
    outcome: Outcome = makers[params.executor]().run(tasks)
    return outcome


def _ray(plan: Plan, params: ExecutorParams) -> Any:
    from evaluation.study.ray import Ray  # the package ray is needed only here

    return Ray(plan, params)


def wanted_tasks(plan: Plan, index: int) -> Collection[str]:
    """Tasks of one run of the plan, or of all (-1)."""
    runs = plan.runs if index < 0 else [plan.runs[index]]
    return [task for run in runs for task in run.tasks]
