"""--device together with --rasterizer: a GPU is used only where that rasterizer can use it, and why not is said."""

import pytest
import torch
from diff_gaussian_rasterization import _native

from gaussian_renderer.backends import device_for, missing_on_gpu
from utils.errors import UserError

BUILT, NOT_BUILT = "80-real 86-real 89-real 90", "no: nvcc was not found"


@pytest.fixture
def machine(monkeypatch):
    """A machine with a GPU as torch and the native build describe it; what was made the current device."""
    used = []

    def make(build: str, capability: tuple[int, int] = (9, 0), count: int = 1) -> list[torch.device]:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "set_device", used.append)
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
        monkeypatch.setattr(_native, "cuda_build", build, raising=False)
        return used

    return make


@pytest.mark.parametrize("rasterizer", ["native", "gsplat", "reference"])
def test_auto_takes_the_gpu_where_the_rasterizer_runs_on_it(machine, rasterizer, capsys):
    used = machine(BUILT)
    assert device_for("auto", rasterizer) == "cuda:0"
    assert used == [torch.device("cuda:0")]
    assert device_for("cpu", rasterizer) == "cpu"
    assert capsys.readouterr().err == ""


def test_auto_says_why_it_stays_on_the_cpu(machine, capsys):
    used = machine(NOT_BUILT)
    assert device_for("auto", "native") == "cpu"
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "on the CPU although there is a GPU" in said
    assert "nvcc was not found" in said
    assert used == []
    assert device_for("auto", "gsplat") == "cuda:0"


def test_a_gpu_that_was_asked_for_is_not_replaced(machine):
    machine(NOT_BUILT, count=2)
    with pytest.raises(UserError, match=r"--device cuda:1: .*nvcc was not found.*--rasterizer gsplat or --device cpu"):
        device_for("cuda:1", "native")


@pytest.mark.parametrize(
    ("build", "capability", "runs"),
    [
        *((BUILT, capability, True) for capability in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (12, 1))),
        *((BUILT, capability, False) for capability in ((7, 5), (6, 1))),
        *(("86-real", capability, capability == (8, 9)) for capability in ((8, 0), (8, 9), (9, 0))),
        ("native", (7, 5), True),
        *(("80-virtual", capability, capability != (7, 5)) for capability in ((7, 5), (8, 0), (9, 0))),
    ],
)
def test_a_gpu_needs_kernels_of_its_kind(machine, build, capability, runs):
    machine(build, capability=capability)
    why = missing_on_gpu(torch.device("cuda:0"))
    assert (why is None) == runs
    if why:
        assert why.startswith(f"its CUDA kernels were built for {build}, this GPU has compute capability")


def test_without_a_gpu_auto_is_the_cpu(machine, capsys):
    machine(BUILT, count=0)
    assert device_for("auto", "native") == "cpu"
    assert capsys.readouterr().err == ""
