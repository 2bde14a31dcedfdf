"""A study on Ray: each task a remote function that starts a worker, as the local executor does.

Ray places tasks on machines and GPUs and starts a task again whose process died; what was done before is found on the
disk that all machines share. The package is needed only here (requirements-study.txt).
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

from arguments.study import ExecutorParams
from evaluation.study.executors import (
    BUSY_WAIT_S,
    Outcome,
    describe_failure,
    threads_of,
    unfinished,
    worker_command,
    worker_environment,
)
from evaluation.study.plan import Plan, Task
from evaluation.study.progress import StudyProgress
from evaluation.study.tasks import BUSY, in_use, write_order
from utils.errors import Interrupted, UserError, one_line
from utils.log import note

WAIT_S = 1.0


def work(name: str, folder: str, params: ExecutorParams, again: bool, *needs: tuple[str, str, str]) -> Any:
    """Do one task in a Ray process; runs there.

    Parameters
    ----------
    needs : results of this function for the tasks that are needed: Ray waits for them.

    Returns
    -------
    (task, "done", "left" or "failed", why).
    """
    lost = [need for need, state, _ in needs if state != "done"]
    if lost:
        return name, "left", f"needs {lost[0]}"
    device = "auto" if params.gpus else params.devices[0]  # Ray shows a process only the GPUs that it gave it
    command = worker_command(Path(folder), params, device, threads_of(params), again)
    for _ in range(params.retries + 1):
        code = BUSY
        while code == BUSY:
            code = subprocess.run(command, env=worker_environment(), stdin=subprocess.DEVNULL, check=False).returncode
            time.sleep(BUSY_WAIT_S if code == BUSY else 0)
        if code == 0:
            return name, "done", ""
        if 0 < code <= 128:
            return name, "failed", describe_failure(Path(folder))
    return name, "failed", f"its worker was ended by a signal {params.retries + 1} times (too little memory?)"


class Ray:
    """Tasks as remote functions of Ray.

    Raises
    ------
    UserError : the package is not installed, or no cluster answers at the address.
    """

    def __init__(self, plan: Plan, params: ExecutorParams) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError(
                "--executor ray: the package ray is not installed; pip install -r requirements-study.txt, or take "
                "--executor local"
            ) from error
        self.ray: Any = ray
        self.plan, self.params = plan, params
        self.signum = 0

    def run(self, tasks: Sequence[Task]) -> Outcome:
        """Carry out tasks; failing ones keep back only what needs them.

        Raises
        ------
        Interrupted : SIGINT or SIGTERM; the same call goes on from there.
        """
        outcome, again = Outcome(), unfinished(self.plan, tasks, self.params.stale)
        outcome.done |= {task.id for task in tasks} - again.keys()
        self._connect()
        handlers = {s: signal.signal(s, self._stop) for s in (signal.SIGINT, signal.SIGTERM)}
        progress = StudyProgress(self.plan, tasks, outcome.done, self.params.slots)
        try:
            self._gather(self._submit(tasks, again), outcome, progress)
        finally:
            self.ray.shutdown()  # ends the processes of this study; their workers end with them
            for number, handler in handlers.items():
                signal.signal(number, handler)
            progress.close()
        if self.signum:
            raise Interrupted(self.signum)
        return outcome

    def _connect(self) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
        shared = {"runtime_env": {"env_vars": {"PYTHONPATH": worker_environment()["PYTHONPATH"]}}}
        local = {"num_cpus": self.params.slots * threads_of(self.params), "include_dashboard": False}
        where = {"address": self.params.address} if self.params.address else local
        try:
            self.ray.init(**where, **shared, log_to_driver=False, logging_level="error")
        except ConnectionError as error:
            raise UserError(f"--address {self.params.address}: no Ray cluster answers ({error})") from error

    def _submit(self, tasks: Sequence[Task], again: dict[str, bool]) -> dict[Any, str]:
        """Hand all tasks to Ray, which starts each when those that it needs are done: {future: task}."""
        options = {"num_cpus": threads_of(self.params), "num_gpus": self.params.gpus}
        remote = self.ray.remote(**options, max_retries=self.params.retries)(work)
        handed: dict[str, Any] = {}
        for task in tasks:
            if task.id in again:
                folder = write_order(self.plan, task)
                needs = [handed[need] for need in task.needs if need in handed]
                handed[task.id] = remote.remote(task.id, str(folder), self.params, again[task.id], *needs)
        return {future: name for name, future in handed.items()}

    def _result(self, future: Any, name: str) -> tuple[str, str, str]:
        try:
            found: tuple[str, str, str] = self.ray.get(future)
            return found
        except self.ray.exceptions.RayError as error:  # its process died too often, or that of what it needs
            return name, "failed", one_line(error)

    def _gather(self, handed: dict[Any, str], outcome: Outcome, progress: StudyProgress) -> None:
        by_state, waiting = {"failed": outcome.failed, "left": outcome.left}, list(handed)
        while waiting and not self.signum:
            ready, waiting = self.ray.wait(waiting, timeout=WAIT_S)
            for future in ready:
                name, state, why = self._result(future, handed[future])
                if state == "done":
                    outcome.done.add(name)
                    outcome.made.add(name)
                    progress.finished(name)
                else:
                    by_state[state][name] = why
                    note(f"{name}: {state}: {why}")
            if progress.due():
                over = outcome.done | outcome.failed.keys() | outcome.left.keys()
                todo = [task.id for task in progress.tasks if task.id not in over]
                progress.show({name for name in todo if in_use(self.plan.folder(name))}, outcome)

    def _stop(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
