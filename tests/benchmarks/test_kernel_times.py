"""Times of single kernels: names as the profiler gives them, and which of them have a floor."""

import re
from pathlib import Path

import pytest
import torch

from benchmarks import floors, kernel_times
from benchmarks.floors import Counts, Rates
from benchmarks.kernel_times import Launches

SOURCES = Path(__file__).resolve().parents[2] / "submodules/diff-gaussian-rasterization/csrc/cuda"
COUNTS = Counts(n=1000, drawn=800, instances=2000, pairs=300_000, width=100, height=60)
RATES = Rates(bytes_per_s=1e12, flops_per_s=1e13)
BLEND = "void splat::cuda::(anonymous namespace)::blend_kernel<(splat::Level)0, true>(splat::cuda::Blend)"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (BLEND, "blend_kernel"),
        ("splat::cuda::<unnamed>::find_users(splat::Taps, splat::Taps)", "find_users"),
        ("void cub::CUB_300001_SM_900::DeviceScanKernel<cub::X<int>, (int)1>(int)", "DeviceScanKernel"),
        ("Memset (Device)", "Memset"),
        ("plain", "plain"),
    ],
)
def test_names_without_their_arguments(name, expected):
    assert kernel_times.base_name(name) == expected


def test_every_kernel_with_a_floor_is_in_the_sources():
    text = "".join(path.read_text() for path in SOURCES.glob("*.cu"))
    defined = set(re.findall(r"__global__ void(?: __launch_bounds__\([^()]*\))?\s+(\w+)\(", text))
    for deterministic in (False, True):
        stages = floors.kernel_work(COUNTS, deterministic=deterministic)
        assert {name for of in stages.values() for name in of} - {floors.OTHERS} <= defined
    assert "preprocess_kernel" in defined


def test_rows_are_of_one_step_in_the_order_of_the_pipeline():
    launches = [
        Launches("Memset (Device)", 20, 100.0),
        Launches("void x::DeviceScanKernel<int>(int)", 10, 900.0),
        Launches(BLEND, 10, 2000.0),
        Launches(BLEND.replace("true", "false"), 10, 1000.0),
        Launches("splat::cuda::preprocess_kernel(int)", 10, 500.0),
    ]
    rows = kernel_times.table_of(launches, 10, COUNTS, RATES)
    assert [row["kernel"] for row in rows] == ["preprocess_kernel", "blend_kernel", "DeviceScanKernel", "Memset"]
    blend = rows[1]
    least = floors.floor_ms(floors.work(COUNTS)["forward"], RATES)
    assert (blend["stage"], blend["launches"], blend["ms"]) == ("forward", 2.0, pytest.approx(0.3))
    assert blend["share"] == pytest.approx(least / 0.3)
    assert rows[2]["floor_ms"] is rows[2]["share"] is None
    text = kernel_times.table("random 1k/100x60", rows)
    assert f"| blend_kernel | forward | 2 | 0.3000 | {least:.3f} | {100 * least / 0.3:.0f} % |" in text
    assert "| Memset | - | 2 | 0.0100 | - | - |" in text


@pytest.mark.gpu
def test_the_profiler_sees_the_kernels_of_a_step():
    from benchmarks import gpu

    ours = gpu.Ours(gpu.Case("random", 2000, 64, 48), torch.device("cuda:0"))
    rows = kernel_times.table_of(kernel_times.profiled(ours.step, 3), 3, ours.counts(), RATES)
    by_name = {row["kernel"]: row for row in rows}
    for stage in floors.kernel_work(COUNTS).values():
        for name in stage.keys() - {floors.OTHERS}:
            assert by_name[name]["launches"] == 1
            assert by_name[name]["ms"] > 0
