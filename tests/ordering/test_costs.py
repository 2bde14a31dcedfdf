"""Costs between views: each against its definition in plain loops, and what must not change them."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arguments import ordering as flags
from ordering.costs import (
    COSTS,
    cost,
    distances,
    measured,
    mutual_mean_hamming,
    orb_descriptors,
    unshared,
)
from scene import load_scene
from scene.angles import viewing_axes
from tests.scene_factory import write_blender, write_colmap
from utils.errors import UserError

BLACK = (0.0, 0.0, 0.0)


# --- registry ---


def test_flags_and_registry_name_the_same_costs():
    assert tuple(COSTS) == flags.COSTS


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="twice"):
        cost("pose", unit="deg")(lambda scene, names, background: None)


def test_unknown_cost_is_refused(tmp_path):
    scene = load_scene(write_blender(tmp_path))
    with pytest.raises(UserError, match="there are pose, distance"):
        measured("lpips", scene, scene.train, BLACK)


# --- cameras ---


def test_distances_and_axes_of_a_scene(tmp_path):
    scene = load_scene(write_blender(tmp_path, views=6))
    centres, forward = viewing_axes(scene, scene.train)
    np.testing.assert_allclose(np.einsum("ni,ni->n", centres, forward), -4.0311, atol=1e-6)  # they look at the origin
    found = measured("distance", scene, scene.train, BLACK)
    assert found[1, 4] == pytest.approx(np.linalg.norm(centres[1] - centres[4]))
    np.testing.assert_allclose(found, distances(centres))


# --- ORB ---


def mutual_mean_by_definition(a, b):
    """Brute force with cross-check in plain loops; the lowest index wins ties."""

    def distance(p, q):
        return sum(bin(int(x) ^ int(y)).count("1") for x, y in zip(p, q, strict=True))

    table = [[distance(p, q) for q in b] for p in a]
    if not len(a) or not len(b):
        return np.inf
    best_of_a = [row.index(min(row)) for row in table]
    columns = [[row[j] for row in table] for j in range(len(b))]
    best_of_b = [column.index(min(column)) for column in columns]
    kept = [table[i][j] for i, j in enumerate(best_of_a) if best_of_b[j] == i]
    return sum(kept) / len(kept)


# few distinct words, so that equal distances are common; all-zero against all-one is the largest distance, 256
WORDS = st.sampled_from([0, 2**64 - 1, 1, 3, 2**63, 0xFFFF])
VIEWS = st.lists(
    hnp.arrays(np.uint64, st.tuples(st.integers(0, 6), st.just(4)), elements=WORDS), min_size=1, max_size=4
)


@given(VIEWS)
@settings(max_examples=80, deadline=None)
def test_mutual_mean_hamming_is_the_definition(views):
    found = mutual_mean_hamming(views)
    np.testing.assert_array_equal(found, found.T)
    for i, a in enumerate(views):
        for j, b in enumerate(views):
            expected = 0.0 if i == j else mutual_mean_by_definition(a, b)
            assert found[i, j] == pytest.approx(expected)


def test_mutual_mean_hamming_equals_opencv():
    """Cross-checked brute force of OpenCV on real descriptors of noise pictures."""
    import cv2

    rng = np.random.default_rng(0)
    base = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    images = [cv2.resize(base, (160, 160)), cv2.resize(base[:, 2:], (160, 160)), cv2.resize(base[3:], (160, 160))]
    found = [orb_descriptors(image) for image in images]
    assert min(map(len, found)) > 50
    matrix = mutual_mean_hamming([d.view(np.uint64) for d in found])
    matcher = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True)
    for i in range(3):
        for j in range(3):
            if i != j:
                expected = np.mean([m.distance for m in matcher.match(found[i], found[j])])
                assert matrix[i, j] == pytest.approx(expected, abs=1e-5)


def test_a_picture_without_features_is_not_measurable():
    flat = orb_descriptors(np.full((64, 64, 3), 90, np.uint8))
    assert flat.shape == (0, 32)
    other = np.ones((5, 4), np.uint64)
    np.testing.assert_array_equal(mutual_mean_hamming([flat.view(np.uint64), other]), [[0, np.inf], [np.inf, 0]])


def test_orb_sees_the_background(tmp_path):
    """RGBA frames are composed before ORB; on white the disc of the test scene has other corners than on black."""
    scene = load_scene(write_blender(tmp_path, views=4, size=96))
    black, white = (measured("orb", scene, scene.train, b) for b in (BLACK, (1.0, 1.0, 1.0)))
    assert not np.array_equal(black, white)


# --- tracks ---


@given(st.lists(st.sets(st.integers(0, 7)), min_size=1, max_size=5))
@settings(max_examples=50, deadline=None)
def test_unshared_is_the_definition(seen):
    shared = np.array([[len(a & b) for b in seen] for a in seen])
    found = unshared(shared)
    for i, a in enumerate(seen):
        for j, b in enumerate(seen):
            expected = 0.0 if i == j else 1 - len(a & b) / len(a | b) if a and b else np.inf
            assert found[i, j] == pytest.approx(expected)


def test_covisibility_of_a_scene_and_without_tracks(tmp_path):
    scene = load_scene(write_colmap(tmp_path / "colmap"))
    found = measured("covisibility", scene, scene.train, BLACK)
    even, odd = scene.train[1], scene.train[0]  # view_002 and view_001: each sees every second point
    assert found[scene.train.index(even), scene.train.index(odd)] == 1.0
    blender = load_scene(write_blender(tmp_path / "blender"))
    with pytest.raises(UserError, match="needs COLMAP tracks"):
        measured("covisibility", blender, blender.train, BLACK)


def test_every_cost_gives_a_matrix_without_nan(tmp_path):
    scene = load_scene(write_colmap(tmp_path, size=(96, 64)))
    for name in COSTS:
        found = measured(name, scene, scene.train, BLACK)
        assert found.shape == (len(scene.train),) * 2
        assert not np.isnan(found).any()
        np.testing.assert_array_equal(np.diag(found), 0)
        np.testing.assert_allclose(found, found.T)
