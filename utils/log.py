"""What people see while work is going on: results on stdout, progress on stderr, one JSON object a line in a log."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from utils.errors import UserError

TERMINAL_PERIOD_S = 1.0
FILE_PERIOD_S = 10.0
_quiet = False


def set_quiet(quiet: bool) -> None:
    """--quiet: no progress and no notices, results and errors only."""
    global _quiet
    _quiet = quiet


def is_quiet() -> bool:
    """Whether progress and notices are off."""
    return _quiet


def say(*text: object) -> None:
    """A result, on stdout."""
    print(*text, flush=True)


def note(text: str) -> None:
    """A notice on stderr, silent under --quiet."""
    if not _quiet:
        print(text, file=sys.stderr, flush=True)


def warn(text: str) -> None:
    """A warning on stderr: the work goes on, but the user should know."""
    print(f"warning: {text}", file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """`seconds` as 42 s, 3:07 or 2:03:07."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    hours, rest = divmod(seconds, 3600)
    return f"{hours}:{rest // 60:02}:{rest % 60:02}" if hours else f"{rest // 60}:{rest % 60:02}"


class Progress:
    """One line of progress with rate and ETA: rewritten each second on a terminal, a line each 10 s in a file.

    Parameters
    ----------
    label : what is going on ("train lego").
    total : number of units; `done` counts up to it.
    unit : name of a unit, for the rate ("it", "frame").
    done : units that were finished before (a resumed run), left out of the rate.
    """

    def __init__(self, label: str, total: int, unit: str = "it", done: int = 0) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.first = done
        self.start = self.shown = time.monotonic()
        self.terminal = sys.stderr.isatty()

    def due(self, done: int) -> bool:
        """Whether `update` would show something: for who has to measure what it shows."""
        period = TERMINAL_PERIOD_S if self.terminal else FILE_PERIOD_S
        return not _quiet and (time.monotonic() - self.shown >= period or done >= self.total)

    def update(self, done: int, **fields: object) -> None:
        """Show `done` of `total`; `fields` are appended as `name value`."""
        if not self.due(done):
            return
        self.shown = now = time.monotonic()
        rate = (done - self.first) / max(now - self.start, 1e-9)
        eta = duration((self.total - done) / rate) if rate > 0 else "?"
        speed = f"{rate:.1f} {self.unit}/s" if rate >= 1 or not rate else f"{1 / rate:.1f} s/{self.unit}"
        extra = "".join(f"  {name} {value}" for name, value in fields.items())
        text = f"{self.label}  {done}/{self.total}  {100 * done // max(self.total, 1)}%  {speed}  ETA {eta}{extra}"
        start, end = ("\r\033[K", "") if self.terminal else ("", "\n")
        print(start + text, end=end, file=sys.stderr, flush=True)

    def close(self) -> None:
        """End the line on a terminal."""
        if self.terminal and not _quiet:
            print(file=sys.stderr, flush=True)


class JsonLines:
    """An append-only log, one JSON object a line, flushed at once; a resumed run cuts it back to where it was.

    Parameters
    ----------
    path : file; made if needed.
    keep_bytes : length to cut an existing file to (0 = start anew); a torn last line goes with it.

    Raises
    ------
    UserError : the file cannot be written, here or in `write`.
    """

    def __init__(self, path: str | Path, keep_bytes: int = 0) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            os.ftruncate(self.fd, min(keep_bytes, os.fstat(self.fd).st_size))
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from error

    def write(self, **values: Any) -> None:
        """Append one object."""
        line = (json.dumps(values, allow_nan=False) + "\n").encode()
        try:
            if os.write(self.fd, line) != len(line):
                raise OSError(28, os.strerror(28))
        except OSError as error:
            raise UserError(f"cannot write {self.path}: {error.strerror}; free some space") from error

    def size(self) -> int:
        """Bytes written so far, for the next resume."""
        return os.fstat(self.fd).st_size

    def close(self) -> None:
        """Close the file."""
        os.close(self.fd)
