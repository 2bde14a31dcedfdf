"""What a result was made from and by: hashes of files and of source code, versions, time and memory."""

import hashlib
import platform
import resource
import sys
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

from utils import __version__
from utils.errors import UserError

PROJECT = Path(__file__).resolve().parent.parent
SOURCES = {".py", ".h", ".cpp", ".inl", ".cu", ".toml"}
PACKAGES = ("torch", "numpy", "pillow", "opencv-python-headless", "scipy", "gsplat")


def sha256(path: str | Path) -> str:
    """Hex SHA-256 of a file's contents. Raises UserError where it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from error


def hash_files(paths: Iterable[str | Path]) -> dict[str, Any]:
    """Count, and one SHA-256 over names and contents of `paths` in the order given, whatever folder they lie in."""
    total, count = hashlib.sha256(), 0
    for path in map(Path, paths):
        total.update(f"{path.name}\0{sha256(path)}\n".encode())
        count += 1
    return {"files": count, "sha256": total.hexdigest()}


def code_files(packages: Iterable[str], without: Iterable[str] = (), project: Path = PROJECT) -> list[Path]:
    """The project's sources in `packages` (folders below its root), but for the files and folders `without`."""
    files = [p for name in sorted(packages) for p in sorted((project / name).rglob("*")) if p.suffix in SOURCES]
    left_out = [project / name for name in without]
    return [p for p in files if not any(p.is_relative_to(path) for path in left_out)]


def hash_code(packages: Iterable[str], without: Iterable[str] = ()) -> str:
    """One SHA-256 over `code_files`."""
    return hash_files(code_files(packages, without))["sha256"]


def package_versions() -> dict[str, str]:
    """Versions of the installed packages that can change a result, without importing them."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def peak_bytes() -> int:
    """Largest resident memory of this process so far.

    Read from /proc where there is one: `ru_maxrss` of a process starts at the size of the one that started it.
    """
    try:
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM:")) * 1024
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def process_facts(begin: float) -> dict[str, Any]:
    """What this process did since `begin` (seconds since the epoch): time, peak memory, command, versions.

    The home folder is shortened to ~ and the environment is left out: records are meant to be shared.
    """
    home = str(Path.home())
    return {
        "seconds": round(time.time() - begin, 3),
        "peak_bytes": peak_bytes(),
        "started": time.strftime("%FT%T%z", time.localtime(begin)),
        "command": [word.replace(home, "~") for word in sys.argv],
        "versions": {"seqsplat": __version__, "python": platform.python_version(), **package_versions()},
        "machine": f"{platform.system()} {platform.machine()}",
    }
