"""Run the whole pipeline on one scene: order, depth, upsample, train, render, metrics; skip what is up to date."""

import os
import sys
import time
from pathlib import Path

from arguments.next_step import UNDER_RUN
from arguments.pipeline import plan
from utils import errors, log
from utils.child import run_child
from utils.errors import USER_ERROR
from utils.record import read_record

ROOT = Path(__file__).resolve().parent


def main() -> None:
    """Run each step's script in a process of its own, so that its memory is its own and a crash stays one step's."""
    begin = time.monotonic()
    commands = plan()
    for i, command in enumerate(commands, 1):
        log.note(f"== {command.step}: {command.script}")
        code = run_child(
            [sys.executable, str(ROOT / command.script), *command.arguments], os.environ | {UNDER_RUN: "1"}
        )
        if code:
            if code != USER_ERROR:  # that one has been told in a line of its own, and the same command meets it again
                log.note(
                    f"run.py: step {command.step} ended with exit code {code}; the same command continues from here"
                )
            sys.exit(code)
        if command.dry_run and i < len(commands) and read_record(command.folder, command.record) is None:
            log.note(f"run.py: --dry_run ends here; the following steps need the result of {command.step}")
            break
    log.note(f"run.py: done in {log.duration(time.monotonic() - begin)}")


if __name__ == "__main__":
    errors.run(main)
