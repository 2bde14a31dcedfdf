"""The scripts that scripts/gpu_check.sh runs on a GPU do on the CPU what they would do there."""

import pytest
import torch

from tests.cuda import agreement, exercise
from tests.submodules.rasterizer_scenes import make_case

CPU = torch.device("cpu")


def test_a_device_that_is_the_cpu_agrees_with_it():
    found = agreement.largest([agreement.compare(make_case(5, n=80, sh_degree=d), CPU) for d in (0, 2)])
    assert all(pairs["device / cpu"] == 0 for name, pairs in found.items() if name != "flipped pixels")
    assert max(pairs.get("cpu / reference", 0) for pairs in found.values()) < 1e-3
    assert {"color", "normal", "means", "quats", "sh", "means2d_abs"} < set(found)
    assert set(found["means2d"]) == {"device / cpu"}


@pytest.mark.parametrize("seed", range(len(exercise.SIZES)))
def test_the_exercise_runs(seed, device):
    exercise.blend(seed, device)
    exercise.maps(seed, device)
    exercise.train(seed, device)


def test_the_exercise_of_other_inputs_runs(device):
    exercise.wide(device)
    exercise.given(device)
    exercise.nothing(device)
    exercise.halves(device)
    exercise.neighbours(device)
