"""Walks, chunks, tours and adaptive subsequences against definitions, on costs with many ties and unmeasured pairs."""

import itertools

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from arguments import ordering as flags
from ordering.paths import (
    CONTEXT,
    ORDERINGS,
    Problem,
    als_calls,
    check_cost,
    chunks,
    greedy_path,
    nearest_first,
    ordering,
    path_cost,
    two_sided_walk,
)
from ordering.tour import tour_path
from tests.ordering import oracle
from utils.errors import UserError


def matrices(largest, values):
    return st.integers(1, largest).flatmap(lambda n: hnp.arrays(float, (n, n), elements=st.sampled_from(values)))


COSTS = matrices(12, [0.0, 1.0, 2.0, np.inf])


@st.composite
def gated(draw, largest=12):
    """(order, gate) of one size; few values, so ties are common."""
    order = draw(matrices(largest, [0.0, 1.0, 2.0, 3.0, np.inf]))
    gate = draw(hnp.arrays(float, order.shape, elements=st.sampled_from([0.0, 5.0, 20.0, 40.0, 60.0])))
    return order, gate


def saved(calls):
    return [call.frames[k] for call in calls for k in call.save]


# --- registry ---


def test_flags_and_registry_name_the_same_orderings():
    assert sorted(ORDERINGS) == sorted(flags.ORDERINGS)


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="twice"):
        ordering("tour")(lambda problem: [])


