"""One script of ours run by another: the signals that end the parent reach the child, and its exit code comes back."""

import signal
import subprocess
from collections.abc import Mapping, Sequence
from types import FrameType


def run_child(command: Sequence[str], env: Mapping[str, str] | None = None) -> int:
    """Run `command` to its end, whatever signal arrives, so that no child outlives its parent.

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
    try:
        child = subprocess.Popen(command, env=env)
        for signum in early:
            child.send_signal(signum)
        code = child.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return code if code >= 0 else 128 - code
