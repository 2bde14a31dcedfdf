"""The published numbers of the orderings on the 100 real lego views.

The reference numbers belong to views that were composited on black and *truncated* to 8 bit. HR truth is here for 25 of
the 100 views only, so those LR views cannot be made; ours are the *rounded* RGBA set, composited on black. ORB orders
are chaotic (half a grey level reorders a fifth of a walk, and a last bit of OpenCV's arithmetic may do the same), so
what depends on ORB is asserted within a range that holds the reference and what this set gives (stated in each test);
that S and ALS are exact is shown in test_compat.py. What depends on poses alone is the reference's number.
"""

import time
from itertools import pairwise

import numpy as np
import pytest

from arguments.ordering import OrderingParams
from ordering import build
from ordering.compat import rank_of, released_als, released_centres, released_pose_cost
from ordering.costs import measured
from ordering.paths import als_calls, greedy_path, nearest_first
from ordering.tour import tour_path
from scene import load_scene

BLACK = (0.0, 0.0, 0.0)


@pytest.fixture(scope="module")
def scene(data_dir):
    lego = data_dir / "nerf_synthetic_lego"
    return load_scene(lego / "lr_200", hr_root=lego / "hr_800")


@pytest.fixture(scope="module")
def angles(scene):
    return measured("pose", scene, scene.train, BLACK)


@pytest.fixture(scope="module")
def orb_and_seconds(scene):
    begin = time.process_time()
    return measured("orb", scene, scene.train, BLACK), time.process_time() - begin


@pytest.fixture(scope="module")
def orb(orb_and_seconds):
    return orb_and_seconds[0]


def steps(cost, path):
    return np.array([cost[a, b] for a, b in pairwise(path)])


def test_all_pairs_of_100_views_take_less_than_12_cpu_seconds(orb_and_seconds):
    """ORB included; 5.4 on a busy core. All threads' time counts, so waiting for a core does not."""
    assert orb_and_seconds[1] < 12


def test_orb_costs_have_the_known_range(orb):
    """Reference (truncated): min 16.8, median 60.9, max 68.2."""
    pairs = orb[np.triu_indices(100, 1)]
    np.testing.assert_array_equal(orb, orb.T)
    np.testing.assert_allclose([pairs.min(), np.median(pairs), pairs.max()], [16.8, 60.9, 68.2], atol=1.0)


def test_own_centre_agrees_with_the_origin_where_cameras_look_at_it(scene, angles):
    """On lego the paper's angle about the world's origin and ours about the scene's centre are the same."""
    released = released_pose_cost(released_centres(scene, scene.train))
    np.testing.assert_allclose(angles, released, atol=1e-4)
    nearest = np.sort(angles, axis=1)[:, 1]
    np.testing.assert_allclose([np.median(nearest), nearest.max()], [6.4, 15.7], atol=0.1)  # reference: 6.4, 15.7


def test_orb_and_angle_are_as_loosely_related_as_known(orb, angles):
    upper = np.triu_indices(100, 1)
    assert np.corrcoef(orb[upper], angles[upper])[0, 1] == pytest.approx(0.34, abs=0.03)  # reference: 0.34


def test_simple_greedy_jumps(orb, angles):
    """Reference (truncated): 7 steps over 45 degrees, mean 16.5, worst 152; over all starts 4-9, median 6.

    On this set: 7, mean 15.3, worst 152.2; over all starts 3-8, median 6.
    """
    found = steps(angles, greedy_path(nearest_first(orb)))
    assert 4 <= (found > 45).sum() <= 9
    assert found.mean() == pytest.approx(16.0, abs=1.5)
    assert found.max() > 90
    jumps = [(steps(angles, greedy_path(nearest_first(orb), start)) > 45).sum() for start in range(100)]
    assert np.median(jumps) == pytest.approx(6, abs=1)
    assert max(jumps) <= 10


def test_tour_has_no_jumps_left(angles):
    """Reference (2-opt, Or-opt): mean 10.1, worst 26.5 degrees. Ours is a little shorter."""
    found = steps(angles, tour_path(angles))
    assert found.mean() == pytest.approx(9.84, abs=0.02)
    assert found.max() == pytest.approx(26.54, abs=0.02)


@pytest.mark.parametrize(
    ("limits", "longest", "calls", "empty", "frames"),
    [  # reference (truncated)
        ((15.0, 30.0, 45.0), 100, 111, 70, 2090),  # on this set 124 calls, 80 empty, 2,301 frames
        ((45.0,), 100, 13, 0, 381),  # 15, none empty, 403
        ((15.0, 30.0, 45.0), 8, 91, 37, 519),  # 95, 40 empty, 541
    ],
)
def test_released_als_calls(orb, angles, limits, longest, calls, empty, frames):
    found = released_als(orb, angles, limits, longest, empty_calls=True)
    assert len(found) == pytest.approx(calls, rel=0.25)
    assert sum(not call.save for call in found) == pytest.approx(empty, rel=0.25)
    assert sum(len(call.frames) for call in found) == pytest.approx(frames, rel=0.25)


def test_released_als_with_mip_nerf_360_settings(orb, angles):
    """Order by pose, limits as ORB ranks 30, 50, N, at most 8.

    Reference (truncated): 41 calls, 328 frames, 6 empty; on this set 42, 336, 7.
    """
    found = released_als(angles, rank_of(orb), (30.0, 50.0, 100.0), 8, empty_calls=True)
    assert len(found) == pytest.approx(41, abs=4)
    assert sum(len(call.frames) for call in found) == pytest.approx(328, abs=32)
    assert sum(not call.save for call in found) == pytest.approx(6, abs=3)


def test_our_als_keeps_the_limits_for_a_fraction_of_the_frames(orb, angles):
    """25 calls and 308 frames where the release makes 124 and 2,301; no step over 30 degrees."""
    calls = als_calls(orb, angles, (15.0, 30.0, 45.0), 100)
    assert sorted(call.frames[k] for call in calls for k in call.save) == list(range(100))
    assert sum(len(call.frames) for call in calls) < 400
    assert max(steps(angles, call.frames).max() for call in calls) < 30


def test_the_default_is_the_tour(scene):
    sequences = build(scene, OrderingParams())
    assert sequences.summary()["worst_step_deg"] == pytest.approx(26.54, abs=0.02)
    assert len(sequences.subsequences) == 1
