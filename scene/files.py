"""Which files of a scene folder decide what a step makes of it."""

from collections.abc import Iterable
from pathlib import Path

from scene import Scene
from scene.colmap import MODEL_FOLDERS

PATTERNS = (
    "transforms*.json",
    "lr_kernel.json",
    "degradation.json",
    "points3d.ply",
    *(f"{folder}/*.{kind}" for folder in MODEL_FOLDERS for kind in ("bin", "txt")),
)


def scene_inputs(scene: Scene, names: Iterable[str]) -> dict[str, list[Path]]:
    """Input files for a step's record: images of `names`, and the files that hold cameras, points and the kernel."""
    described = [path for pattern in PATTERNS for path in sorted(scene.root.glob(pattern)) if path.is_file()]
    return {"views": [scene.images.path(name) for name in names], "scene": described}
