"""The benchmark on a GPU: what is counted, how it is told, and that it says no without one."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import device, floors, gen, gpu, gpu_pages, gpu_run, kernel_times
from benchmarks.floors import Counts, Rates, Work
from benchmarks.gpu import DETERMINISTIC, GSPLAT, OURS, Case
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
COUNTS = Counts(n=1000, drawn=800, instances=2000, pairs=300_000, width=100, height=60)
RATES = Rates(bytes_per_s=1e12, flops_per_s=1e13)


def test_sizes_on_the_screen():
    assert (COUNTS.pixels, COUNTS.tiles, COUNTS.buckets) == (6000, 7 * 4, 63)


def test_a_sort_reads_once_for_the_digits_and_moves_pairs_once_a_pass():
    assert floors.sort_bytes(10, 8) == 10 * 4 + 10 * 16
    assert floors.sort_bytes(10, 9) == 10 * 4 + 2 * 10 * 16
    assert floors.sort_bytes(0, 32) == 0


def test_bytes_by_hand():
    work = floors.work(COUNTS)
    assert work["preprocess"].bytes == 4 * (1000 * 11 + 800 * 48) + 800 * 48 + 1000 * 20
    checkpoints = 63 * 256 * 16
    assert work["forward"].bytes == 2000 * 52 + 6000 * 20 + checkpoints
    assert work["loss"].bytes == 6000 * 3 * (8 + 12 + 12 + 8 + 4)
    assert work["geometry"].bytes == 1000 * (59 * 24 + 64 + 8 + 24)
    assert work["forward"].flops == 300_000 * floors.FLOPS_PAIR_FORWARD
    parts = [value for name, value in work.items() if name != "whole"]
    assert work["whole"] == Work(sum(w.bytes for w in parts), sum(w.flops for w in parts))


def test_determinism_moves_more_where_instances_are_many():
    assert floors.work(COUNTS, deterministic=True)["blend_backward"].bytes > floors.work(COUNTS)["blend_backward"].bytes


def test_nothing_on_the_screen_needs_nothing_there():
    work = floors.work(Counts(0, 0, 0, 0, 0, 0))
    assert work["whole"] == Work(0, 0)


def test_the_floor_is_the_slower_of_memory_and_arithmetic():
    assert floors.floor_ms(Work(10**9, 10**9), RATES) == pytest.approx(1.0)
    assert floors.floor_ms(Work(10**6, 10**10), RATES) == pytest.approx(1.0)
    both = floors.floors({"a": Work(10**9, 0), "b": Work(0, 10**10), "whole": Work(10**9, 10**10)}, RATES)
    assert both == pytest.approx({"a": 1.0, "b": 1.0, "whole": 2.0})


def test_cases_are_written_as_thousands_and_a_size():
    assert gpu_run.case_of("1000k/1920x1080", "random") == Case("random", 1_000_000, 1920, 1080)
    assert str(gpu_run.case_of("1000k/1920x1080", "random")) == "random 1M/1920x1080"
    for wrong in ("100000/800x800", "100k/800", "0k/8x8", "100k/800x0"):
        with pytest.raises(UserError, match=f"--case {wrong}: thousands of Gaussians"):
            gpu_run.case_of(wrong, "random")
    assert {"100k/800x800", "1000k/1920x1080"} <= set(gpu_run.CASES)


def test_a_scene_fills_a_picture_of_any_shape():
    case = Case("random", 2000, 96, 48)
    camera, means = case.camera, case.values["means"]
    z = means[:, 2] + gen.DISTANCE
    for axis, (focal, centre, size) in enumerate(((camera.fx, camera.cx, 96), (camera.fy, camera.cy, 48))):
        at = focal * means[:, axis] / z + centre
        inside = np.histogram(at, bins=4, range=(0, size))[0]
        assert inside.min() > 0.6 * inside.max()
    assert case.target.shape == (3, 48, 96)
    assert np.array_equal(Case("random", 2000, 96, 96).values["means"], gen.scene(2000, 96, "random")["means"])


def test_relative_distances():
    assert gpu.relative(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])) == pytest.approx(0.2)
    assert gpu.relative(torch.zeros(2), torch.zeros(2)) == 0


def test_our_step_runs_where_its_tensors_are():
    """The CPU serves as the device: what is run there is what would be run on a GPU."""
    case = Case("random", 1500, 64, 48)
    ours = gpu.Ours(case, torch.device("cpu"))
    ours.step()
    assert all(np.array_equal(p.numpy(), v) for p, v in zip(ours.six, case.values.values(), strict=True))
    assert ours.mean[0].abs().sum() > 0
    assert set(ours.stages()) == set(gpu_run.STAGES) - {"whole"}
    counts = ours.counts()
    assert (counts.n, counts.width, counts.height) == (1500, 64, 48)
    assert 0.9 * 1500 < counts.drawn <= 1500
    assert counts.instances >= counts.drawn
    assert 10 * counts.pixels < counts.pairs < 200 * counts.pixels  # about 40 splats over each pixel
    found = gpu.spread(case, torch.device("cpu"), runs=2)
    assert found["deterministic_equal"]
    assert found["fast_image_equal"]
    assert found["largest"] == 0
    assert set(found["fast"].values()) == {0.0}


def test_the_switch_of_determinism_is_put_back():
    fill = torch.utils.deterministic.fill_uninitialized_memory
    with gpu.determinism(True):
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory == fill


def entry(with_peer: bool) -> gpu_run.Report:
    ours = gpu.with_sums(dict.fromkeys(gpu_run.STAGES, 2.0)) | {"whole": 10.0}
    ms = {name: {"median": ours, "min": ours} for name in (OURS, DETERMINISTIC)}
    if with_peer:
        theirs = {"render": 8.0, "loss": 1.0, "backward": 9.0, "adam": 2.0, "whole": 20.0}
        ms[GSPLAT] = {"median": theirs, "min": theirs}
    return gpu_run.case_entry(Case("random", 1000, 100, 60), COUNTS, ms, RATES)


def test_tables_say_what_was_measured():
    found = entry(with_peer=True)
    assert found["floors"]["whole"]["share"] == pytest.approx(found["floors"]["whole"]["ms"] / 10)
    stages = gpu_run.stages_table(found)
    assert stages.startswith("### random 1k/100x60, ms\n")
    assert "| forward | 2.000 | 2.000 | 2.000 | 0.5 | 6 | 0.001 | 0 % |" in stages
    sums = gpu_run.sums_table(found)
    assert "| ours | 6.000 | 2.000 | 4.000 | - | 10.000 |" in sums
    assert "| gsplat | 8.000 | 1.000 | 9.000 | 2.000 | 20.000 |" in sums
    assert "| random 1k/100x60 | 2.5 | 10.000 (10.000) | 10.000 (10.000) | 20.000 (20.000) | 2.00x |" in (
        gpu_run.summary_table([found])
    )
    assert "| not measured | not measured |" in gpu_run.summary_table([entry(with_peer=False)])


def test_the_spread_is_told_for_each_seed():
    row = {"case": "random 1k/100x60", "seed": 2, "deterministic_equal": False, "fast_image_equal": True}
    text = gpu_run.spread_table([{**row, "fast": {"means": 1e-7, "shN": 2e-7}, "largest": 3e-6}])
    assert "| random 1k/100x60, 2 | NO | yes | 1.0e-07 | 2.0e-07 | 3.0e-06 |" in text


def test_the_page_tells_stages_and_kernels_of_the_largest_scene():
    launches = [kernel_times.Launches("splat::cuda::preprocess_kernel(int)", 10, 500.0)]
    kernels = kernel_times.table_of(launches, 10, COUNTS, RATES)
    large = {**entry(with_peer=True), "scene": "random 1M/1920x1080", "kernels": kernels}
    row = {"case": "random 1k/100x60", "seed": 1, "deterministic_equal": True, "fast_image_equal": True}
    found = {
        "gpu": {"name": "A GPU", "driver": "1", "torch": "2", "cuda": "13"},
        "rates": {"copy_GB_per_s": 1000.0, "float32_TFLOP_per_s": 10.0},
        **{"peer": "gsplat 1", "cases": [large], "spread": [{**row, "fast": {"means": 0.0}, "largest": 0.0}]},
    }
    text = gpu_pages.rasterizer(found)
    assert text.startswith(
        "A GPU, driver 1, torch 2, CUDA 13; copy 1000 GB/s, float32 product 10.0 TFLOP/s; gsplat 1\n"
    )
    assert "\nrandom 1M/1920x1080, ms\n" in text
    assert "\nrandom 1M/1920x1080, kernels\n" in text
    assert "| preprocess_kernel | preprocess | 1 | 0.0500 |" in text
    assert "| random 1k/100x60, 1 | yes | yes |" in text


def test_gsplat_is_named_or_said_to_be_missing(monkeypatch):
    assert gpu_run.peer("gsplat is not installed") == "gsplat is not installed: not compared"
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.2.3")
    assert gpu_run.peer(None).startswith("gsplat 1.2.3, L1")


@pytest.mark.parametrize(
    ("backend", "problem"),
    [
        (None, "gsplat is not installed"),
        ("_C = None", "gsplat has no kernels here"),
        ("raise RuntimeError('Ninja is required\\nand more')", "gsplat cannot be used (Ninja is required)"),
        ("_C = 1", None),
    ],
)
def test_a_gsplat_that_cannot_be_used_is_no_peer(monkeypatch, tmp_path, backend, problem):
    if gpu_run.importlib.util.find_spec("gsplat"):
        pytest.skip("gsplat is installed")
    if backend:
        (tmp_path / "gsplat/cuda").mkdir(parents=True)
        (tmp_path / "gsplat/cuda/_backend.py").write_text(backend)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert gpu_run.peer_problem() == problem
    for name in [name for name in sys.modules if name.partition(".")[0] == "gsplat"]:
        del sys.modules[name]


def test_without_a_gpu_one_line_and_code_2():
    if device.why_not() is None:
        pytest.skip("there is a GPU")
    for module, *flags in (("benchmarks.rasterizer", "--device", "cuda"), ("benchmarks.device",)):
        done = subprocess.run(
            [sys.executable, "-m", module, *flags], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert len(done.stderr.splitlines()) == 1
        assert "no GPU" in done.stderr or "without its CUDA kernels" in done.stderr


@pytest.mark.gpu
def test_a_run_on_a_gpu_measures_everything(cuda):
    told: list[str] = []
    found = gpu_run.run(["random"], ["2k/96x64"], 1, told.append)
    (case,) = found["cases"]
    assert {OURS, DETERMINISTIC} <= set(case["ms"])
    assert all(case["ms"][OURS]["median"][stage] > 0 for stage in gpu_run.STAGES)
    assert all(row["deterministic_equal"] for row in found["spread"])
    assert max(row["largest"] for row in found["spread"]) < 1e-3
    assert len(told) == 3
