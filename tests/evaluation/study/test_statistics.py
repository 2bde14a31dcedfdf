"""Paired statistics against enumeration, slow definitions, hand-worked examples and simulated coverage."""

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluation.study.statistics import (
    bootstrap_means,
    carry_over,
    holm,
    paired_bootstrap,
    paired_differences,
    seed_mean,
    sign_flip_p,
    spread,
)
from utils.errors import UserError


def all_resampled_means(groups: list[list[float]]) -> np.ndarray:
    """Every study that resampling can give, each as often as it is likely: scenes first, then their views."""
    means = []
    for scenes in product(groups, repeat=len(groups)):
        for views in product(*(product(scene, repeat=len(scene)) for scene in scenes)):
            means.append(np.mean([np.mean(v) for v in views]))
    return np.array(means)


@pytest.mark.parametrize("groups", [[[0.1, -0.2, 0.7, 0.3]], [[0.1, 0.5], [-0.4, 0.3]]], ids=["one scene", "two"])
def test_bootstrap_is_the_enumeration(groups):
    exact = all_resampled_means(groups)
    arrays = [np.array(g) for g in groups]
    drawn = bootstrap_means(arrays, 40_000, np.random.default_rng(0))
    for value in np.unique(exact.round(9)):  # the whole distribution, not a summary of it
        share, expected = np.mean(np.isclose(drawn, value)), np.mean(np.isclose(exact, value))
        assert abs(share - expected) < 5 * np.sqrt(expected * (1 - expected) / len(drawn))
    interval = paired_bootstrap(arrays, 0.8, 40_000)
    assert interval.mean == pytest.approx(np.mean([np.mean(g) for g in groups]))
    step = np.diff(np.unique(exact.round(9))).max()
    assert interval.low == pytest.approx(np.quantile(exact, 0.1), abs=step)
    assert interval.high == pytest.approx(np.quantile(exact, 0.9), abs=step)


def test_scenes_count_alike_whatever_their_views():
    many, few = np.full(100, 1.0), np.full(2, 3.0)
    assert paired_bootstrap([many, few], resamples=200).mean == 2.0


@pytest.mark.parametrize(("views", "least", "most"), [(10, 0.87, 0.94), (40, 0.92, 0.97)])
def test_coverage_of_the_interval(views, least, most):
    rng, hits, trials = np.random.default_rng(1), 0, 1500
    for trial in range(trials):
        interval = paired_bootstrap([rng.normal(0.3, 1.0, views)], 0.95, 500, seed=trial)
        hits += interval.low <= 0.3 <= interval.high
    assert least <= hits / trials <= most


@pytest.mark.parametrize("views", [6, 30])
def test_p_value_without_a_difference_is_level(views):
    rng = np.random.default_rng(2)
    values = np.array([sign_flip_p([rng.normal(0, 1, views)], resamples=400, seed=t) for t in range(1500)])
    assert 0.025 < np.mean(values <= 0.05) < 0.065
    assert 0.45 < np.mean(values <= 0.5) < 0.55


def test_p_value_is_its_definition():
    groups = [np.array([0.4, -0.1, 0.3]), np.array([0.2, 0.2])]
    means = [
        np.mean([np.mean(a * groups[0]), np.mean(b * groups[1])])
        for a in product((-1, 1), repeat=3)
        for b in product((-1, 1), repeat=2)
    ]
    observed = np.mean([g.mean() for g in groups])
    assert sign_flip_p(groups) == np.mean([abs(m) >= observed - 1e-12 for m in means])


def test_drawn_and_enumerated_flips_agree(monkeypatch):
    d = np.random.default_rng(3).normal(0.3, 0.5, 12)
    exact = sign_flip_p([d])
    monkeypatch.setattr("evaluation.study.statistics.ENUMERATED", 0)
    assert sign_flip_p([d], 40_000) == pytest.approx(exact, abs=0.005)


def test_p_value_is_never_below_what_the_views_can_show():
    assert sign_flip_p([np.array([0.5])]) == 1.0
    assert sign_flip_p([np.array([0.5, 0.6, 0.7])]) == sign_flip_p([-np.array([0.5, 0.6, 0.7])]) == 0.25
    assert sign_flip_p([np.full(40, 0.5)], resamples=999) == pytest.approx(1 / 1000)


def test_holm_example_worked_by_hand():
    # Sorted 0.005, 0.01, 0.03, 0.04: times 4, 3, 2, 1 = 0.02, 0.03, 0.06, 0.04; the last may not fall below 0.06.
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"a": 0.03, "b": 0.06, "c": 0.06, "d": 0.02})
    assert list(corrected) == ["a", "b", "c", "d"]


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_holm_is_its_definition(p):
    """Rejected at a level alpha: those before the first p_(k) > alpha / (m + 1 - k); the corrected p is the least
    alpha at which that happens."""
    corrected = holm({str(i): x for i, x in enumerate(p)})
    order = np.argsort(p, kind="stable")
    for alpha in (0.01, 0.05, 0.2, 0.7, 1.0):
        rejected = set()
        for k, i in enumerate(order, 1):
            if not p[i] <= alpha / (len(p) + 1 - k) * (1 + 1e-12):
                break
            rejected.add(str(i))
        assert {name for name, x in corrected.items() if x <= alpha * (1 + 1e-12)} == rejected | (
            set(corrected) if alpha == 1.0 else set()
        )


def test_seeds_are_averaged_before_views_are_compared():
    variant = {0: {"x": 30.0, "y": 20.0}, 1: {"x": 32.0, "y": 22.0}, 5: {"x": 99.0, "y": 99.0}}
    baseline = {0: {"x": 29.0, "y": 21.0}, 1: {"x": 30.0, "y": 20.0}, 2: {"x": 0.0, "y": 0.0}}
    assert paired_differences(variant, baseline) == {"x": 1.5, "y": 0.5}  # of the seeds that both have
    assert seed_mean(variant, [0, 1]) == {"x": 31.0, "y": 21.0}
    assert paired_differences(variant, {7: {"x": 1.0, "y": 1.0}}) == {}


def test_other_views_are_refused():
    with pytest.raises(UserError, match="different views of a scene"):
        paired_differences({0: {"x": 1.0}}, {0: {"y": 1.0}})
    with pytest.raises(UserError, match="seeds 0 and 1 are of different views"):
        seed_mean({0: {"x": 1.0}, 1: {"y": 1.0}}, [0, 1])


def test_spread_and_carry_over():
    assert spread([1.0]) is None
    assert spread([1.0, 3.0]) == pytest.approx(np.sqrt(2))
    assert carry_over(0.4, 0.5) == pytest.approx(0.8)
    assert carry_over(0.4, 0.04) is None
    assert carry_over(-0.4, -0.5) == pytest.approx(0.8)
