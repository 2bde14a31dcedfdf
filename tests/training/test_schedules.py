"""Schedules against their formulas and against iterations counted by hand."""

import math

import pytest

from arguments.training import OptimizationParams
from training import schedules

DEFAULT = OptimizationParams()


def test_means_rate_falls_from_its_first_to_its_last_value():
    def rate(iteration):
        return schedules.learning_rates(DEFAULT, iteration, extent=2.5)["means"]

    assert rate(0) == pytest.approx(2.5 * 1.6e-4)
    assert rate(15_000) == pytest.approx(2.5 * 1.6e-5)  # half way in the logarithm
    assert rate(30_000) == rate(40_000) == pytest.approx(2.5 * 1.6e-6)
    assert rate(301) / rate(300) == pytest.approx(rate(20_001) / rate(20_000))  # a constant factor


def test_other_rates_are_constant():
    first, last = (schedules.learning_rates(DEFAULT, i, 1.0) for i in (1, 29_999))
    expected = {"log_scales": 0.005, "quats": 0.001, "logit_opacities": 0.05, "sh0": 0.0025, "shN": 0.000125}
    assert {k: first[k] for k in expected} == {k: last[k] for k in expected} == pytest.approx(expected)


def test_a_zero_rate_stays_zero():
    assert schedules.exponential_decay(5, 0.0, 0.0, 10) == 0


def test_sh_degree_grows_every_thousand_iterations():
    assert [schedules.sh_degree(i, 1000, 3) for i in (1, 999, 1000, 2000, 3000, 9000)] == [0, 0, 1, 2, 3, 3]


def test_density_changes_when_the_original_changes_it():
    densified = [i for i in range(1, 30_001) if schedules.densifies(DEFAULT, i)]
    assert densified == list(range(600, 15_000, 100))
    reset = [i for i in range(1, 30_001) if schedules.resets_opacity(DEFAULT, i, white_background=False)]
    assert reset == [3000, 6000, 9000, 12_000]
    assert schedules.resets_opacity(DEFAULT, 500, white_background=True)
    assert [schedules.prunes_large(DEFAULT, i) for i in (3000, 3100)] == [False, True]
    assert [schedules.gathers_statistics(DEFAULT, i) for i in (1, 14_999, 15_000)] == [True, True, False]


def test_texture_weight_is_constant_by_default():
    assert {schedules.texture_weight(DEFAULT, i) for i in (1, 77, 30_000)} == {0.6}


def test_texture_weight_falls_linearly_and_then_stays():
    settings = OptimizationParams(iterations=1000, lambda_tex=0.9, lambda_tex_final=0.1, lambda_tex_anneal=0.8)
    weights = [schedules.texture_weight(settings, i) for i in (1, 401, 801, 1000)]
    assert weights == pytest.approx([0.9, 0.5, 0.1, 0.1])
    steps = [schedules.texture_weight(settings, i + 1) - schedules.texture_weight(settings, i) for i in (5, 300, 790)]
    assert all(math.isclose(step, -0.001, rel_tol=1e-6) for step in steps)
