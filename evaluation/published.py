"""Published numbers beside ours: read from published.toml, each with its source and what forbids a comparison."""

from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from arguments.flags import read_toml
from utils.errors import UserError

FILE = Path(__file__).with_name("published.toml")
METRICS = ("PSNR", "SSIM", "LPIPS")


@dataclass(frozen=True)
class Entry:
    """One published row. values : [PSNR, SSIM, LPIPS]; scenes : the same by scene, where the paper prints them."""

    name: str
    values: tuple[float, float, float]
    source: str
    caveat: str = ""
    background: str = ""
    lr_kernel: str = ""
    scenes: dict[str, tuple[float, float, float]] = field(default_factory=dict)

    def cell(self, column: str) -> Any:
        """Return what a table's column shows of it, None where it is not stated."""
        if column in METRICS:
            return self.values[METRICS.index(column)]
        return {"background": self.background, "lr_kernel": self.lr_kernel}.get(column) or None


@dataclass(frozen=True)
class PublishedSet:
    """The rows of one data set, or of one of its scenes. views : test views of each scene; 0 = not the same in all."""

    title: str
    general: str
    entries: tuple[Entry, ...]
    views: int = 0

    def note(self, entry: Entry, our_backgrounds: set[str], our_views: Collection[int] = ()) -> str:
        """Say where a row comes from and why it may not be compared with ours. our_views : 0 = not recorded."""
        parts, reasons = [entry.source], []
        differing = entry.background and our_backgrounds - {entry.background}
        if differing:
            reasons.append(f"{entry.background} background, ours {' and '.join(sorted(differing))}")
        others = sorted(set(our_views) - {0, self.views})
        if self.views and others:
            reasons.append(f"{self.views} test views, ours {' and '.join(map(str, others))}")
        if reasons:
            parts.append(f"NOT COMPARABLE: {', and '.join(reasons)}")
        return "; ".join([*parts, entry.caveat] if entry.caveat else parts)


@dataclass(frozen=True)
class FrameEntry:
    """One published row of frames' PSNR [dB], by scene; `value` is their mean."""

    name: str
    value: float
    source: str
    caveat: str
    background: str
    scenes: dict[str, float]


def load_published_frames() -> list[FrameEntry]:
    """The rows of table 2 of "Sequence Matters": frames beside jumps."""
    return [FrameEntry(**row) for row in read_toml(FILE)["blender_jumps"]]


def load_published(which: str, our_scenes: set[str] | None = None) -> PublishedSet:
    """Read the rows of a data set.

    Parameters
    ----------
    which : "blender", "mip360", or one of their scenes: "blender:lego".
    our_scenes : scenes of our own rows; when they are one scene that papers report, its values are taken.

    Raises
    ------
    UserError : no such data set or scene.
    """
    content = read_toml(FILE)
    name, _, scene = which.partition(":")
    if name not in content["sets"]:
        raise UserError(f"--published {which}: known are {', '.join(content['sets'])}, and blender:lego for one scene")
    entries = [_entry(row) for row in content[name]]
    known = {s for entry in entries for s in entry.scenes}
    if not scene and our_scenes and len(our_scenes) == 1 and our_scenes <= known:
        (scene,) = our_scenes
    if scene and scene not in known:
        raise UserError(f"--published {which}: scenes with published values: {', '.join(sorted(known))}")
    title, general = content["sets"][name]["title"], content["sets"][name]["note"]
    if scene:
        entries = [_of_scene(entry, scene) for entry in entries if scene in entry.scenes]
        title = f"Published: scene {scene} of {title.split(', mean')[0]}"
    else:
        title = f"Published: {title}"
    return PublishedSet(title, general, tuple(entries), content["sets"][name].get("views", 0))


def _entry(row: dict[str, Any]) -> Entry:
    scenes = {scene: tuple(triple) for scene, triple in row.get("scenes", {}).items()}
    return Entry(**row | {"values": tuple(row["values"]), "scenes": scenes})


def _of_scene(entry: Entry, scene: str) -> Entry:
    return Entry(entry.name, entry.scenes[scene], entry.source, entry.caveat, entry.background, entry.lr_kernel)
