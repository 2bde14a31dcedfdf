"""Rows in reserved memory: always what indexing gives, memory used again, memory of others left alone."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.training_factory import random_state
from training.reserve import GROWTH, Reserve
from training.state import Change, apply

CHANGES = st.lists(st.lists(st.integers(0, 99), max_size=12), min_size=1, max_size=6)


@given(CHANGES, st.sampled_from([(), (3,), (1, 3), (0, 3)]))
def test_rows_are_those_of_indexing(changes, shape):
    start = torch.rand(5, *shape, generator=torch.Generator().manual_seed(0))
    reserve, chosen, expected = Reserve(), start, start.clone()
    untouched = start.clone()
    for rows in changes:
        source = torch.tensor([r % len(expected) for r in rows] if len(expected) else [], dtype=torch.int64)
        chosen, expected = reserve.select(chosen, source), expected[source]
        assert chosen.is_contiguous()
        assert torch.equal(chosen, expected)
    assert torch.equal(start, untouched), "memory of others must not be written to"


def test_memory_is_used_again_while_there_is_room():
    reserve, values = Reserve(), torch.rand(100, 3)
    seen = set()
    for rows in (100, 110, 120, 149, 150, 60):
        values = reserve.select(values, torch.arange(rows) % len(values))
        seen.add(values.untyped_storage().data_ptr())
    assert len(seen) == 2
    assert values.untyped_storage().nbytes() in (100 * GROWTH * 12, 110 * GROWTH * 12)
    values = reserve.select(values, torch.arange(400) % len(values))
    assert values.untyped_storage().data_ptr() not in seen


def test_fields_of_one_storage_do_not_meet():
    state = random_state(6)
    before = state.tensors()
    joint = torch.cat([state.gaussians.means, state.gaussians.log_scales])
    state.gaussians.means, state.gaussians.log_scales = joint[:6], joint[6:]
    for _ in range(3):
        apply(state, Change(source=torch.arange(6)))
    assert all(torch.equal(value, state.tensors()[name]) for name, value in before.items())
