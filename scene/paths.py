"""Where the images of a scene may lie, and what their views are called.

A path that a scene file names may lead into the scene, or into the folder of the HR truth (`hr_root`), and nowhere
else: links are followed first, then the result is compared. The name of a view is its path without extension.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from utils import log
from utils.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".PNG", ".JPG", ".JPEG")
MAX_NAME_BYTES = 4096
CANONICAL_FOLDER = "images"  # in names of views, whatever folder their images were taken from


@dataclass(frozen=True)
class Roots:
    """The two folders that images may come from.

    Attributes
    ----------
    scene : folder of the scene.
    hr_root : folder of the HR truth, or None.
    """

    scene: Path
    hr_root: Path | None = None

    def find(self, relative: str, where: str, base: str = "") -> tuple[str, Path | None]:
        """(name of the view, its image or None where there is none) for a path that a scene file holds.

        Parameters
        ----------
        relative : path relative to `base` in the scene, with or without an image extension.
        where : names the file and the frame in messages.
        base : folder in the scene.

        Raises
        ------
        UserError : absolute, empty, too long, or leading out of both roots.
        """
        check_relative(relative, where)
        lexical = os.path.normpath(os.path.join(base, relative))
        path = first_existing(self.scene / lexical)
        inside = self._inside(path or self.scene / lexical, f"{where}: {shown(relative)!r}")
        if lexical.startswith(".."):
            lexical = str(inside)
        return without_image_suffix(lexical), path

    def _inside(self, path: Path, where: str) -> Path:
        """`path` with its links followed, relative to the root that holds it."""
        real = resolved(path, where)
        for root in (self.scene, self.hr_root):
            if root is not None and real.is_relative_to(resolved(root, where)):
                return real.relative_to(resolved(root, where))
        advice = "" if self.hr_root else "; if its HR images lie there, give --hr_root DIR"
        raise UserError(f"{where} leads out of the scene {self.scene}{advice}")

    def hr_image(self, name: str) -> Path | None:
        """The HR truth of a view: hr_root/NAME, or, where hr_root is itself an images folder, without `images/`."""
        if self.hr_root is None:
            return None
        for candidate in dict.fromkeys((name, name.removeprefix(f"{CANONICAL_FOLDER}/"))):
            path = first_existing(self.hr_root / candidate)
            if path is not None:
                self._inside(path, f"HR image of {name}")
                return path
        return None


@dataclass
class Missing:
    """Counts images that are listed but not there, so that one message tells of all."""

    allowed: bool
    listed: int = 0
    absent: list[str] = field(default_factory=list)

    def check(self, path: Path | None, where: str, what: str) -> bool:
        """Whether the image is there; if not, it is noted."""
        self.listed += 1
        if path is None:
            self.absent.append(f"{what} ({where})")
        return path is not None

    def settle(self) -> None:
        """Raise UserError for what is missing, or say how many views are skipped (allow_missing)."""
        if not self.absent:
            return
        found = f"{len(self.absent)} of {self.listed} images are missing, the first is {self.absent[0]}"
        if not self.allowed:
            raise UserError(f"{found}; put them there, or skip these views with --allow_missing")
        log.note(f"{found}; skipped")


def check_relative(relative: str, where: str) -> None:
    """Refuse what can never be an image of this scene: empty, absolute, with NUL, or endless."""
    if not relative or "\0" in relative or len(relative.encode(errors="replace")) > MAX_NAME_BYTES:
        raise UserError(f"{where}: image path {relative[:60]!r} is empty, too long, or holds a NUL")
    if PurePosixPath(relative).is_absolute() or relative.startswith("~"):
        raise UserError(f"{where}: image path {shown(relative)!r} is absolute; paths must be relative to the scene")


def shown(text: str) -> str:
    """A text from a file, short and without control characters, fit for a message on a terminal."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def resolved(path: Path, where: str) -> Path:
    """The path with all links followed. Raises UserError for loops and names that the system refuses."""
    try:
        return path.resolve()
    except (OSError, RuntimeError, ValueError) as error:
        raise UserError(f"{where}: the path cannot be followed ({error})") from error


def first_existing(path: Path) -> Path | None:
    """`path` itself where it names an image file, else the same with an image extension appended."""
    candidates = [path] if path.suffix in IMAGE_SUFFIXES else []
    candidates += [path.with_name(path.name + suffix) for suffix in IMAGE_SUFFIXES if path.name]
    try:
        return next((candidate for candidate in candidates if candidate.is_file()), None)
    except (OSError, ValueError):  # a name that the file system cannot hold is not there
        return None


def without_image_suffix(path: str) -> str:
    """`train/r_0.png` -> `train/r_0`; other dots belong to the name."""
    stem, suffix = os.path.splitext(path)
    return stem if suffix in IMAGE_SUFFIXES else path
