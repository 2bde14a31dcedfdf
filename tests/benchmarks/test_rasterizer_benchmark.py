"""The rasterizer benchmark: its scenes are reproducible, its stages add up, its table states ratios."""

import numpy as np
import pytest

from benchmarks import gen
from benchmarks.rasterizer import STAGES, Ours, measure, table


@pytest.mark.parametrize("kind", list(gen.KINDS))
def test_scenes_are_reproducible_and_finite(kind):
    first, second = gen.scene(500, 64, kind), gen.scene(500, 64, kind)
    assert all(np.array_equal(first[k], second[k]) and np.isfinite(first[k]).all() for k in first)
    assert first["shN"].shape == (500, 15, 3)


def test_a_step_reports_its_stages_and_leaves_the_scene_as_it_is():
    values = gen.scene(500, 64, "skewed")
    ours = Ours(values, gen.target(64))
    results = measure({"ours": ours, "other": Ours(values, gen.target(64))}, repeats=2)
    for times in results["ours"].values():
        assert sum(times[k] for k in STAGES) > 0
        assert set(times) == {*STAGES, "whole"}
    assert sum(results["ours"]["min"][k] for k in STAGES) <= results["ours"]["min"]["whole"]
    assert all(np.array_equal(p.numpy(), v) for p, v in zip(ours.six, values.values(), strict=True))
    text = table("skewed", 500, 64, results)
    assert "| ratio of median |" in text
