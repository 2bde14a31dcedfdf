"""One script of ours run by another: the signals that end the parent reach the child, and its exit code comes back."""

import ctypes
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from types import FrameType
from typing import IO

PR_SET_PDEATHSIG = 1  # of Linux's prctl


def end_with_parent(parent: int, signum: int = signal.SIGTERM) -> None:
    """Ask the kernel to send `signum` to this process when its parent dies, however it dies (Linux only).

    Parameters
    ----------
    parent : process id of the parent; where it has died already, this process ends at once.
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(signum))
    if os.getppid() != parent:
        os._exit(128 + signum)


def run_child(
    command: Sequence[str],
    env: Mapping[str, str] | None = None,
    *,
    output: IO[bytes] | None = None,
    cwd: str | Path | None = None,
    bound: bool = False,
) -> int:
    """Run `command` to its end, whatever signal arrives, so that no child outlives its parent.

    Parameters
    ----------
    output : file for its stdout and stderr; None = ours.
    bound : kill it also where this process is killed in a way that it cannot notice.

    Returns
    -------
    Its exit code; 128 + signal where a signal ended it, as shells say.

    Notes
    -----
    SIGTERM is passed on. SIGINT is only waited out: a terminal's Ctrl-C goes to the whole group of processes, so the
    child has it already and ends in good order. To be called from the main thread, as all signal handling.
    """
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals from before there was a child

    def forward(signum: int, _: FrameType | None) -> None:
        if child is None:
            early.append(signum)
        else:
            child.send_signal(signum)

    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, forward)}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, lambda *_: None)
    end = partial(end_with_parent, os.getpid(), signal.SIGKILL) if bound else None
    stdin, stderr = (subprocess.DEVNULL, subprocess.STDOUT) if output else (None, None)
    try:
        # preexec_fn is safe here: callers have one thread.
        child = subprocess.Popen(command, env=env, cwd=cwd, preexec_fn=end, stdin=stdin, stdout=output, stderr=stderr)
        for signum in early:
            child.send_signal(signum)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
