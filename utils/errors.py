"""The one error that a user can mend, and the one place where it becomes a line on stderr and an exit code."""

import os
import sys
from collections.abc import Callable

USER_ERROR = 2  # exit code, argparse's own too


class UserError(Exception):
    """Something the user can mend. Its message says what, where, and what to do, in one line."""


class Interrupted(Exception):
    """A signal ended the work after everything worth keeping was written.

    Parameters
    ----------
    signum : number of the signal; the process ends with 128 + signum, as shells expect.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(f"interrupted by signal {signum}")
        self.signum = signum


def one_line(text: object) -> str:
    """`text` without line breaks, so that every message stays one line whatever a hostile file put into it."""
    return " ".join(str(text).split())


def run(main: Callable[[], None]) -> None:
    """Run an entry point: a UserError becomes one line on stderr and exit code 2 (argparse's own code).

    Notes
    -----
    MemoryError is the user's to mend too (a smaller size); Interrupted ends with 128 + signal.
    SPLAT_TRACEBACK=1 shows the traceback instead.
    """
    try:
        main()
        if sys.stdout:
            sys.stdout.flush()  # a reader that has gone shows here, not while the interpreter ends
    except BrokenPipeError:
        # The reader of our output (`| head`) has gone: nothing is wrong, and nothing more can be said to it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(141)  # 128 + SIGPIPE, as shells expect
    except (UserError, MemoryError, Interrupted, KeyboardInterrupt) as error:
        if os.environ.get("SPLAT_TRACEBACK"):
            raise
        code, text = _describe(error)
        print(f"error: {one_line(text)}", file=sys.stderr, flush=True)
        sys.exit(code)
    except RuntimeError as error:
        # torch reports a failed allocation as RuntimeError with these words, on a GPU as a class of its own.
        memory = "allocate memory" in str(error) or type(error).__name__ == "OutOfMemoryError"
        if os.environ.get("SPLAT_TRACEBACK") or not memory:
            raise
        print(f"error: {_describe(MemoryError())[1]}", file=sys.stderr, flush=True)
        sys.exit(USER_ERROR)


def _describe(error: BaseException) -> tuple[int, str]:
    if isinstance(error, Interrupted):
        return 128 + error.signum, str(error)
    if isinstance(error, KeyboardInterrupt):
        return 130, "interrupted"
    if isinstance(error, MemoryError):
        if "memory limit" in str(error):  # one that was asked for; the text says how much is needed
            return USER_ERROR, f"--raster_memory: {error}"
        return USER_ERROR, "out of memory: lower --max_memory (upsampling), --max_gaussians or -r (training)"
    return USER_ERROR, str(error)
