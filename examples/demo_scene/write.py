"""The demo scene as a NeRF-synthetic folder, rendered once into a cache.

FOLDER/transforms_{train,test}.json   train/r_N.png test/r_N.png   (RGBA 8 bit, sRGB, straight alpha)
FOLDER/depth/{train,test}/r_N.npy     (float32 z-depth at the pixel centres, world units, 0 = background)
FOLDER/points3d.ply                   (optional: exact surface points in the colours of the LR views)
FOLDER/demo_scene.json                (settings, how it was rendered; written last = the folder is complete)
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from examples.demo_scene.poses import CAMERA_ANGLE_X, hemisphere_poses, orbit_poses
from examples.demo_scene.render import Renderer, RenderSettings, View
from scene.image_files import read_image, write_png
from scene.ply import write_points
from scene.points import PointCloud
from utils import atomic, log
from utils.locks import locked

COMPLETE = "demo_scene.json"
RenderFunction = Callable[[Float[np.ndarray, "4 4"], int], View]


@dataclass(frozen=True)
class SceneSettings:
    """What the folder holds.

    Parameters
    ----------
    train_views, test_views : number of views.
    pose_seed : of the training poses.
    cloud_points : number of points in points3d.ply; 0 = no such file (3DGS then starts from random points).
    cloud_block_px : a point takes the mean colour of this block of pixels, so that the cloud tells a model no more
        about colour than an LR view of that scale does. Positions are exact, as a laser scan would give them.
    render : what the pictures look like.
    """

    train_views: int = 48
    test_views: int = 12
    pose_seed: int = 1
    cloud_points: int = 60_000
    cloud_block_px: int = 4
    render: RenderSettings = field(default_factory=RenderSettings)


def scene_key(settings: SceneSettings) -> str:
    """Name of the scene in the cache: a hash of the code that makes it and of the settings."""
    digest = hashlib.sha256(json.dumps(asdict(settings), sort_keys=True).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(f"\0{path.name}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def cached_scene(settings: SceneSettings) -> Path:
    """The scene's folder in the cache, rendered now if it is not there; what an earlier call finished is kept.

    Raises
    ------
    UserError : mitsuba is missing and views are to be rendered; the cache is not writable or in use.
    """
    cache = Path(os.environ.get("SEQSPLAT_CACHE") or Path.home() / ".cache" / "seqsplat")
    return write_scene(cache / "demo_scene" / scene_key(settings), settings)


def write_scene(
    folder: Path, settings: SceneSettings, make_renderer: Callable[[RenderSettings], RenderFunction] = Renderer
) -> Path:
    """Write what is missing of the scene into `folder` and return it.

    Parameters
    ----------
    make_renderer : called once, and only if a view is missing (mitsuba takes seconds to load and may not be there).
    """
    poses = view_poses(settings)
    if (folder / COMPLETE).exists() and all(_is_done(folder, name) for name in poses):
        return folder
    with locked(folder):
        begin = time.monotonic()
        missing = [name for name in poses if not _is_done(folder, name)]
        done = len(poses) - len(missing)
        render = make_renderer(settings.render) if missing else None
        progress = log.Progress("rendering the demo scene", len(poses), "view", done)
        for number, name in enumerate(poses):
            if render is not None and name in missing:
                _write_view(folder, name, render(poses[name], number))
                done += 1
                progress.update(done)
        progress.close()
        for split in ("train", "test"):
            atomic.write_json(folder / f"transforms_{split}.json", transforms(poses, split))
        if settings.cloud_points:
            write_points(folder / "points3d.ply", surface_points(folder, poses, settings))
        facts = {
            "settings": asdict(settings),
            "renderer": getattr(render, "variant", ""),
            "views_rendered": len(missing),
        }
        atomic.write_json(folder / COMPLETE, facts | {"seconds": round(time.monotonic() - begin, 1)})
    return folder


def view_poses(settings: SceneSettings) -> dict[str, Float[np.ndarray, "4 4"]]:
    """View name to camera-to-world (OpenGL axes), training views first."""
    splits = {
        "train": hemisphere_poses(settings.train_views, settings.pose_seed),
        "test": orbit_poses(settings.test_views),
    }
    return {f"{split}/r_{k}": pose for split, poses in splits.items() for k, pose in enumerate(poses)}


def transforms(poses: dict[str, Float[np.ndarray, "4 4"]], split: str) -> dict[str, object]:
    """Contents of transforms_SPLIT.json as NeRF-synthetic has it."""
    frames = [
        {"file_path": f"./{name}", "rotation": 0.0, "transform_matrix": pose.tolist()}
        for name, pose in poses.items()
        if name.startswith(f"{split}/")
    ]
    return {"camera_angle_x": CAMERA_ANGLE_X, "frames": frames}


def depth_path(folder: Path, name: str) -> Path:
    """Where the depth of a view lies."""
    return folder / "depth" / f"{name}.npy"


def _is_done(folder: Path, name: str) -> bool:
    return (folder / f"{name}.png").exists()


def _write_view(folder: Path, name: str, view: View) -> None:
    """Depth first: a picture on disk means that the view is complete."""
    buffer = io.BytesIO()
    np.save(buffer, view.depth)
    atomic.write_bytes(depth_path(folder, name), buffer.getvalue())
    write_png(folder / f"{name}.png", view.rgba)


def surface_points(folder: Path, poses: dict[str, Float[np.ndarray, "4 4"]], settings: SceneSettings) -> PointCloud:
    """Points on the visible surface: random opaque pixels of the training views, lifted by their exact depth."""
    train = [name for name in poses if name.startswith("train/")]
    rng = np.random.default_rng(settings.pose_seed)
    share = np.diff(np.linspace(0, settings.cloud_points, len(train) + 1).astype(int))
    parts = list(_lifted(folder, train, poses, share, rng, settings.cloud_block_px))
    return PointCloud(np.concatenate([xyz for xyz, _ in parts]), np.concatenate([rgb for _, rgb in parts]))


def _lifted(
    folder: Path,
    names: list[str],
    poses: dict[str, Float[np.ndarray, "4 4"]],
    share: np.ndarray,
    rng: np.random.Generator,
    block_px: int,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """For each view its share of points: positions [n, 3] float32, colours [n, 3] uint8."""
    for name, count in zip(names, share, strict=True):
        rgba, depth = read_image(folder / f"{name}.png"), np.load(depth_path(folder, name))
        rows, columns = np.nonzero((depth > 0) & (rgba[..., 3] == 255))
        pick = rng.choice(len(rows), min(count, len(rows)), replace=False)
        rows, columns = rows[pick], columns[pick]
        height, width = depth.shape
        focal_px = 0.5 * width / math.tan(0.5 * CAMERA_ANGLE_X)
        z = depth[rows, columns].astype(np.float64)
        x, y = (columns + 0.5 - width / 2) / focal_px, (rows + 0.5 - height / 2) / focal_px
        camera = np.stack([x * z, -y * z, -z, np.ones_like(z)], -1)  # OpenGL axes
        colour = block_colour(rgba, block_px)[rows // block_px, columns // block_px]
        yield (camera @ poses[name].T)[:, :3].astype(np.float32), colour


def block_colour(rgba: UInt8[np.ndarray, "H W 4"], block_px: int) -> UInt8[np.ndarray, "h w 3"]:
    """Mean colour of the object in each block (weighted by alpha); the last blocks may be cut by the border."""
    height, width = rgba.shape[:2]
    starts = np.arange(0, height, block_px), np.arange(0, width, block_px)
    alpha = rgba[..., 3:].astype(np.float64)
    weighted = np.concatenate([rgba[..., :3] * alpha, alpha], -1)
    sums = np.add.reduceat(np.add.reduceat(weighted, starts[0], axis=0), starts[1], axis=1)
    return np.round(sums[..., :3] / np.maximum(sums[..., 3:], 1e-9)).astype(np.uint8)