@given(gated(), st.integers(0, 13), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_every_ordering_saves_every_view_once(problem, longest, seed):
    order, gate = problem
    for name, find in ORDERINGS.items():
        calls = find(Problem(order, gate, (10.0, 30.0), longest, np.random.default_rng(seed)))
        assert sorted(saved(calls)) == list(range(len(order))), name
        for call in calls:
            assert len(set(call.frames)) == len(call.frames)
            assert call.save  # a call that saves nothing is not made


def test_random_is_decided_by_its_seed():
    def order_of(seed):
        rng = np.random.default_rng(seed)
        return ORDERINGS["random"](Problem(np.zeros((30, 30)), None, (), 0, rng))[0].frames

    assert order_of(1) == order_of(1)
    assert order_of(1) != order_of(2)


def test_als_without_a_gate_is_refused():
    with pytest.raises(UserError, match="gate"):
        ORDERINGS["als"](Problem(np.zeros((3, 3)), None, (1.0,), 0, np.random.default_rng(0)))


@pytest.mark.parametrize("cost", [np.zeros((2, 3)), np.zeros((0, 0)), np.array([[0, np.nan], [1, 0]])])
def test_bad_costs_are_refused(cost):
    with pytest.raises(UserError, match="N x N"):
        check_cost(cost)


# --- walks ---


@given(COSTS, st.data())
@settings(deadline=None)
def test_greedy_path_is_the_definition(cost, data):
    start = data.draw(st.integers(0, len(cost) - 1))
    assert greedy_path(nearest_first(cost), start) == oracle.walk(cost, start)


@given(gated(), st.data())
@settings(deadline=None)
def test_gated_greedy_path_is_the_definition(problem, data):
    order, gate = problem
    start = data.draw(st.integers(0, len(order) - 1))
    limit = data.draw(st.sampled_from([0.0, 5.0, 20.0, 60.0]))
    assert greedy_path(nearest_first(order), start, gate, limit) == oracle.walk(order, start, gate, limit)


@given(st.integers(1, 30), st.integers(0, 33))
def test_chunks_cover_the_walk_in_order_and_are_full(n, longest):
    walk = list(range(100, 100 + n))
    calls = chunks(walk, longest)
    assert saved(calls) == walk
    size = min(longest or n, n)
    for call in calls:
        assert len(call.frames) == size
        assert list(call.frames) == list(range(call.frames[0], call.frames[0] + size))
        assert call.padded


# --- tour ---


@given(matrices(6, [0.0, 1.0, 2.0, 3.0, 5.0]))
@settings(max_examples=60, deadline=None)
def test_tour_is_a_permutation_that_no_single_move_shortens(cost):
    cost = (cost + cost.T) / 2
    path = tour_path(cost)
    n = len(path)
    assert sorted(path) == list(range(n))
    assert path[0] <= path[-1]
    length = path_cost(cost, path)
    for i, j in itertools.combinations(range(n + 1), 2):
        assert path_cost(cost, path[:i] + path[i:j][::-1] + path[j:]) >= length - 1e-9  # 2-opt, ends free
        if j - i <= 3:
            run, rest = path[i:j], path[:i] + path[j:]
            for k in range(len(rest) + 1):
                for piece in (run, run[::-1]):
                    assert path_cost(cost, rest[:k] + piece + rest[k:]) >= length - 1e-9  # Or-opt


@given(matrices(9, [0.0, 1.0, 2.0, 3.0, np.inf]), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_tour_makes_the_best_of_all_moves_each_time(ties, seed):
    """Only moves that can shorten the path are looked at, and none of the others would have been made."""
    rng = np.random.default_rng(seed)
    for cost in (ties, rng.uniform(-1, 5, size=(int(rng.integers(2, 16)),) * 2)):
        assert tour_path(cost) == oracle.tour(cost)


@given(st.integers(0, 200))
@settings(max_examples=25, deadline=None)
def test_tour_of_few_points_is_near_the_best_of_all_permutations(seed):
    points = np.random.default_rng(seed).uniform(size=(7, 2))
    cost = np.linalg.norm(points[:, None] - points[None], axis=2)
    best = min(path_cost(cost, p) for p in itertools.permutations(range(7)))
    found = path_cost(cost, tour_path(cost))
    assert best - 1e-9 <= found <= 1.1 * best
    assert found <= path_cost(cost, greedy_path(nearest_first(cost))) + 1e-9


@given(st.integers(0, 50))
@settings(max_examples=20, deadline=None)
def test_tour_does_not_depend_on_the_order_of_the_list(seed):
    rng = np.random.default_rng(seed)
    points, shuffle = rng.uniform(size=(12, 3)), rng.permutation(12)
    cost = np.linalg.norm(points[:, None] - points[None], axis=2)
    path = tour_path(cost)
    renamed = [int(shuffle[i]) for i in tour_path(cost[np.ix_(shuffle, shuffle)])]
    assert renamed in (path, path[::-1])


def test_tour_crosses_unmeasured_pairs_only_where_it_must():
    cost = np.full((6, 6), np.inf)
    for group in ((0, 2, 4), (1, 3, 5)):
        cost[np.ix_(group, group)] = 1.0
    np.fill_diagonal(cost, 0)
    path = tour_path(cost)
    assert np.isinf(cost[path[:-1], path[1:]]).sum() == 1


def test_a_tour_of_a_ring_opens_it_at_its_widest_gap():
    angles = np.radians([0, 20, 45, 60, 90, 110, 200, 215, 240])  # gaps: 120 degrees (240 to 360), 90 (110 to 200)
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    cost = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert tour_path(cost) == list(range(9))


# --- adaptive subsequences, our rule ---


@given(gated())
@settings(max_examples=60, deadline=None)
def test_two_sided_walk_stays_within_the_limit_and_holds_its_start_inside(problem):
    order, gate = problem
    gate = np.minimum(gate, gate.T)
    nearest = nearest_first(order)
    for start in range(len(order)):
        path = two_sided_walk(nearest, gate, 20.0, start, len(order))
        assert len(set(path)) == len(path)
        assert all(gate[a, b] <= 20.0 for a, b in itertools.pairwise(path))
        close = sum(gate[start, j] <= 20.0 for j in range(len(order)) if j != start)
        if close >= 2 and len(path) > 2:
            assert path.index(start) not in (0, len(path) - 1)
        assert len(two_sided_walk(nearest, gate, 20.0, start, 3)) <= 3


@given(gated(), st.integers(0, 9))
@settings(max_examples=80, deadline=None)
def test_als_saves_each_view_as_strictly_as_it_has_two_neighbours(problem, longest):
    order, gate = problem
    assume(len(order) >= 3)
    gate = np.minimum(gate, gate.T)
    calls = als_calls(order, gate, (5.0, 20.0), longest)
    assert sorted(saved(calls)) == list(range(len(order)))
    for call in calls:
        steps = [gate[a, b] for a, b in itertools.pairwise(call.frames)]
        assert len(call.frames) <= max(longest or len(order), 3)
        assert 0 not in call.save
        assert len(call.frames) - 1 not in call.save  # two-sided context
        for k in call.save:
            view = call.frames[k]
            close = {
                limit: sum(gate[view, j] <= limit for j in range(len(order)) if j != view) for limit in (5.0, 20.0)
            }
            around = max(steps[k - 1], steps[k])
            if close[5.0] >= 2:
                assert around <= 5.0
            elif close[20.0] >= 2:
                assert around <= 20.0


def test_als_keeps_no_more_context_than_it_needs():
    n = 40
    order = np.abs(np.subtract.outer(np.arange(n), np.arange(n))).astype(float)
    calls = als_calls(order, order, (1.0,), 0)
    assert sorted(saved(calls)) == list(range(n))
    assert len(calls) == 3  # the chain, and its two ends between their nearest views
    for call in calls:
        assert call.save[0] <= CONTEXT
        assert len(call.frames) - 1 - call.save[-1] <= CONTEXT
