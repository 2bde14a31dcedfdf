"""Viewing axes, the point that cameras look at, and angles about it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from scene.angles import angles_deg, pose_angles, scene_centre


def looking_at(target, centres):
    forward = np.asarray(target) - centres
    return forward / np.linalg.norm(forward, axis=1, keepdims=True)


def ring(n, radius=4.0, seed=0):
    rng = np.random.default_rng(seed)
    azimuth, height = np.sort(rng.uniform(0, 2 * np.pi, n)), rng.uniform(0.5, 2.0, n)
    return np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth), height], axis=1)


def rotation(seed):
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((3, 3)))[0]


@given(st.integers(0, 50), st.floats(0.1, 100), hnp.arrays(float, 3, elements=st.floats(-50, 50)))
@settings(max_examples=30, deadline=None)
def test_pose_angles_do_not_depend_on_the_world_frame(seed, scale, shift):
    """The reason for the scene's own centre: COLMAP's origin, orientation and unit are arbitrary."""
    centres = ring(9, seed=seed)
    forward = looking_at([0.1, -0.2, 0.3], centres) + 0.02 * np.random.default_rng(seed).standard_normal((9, 3))
    forward /= np.linalg.norm(forward, axis=1, keepdims=True)
    turn = rotation(seed)
    moved = pose_angles(scale * centres @ turn.T + shift, forward @ turn.T)
    np.testing.assert_allclose(moved, pose_angles(centres, forward), atol=1e-3)


@given(hnp.arrays(float, (6, 3), elements=st.sampled_from([-1.0, 0.0, 0.5, 2.0])))
@settings(max_examples=40, deadline=None)
def test_angles_are_the_definition(vectors):
    found = angles_deg(vectors)
    for i in range(6):
        for j in range(6):
            a, b = vectors[i], vectors[j]
            lengths = np.linalg.norm(a) * np.linalg.norm(b)
            expected = 0.0 if i == j else np.degrees(np.arccos(np.clip(a @ b / lengths, -1, 1))) if lengths else np.inf
            assert found[i, j] == pytest.approx(expected, abs=1e-5)
    np.testing.assert_array_equal(found, found.T)


def test_centre_is_what_the_cameras_look_at_and_strays_are_outvoted():
    target = np.array([0.3, -0.4, 0.2])
    centres = ring(20)
    forward = looking_at(target, centres)
    np.testing.assert_allclose(scene_centre(centres, forward), target, atol=1e-6)
    forward[3] = looking_at([5.0, 5.0, 5.0], centres[3:4])[0]  # one camera looks elsewhere
    assert np.linalg.norm(scene_centre(centres, forward) - target) < 0.05


def test_parallel_cameras_get_a_centre_ahead_of_them():
    """A forward-facing capture: no meeting point, but neighbours must still be nearer than far ones."""
    x = np.arange(5.0)
    centres = np.stack([x, 0 * x, 0 * x], axis=1)
    angles = pose_angles(centres, np.tile([0.0, 0.0, 1.0], (5, 1)))
    assert np.all(np.diff(angles[0]) > 0)
    assert np.isfinite(angles).all()


def test_cameras_that_look_outwards_are_compared_by_direction():
    azimuth = np.radians([0.0, 90.0, 180.0, 270.0])
    forward = np.stack([np.cos(azimuth), np.sin(azimuth), 0 * azimuth], axis=1)
    angles = pose_angles(0.1 * forward, forward)
    np.testing.assert_allclose(angles[0], [0, 90, 180, 90], atol=1e-5)
