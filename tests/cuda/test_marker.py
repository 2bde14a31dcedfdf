"""Tests marked `gpu` are skipped where they cannot run, with a reason that says what is missing."""

import pytest
import torch

from benchmarks import device as gpu

BUILT = "80-real 86-real 89-real 90"


def test_the_reason_names_what_is_missing():
    assert gpu.reason(True, BUILT) is None
    assert gpu.reason(False, BUILT) == "no GPU here: torch.cuda.is_available() is False"
    assert gpu.reason(True, "no: nvcc failed") == ("the rasterizer was built without its CUDA kernels (nvcc failed)")


@pytest.mark.gpu
def test_marked_tests_run_on_a_gpu_alone(cuda):
    assert torch.zeros(3, device=cuda).is_cuda


def test_a_device_comes_as_cpu_and_as_gpu(device):
    assert torch.zeros(3, device=device).device == device
