"""The sub-pixel information maps of a scene: their pictures, and whether frames gain where the maps say they can.

The maps are `upsampling.information`'s, from the depth that render.py --geometry left beside a model; of two kinds:
over all views, which is what the data hold, and over the views near enough for a network to make use of.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8

from evaluation.confidence import BLOCK_PX, block_means
from evaluation.frames import composed, frame_paths
from evaluation.ranks import rank_correlation
from evaluation.rendering import truth_8bit
from scene import Scene
from scene.angles import pose_angles, viewing_axes
from scene.image_files import read_header, read_image, write_png
from upsampling.geometry import depth_path, read_depth
from upsampling.information import SurfaceView, information_maps
from utils.log import Progress

FOLDER = "information"
NEAR_DEG = 30.0  # beyond, features of another view do more harm than good however exact the flow
KINDS = ("all", "near")
ROUNDING = 1e-5  # added to both squared errors of a block's ratio (50 dB): below it 8-bit files say nothing
NOTHING = 1e-10  # what a squared error of 0 counts as (100 dB)
GROUPS = 5
Maps = Mapping[str, Float[np.ndarray, "h w"]]  # by view
Kinds = Mapping[str, Maps]


def geometry_files(scene: Scene, geometry: Path) -> dict[str, Path]:
    """List the depth files of training views that are there, by view."""
    paths = {name: depth_path(geometry, name) for name in scene.train}
    return {name: path for name, path in paths.items() if path.is_file()}


def map_path(folder: Path, kind: str, name: str) -> Path:
    """Where the picture of a view's map lies."""
    return folder / FOLDER / kind / f"{name}.png"


def frames_scale(scene: Scene, frames: Path) -> int:
    """HR size / LR size by the first frame that is there, rounded; 1 where there is none."""
    for name in scene.train:
        if (frames / f"{name}.png").is_file():
            return round(read_header(frames / f"{name}.png").width / scene.cameras[name].width)
    return 1


def scene_maps(scene: Scene, geometry: Path, scale: int, device: torch.device | str = "cpu") -> Kinds:
    """Compute the maps of all training views that have a depth file; see `upsampling.information.information_maps`.

    Returns
    -------
    {"all": over all views, "near": over those within 30 degrees of each, about the scene's centre}; {} without depths.

    Raises
    ------
    UserError : a depth file that is none.
    """
    views = {}
    for name, path in geometry_files(scene, geometry).items():
        z = torch.from_numpy(read_depth(path)).to(device)
        views[name] = SurfaceView(scene.cameras[name].resized(z.shape[1], z.shape[0]), z)
    if not views:
        return {}
    names = list(views)
    near = pose_angles(*viewing_axes(scene, names)) <= NEAR_DEG
    among = {"all": None, "near": {name: [names[j] for j in np.flatnonzero(near[i])] for i, name in enumerate(names)}}
    kinds: dict[str, dict[str, Float[np.ndarray, "h w"]]] = {kind: {} for kind in KINDS}
    progress = Progress("information", len(KINDS) * len(views), "map")
    for kind, maps in kinds.items():
        for name, found in information_maps(views, scale, among[kind]):
            maps[name] = found.cpu().numpy()
            progress.update(sum(map(len, kinds.values())))
    progress.close()
    return kinds


def write_maps(folder: Path, kinds: Kinds) -> list[Path]:
    """Write FOLDER/information/KIND/NAME.png: 8-bit grey, 255 = fully determined, 0 = background."""
    paths = []
    for kind, maps in kinds.items():
        for name, found in maps.items():
            paths.append(map_path(folder, kind, name))
            write_png(paths[-1], picture(found))
    return paths


def picture(found: Float[np.ndarray, "h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """Show a map as grey."""
    return np.repeat(np.rint(found * 255).astype(np.uint8)[..., None], 3, axis=2)


def summary(maps: Maps) -> dict[str, Any]:
    """Describe maps for metrics.json: {"mean": over all surface pixels, "per_view": {name: mean or None}}."""
    surface = {name: found[found > 0] for name, found in maps.items()}
    everything = np.concatenate([np.zeros(0), *surface.values()])
    means = {name: float(values.mean()) if values.size else None for name, values in surface.items()}
    return {"mean": float(everything.mean()) if everything.size else None, "per_view": means}


def gain_by_information(scene: Scene, frames: Path, single: Path, maps: Maps, background: str) -> dict[str, Any] | None:
    """Compare the maps with what frames gained over single-image frames, in blocks of 8 x 8 HR pixels.

    Parameters
    ----------
    frames, single : folders of NAME.png of one size. background : "white" or "black".

    Returns
    -------
    {"block_px", "blocks", "rank_correlation": with the reduction of the squared error, "rank_correlation_relative":
    with the logarithm of its ratio, "groups": [{"information", "gain_db"}] of five groups of equally many blocks by
    information, "rank_correlation_views": of the views' means with their gains in dB}; None where no view has map,
    truth and both frames. Only blocks that lie wholly on surface count.
    """
    paths = {name: path for name, path in frame_paths(scene, frames).items() if name in maps}
    parts = []
    for name in sorted(set(paths) & set(frame_paths(scene, single))):
        truth = truth_8bit(scene, name, background) / 255.0
        large = enlarged(maps[name], *truth.shape[:2])
        whole = block_means((large > 0).astype(float)) == 1
        part = [block_means(large)[whole]]
        for path in (single / f"{name}.png", paths[name]):
            frame = composed(read_image(path), background) / 255.0
            part.append(block_means(((frame - truth) ** 2).mean(-1))[whole])
        if whole.any():
            parts.append(part)
    if not parts:
        return None
    means = np.array([[values.mean() for values in part] for part in parts])
    of_views = rank_correlation(means[:, 0], gain_db(means[:, 1], means[:, 2]))
    return grouped(*(np.concatenate(kind) for kind in zip(*parts, strict=True))) | {"rank_correlation_views": of_views}


def gain_db(before: Float[np.ndarray, "N"], after: Float[np.ndarray, "N"]) -> Float[np.ndarray, "N"]:
    """By how many dB squared errors fell."""
    return 10 * np.log10(np.maximum(before, NOTHING) / np.maximum(after, NOTHING))


def grouped(
    information: Float[np.ndarray, "N"], before: Float[np.ndarray, "N"], after: Float[np.ndarray, "N"]
) -> dict[str, Any]:
    """Correlate the information of at least one block with their mean squared errors `before` and `after`."""
    relative = np.log((before + ROUNDING) / (after + ROUNDING))
    parts = np.array_split(np.argsort(information, kind="stable"), min(GROUPS, len(information)))
    means = np.array([[values[part].mean() for values in (information, before, after)] for part in parts])
    gains = gain_db(means[:, 1], means[:, 2])
    return {
        "block_px": BLOCK_PX,
        "blocks": len(information),
        "rank_correlation": rank_correlation(information, before - after),
        "rank_correlation_relative": rank_correlation(information, relative),
        "groups": [{"information": float(m), "gain_db": float(g)} for m, g in zip(means[:, 0], gains, strict=True)],
    }


def enlarged(small: Float[np.ndarray, "h w"], height: int, width: int) -> Float[np.ndarray, "H W"]:
    """Repeat pixels to another size."""
    rows, columns = (
        ((np.arange(n) + 0.5) * m / n).astype(int) for n, m in zip((height, width), small.shape, strict=True)
    )
    return small[rows[:, None], columns]
