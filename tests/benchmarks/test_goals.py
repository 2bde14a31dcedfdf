"""The goals: arithmetic on made-up times, what is not measured stays so, and a whole run on tiny scenes."""

import pytest
from diff_gaussian_rasterization import isa_supported

from benchmarks.cases import Case
from benchmarks.goal_runs import GoalRuns
from benchmarks.goals import (
    GOALS,
    MAIN,
    SCENES,
    Finding,
    compared,
    geometric_mean,
    goals_table,
    unmeasured,
    whole_iterations,
)
from benchmarks.prototype import build


def made_up(**whole):
    return {name: {"min": {"whole": ms}, "median": {"whole": 100 * ms}} for name, ms in whole.items()}


def test_the_scenes_are_those_that_are_asked_for():
    assert str(MAIN) == "random 100k/800"
    assert [str(case) for case in SCENES] == [
        *("random 50k/400", "random 50k/800", "random 200k/800", "random 300k/800"),
        *("skewed 100k/800", "skewed 300k/800"),
    ]


def test_geometric_mean():
    assert geometric_mean([2.0, 0.5]) == pytest.approx(1)
    assert geometric_mean([1.0, 4.0, 2.0]) == pytest.approx(2)


def test_whole_iterations_against_the_prototype():
    scenes = {"a": made_up(ours=2.0, prototype=1.0), "b": made_up(ours=1.0, prototype=2.0)}
    whole, mean, worst = whole_iterations(made_up(ours=9.0, prototype=10.0), scenes)
    assert (whole.ratio, worst.ratio) == (0.9, 2.0)
    assert mean.ratio == pytest.approx(1)
    assert worst.detail == "a: ours 2.00, prototype 1.00"
    assert mean.detail == "a 2.000, b 0.500"
    assert [f.entry()["met"] for f in (whole, mean, worst)] == [True, True, False]


def test_a_bound_is_met_from_its_own_side():
    assert GOALS["two_term"].met(1.25)
    assert not GOALS["two_term"].met(1.2501)
    assert GOALS["threads"].met(1.8)
    assert not GOALS["threads"].met(1.79)
    assert GOALS["loss"].asked() == ">= 40x"
    assert GOALS["avx2"].asked() == "<= 1.8x"


def test_a_comparison_is_of_minima():
    finding = compared("threads", made_up(one=19.0, two=10.0), "one", "two")
    assert finding.ratio == 1.9
    assert finding.row().endswith("| >= 1.8x | 1.900x | yes | one 19.00, two 10.00 |")


def test_cpu_time_stands_beside_the_clock_where_it_was_measured():
    results = made_up(ours=2.0, prototype=1.0)
    for name, cpu in (("ours", 3.0), ("prototype", 4.0)):
        results[name]["min"]["cpu"] = cpu
    assert compared("whole", results, "ours", "prototype").detail == "ours 2.00, prototype 1.00; CPU time 0.750x"
    mean = whole_iterations(results, {"a": results, "b": results})[1]
    assert (mean.ratio, mean.detail) == (2.0, "a 2.000, b 2.000; CPU time 0.750x")


def test_what_is_not_measured_is_never_met():
    (finding,) = unmeasured(["avx2"], "no avx2")
    assert finding.entry()["met"] is None
    text = goals_table([finding, Finding("loss", 39.0)])
    assert "| not measured | - | no avx2 |" in text
    assert "| 39.000x | NO |" in text


def test_all_goals_on_a_tiny_scene_without_a_prototype_and_without_avx2(monkeypatch):
    monkeypatch.setattr("benchmarks.goal_runs.isa_supported", lambda name: name != "avx2")
    said: list[str] = []
    runs = GoalRuns(None, 1, said.append, Case("random", 200, 32), (Case("skewed", 100, 16),))
    findings = runs.findings()
    assert [f.goal for f in findings] == list(GOALS)
    assert [f.goal for f in findings if f.ratio is None] == ["whole", "mean", "worst", "autograd", "avx2"]
    assert findings[6].detail == "this processor or build has no avx2"
    measured = {f.goal: f for f in findings if f.ratio is not None}
    assert all(f.ratio > 0 for f in measured.values())
    assert "load average" in measured["threads"].detail
    assert set(runs.loads) == set(runs.measured)
    assert len(said) == len(runs.measured)


@pytest.mark.slow
def test_all_goals_on_tiny_scenes_with_the_prototype(tmp_path, data_dir):
    source = data_dir.parent / "prototype" / "rasterizer"
    if not source.is_dir() or not all(isa_supported(name) for name in ("avx512", "avx2")):
        pytest.skip(f"needs a prototype in {source} and a processor with AVX-512")
    library = build(source, tmp_path)
    runs = GoalRuns(library, 1, lambda text: None, Case("random", 200, 32), (Case("skewed", 100, 16),))
    findings = runs.findings()
    assert [f.goal for f in findings] == list(GOALS)
    assert all(f.ratio is not None and f.ratio > 0 for f in findings)
