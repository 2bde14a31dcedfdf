"""One process a folder: an advisory lock that the kernel releases when its holder dies, however it dies."""

import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from utils.errors import UserError
from utils.log import warn

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: str | Path) -> Iterator[None]:
    """Hold `folder`/.lock while in scope; the folder is made if needed.

    Raises
    ------
    UserError : another process holds it (named by pid, host and start time), or the folder cannot be written.
    """
    path = Path(folder) / LOCK_NAME
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UserError(f"cannot lock {folder}: {error.strerror}; choose a folder that you may write to") from error
    try:
        _acquire(fd, path)
        yield
    finally:
        os.close(fd)


def _acquire(fd: int, path: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 200).decode(errors="replace").strip() or "an unknown process"
        raise UserError(f"{path.parent} is in use by {holder}; wait for it or use another folder") from None
    except OSError as error:  # some network file systems have no locks
        warn(f"{path.parent}: this file system has no locks ({error.strerror}); do not start two runs in it")
        return
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"pid {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n".encode(), 0)
