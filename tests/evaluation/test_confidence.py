"""Rank correlation of doubt and error against SciPy's, and what metrics.py writes of it."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation import frame_quality
from evaluation.confidence import block_means, view_ranks
from evaluation.ranks import rank_correlation
from evaluation.run_metrics import measure_models
from scene.image_files import read_image, write_png
from tests.evaluation_factory import HR_PX, render, write_frames, write_model, write_scenes
from utils.errors import UserError


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 5)), min_size=2, max_size=30))
@settings(max_examples=60, deadline=None)
def test_rank_correlation_is_spearmans(pairs):
    a, b = np.array(pairs, float).T
    if len(set(a)) == 1 or len(set(b)) == 1:
        assert rank_correlation(a, b) is None
    else:
        assert rank_correlation(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_doubt_that_rises_with_the_error_correlates_perfectly():
    draw = np.random.default_rng(0)
    error = draw.permutation(16 * 24).reshape(16, 24) / 400.0
    confidence = (255 - np.floor(error * 200)).astype(np.uint8)
    content = np.ones((16, 24), np.uint8)
    assert view_ranks(confidence, error, content)["block"] == 1
    assert view_ranks(confidence, error, content)["pixel"] > 0.99  # 8 bit makes some equal
    assert view_ranks(255 - confidence, error, content)["block"] == -1
    assert view_ranks(np.full_like(confidence, 255), error, content) == {"pixel": None, "block": None}


def test_empty_pixels_do_not_count():
    draw = np.random.default_rng(1)
    error, confidence = draw.random((16, 32)), draw.integers(0, 256, (16, 32), np.uint8)
    content = np.ones((16, 32), np.uint8)
    content[:, 16:] = 0
    half = view_ranks(confidence[:, :16].copy(), error[:, :16].copy(), content[:, :16].copy())
    assert view_ranks(confidence, error, content) == half


def test_blocks_are_means_of_8_px_and_the_rest_is_left_out():
    values = np.arange(20.0 * 17).reshape(20, 17)
    expected = [[values[8 * i : 8 * i + 8, 8 * j : 8 * j + 8].mean() for j in range(2)] for i in range(2)]
    np.testing.assert_allclose(block_means(values), expected)


def measure(folder, report=False):
    measure_models(CommonParams(quiet=True), MetricsParams((str(folder),), no_lpips=True, no_report=not report))
    return json.loads((folder / "metrics.json").read_text())["frames"]["confidence"]


def study_facts(folder, scene, monkeypatch):
    """What a study's task says of the same frames."""
    monkeypatch.setattr("sys.argv", ["frame_quality", "-s", str(scene), "-m", str(folder), "--eval"])
    frame_quality.main()
    return json.loads((folder / frame_quality.FILE_NAME).read_text())


def test_metrics_and_studies_correlate_the_maps_beside_the_frames(tmp_path, monkeypatch):
    lr, hr = write_scenes(tmp_path)
    out = write_model(tmp_path / "out", lr)
    write_frames(out / "hr")
    draw = np.random.default_rng(0)
    for i in range(4):
        truth, path = read_image(hr / f"train/r_{i}.png"), out / f"hr/train/r_{i}.png"
        step = draw.integers(0, 40, (HR_PX, HR_PX), np.uint8)
        frame = truth.copy()
        frame[..., :3] = np.where(
            truth[..., :3] < 128, truth[..., :3] + step[..., None], truth[..., :3] - step[..., None]
        )
        write_png(path, frame)
        write_png(out / f"hr/confidence/train/r_{i}.png", 255 - step)
    render(out, lr, background="black", skip_train=True)
    found = measure(out, report=True)
    shown = f"{found['pixel']:.2f} by pixel, {found['block']:.2f} by block"
    assert shown in (out / "report" / "index.html").read_text()
    assert found["views"] == len(found["per_view"]) == 4
    # The soft rim dims the error but not the doubt.
    assert 0.8 < found["pixel"] < 1
    assert 0.2 < found["block"] < 1
    assert study_facts(out, lr, monkeypatch)["black"]["confidence"] == found
    write_png(out / "hr/confidence/train/r_0.png", np.full((HR_PX, HR_PX), 255, np.uint8))
    found = measure(out)  # another map: measured again
    assert found["per_view"]["train/r_0"] == {"pixel": None, "block": None}
    assert found["pixel"] > 0.8
    write_png(out / "hr/confidence/train/r_0.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(UserError, match=r"r_0.png: 4x4 px, the HR truth"):
        measure(out)
    for i in range(4):
        (out / f"hr/confidence/train/r_{i}.png").unlink()
    assert measure(out) is None
    assert study_facts(out, lr, monkeypatch)["black"]["confidence"] is None
