"""Which device is meant, and what a record says of it."""

import os

import pytest
import torch

from utils.compute import choose_device, device_facts, driver_version, use_device, use_fixed_order
from utils.errors import UserError


@pytest.fixture
def gpus(monkeypatch):
    """Let torch say that so many GPUs are here."""

    def say(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return say


def test_without_a_gpu_the_cpu_is_chosen_and_a_gpu_refused(gpus):
    gpus(0)
    assert [choose_device(name).type for name in ("auto", "cpu")] == ["cpu", "cpu"]
    for name in ("cuda", "cuda:1"):
        with pytest.raises(UserError, match=f"--device {name}: torch sees no NVIDIA GPU here; use --device cpu"):
            choose_device(name)


def test_a_gpu_is_named_with_its_number(gpus):
    gpus(2)
    assert [str(choose_device(name)) for name in ("auto", "cpu", "cuda", "cuda:1")] == [
        "cuda:0",
        "cpu",
        "cuda:0",
        "cuda:1",
    ]
    with pytest.raises(UserError, match="--device cuda:2: torch sees 2 here"):
        choose_device("cuda:2")


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12\nGCC 12.2", "535.183.01"),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n", "580.65.06"),
        ("something else\n", None),
    ],
)
def test_the_driver_says_its_version(tmp_path, text, version):
    (tmp_path / "version").write_text(text)
    assert driver_version(tmp_path / "version") == version
    assert driver_version(tmp_path / "missing") is None


def test_the_cpu_needs_no_facts_but_its_name():
    assert device_facts(torch.device("cpu")) == {"device": "cpu"}


def test_the_cpu_is_used_as_it_is():
    before = torch.backends.cudnn.allow_tf32
    use_device(torch.device("cpu"))
    assert torch.backends.cudnn.allow_tf32 == before


def test_a_fixed_order_is_torchs_and_cublas(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    try:
        use_fixed_order()
        assert torch.are_deterministic_algorithms_enabled()
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    finally:
        torch.use_deterministic_algorithms(False)
        torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.mark.gpu
def test_a_gpu_has_a_model_and_a_driver(cuda):
    facts = device_facts(cuda)
    assert facts["device"] == str(cuda)
    assert facts["gpu"] == torch.cuda.get_device_name(cuda)
    assert facts["gpu_bytes"] > facts["gpu_peak_bytes"] >= 0
    assert facts["cuda"] == torch.version.cuda
    assert facts["driver"]
