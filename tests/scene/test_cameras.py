"""Cameras: conversions into the one convention, and what is refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from scene.cameras import (
    Camera,
    intrinsics,
    rotation_from_quaternion,
    world_to_camera_from,
    world_to_camera_from_opengl,
)
from tests.scene_factory import opengl_poses, quaternion, world_to_camera
from utils.errors import UserError

FINITE = st.floats(-10, 10, allow_nan=False)


def some_camera() -> Camera:
    pose = world_to_camera_from_opengl(opengl_poses(3)[1].tolist(), "here")
    return Camera("train/r_0", 80, 60, intrinsics(70.0, 71.0, 41.5, 29.25), pose)


def test_opengl_pose_is_the_inverse_with_y_and_z_turned():
    for pose in opengl_poses(5):
        assert np.allclose(world_to_camera_from_opengl(pose.tolist(), "here"), world_to_camera(pose), atol=1e-12)


def test_camera_looks_along_positive_z_at_the_origin():
    for pose in opengl_poses(5):
        x, y, z, _ = world_to_camera_from_opengl(pose.tolist(), "here") @ [0, 0, 0, 1]
        assert abs(x) < 1e-9
        assert abs(y) < 1e-9
        assert z == pytest.approx(4.0311)


def test_up_in_the_world_is_up_in_the_image():
    pose = world_to_camera_from_opengl(opengl_poses(5)[2].tolist(), "here")
    assert (pose @ [0, 0, 1, 1])[1] < (pose @ [0, 0, 0, 1])[1]  # y points down in the image


@given(st.tuples(FINITE, FINITE, FINITE, FINITE).filter(lambda q: np.linalg.norm(q) > 1e-3))
def test_quaternion_rotation_agrees_with_scipy(q):
    w, x, y, z = q
    assert np.allclose(rotation_from_quaternion(q, "here"), Rotation.from_quat([x, y, z, w]).as_matrix(), atol=1e-12)


def test_factory_quaternion_round_trip():
    for pose in opengl_poses(7):
        R = world_to_camera(pose)[:3, :3]
        assert np.allclose(rotation_from_quaternion(quaternion(R).tolist(), "here"), R, atol=1e-12)


def test_resized_camera_sees_the_same_relative_position():
    camera = some_camera()
    small = camera.resized(20, 15)
    point = camera.world_to_camera @ [0.3, 0.2, 0.1, 1.0]
    large_px = camera.K @ point[:3] / point[2]
    small_px = small.K @ point[:3] / point[2]
    assert small_px[:2] / [20, 15] == pytest.approx(large_px[:2] / [80, 60])
    assert (small.fov_x, small.fov_y) == pytest.approx((camera.fov_x, camera.fov_y))


def test_resized_uses_actual_sizes_of_both_sides():
    half = some_camera().resized(33, 29)
    assert half.K[0] == pytest.approx(some_camera().K[0] * 33 / 80)
    assert half.K[1] == pytest.approx(some_camera().K[1] * 29 / 60)


def test_json_entry_holds_centre_and_camera_to_world():
    camera = some_camera()
    entry = camera.to_json(4)
    assert list(entry) == ["id", "img_name", "width", "height", "position", "rotation", "fy", "fx"]
    rebuilt = world_to_camera_from(np.array(entry["rotation"]).T, -np.array(entry["rotation"]).T @ entry["position"])
    assert np.allclose(rebuilt, camera.world_to_camera)


def test_three_rows_are_accepted_only_where_allowed():
    rows = opengl_poses(1)[0][:3].tolist()
    assert world_to_camera_from_opengl(rows, "here", allow_3x4=True).shape == (4, 4)
    with pytest.raises(UserError, match="here: transform_matrix is 3x4"):
        world_to_camera_from_opengl(rows, "here")


def scaled(pose):
    pose[:3, :3] *= 0.5
    return pose


def mirrored(pose):
    pose[:3, 0] *= -1
    return pose


def sheared(pose):
    pose[0, 1] += 0.01
    return pose


def nan(pose):
    pose[1, 3] = np.nan
    return pose


def bad_last_row(pose):
    pose[3] = [0, 0, 1, 0]
    return pose


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (scaled, "scaled by 0.5"),
        (mirrored, "mirrored"),
        (sheared, "not orthonormal"),
        (nan, "not finite"),
        (bad_last_row, "last row"),
    ],
)
def test_bad_poses_name_the_frame(spoil, message):
    with pytest.raises(UserError, match=f"frame 3.*{message}"):
        world_to_camera_from_opengl(spoil(opengl_poses(1)[0]).tolist(), "frame 3")


@pytest.mark.parametrize("q", [(0.0, 0.0, 0.0, 0.0), (float("nan"), 0.0, 0.0, 1.0), (1e300, 1e300, 0.0, 0.0)])
def test_bad_quaternions_are_refused(q):
    with pytest.raises(UserError, match="quaternion"):
        rotation_from_quaternion(q, "here")
