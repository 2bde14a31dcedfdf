"""The choice of lambda_tex: its pure parts."""

import itertools
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from arguments.training import OptimizationParams
from training.choose import (
    Candidate,
    Score,
    bar,
    candidates_of,
    decide,
    detail_db,
    from_json,
    held_out,
    lengths,
    predicted,
    scaled,
    score,
    search,
    to_json,
)
from utils.errors import UserError

CANDIDATES = ("0.9", "0.2", "0.9:0.1")


@pytest.mark.parametrize(("text", "values"), [("0.6", (0.6, -1)), ("0", (0, -1)), ("1:0.02", (1, 0.02))])
def test_candidates_are_read_and_named_alike(text, values):
    candidate = Candidate.parse(text)
    assert (candidate.tex, candidate.final) == values
    assert str(candidate) == text
    made = candidate.of(OptimizationParams(lambda_tex=0.5, lambda_tex_final=0.7))
    assert (made.lambda_tex, made.lambda_tex_final) == values


@pytest.mark.parametrize("text", ["", "high", "0.5:", "1.2", "-1", "0.5:-0.1", "0.1:0.2:0.3", "nan"])
def test_malformed_candidates_are_refused(text):
    with pytest.raises(UserError, match="--lambda_candidates"):
        Candidate.parse(text)


@pytest.mark.parametrize(
    ("configured", "texts", "expected"),
    [
        ((0.4, -1.0), ["0.6", "0.1"], ["0.4", "0.6", "0.1"]),
        ((0.1, -1.0), ["0.6", "0.10", "0.60", "0.9:0.1"], ["0.1", "0.6", "0.9:0.1"]),
        ((0.9, 0.1), ["0.9", "0.90:0.1"], ["0.9:0.1", "0.9"]),
        ((0.5, -1.0), ["0.5000001"], ["0.5", "0.5000001"]),
    ],
)
def test_the_configured_weight_comes_first_and_each_counts_once(configured, texts, expected):
    tex, final = configured
    found = candidates_of(OptimizationParams(lambda_tex=tex, lambda_tex_final=final), texts)
    assert [str(candidate) for candidate in found] == expected


@pytest.mark.parametrize("texts", [[], ["0.60"], ["0.6", "0.6"]])
def test_one_candidate_is_no_choice(texts):
    with pytest.raises(UserError, match="--lambda_candidates: nothing else than the configured weight"):
        candidates_of(OptimizationParams(lambda_tex=0.6), texts)


@given(st.integers(4, 300), st.integers(2, 12))
def test_held_out_views_are_spread_and_leave_most(count, every):
    names = [f"v{i}" for i in range(count)]
    if len(names[every // 2 :: every]) < 2:
        with pytest.raises(UserError, match=f"--held_out_every {every}"):
            held_out(names, every)
        return
    places = [names.index(name) for name in held_out(names, every)]
    assert {b - a for a, b in itertools.pairwise(places)} == {every}
    assert places[0] < every
    assert len(places) <= count / every + 1


@given(st.integers(1, 12), st.integers(1, 40_000), st.integers(2, 30_000))
def test_all_lengths_together_stay_within_the_budget(candidates, budget, iterations):
    short, long = lengths(OptimizationParams(iterations=iterations), candidates, budget)
    assert 1 <= short < long <= iterations
    assert candidates * (short + long) <= budget or long == 2


def test_a_scaled_run_keeps_the_shares_of_its_schedules():
    full = OptimizationParams()
    tenth = scaled(full, 3000)
    assert (tenth.iterations, tenth.position_lr_max_steps) == (3000, 3000)
    assert (tenth.densify_from_iter, tenth.densify_until_iter) == (50, 1500)
    assert (tenth.opacity_reset_interval, tenth.sh_interval, tenth.densification_interval) == (300, 100, 20)
    assert scaled(full, 30_000) == full
    assert tenth.exposure_lr_delay_steps == 0
    assert scaled(replace(full, exposure_lr_delay_steps=500), 3000).exposure_lr_delay_steps == 50
    assert scaled(replace(full, densification_interval=7), 3000).densification_interval == 7


def test_detail_is_the_laplacian_of_the_difference():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 6, 5, generator=generator) for _ in range(2))
    total, d = 0.0, (a - b).double()
    for c in range(3):
        for y in range(1, 5):
            for x in range(1, 4):
                sides = d[c, y - 1, x] + d[c, y + 1, x] + d[c, y, x - 1] + d[c, y, x + 1]
                total += float(4 * d[c, y, x] - sides) ** 2
    assert detail_db(a, b) == pytest.approx(-10 * math.log10(total / (3 * 4 * 3)), abs=1e-9)
    assert detail_db(a, a) == 100


