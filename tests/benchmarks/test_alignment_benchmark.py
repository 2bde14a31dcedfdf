"""The benchmark of alignment: errors of depth are of the stated size, flow errors are those of geometry."""

import json
import sys

import numpy as np
import pytest
import torch

from benchmarks import alignment, pages
from benchmarks.depth_errors import ERRORS, blurred, changed, chosen_pairs, depth_error, flow_errors, smooth, white
from scene import load_scene
from scene.cameras import Camera, intrinsics, world_to_camera_from
from tests.evaluation.test_frame_diagnostics import ball_depth
from tests.scene_factory import write_blender
from utils.errors import UserError

DISC = np.hypot(*(np.mgrid[:64, :64] - 31.5)) < 25


@pytest.mark.parametrize("make", [white, smooth])
def test_errors_have_the_stated_size_inside_the_silhouette(make):
    exact = {str(i): np.where(DISC, 4.0, 0).astype(np.float32) for i in range(8)}
    found = changed(exact, make(0.02))
    relative = np.concatenate([found[name][DISC] / 4 - 1 for name in exact])
    assert relative.std() == pytest.approx(0.02, rel=0.1)
    assert all(not found[name][~DISC].any() for name in exact)
    neighbours = np.corrcoef(found["0"][31, 10:50], found["0"][31, 11:51])[0, 1]
    assert neighbours > 0.9 if make is smooth else neighbours < 0.5
    again = changed(exact, make(0.02))
    assert all((again[name] == found[name]).all() for name in exact)


def test_blur_is_a_mean_over_the_surface_only():
    z = np.where(DISC, 4.0, 0)
    np.testing.assert_allclose(changed({"a": z}, blurred(2))["a"], z, rtol=1e-6)
    z[:32] *= 1.1
    assert len(np.unique(changed({"a": z}, blurred(2))["a"][24:40, 32])) == 16


def test_depth_error_is_the_definition():
    exact = {"a": np.array([[2.0, 4.0, 0.0, 5.0]], np.float32)}
    other = {"a": np.array([[2.2, 4.0, 1.0, 0.0]], np.float32)}
    found = depth_error(other, exact)
    assert found["median"] == found["mean"] == pytest.approx(0.05)
    assert found["iou"] == pytest.approx(2 / 4)


def test_flow_error_of_scaled_depth_is_that_of_the_disparity():
    """A wall at z, cameras b apart: flow f b / z, so depth that is e too large errs by f b / z * e / (1 + e)."""
    size, focal, z, shift, e = 32, 40.0, 4.0, 0.2, 0.02
    K = intrinsics(focal, focal, size / 2, size / 2)
    views = {
        n: Camera(n, size, size, K, world_to_camera_from(np.eye(3), np.array([x, 0.0, 0.0])))
        for n, x in (("a", 0.0), ("b", shift))
    }
    exact = {name: np.full((size, size), z, np.float32) for name in views}
    scaled = {name: depth * (1 + e) for name, depth in exact.items()}
    learned = {("a", "b"): torch.tensor([2.0, 1.5]).view(2, 1, 1).expand(2, size, size)}
    found = flow_errors(views, exact, {"same": exact, "scaled": scaled}, [("a", "b")], learned)
    disparity = focal * shift / z
    assert found["flow_px"] == pytest.approx(disparity, rel=1e-5)
    assert found["pixels"] == size * (size - 2)  # two columns leave the image
    assert found["errors"]["same"] == {"mean_px": pytest.approx(0, abs=1e-5), "below_1_px": 1.0}
    assert found["errors"]["scaled"]["mean_px"] == pytest.approx(disparity * e / (1 + e), rel=1e-3)
    assert found["errors"]["learned"] == {"mean_px": pytest.approx(1.5), "below_1_px": 0.0}


def test_pairs_are_of_their_angles_and_always_the_same():
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 90, (12, 12))
    np.fill_diagonal(angles, 0)
    found = chosen_pairs(angles, 5)
    assert found == chosen_pairs(angles, 5)
    for key, pairs in found.items():
        low, high = map(float, key.split("-"))
        inside = {(i, j) for i in range(12) for j in range(12) if i != j and low <= angles[i, j] < high}
        assert set(pairs) <= inside
        assert len(set(pairs)) == min(5, len(inside))


@pytest.fixture
def scene(tmp_path):
    """A scene of views around a ball, with its exact depths."""
    root = write_blender(tmp_path / "scene", views=8, size=24)
    views = load_scene(root, eval=True)
    for name in views.train:
        alignment.write_depth(tmp_path / "exact", name, ball_depth(views.cameras[name]))
    return root, tmp_path / "exact"


def test_it_runs_and_leaves_its_numbers(scene, tmp_path, monkeypatch, capsys):
    root, exact = scene
    words = ["-s", str(root), "--exact", str(exact), "--lr_geometry", str(exact), "--work", str(tmp_path / "work")]
    words += ["--pairs", "3", "--no_network", "--frames", "--json", str(tmp_path / "a.json")]
    monkeypatch.setattr(sys, "argv", ["alignment", *words])
    alignment.main()
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["depths"]["LR model"] == {"median": 0.0, "mean": 0.0, "p90": 0.0, "iou": 1.0}
    assert found["depths"]["white-2%"]["mean"] == pytest.approx(0.02 * np.sqrt(2 / np.pi), rel=0.1)
    assert set(found["flow"][0]["errors"]) == {"LR model", *ERRORS}
    row = next(row for row in found["flow"] if row["pixels"])
    assert row["errors"]["LR model"]["mean_px"] == 0
    assert row["errors"]["smooth-0.5%"]["mean_px"] < row["errors"]["smooth-5%"]["mean_px"]
    table = alignment.summary(found)
    assert table.strip() in pages.BLOCKS["alignment"]({"alignment": found})
    assert table in capsys.readouterr().out
    assert f"| {row['angle_deg']} | {row['pairs']} |" in table


def test_frames_are_measured_against_single_ones():
    rows = [{"row": "single", "PSNR": 28.0, "seconds_a_frame": 1.0}]
    rows.append({"row": "exact path", "PSNR": 28.5, "seconds_a_frame": None})
    rows.append({"row": "exact graph", "PSNR": 28.875, "seconds_a_frame": 2.5})
    text = alignment.summary({"depths": {}, "flow": [], "pair_ms": 1.0, "frames": rows})
    assert "| exact path | 28.500 | +0.500 | not measured |" in text
    assert "| exact graph | 28.875 | +0.875 | 2.50 |" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--frames", "exact sideways"], "--frames 'exact sideways'"),
        (["--frames", "LR model graph"], "needs --lr_geometry"),
        (["--pairs", "0"], "at least 1"),
    ],
)
def test_what_cannot_be_run_is_one_line(words, message):
    with pytest.raises(UserError, match=message):
        alignment.parse(words)


def test_scenes_without_exact_depth_are_refused(tmp_path):
    scene = load_scene(write_blender(tmp_path / "scene", views=3, size=16), eval=True)
    for camera in scene.cameras.values():
        camera.K[0, 0] *= 1.5
    pytest.importorskip("mitsuba")
    with pytest.raises(UserError, match="give its exact depths with --exact DIR"):
        alignment.exact_depths(scene, tmp_path / "depth")
