"""The profile of train.py: its parts are shares of a whole, and what it measures is the loop of train.py."""

import pytest
import torch

from benchmarks import training_step
from benchmarks.training_step import Run, make_trainer, measure, summary, table
from scene.gaussians import FIELDS


@pytest.fixture(scope="module")
def result():
    return measure(600, 64, "random", rgba=True, two_term=False, repeats=4)


@pytest.mark.gpu
def test_the_gpu_is_measured_alike(cuda):
    found = measure(600, 64, "random", rgba=True, two_term=True, repeats=2, device=str(cuda))
    assert 0 < found["step"]["min_ms"] <= found["step"]["median_ms"]
    assert 0 < found["step"]["kernels"] < 1
    assert "two terms, cuda:0:" in table(found)
    assert "| cuda:0 | 2 |" in summary([found])


def test_shares_are_parts_of_an_iteration(result):
    assert 0 < result["step"]["kernels"] < 1
    for group in ("torch", "python"):
        assert result[group], group
        assert all(0 < share < 1 for share in result[group].values())
        assert sum(result[group].values()) <= 1.001
    assert not any("diff_gaussian_rasterization" in name for name in result["torch"])


def test_the_table_states_what_was_measured(result):
    text = table(result)
    assert "600 Gaussians, 64 x 64 RGBA, one term" in text
    for name in ("good state", "checkpoint", "densification", "python: "):
        assert name in text


def test_the_summary_names_the_largest_share(result):
    other = result | {"two_term": True, "python": {"f.py:g": 0.99}}
    lines = summary([result, other]).splitlines()
    assert lines[2].startswith("| random 600/64 | ")
    assert "| 2 |" in lines[3]
    assert lines[-1] == "The largest share outside the kernels is that of `f.py:g`: 99.00 % of an iteration."


def test_the_objective_has_both_terms(tmp_path):
    trainer = make_trainer(tmp_path, 300, 48, "random", rgba=True, two_term=True)
    terms = trainer.step()
    assert terms is not None
    assert terms.l1 is not None
    assert terms.lr_l1 is not None
    assert make_trainer(tmp_path, 300, 48, "random").step().lr_l1 is None


def test_densification_sorts_as_train_py_does(tmp_path, monkeypatch):
    sorted_rows = []
    real = training_step.reordered
    monkeypatch.setattr(training_step, "reordered", lambda means, change: sorted_rows.append(1) or real(means, change))
    trainer = make_trainer(tmp_path, 300, 48, "random")
    trainer.lag = 1  # as on a GPU: numbers of the last iteration are still under way
    trainer.advance()
    found = training_step.now_and_then(tmp_path, trainer, 1)
    assert sorted_rows
    assert found["densification"]["every"] == 100


@pytest.mark.parametrize("two_term", [False, True])
def test_the_scene_stays_as_it_is(tmp_path, two_term):
    run = Run(tmp_path, make_trainer(tmp_path, 300, 48, "skewed", two_term=two_term))
    before = {name: getattr(run.trainer.state.gaussians, name).clone() for name in FIELDS}
    run.iterate(3)
    assert run.trainer.state.view_count.sum() > 0
    assert run.trainer.state.steps["means"] == 3
    assert all(torch.equal(value, getattr(run.trainer.state.gaussians, name)) for name, value in before.items())
