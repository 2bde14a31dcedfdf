"""What both halves of simple-knn compute, one by one: distances never too large, orders kept, codes interleaved."""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

HEADERS = Path(__file__).resolve().parents[2] / "submodules" / "simple-knn" / "csrc"
SOURCE = Path(__file__).with_name("knn_geometry.cpp")
VALUES = st.one_of(st.sampled_from([0.0, -0.0, 1.0, -2.5, 1e-30, 3e38]), st.floats(-100, 100, width=32))
POINT = st.tuples(VALUES, VALUES, VALUES)
Result = dict[str, Callable[..., Any]]


@pytest.fixture(scope="module")
def geometry(tmp_path_factory: pytest.TempPathFactory) -> Result:
    if not shutil.which("g++"):
        pytest.skip("g++ is needed")
    library = tmp_path_factory.mktemp("knn") / "geometry.so"
    flags = [
        "-std=c++17",
        "-O1",
        "-ffp-contract=off",
        "-shared",
        "-fPIC",
        "-Wall",
        "-Wextra",
        "-Wconversion",
        "-Werror",
    ]
    subprocess.run(["g++", *flags, f"-I{HEADERS}", SOURCE, "-o", library], check=True)
    native = ctypes.CDLL(str(library))
    kinds = {"point_to_box": ctypes.c_float, "box_to_box": ctypes.c_float, "between_points": ctypes.c_float}
    kinds |= {"insert_into": None, "add_codes": None, "mean": ctypes.c_float, "shift": ctypes.c_int}
    kinds |= {"spread": ctypes.c_uint64, "ordered": ctypes.c_uint32, "rank": ctypes.c_uint32}
    for name, kind in kinds.items():
        getattr(native, name).restype = kind
    return {name: getattr(native, name) for name in kinds}


def floats(values: Any) -> Any:
    array = np.asarray(values, np.float32).ravel()
    return (ctypes.c_float * array.size)(*array)


def box_around(points: np.ndarray) -> np.ndarray:
    return np.concatenate([points.min(0), points.max(0)])


@settings(derandomize=True, deadline=None)
@given(st.lists(POINT, min_size=1, max_size=6), st.lists(POINT, min_size=1, max_size=6))
def test_boxes_are_never_further_than_what_is_inside(geometry: Result, ours: list, theirs: list) -> None:
    """In float32, to the last bit: otherwise pruning could skip a neighbour."""
    a, b = (np.array(points, np.float32) for points in (ours, theirs))
    box_a, box_b = floats(box_around(a)), floats(box_around(b))
    between = geometry["box_to_box"](box_a, box_b)
    for p in a:
        to_box = geometry["point_to_box"](box_b, floats(p))
        assert between <= to_box
        assert all(to_box <= geometry["between_points"](floats(p), floats(q)) for q in b)


@pytest.mark.parametrize("point", [(0.5, 0.5, 0.5), (0, 0, 0), (1, 0.25, 1)])
def test_points_inside_a_box_are_at_distance_zero(geometry: Result, point: tuple[float, ...]) -> None:
    assert geometry["point_to_box"](floats([0, 0, 0, 1, 1, 1]), floats(point)) == 0


def test_distances_outside_a_box(geometry: Result) -> None:
    box = floats([0, 0, 0, 1, 2, 3])
    assert geometry["point_to_box"](box, floats([-2, 1, 1])) == 4
    assert geometry["point_to_box"](box, floats([3, 4, 5])) == 4 + 4 + 4
    assert geometry["box_to_box"](box, floats([2, -4, 1, 5, -1, 2])) == 1 + 1
    assert geometry["box_to_box"](floats([2, -4, 1, 5, -1, 2]), box) == 1 + 1


@settings(derandomize=True, deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, 1.5, 7.0, np.inf]), max_size=8))
def test_the_three_smallest_stay(geometry: Result, distances: list[float]) -> None:
    three = floats([np.inf] * 3)
    for d in distances:
        geometry["insert_into"](ctypes.c_float(d), three)
    assert list(three) == sorted([*distances, np.inf, np.inf, np.inf])[:3]


def test_the_mean_is_of_the_neighbours_there_are(geometry: Result) -> None:
    three = floats([1, 3, 8])
    assert [geometry["mean"](three, n) for n in range(4)] == [0, 1, 2, 4]


@given(st.integers(0, 2**21 - 1))
def test_bits_are_spread_to_every_third_place(geometry: Result, value: int) -> None:
    expected = sum((value >> k & 1) << 3 * k for k in range(21))
    assert geometry["spread"](value) == expected
    assert geometry["spread"](value | 1 << 21 | 1 << 31) == expected  # only 21 of them


@given(VALUES, VALUES)
def test_bits_are_ordered_as_the_numbers(geometry: Result, a: float, b: float) -> None:
    bits = [geometry["ordered"](ctypes.c_float(v)) for v in (a, b)]
    x, y = np.float32(a), np.float32(b)
    assert (bits[0] < bits[1], bits[0] == bits[1]) == (x < y, x == y)


@given(st.lists(st.integers(0, 9), max_size=20), st.integers(0, 10))
def test_the_rank_is_how_many_are_below(geometry: Result, values: list[int], value: int) -> None:
    ascending = (ctypes.c_uint32 * len(values))(*sorted(values))
    assert geometry["rank"](value, ascending, len(values)) == sum(v < value for v in values)


@pytest.mark.parametrize("n", [1, 2, 2**21 - 1, 2**21, 2**21 + 1, 2**22, 2**22 + 1, 10_000_000, 2**32 - 1])
def test_the_largest_rank_just_fits_into_21_bits(geometry: Result, n: int) -> None:
    shift = geometry["shift"](ctypes.c_uint32(n))
    assert (n - 1) >> shift < 2**21
    assert shift == 0 or (n - 1) >> (shift - 1) >= 2**21


def leaves_to_visit(geometry: Result, points: np.ndarray) -> float:
    """Mean number of leaves of 32 points, in the order of the codes, that the search of one of them cannot skip."""
    points = points.astype(np.float32)
    n = len(points)
    bits = np.array([[geometry["ordered"](ctypes.c_float(v)) for v in column] for column in points.T], np.uint32)
    ascending, codes = np.ascontiguousarray(np.sort(bits, axis=1)), np.zeros(n, np.uint64)
    geometry["add_codes"](floats(points), ctypes.c_void_p(ascending.ctypes.data), n, ctypes.c_void_p(codes.ctypes.data))
    points = points[np.argsort(codes, kind="stable")].astype(float)
    third = cKDTree(points).query(points, k=4)[0][:, 3].reshape(-1, 32)
    leaves = points.reshape(-1, 32, 3)
    low, high = leaves.min(1), leaves.max(1)
    visits = []
    for leaf in range(0, len(leaves), 10):
        outside = np.maximum(low[None] - leaves[leaf][:, None], leaves[leaf][:, None] - high[None]).clip(0)
        visits.append((np.linalg.norm(outside, axis=2) < third[leaf][:, None]).any(0).sum())
    return float(np.mean(visits))


def test_points_far_away_leave_the_others_in_order(geometry: Result) -> None:
    """By coordinate they would have one cell of the curve between them, and a search would visit hundreds of leaves."""
    points = np.random.default_rng(0).random((16_000, 3))
    near = leaves_to_visit(geometry, points)
    assert near < 45  # of 500
    points[:10] *= 1e20
    assert leaves_to_visit(geometry, points) < 1.2 * near