def test_detail_does_not_see_what_is_smooth_and_psnr_does():
    flat, ramp = torch.full((3, 8, 8), 0.5), torch.linspace(0, 0.4, 8).expand(3, 8, 8)
    found = score(5, [("v", flat + ramp, flat)])
    assert found.detail["v"] > 90
    assert found.psnr["v"] == pytest.approx(float(-10 * ramp.double().square().mean().log10()), rel=1e-5)


def measured(iterations, slope=3.0, start=20.0, spread=4.0):
    """Two views whose detail lies on a line in log2 of the iterations."""
    rise = slope * math.log2(iterations)
    return Score(iterations, {"a": start + rise, "b": start + spread + rise}, {"a": 30.0, "b": 30.0})


def test_the_prediction_lies_on_the_line_in_log_iterations():
    found = predicted(measured(100), measured(200), 3000)
    assert found == pytest.approx(measured(3000).detail)
    assert predicted(measured(100), measured(200), 200) == pytest.approx(measured(200).detail)


def pair(text, **line):
    return Candidate.parse(text), measured(10, **line), measured(20, **line)


def test_what_gains_faster_wins():
    made = decide([pair("0.6", start=22.0), pair("0.1", slope=4.0), pair("0.9:0.1", slope=3.5)], 100)
    assert str(made.chosen) == "0.1"
    assert made.predicted == pytest.approx(
        {
            "0.6": 24 + 3 * math.log2(100),
            "0.1": 22 + 4 * math.log2(100),
            "0.9:0.1": 22 + 3.5 * math.log2(100),
        }
    )
    assert made.gain_db == pytest.approx(math.log2(100) - 2)
    assert made.error_db == pytest.approx(0, abs=1e-9)
    assert not made.kept_because


def views_of(gains):
    """A candidate whose views gain so many dB over 20, after trainings that gained 20 dB from one to the next."""
    views = {str(view): 20 + gain for view, gain in enumerate(gains)}
    return Score(10, dict.fromkeys(views, 0.0), {}), Score(20, views, {})


def gaining(*rivals):
    """The configured weight with 0 in each view, and rivals with their gains over it."""
    flat = (0.0,) * len(rivals[0])
    return [(Candidate(i / 10), *views_of(gains)) for i, gains in enumerate((flat, *rivals))]


@pytest.mark.parametrize(("rivals", "views"), [(1, 2), (5, 6), (6, 6), (6, 13)])
def test_the_bar_leaves_a_tenth_to_chance_shared_between_rivals(rivals, views):
    """The area under Student's density up to the bar, by the midpoint rule."""
    freedom, edge, steps = views - 1, bar(rivals + 1, views), 20_000
    scale = math.gamma((freedom + 1) / 2) / (math.gamma(freedom / 2) * math.sqrt(freedom * math.pi))
    middles = (np.arange(steps) + 0.5) * edge / steps
    area = scale * float(((1 + middles**2 / freedom) ** (-(freedom + 1) / 2)).sum()) * edge / steps
    assert 0.5 - area == pytest.approx(0.1 / rivals, abs=1e-7)


@pytest.mark.parametrize(("rivals", "level"), [(1, 0.4), (2, 0.45), (5, 0.48)])
def test_a_gain_changes_the_choice_only_above_the_bar(rivals, level):
    """Two views that gain g + 1 and g - 1 dB: g on average, standard error 1."""
    edge, losers = math.tan(math.pi * level), [(-5.0, -5.0)] * (rivals - 1)
    below = decide(gaining((edge + 0.99, edge - 1.01), *losers), 20)
    assert (below.chosen, below.gain_db, below.error_db) == (Candidate(0), pytest.approx(edge - 0.01), pytest.approx(1))
    assert below.bar_db == pytest.approx(edge)
    assert f"0.1 is predicted to gain {edge - 0.01:.2f} dB with a standard error of 1.00" in below.kept_because
    assert f"the best of {rivals + 1} on 2 views has to gain more than {edge:.2f}" in below.kept_because
    above = decide(gaining((edge + 1.01, edge - 0.99), *losers), 20)
    assert above.chosen == Candidate(0.1)
    assert not above.kept_because


HALVES = st.integers(-6, 6).map(lambda i: i / 2)  # their sums are exact in any order


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.tuples(*[HALVES] * n), min_size=1, max_size=4)), st.randoms())
def test_the_order_of_views_changes_nothing(rivals, random):
    made = decide(gaining(*rivals), 20)
    order = list(range(len(rivals[0])))
    random.shuffle(order)
    again = decide(gaining(*([gains[i] for i in order] for gains in rivals)), 20)
    assert (again.chosen, again.predicted, again.gain_db) == (made.chosen, made.predicted, made.gain_db)
    assert again.error_db == pytest.approx(made.error_db)


