"""--compat sequence_matters: the released S and ALS against two independent statements, and each quirk by itself."""

import importlib.util
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from ordering.compat import (
    rank_of,
    released_als,
    released_centres,
    released_names,
    released_pose_cost,
    released_thresholds,
)
from ordering.paths import Call, chunks, greedy_path, nearest_first
from scene import load_scene
from tests.ordering import oracle
from tests.scene_factory import write_blender, write_colmap, write_transforms
from utils.errors import UserError


@st.composite
def problems(draw, largest=16):
    """(order, gate) with ties, unmeasured pairs, no symmetry."""
    n = draw(st.integers(1, largest))
    order = draw(hnp.arrays(float, (n, n), elements=st.sampled_from([1.0, 2.0, 3.0, 7.0, np.inf])))
    gate = draw(hnp.arrays(float, (n, n), elements=st.sampled_from([0.0, 10.0, 15.0, 29.0, 45.0, 80.0])))
    np.fill_diagonal(order, 0)
    np.fill_diagonal(gate, 0)
    return order, gate


def as_lists(calls):
    return [(list(call.frames), [call.frames[k] for k in call.save]) for call in calls]


def simple(order, longest):
    return chunks(greedy_path(nearest_first(order)), longest)


@pytest.fixture(scope="module")
def reference(data_dir):
    """The independent reference beside the development data."""
    path = data_dir.parent / "reference" / "ordering_oracle.py"
    if not path.is_file():
        pytest.skip(f"{path.name} is not beside the development data")
    spec = importlib.util.spec_from_file_location("ordering_oracle", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- S and ALS ---


@given(problems(), st.integers(1, 18))
@settings(max_examples=150, deadline=None)
def test_s_is_the_definition(problem, longest):
    assert as_lists(simple(problem[0], longest)) == oracle.simple_greedy(problem[0], longest)


@given(problems(), st.integers(1, 18), st.sampled_from([(15.0, 30.0, 45.0), (45.0,), (30.0, 30.0), (50.0, 10.0)]))
@settings(max_examples=150, deadline=None)
def test_als_is_the_definition(problem, longest, limits):
    found = released_als(*problem, limits, longest, empty_calls=True)
    assert as_lists(found) == oracle.adaptive(*problem, limits, longest)
    assert released_als(*problem, limits, longest) == [call for call in found if call.save]  # Q07: neutral


def test_s_and_als_equal_the_reference_call_for_call(reference):
    """450 random problems with ties and unmeasured pairs, S and ALS with both kinds of limits."""
    for seed in range(450):
        rng = np.random.default_rng(seed)
        n, longest = int(rng.integers(2, 24)), int(rng.integers(1, 12))
        order = rng.integers(1, 30, (n, n)).astype(float)
        order[rng.random((n, n)) < 0.1] = np.inf
        gate = rng.integers(0, 90, (n, n)).astype(float)
        np.fill_diagonal(order, 0)
        np.fill_diagonal(gate, 0)
        walk, expected = reference.s_schedule(order, longest)
        found = simple(order, longest)
        assert greedy_path(nearest_first(order)) == walk
        assert [(list(c.frames), list(c.save)) for c in found] == [(c.frames, c.save) for c in expected]
        for limit, limits in ((gate, (15.0, 30.0, 45.0)), (rank_of(gate), (5.0, 9.0, float(n)))):
            expected = reference.als_schedule(order, limit, limits, longest)
            found = released_als(order, limit, limits, longest, empty_calls=True)
            assert [(list(c.frames), list(c.save)) for c in found] == [(j.frames, j.save) for j in expected]


def test_the_worked_example_of_the_reference(reference):
    """Ten cameras on a ring, limits 15 30 45, at most 5 frames."""
    azimuth = np.radians([0, 12, 25, 31, 70, 84, 150, 158, 200, 310])
    height = np.radians([10, 14, 9, 20, 30, 22, 40, 33, 25, 12])
    flat = np.cos(height)
    centres = 4 * np.stack([np.cos(azimuth) * flat, np.sin(azimuth) * flat, np.sin(height)], axis=1)
    gate = released_pose_cost(centres)
    np.testing.assert_allclose(gate, reference.pose_angle_cost(centres), atol=1e-9)
    i, j = np.indices(gate.shape)
    order = np.round(40 + 0.2 * gate + (7 * i * j + 5 * (i + j)) % 23, 1)
    np.fill_diagonal(order, 0)
    assert greedy_path(nearest_first(order)) == reference.EXPECT_WALK
    found = released_als(order, gate, (15.0, 30.0, 45.0), 5, empty_calls=True)
    assert [(list(c.frames), list(c.save)) for c in found] == [(f, s) for _, _, f, s in reference.EXPECT_ALS]


@given(problems(), st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_als_invariants(problem, longest):
    order, gate = problem
    limits = (15.0, 30.0, 45.0)
    calls = released_als(order, gate, limits, longest)
    kept = [call.frames[k] for call in calls for k in call.save]
    assert sorted(kept) == list(range(len(order)))
    for call in calls:
        assert all(gate[a, b] <= limits[-1] for a, b in pairwise(call.frames))
        assert not call.padded  # Q02: only S doubles its ends


# --- quirks ---


def test_q04_ends_are_not_saved_before_the_final_pass_also_at_a_cut():
    n = 6
    order = np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(float)
    strict = released_als(order, order, (1.0, 99.0), 4)[0]
    assert strict == Call((0, 1, 2, 3), (1, 2))  # 3 is the cut of 0 1 2 3 4 5


def test_q05_pairs_wait_for_the_final_pass_and_q06_it_keeps_single_views():
    gate = np.full((3, 3), 90.0)
    gate[0, 1] = gate[1, 0] = 1.0
    np.fill_diagonal(gate, 0)
    order = np.array([[0.0, 1, 2], [1, 0, 2], [1, 2, 0]])
    assert released_als(order, gate, (15.0, 45.0), 100) == [Call((0, 1), (0, 1)), Call((2,), (0,))]


def test_q10_the_gate_is_strict_and_counts_the_view_itself():
    rank = rank_of(np.array([[0.0, 5, 5], [1, 0, 2], [9, 9, 0]]))
    np.testing.assert_array_equal(rank, [[0, 1, 2], [1, 0, 2], [1, 2, 0]])  # Q12: ties to the lower index
    order = np.array([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])
    assert released_als(order, order, (1.0,), 9)[0].frames == (0, 1, 2)  # a step of exactly the limit passes


def test_q11_colmap_scenes_get_a_pass_without_a_limit(tmp_path):
    blender, colmap = load_scene(write_blender(tmp_path / "b")), load_scene(write_colmap(tmp_path / "c"))
    assert released_thresholds((30.0, 50.0), blender, 9) == (30.0, 50.0)
    assert released_thresholds((30.0, 50.0), colmap, 9) == (30.0, 50.0, 9.0)


def test_q13_a_view_without_features_comes_last():
    order = np.array([[0, np.inf, 1.0], [np.inf, 0, np.inf], [1.0, np.inf, 0]])
    assert greedy_path(nearest_first(order)) == [0, 2, 1]


def test_q14_a_camera_at_the_origin_sorts_last_and_passes_every_limit():
    angles = released_pose_cost(np.array([[1.0, 0, 0], [0, 0, 0], [1, 0.1, 0]]))
    assert np.isnan(angles[0, 1])
    assert angles[0, 2] == pytest.approx(np.degrees(np.arctan(0.1)))
    assert greedy_path(nearest_first(angles), 0, angles, 1.0) == [0]
    assert greedy_path(nearest_first(angles), 0, angles, 50.0) == [0, 2, 1]


def test_q15_colmap_poses_are_taken_by_id_with_a_warning(tmp_path, capsys):
    """Ids 1 .. N in another order than the names: the release mixes the poses up, and so does compat."""
    root = write_colmap(tmp_path, views=3)
    data = (root / "sparse/0/images.bin").read_bytes()
    for old, new in ((3, 102), (6, 101), (9, 103)):
        data = _with_id(data, old, new)
    for temporary, final in ((102, 2), (101, 1), (103, 3)):
        data = _with_id(data, temporary, final)
    (root / "sparse/0/images.bin").write_bytes(data)
    scene = load_scene(root, eval=False)
    names = released_names(scene)
    centres = released_centres(scene, names)
    expected = [scene.cameras[names[k]].centre for k in (1, 0, 2)]
    np.testing.assert_allclose(centres, expected, atol=1e-6)
    assert centres.dtype == np.float32
    assert "2 of 3 views are ordered by the pose of another view" in capsys.readouterr().err


def _with_id(data, old, new):
    """images.bin with one image id replaced, by walking its records."""
    import struct

    out, at = bytearray(data), 8
    for _ in range(struct.unpack_from("<Q", data)[0]):
        if struct.unpack_from("<i", data, at)[0] == old:
            struct.pack_into("<i", out, at, new)
        at = data.index(b"\0", at + 64) + 1
        at += 8 + 24 * struct.unpack_from("<Q", data, at)[0]
    return bytes(out)


def test_q15_ids_with_gaps_stop_with_a_message(tmp_path):
    scene = load_scene(write_colmap(tmp_path))  # ids 3, 6, 9, ...
    with pytest.raises(UserError, match="image_id 1, which is not there"):
        released_centres(scene, released_names(scene))


def test_q16_names_are_sorted_by_all_their_digits_and_maps_are_passed_over(tmp_path):
    root = write_blender(tmp_path, views=3)
    text = (root / "transforms_train.json").read_text()
    for old, new in (("r_0", "v2_10"), ("r_1", "v1_5"), ("r_2", "depth_1")):
        (root / f"train/{old}.png").rename(root / f"train/{new}.png")
        text = text.replace(f"train/{old}", f"train/{new}")
    (root / "transforms_train.json").write_text(text)
    assert released_names(load_scene(root)) == ["train/v1_5", "train/v2_10"]  # 15 before 210


def test_q16_a_name_without_digits_stops_with_a_message(tmp_path):
    root = write_transforms(tmp_path, views=2)
    (root / "images/frame_000.png").rename(root / "images/front.png")
    path = root / "transforms.json"
    path.write_text(path.read_text().replace("frame_000", "front"))
    with pytest.raises(UserError, match="no digit"):
        released_names(load_scene(root))


def test_q17_test_views_of_colmap_scenes_take_part(tmp_path):
    colmap = load_scene(write_colmap(tmp_path / "c"))
    assert sorted(released_names(colmap)) == sorted([*colmap.train, *colmap.test])
    blender = load_scene(write_blender(tmp_path / "b"))
    assert released_names(blender) == blender.train


def test_q33_images_are_composed_with_truncation(tmp_path):
    root = write_blender(tmp_path, views=1)
    Image.new("RGBA", (32, 32), (255, 100, 3, 128)).save(root / "train/r_0.png")
    released = load_scene(root, compat="sequence_matters").images.load("train/r_0")[:, 0, 0] * 255
    np.testing.assert_allclose(released, np.floor(np.array([255, 100, 3]) * 128 / 255), atol=1e-4)
