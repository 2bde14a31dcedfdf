"""What a reader of a scene format hands over: views with files and cameras, not yet checked against their images."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float

from scene.points import PointCloud, Tracks
from scene.undistort import Distortion

NO_DISTORTION = Distortion(())


@dataclass(frozen=True, eq=False)
class View:
    """One listed image.

    Attributes
    ----------
    name : unique in the scene (see scene/paths.py).
    path : its image file.
    where : file and frame that it comes from, for messages.
    size : (width, height) that K belongs to, px; the image may be smaller or larger, in the same proportion.
    K : [3, 3] px, corner origin.
    world_to_camera : [4, 4], OpenCV axes.
    group : images of one group must agree in size and channels.
    distortion : of the lens, to be taken out.
    """

    name: str
    path: Path
    where: str
    size: tuple[int, int]
    K: Float[np.ndarray, "3 3"]
    world_to_camera: Float[np.ndarray, "4 4"]
    group: str
    distortion: Distortion = NO_DISTORTION


@dataclass(frozen=True, eq=False)
class Capture:
    """A whole scene as read: views in order, which are for training and testing, and the points that came along."""

    kind: str
    views: list[View]
    train: list[str]
    test: list[str]
    points: PointCloud | None = None
    tracks: Tracks | None = None
    notes: list[str] = field(default_factory=list)


def hold_out_every_eighth(names: list[str], evaluate: bool) -> tuple[list[str], list[str]]:
    """(train, test): with `evaluate` every 8th name, the first included, is held out (Mip-NeRF 360, 3DGS)."""
    if not evaluate:
        return names, []
    return [n for i, n in enumerate(names) if i % 8], names[::8]