def test_trainings_that_get_worse_tell_nothing():
    made = decide([pair("0.6", slope=-2.0), pair("0.1", slope=-1.0)], 100)
    assert str(made.chosen) == "0.6"
    assert "tell nothing" in made.kept_because


def test_growth_within_its_error_tells_nothing():
    """From 10 to 20 iterations the views of the best one grow by 5 and by -1 dB: 2 on average, standard error 3."""
    short, long = Score(10, {"a": 30.0, "b": 40.0}, {}), Score(20, {"a": 35.0, "b": 39.0}, {})
    noisy = Candidate.parse("0.1")
    first = (Candidate.parse("0.6"), *(Score(n, {"a": 5.0, "b": 9.0}, {}) for n in (10, 20)))
    made = decide([first, (noisy, short, long)], 20)
    assert made.gain_db > made.bar_db
    assert str(made.chosen) == "0.6"
    assert "tell nothing" in made.kept_because
    steady = replace(long, detail={"a": 32.0, "b": 42.0})
    assert decide([first, (noisy, short, steady)], 20).chosen == noisy


@pytest.mark.parametrize(("count", "views"), [(6, 6), (7, 6), (6, 13), (7, 13)])
def test_noise_alone_seldom_changes_the_choice(count, views):
    """Shares of 2000 searches; the error of a share is under 1.2 %. One and two standard errors would be too low."""
    rng, times = np.random.default_rng(0), 2000
    changed, one, two = 0, 0, 0
    for rows in rng.standard_normal((times, count, views)).tolist():
        made = decide([(Candidate(i / 10), *views_of(row)) for i, row in enumerate(rows)], 20)
        changed += made.chosen != Candidate(0)
        one += made.gain_db > made.error_db
        two += made.gain_db > 2 * made.error_db
    assert 0.04 < changed / times < 0.1
    assert one / times > 0.4
    assert two / times > 0.1


@pytest.mark.parametrize(("errors", "least", "most"), [(3, 0.5, 0.7), (5, 0.9, 1.0)])
def test_true_gains_are_seen(errors, least, most):
    """One of five rivals is truly better by some standard errors of its gain over six views, of 1 dB noise each."""
    rng, times, changed = np.random.default_rng(0), 1000, 0
    for rows in rng.standard_normal((times, 6, 6)).tolist():
        rows[3] = [value + errors * math.sqrt(2 / 6) for value in rows[3]]
        scores = [(Candidate(i / 10), *views_of(row)) for i, row in enumerate(rows)]
        changed += decide(scores, 20).chosen == Candidate(0.3)
    assert least < changed / times < most


def scores_of(slopes):
    """A training that gives detail 20 + slope log2(length); those of slope NaN break off."""
    calls = []

    def train_one(candidate, length):
        calls.append((str(candidate), length))
        slope = slopes[str(candidate)]
        return None if math.isnan(slope) else measured(length, slope=slope)

    return calls, train_one


def test_what_ends_in_nan_is_left_out():
    candidates = [Candidate.parse(text) for text in CANDIDATES]
    calls, train_one = scores_of({"0.9": math.nan, "0.2": 2.0, "0.9:0.1": 1.0})
    known: dict = {}
    made = search(candidates, (10, 20), 100, known, train_one, lambda _: None)
    assert str(made.chosen) == "0.2"
    assert set(made.predicted) == {"0.2", "0.9:0.1"}
    assert calls == [("0.9", 10), ("0.2", 10), ("0.2", 20), ("0.9:0.1", 10), ("0.9:0.1", 20)]
    assert from_json(json.loads(json.dumps(to_json(known)))) == known


def test_a_search_goes_on_where_it_was_cut_short_and_ties_go_to_the_first():
    candidates = [Candidate.parse(text) for text in CANDIDATES]
    calls, train_one = scores_of(dict.fromkeys(CANDIDATES, 1.0))
    known = {"0.9": [train_one(candidates[0], 10)], "0.2": [train_one(candidates[1], n) for n in (10, 20)]}
    calls.clear()
    kept = []
    made = search(candidates, (10, 20), 100, known, train_one, lambda scores: kept.append(len(to_json(scores))))
    assert calls == [("0.9", 20), ("0.9:0.1", 10), ("0.9:0.1", 20)]
    assert len(kept) == 3
    assert made.chosen is candidates[0]
    assert not made.kept_because


def test_nothing_is_chosen_from_nothing():
    _, train_one = scores_of(dict.fromkeys(CANDIDATES, math.nan))
    with pytest.raises(UserError, match="NaN"):
        search([Candidate.parse(text) for text in CANDIDATES], (1, 2), 9, {}, train_one, lambda _: None)
