"""Initial points from silhouettes: the surface of the visual hull, coloured from the views that face it.

100,000 random points in a box start a thousand deep behind every pixel, which a GPU digests and a CPU does not. Points
on the hull start where the object can be. Letters: V views, n points, r voxels a side.
"""

import numpy as np
from jaxtyping import Bool, Float, Shaped
from scipy.ndimage import binary_erosion, gaussian_filter

from scene import Scene
from scene.points import RANDOM_HALF_EXTENT, PointCloud
from utils.errors import UserError

POINTS = 50_000
RESOLUTION = 128
OPAQUE = 0.5  # alpha from which a pixel belongs to the object


def hull_points(scene: Scene, n: int = POINTS, resolution: int = RESOLUTION, seed: int = 0) -> PointCloud:
    """Points on the surface of the visual hull of the training views.

    Parameters
    ----------
    scene : views with alpha, around the box [-1.3, 1.3]^3 of NeRF-synthetic scenes.
    n : number of points, drawn uniformly from the surface voxels and jittered inside them.
    resolution : voxels a side.

    Returns
    -------
    n coloured points.

    Raises
    ------
    UserError : a training view has no alpha, or nothing lies in all silhouettes.

    Notes
    -----
    Laurentini, "The Visual Hull Concept for Silhouette-Based Image Understanding", PAMI 1994. O(V r^3) at worst; the
    views carve one after the other, so that most voxels meet only a few of them. Colours are means over the views,
    weighted by the squared cosine between the surface's normal and the direction of view, without occlusion.
    """
    opaque = next((name for name in scene.train if not scene.images.has_alpha(name)), None)
    if opaque is not None:
        raise UserError(f"{scene.root}: view {opaque} has no alpha, so it has no silhouette; use --init_points scene")
    inside = _carved(scene, resolution)
    surface = inside & ~binary_erosion(inside)
    if not surface.any():
        raise UserError(f"{scene.root}: nothing in [-1.3, 1.3]^3 lies in all silhouettes; use --init_points scene")
    voxels = np.argwhere(surface)
    draw = np.random.default_rng(seed)
    chosen = voxels[draw.integers(len(voxels), size=n)]
    xyz = _centres(chosen + draw.uniform(-0.5, 0.5, chosen.shape), resolution)
    slopes = np.stack(np.gradient(gaussian_filter(inside.astype(np.float32), 1.5)), axis=-1)
    normals = -slopes[tuple(chosen.T)]
    return PointCloud(xyz.astype(np.float32), _colours(scene, xyz, normals))


def _centres(index: Shaped[np.ndarray, "P 3"], resolution: int) -> Float[np.ndarray, "P 3"]:
    """World positions of (fractional) voxel indices."""
    return (index + 0.5) * (2.0 * RANDOM_HALF_EXTENT / resolution) - RANDOM_HALF_EXTENT


def _carved(scene: Scene, resolution: int) -> Bool[np.ndarray, "r r r"]:
    """Voxels whose centre no view sees beside the object; what a view does not see, it does not carve."""
    index = np.indices((resolution,) * 3).reshape(3, -1).T
    xyz = _centres(index, resolution)
    for name in scene.train:
        rows, columns, seen = _pixels(scene, name, xyz)
        keep = ~seen
        keep[seen] = scene.images.raw(name)[rows, columns, 3] >= OPAQUE * 255
        index, xyz = index[keep], xyz[keep]
    inside = np.zeros((resolution,) * 3, bool)
    inside[tuple(index.T)] = True
    return inside


def _pixels(scene: Scene, name: str, xyz: Float[np.ndarray, "P 3"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, columns) of the points in the image of `name`, and which of the P points those are."""
    camera = scene.cameras[name]
    local = xyz @ camera.world_to_camera[:3, :3].T + camera.world_to_camera[:3, 3]
    depth = np.maximum(local[:, 2], 1e-9)
    column = np.floor(camera.fx * local[:, 0] / depth + camera.cx)
    row = np.floor(camera.fy * local[:, 1] / depth + camera.cy)
    seen = (local[:, 2] > 0) & (column >= 0) & (column < camera.width) & (row >= 0) & (row < camera.height)
    return row[seen].astype(int), column[seen].astype(int), seen


def _colours(scene: Scene, xyz: Float[np.ndarray, "n 3"], normals: Float[np.ndarray, "n 3"]) -> np.ndarray:
    """uint8 [n, 3]: means over the views that face each point."""
    total, weights = np.zeros((len(xyz), 3)), np.full((len(xyz), 1), 1e-12)
    for name in scene.train:
        rows, columns, seen = _pixels(scene, name, xyz)
        towards = scene.cameras[name].centre - xyz[seen]
        towards /= np.linalg.norm(towards, axis=1, keepdims=True)
        facing = np.maximum((towards * normals[seen]).sum(axis=1, keepdims=True), 0.0)
        weight = facing * facing / np.maximum((normals[seen] ** 2).sum(axis=1, keepdims=True), 1e-12)
        total[seen] += weight * scene.images.raw(name)[rows, columns, :3]
        weights[seen] += weight
    return np.rint((total / weights).clip(0, 255)).astype(np.uint8)
