"""The visual hull of a ball is a ball: points lie on it, in its colours; without alpha there is none."""

import numpy as np
import pytest

from scene import load_scene
from scene.hull import hull_points
from scene.image_files import write_png
from tests import scene_factory
from utils.errors import UserError

RADIUS = 0.7


@pytest.fixture(scope="module")
def ball(tmp_path_factory):
    """24 views of an opaque ball at the origin: red where x > 0, green elsewhere."""
    root = scene_factory.write_blender(tmp_path_factory.mktemp("ball"), views=24, size=96)
    scene = load_scene(root, eval=True)
    for name in scene.train:
        camera = scene.cameras[name]
        y, x = np.mgrid[: camera.height, : camera.width] + 0.5
        rays = np.stack([(x - camera.cx) / camera.fx, (y - camera.cy) / camera.fy, np.ones_like(x)], axis=2)
        rays = rays / np.linalg.norm(rays, axis=2, keepdims=True) @ camera.world_to_camera[:3, :3]
        along = -(rays @ camera.centre)
        missed = camera.centre @ camera.centre - along**2
        depth = along - np.sqrt(np.maximum(RADIUS**2 - missed, 0))
        red = (camera.centre + rays * depth[..., None])[..., 0] > 0
        rgba = np.zeros((camera.height, camera.width, 4), np.uint8)
        rgba[missed < RADIUS**2] = (0, 255, 0, 255)
        rgba[(missed < RADIUS**2) & red] = (255, 0, 0, 255)
        write_png(root / f"{name}.png", rgba)
    return load_scene(root, eval=True)


def test_points_lie_on_the_hull_and_not_inside(ball):
    cloud = hull_points(ball, n=5000, resolution=64)
    distance = np.linalg.norm(cloud.xyz, axis=1)
    voxel = 2.6 / 64
    assert cloud.xyz.shape == cloud.rgb.shape == (5000, 3)
    assert distance.min() > RADIUS - 2.5 * voxel
    # From 24 cameras above the ball its hull is a little larger than the ball, most of all below.
    assert np.median(distance[cloud.xyz[:, 2] > 0]) < RADIUS + voxel


def test_points_have_the_colours_of_the_side_that_they_are_on(ball):
    cloud = hull_points(ball, n=5000, resolution=64)
    clear = (np.abs(cloud.xyz[:, 0]) > 0.25) & (cloud.xyz[:, 2] > 0)
    red = cloud.rgb[:, 0].astype(int) > cloud.rgb[:, 1]
    assert (red == (cloud.xyz[:, 0] > 0))[clear].mean() > 0.98


def test_the_same_seed_gives_the_same_points(ball):
    a, b, c = (hull_points(ball, n=50, resolution=32, seed=seed).xyz for seed in (0, 0, 1))
    assert np.array_equal(a, b)
    assert not np.array_equal(a, c)


def test_without_alpha_or_object_it_is_refused(tmp_path):
    opaque = scene_factory.write_blender(tmp_path / "opaque", rgba=False)
    with pytest.raises(UserError, match="has no alpha"):
        hull_points(load_scene(opaque))
    empty = scene_factory.write_blender(tmp_path / "empty")
    for path in (empty / "train").iterdir():
        write_png(path, np.zeros((32, 32, 4), np.uint8))
    with pytest.raises(UserError, match="nothing in"):
        hull_points(load_scene(empty, eval=True), resolution=16)
