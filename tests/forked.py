"""train.py in processes that may be killed: forked from a server that has imported everything, so a start is cheap."""

import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # before torch: two such processes run beside each other on small machines

import torch

import train
import training.report
import training.session  # noqa: F401 (imported for its children)
from utils import errors


def run_train(argv: list[str], setup: Callable[[], None] | None, stderr: Path) -> None:
    """Body of a child: train.py with `argv`, its words on stderr in a file."""
    fd = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 2)
    os.dup2(fd, 1)
    torch.set_num_threads(1)
    if setup:
        setup()
    sys.argv = ["train.py", *argv]
    errors.run(train.main)


def context() -> multiprocessing.context.ForkServerContext:
    """The server's context; its first process starts it."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.forked"])
    return server


class TrainProcess:
    """One run of train.py.

    Parameters
    ----------
    argv : its words. stderr : file for its output, appended. setup : called in the child before anything else.
    """

    def __init__(self, argv: list[str], stderr: Path, setup: Callable[[], None] | None = None) -> None:
        self.stderr = stderr
        self.begin = time.monotonic()
        self.process = context().Process(target=run_train, args=(argv, setup, stderr))
        self.process.start()

    def signal(self, signum: int) -> None:
        """Send a signal, if the process still lives."""
        if self.process.pid is not None and self.process.is_alive():
            os.kill(self.process.pid, signum)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Exit code, negative for a signal that nobody handled."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"train.py still ran after {timeout_s} s")
        return self.process.exitcode

    def text(self) -> str:
        """What it said."""
        return self.stderr.read_text()
