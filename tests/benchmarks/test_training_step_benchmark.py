"""The profile of train.py: its parts are shares of a whole, and what it measures is the loop of train.py."""

import pytest
import torch

from benchmarks.training_step import Run, make_trainer, measure, table
from scene.gaussians import FIELDS


@pytest.fixture(scope="module")
def result():
    return measure(600, 64, "random", rgba=True, repeats=4)


def test_shares_are_parts_of_an_iteration(result):
    assert 0 < result["step"]["kernels"] < 1
    for group in ("torch", "python"):
        assert result[group], group
        assert all(0 < share < 1 for share in result[group].values())
        assert sum(result[group].values()) <= 1.001
    assert not any("diff_gaussian_rasterization" in name for name in result["torch"])


def test_the_table_states_what_was_measured(result):
    text = table(result)
    assert "600 Gaussians, 64 x 64 RGBA" in text
    for name in ("good state", "checkpoint", "densification", "python: "):
        assert name in text


def test_the_scene_stays_as_it_is(tmp_path):
    run = Run(tmp_path, make_trainer(tmp_path, 300, 48, "skewed"))
    before = {name: getattr(run.trainer.state.gaussians, name).clone() for name in FIELDS}
    run.iterate(3)
    assert run.trainer.state.view_count.sum() > 0
    assert run.trainer.state.steps["means"] == 3
    assert all(torch.equal(value, getattr(run.trainer.state.gaussians, name)) for name, value in before.items())
