"""The Z-curve: codes by the definition, neighbours come to lie together, a reordered change is the same change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training_factory import random_state
from training.morton import BITS, codes, order, reordered
from training.state import Change, apply

COORDINATES = st.lists(st.tuples(*[st.sampled_from([-2.5, 0.0, 1e-3, 1.0, 7.0])] * 3), min_size=1, max_size=12)


def interleaved(cell: list[int]) -> int:
    """Bit b of axis a becomes bit 3 b + a."""
    return sum((cell[axis] >> bit & 1) << (3 * bit + axis) for bit in range(BITS) for axis in range(3))


@given(COORDINATES)
def test_codes_are_interleaved_cells(coordinates):
    points = torch.tensor(coordinates)
    low, high = points.amin(dim=0), points.amax(dim=0)
    cells = ((points - low) / (high - low).clamp(min=torch.finfo(points.dtype).tiny) * (2**BITS - 1)).long()
    assert codes(points).tolist() == [interleaved(cell) for cell in cells.tolist()]


@given(COORDINATES)
def test_ties_keep_their_order(coordinates):
    points = torch.tensor(coordinates)
    found, code = order(points).tolist(), codes(points).tolist()
    assert sorted(range(len(code)), key=lambda i: (code[i], i)) == found


def test_neighbours_come_together():
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    steps = points[order(points)].diff(dim=0).norm(dim=1).mean()
    assert steps < 0.15 * points.diff(dim=0).norm(dim=1).mean()


@pytest.mark.parametrize("far", [1e6, -1e38])
def test_an_outlier_changes_nothing_for_the_others(far):
    points = torch.rand(5000, 3, generator=torch.Generator().manual_seed(0))
    points[7] = far
    along = order(points)
    near = points[along[along != 7]]
    assert near.diff(dim=0).norm(dim=1).mean() < 0.15 * points[torch.arange(5000) != 7].diff(dim=0).norm(dim=1).mean()


@pytest.mark.parametrize("broken", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_no_numbers_have_a_place(broken):
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(0))
    points[7, 1] = broken
    assert sorted(order(points).tolist()) == list(range(50))


@given(st.lists(st.tuples(st.integers(0, 5), st.booleans()), max_size=12), st.booleans())
def test_a_reordered_change_is_the_same_change(rows, everywhere):
    source = torch.tensor([r for r, _ in rows], dtype=torch.int64)
    fresh = torch.tensor([f for _, f in rows], dtype=torch.bool)
    which = None if everywhere else torch.arange(0, len(rows), 2)
    new = torch.randn(len(rows) if which is None else len(which), 3, generator=torch.Generator().manual_seed(1))
    change = Change(source, fresh, {"means": (which, new), "log_scales": (which, 2 * new)}, ("quats",))
    plain, sorted_ = random_state(6), random_state(6)
    apply(plain, change)
    apply(sorted_, reordered(sorted_.gaussians.means, change))
    along = order(plain.gaussians.means)
    for name, value in plain.tensors().items():
        assert torch.equal(value[along], sorted_.tensors()[name]), name


def test_what_keeps_its_rows_stays():
    change = Change(forget=("means",))
    assert reordered(torch.zeros(4, 3), change) is change
