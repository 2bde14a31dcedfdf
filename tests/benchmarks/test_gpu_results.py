"""From what a GPU machine leaves behind to the pages: read, taken over, told; and that nothing is told without it."""

import json

import pytest
import torch

from benchmarks import gpu_pages, gpu_parts, knn, priors, report, vsr
from utils.errors import UserError

GPU = {"name": "A GPU", "driver": "1.2", "torch": "2.11", "cuda": "13.0"}
HEAD = {"commit": "0123456789abcdef", "gpu": GPU}


def test_closing_lines_of_tests_and_sanitizers_are_found():
    log = (
        "x\n12 passed, 4 skipped in 5.93s\n===== 1 failed, 2 passed in 1.00s =====\n========= ERROR SUMMARY: 0 errors\n"
    )
    log += "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)\n"
    assert gpu_parts.tests(log)["summaries"] == [
        *("12 passed, 4 skipped", "1 failed, 2 passed"),
        *("0 errors", "0 hazards displayed (0 errors, 0 warnings)"),
    ]
    with pytest.raises(UserError, match="no closing line"):
        gpu_parts.tests("Killed\n")


def write_model(folder, psnr: float, ply: bytes = b"a"):
    place = folder / "point_cloud/iteration_30"
    place.mkdir(parents=True)
    (place / "point_cloud.ply").write_bytes(ply)
    lines = [{"iteration": i, "views": "test", "l1": 0.1, "psnr": p} for i, p in ((10, 20.0), (30, psnr))]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "results.json").write_text(json.dumps({"ours_9": {"PSNR": 1.0}, "ours_30": {"PSNR": psnr}}))
    (folder / "run.json").write_text(json.dumps({"steps": {"train": {"seconds": 90.0}}}))
    return folder


def test_a_scene_is_told_at_its_last_iteration(tmp_path):
    found = gpu_parts.scene(write_model(tmp_path / "model", 27.5), seconds=120)
    assert found == {
        **{"iterations": 30, "quality": {"PSNR": 27.5}},
        **{"minutes_of_all_attempts": 2.0, "minutes": {"train": 1.5}},
    }
    text = gpu_pages.scene(found)
    assert text == "30 iterations: PSNR 27.5000. Minutes: train 1.5; all attempts together 2.0.\n"


@pytest.mark.parametrize(("second", "equal"), [(b"a", True), (b"b", False)])
def test_determinism_compares_bits_and_tells_the_spread(tmp_path, second, equal):
    write_model(tmp_path / "fixed1", 20.0)
    write_model(tmp_path / "fixed2", 20.0, second)
    with pytest.raises(UserError, match="at least two models each"):
        gpu_parts.determinism(tmp_path)
    for seed, psnr in enumerate((24.0, 24.5, 24.25)):
        write_model(tmp_path / f"fast{seed}", psnr)
    found = gpu_parts.determinism(tmp_path)
    assert found["equal"] is equal
    assert found["fast_psnr"] == {"fast0": 24.0, "fast1": 24.5, "fast2": 24.25}
    assert found["fast_psnr_spread_db"] == 0.5
    assert ("equal bits" if equal else "DIFFERENT bits") in gpu_pages.determinism(found)


def test_without_results_the_page_says_that_nothing_ran():
    assert gpu_pages.block({}) == gpu_pages.NOTHING
    assert "Nothing of this has run on a GPU yet" in gpu_pages.NOTHING


def test_results_are_taken_and_told_and_what_is_missing_is_said(tmp_path):
    (tmp_path / "out/vsr").mkdir(parents=True)
    row = {"upsampler": "basicvsr", "precision": "fp32", "width": 8, "height": 6, "median_ms": 2.0, "min_ms": 1.5}
    (tmp_path / "out/vsr/result.json").write_text(json.dumps({**HEAD, "rows": [row]}))
    assert gpu_pages.take(tmp_path / "out", tmp_path / "gpu") == ["vsr"]
    text = gpu_pages.block(gpu_pages.committed(tmp_path / "gpu"))
    assert text.startswith("A GPU, driver 1.2, torch 2.11, CUDA 13.0.\n")
    assert "| basicvsr | fp32 | 8x6 | 2.00 | 1.50 | not measured |" in text
    assert text.count("Not run on a GPU yet.\n") == len(gpu_pages.PARTS) - 1
    assert "**Networks** (commit 0123456789ab)" in text
    with pytest.raises(UserError, match=r"no part of scripts/gpu_check\.sh has a result there"):
        gpu_pages.take(tmp_path / "gpu", tmp_path / "other")


def test_every_part_with_a_result_has_its_place_on_the_page():
    script = (gpu_pages.Path(__file__).resolve().parents[2] / "scripts/gpu_check.sh").read_text()
    parts = set(script.partition("PARTS=(")[2].partition(")")[0].split())
    assert set(gpu_pages.PARTS) == parts - {"build", "gsplat", "report"}


def test_small_distances_keep_their_digits():
    found = {"errors": [{"color": 1.2345678e-7}], "ms": 12.3456789, "bytes": 123456789, "equal": True}
    kept = {"errors": [{"color": 1.23457e-7}], "ms": 12.3457, "bytes": 123456789, "equal": True}
    assert report.rounded_values(found) == kept
    assert "1.23457e-07" in report.json_text(report.rounded_values(found))


def test_tables_of_agreement_and_neighbours():
    pairs = {"device / cpu": 1e-7, "device / reference": 2e-6}
    text = gpu_pages.agreement({"errors": {"color": pairs, "means2d": {"device / cpu": 3e-6}}})
    assert text.splitlines()[0] == "| | device / cpu | device / reference |"
    assert text.splitlines()[2:] == ["| color | 1.0e-07 | 2.0e-06 |", "| means2d | 3.0e-06 | - |"]
    row = {"n": 1000, "wall_s": 0.5, "cpu_wall_s": 2.0, "difference": 0.0}
    assert "| 1000 | 0.5000 | 2.00 | 0.0e+00 |" in gpu_pages.knn({"rows": [row]})


def test_neighbours_on_a_device_are_measured_and_compared():
    row = knn.measure_on(torch.device("cpu"), 2000, 1)
    assert row["difference"] == 0
    assert row["wall_s"] > 0


def test_networks_are_timed():
    net = vsr.network("bicubic", "fp32", torch.device("cpu"))
    row = vsr.measure(net, (12, 8), 3, 2, torch.device("cpu"))
    assert 0 < row["min_ms"] <= row["median_ms"]
    assert "| bicubic | fp32 | 12x8 |" in vsr.table([{"upsampler": "bicubic", "precision": "fp32", **row}])
    assert vsr.size_of("618x411") == (618, 411)
    with pytest.raises(UserError, match="--size 618: WxH in pixels"):
        vsr.size_of("618")


def test_every_small_prior_is_timed(tmp_path):
    pytest.importorskip("diffusers")
    found = priors.pipelines((6, 4), tmp_path, torch.device("cpu"))
    assert set(found) == {*priors.CASES, priors.SDS}
    (frame,) = found["ResShift, 15 steps"]()
    assert frame.shape == (3, 16, 24)
    assert found[priors.SDS]()[0].shape == (1, 3, 16, 24)
    assert len(priors.milliseconds(found["regression, 3 frames"], 2, torch.device("cpu"))) == 2
    row = {"pipeline": "SR3", "width": 6, "height": 4, "median_ms": 2.04, "min_ms": 1.5}
    assert "| SR3 | 6x4 | 2.0 | 1.5 |" in priors.table([row])
