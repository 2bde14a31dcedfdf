"""The one door: parameters, both moments and the statistics move together, whatever the change."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scene.gaussians import FIELDS
from tests.training_factory import random_state
from training.state import STATISTICS, Change, TrainState, apply

N = 6


@given(st.lists(st.tuples(st.integers(0, N - 1), st.booleans()), max_size=12))
def test_rows_take_their_moments_along(rows):
    before, state = random_state(N).tensors(), random_state(N)
    source = torch.tensor([r for r, _ in rows], dtype=torch.int64)
    apply(state, Change(source=source, fresh=torch.tensor([f for _, f in rows], dtype=torch.bool)))
    after = state.tensors()
    assert all(value.shape[0] == len(rows) for value in after.values())
    for new, (old, fresh) in enumerate(rows):
        for name in after:
            moved = before[name][old]
            expected = torch.zeros_like(moved) if fresh and name.startswith("exp_avg") else moved
            assert torch.equal(after[name][new], expected), name


def test_values_replace_only_the_rows_named():
    before, state = random_state(N).tensors(), random_state(N)
    new = torch.full((2, 3), 7.0)
    apply(state, Change(source=torch.arange(N), values={"means": (torch.tensor([1, 4]), new)}))
    assert torch.equal(state.gaussians.means[[1, 4]], new)
    assert torch.equal(state.gaussians.means[[0, 2, 3, 5]], before["param.means"][[0, 2, 3, 5]])


def test_forgetting_one_field_leaves_the_others():
    before, state = random_state(N).tensors(), random_state(N)
    apply(state, Change(forget=("logit_opacities",)))
    for name, value in state.tensors().items():
        forgotten = name in ("exp_avg.logit_opacities", "exp_avg_sq.logit_opacities")
        assert torch.equal(value, torch.zeros_like(value) if forgotten else before[name]), name


def test_statistics_restart_when_asked():
    state = random_state(N)
    apply(state, Change(source=torch.arange(N), restart_statistics=True))
    assert all(not getattr(state, name).any() for name in STATISTICS)


@pytest.mark.parametrize("name", [*FIELDS])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_one_broken_value_is_found(name, value):
    state = random_state(N)
    assert state.first_broken(thorough=True) is None
    getattr(state.gaussians, name)[3].view(-1)[0] = value
    assert state.first_broken(thorough=False) == f"{name}"


def test_broken_moments_are_found_when_thorough():
    state = random_state(N)
    state.exp_avg_sq["shN"][2, 1, 0] = float("inf")
    assert state.first_broken(thorough=False) is None
    assert state.first_broken(thorough=True) == "exp_avg_sq.shN"


def test_tensors_round_trip():
    state = random_state(N)
    copy = TrainState.from_tensors(state.tensors(), state.steps, torch.device("cpu"))
    assert all(torch.equal(a, b) for a, b in zip(state.tensors().values(), copy.tensors().values(), strict=True))
    copy.gaussians.means.zero_()
    assert state.gaussians.means.any(), "the copy must not share memory"
