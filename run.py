"""Run the whole pipeline on one scene: order, upsample, train, render, metrics; skip what is up to date."""

import subprocess
import sys
import time
from pathlib import Path

from arguments.pipeline import plan
from utils import errors, log

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Run each step's script in a process of its own, so that its memory is its own and a crash stays one step's."""
    begin = time.monotonic()
    for command in plan():
        log.note(f"== {command.step}: {command.script}")
        # The child gets the terminal's signals itself and ends in good order; its exit code is ours.
        child = subprocess.Popen([sys.executable, str(ROOT / command.script), *command.arguments])
        while True:
            try:
                code = child.wait()
                break
            except KeyboardInterrupt:
                continue
        if code:
            log.note(f"run.py: step {command.step} ended with exit code {code}; the same command continues from here")
            sys.exit(code if code > 0 else 128 - code)
    log.note(f"run.py: done in {log.duration(time.monotonic() - begin)}")


if __name__ == "__main__":
    errors.run(main)
