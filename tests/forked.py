"""Scripts in processes that may be killed: forked from a server that has imported everything, so a start is cheap."""

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from pathlib import Path

import pytest
import torch

import align_sequence
import render
import train
import vsr_upsample
from utils import errors

for package in ("ordering", "upsampling", "training.session", "training.report", "evaluation.run_render"):
    importlib.import_module(package)  # scripts import these inside main, here it is done once for all children
SCRIPTS = {"order": align_sequence, "upsample": vsr_upsample, "train": train, "render": render}


def run_script(step: str, argv: list[str], setup: Callable[[], None] | None, stderr: Path) -> None:
    """Body of a child: the script of `step` with `argv`, its words in a file."""
    fd = os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(fd, 2)
    os.dup2(fd, 1)
    torch.set_num_threads(1)
    if setup:
        setup()
    sys.argv = [f"{SCRIPTS[step].__name__}.py", *argv]
    errors.run(SCRIPTS[step].main)


def context() -> multiprocessing.context.ForkServerContext:
    """The server's context; the first call starts it, with one thread a child."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["tests.forked"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")  # before torch is loaded there, and nowhere else
        forkserver.ensure_running()
    return server


class ScriptProcess:
    """One run of a script, train.py unless said otherwise.

    Parameters
    ----------
    argv : its words. stderr : file for its output, appended. setup : called in the child before anything else.
    step : which script.
    """

    def __init__(
        self, argv: list[str], stderr: Path, setup: Callable[[], None] | None = None, step: str = "train"
    ) -> None:
        self.stderr = stderr
        self.begin = time.monotonic()
        self.process = context().Process(target=run_script, args=(step, argv, setup, stderr))
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
            raise TimeoutError(f"it still ran after {timeout_s} s")
        return self.process.exitcode

    def text(self) -> str:
        """What it said."""
        return self.stderr.read_text()
