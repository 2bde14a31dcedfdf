"""Steps beside views, and the frames beside jumps: from schedules written by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation.order_quality import mean_of, mean_step_px, measure_order, steps_beside
from evaluation.run_metrics import measure_models
from evaluation.tables import build, read_row
from scene import Scene
from scene.cameras import Camera
from scene.images import ImageStore
from scene.sequences import Sequences, Subsequence, write_sequences
from tests.evaluation_factory import render, write_frames, write_model, write_scenes
from utils.errors import UserError

VIEWS = tuple(f"train/r_{i}" for i in range(4))
NO_VIEWS = Scene(Path("none"), "blender", {}, [], [], ImageStore({}))  # where there are no depths it is not asked
# r_0 -60-> r_1 -10-> r_2, kept are r_0 and r_1; then r_1 -30-> r_3 -None-> r_2, kept are r_3 and r_2
CALLS = (
    Subsequence((VIEWS[0], VIEWS[1], VIEWS[2]), (0, 1), False, (), (60.0, 10.0)),
    Subsequence((VIEWS[1], VIEWS[3], VIEWS[2]), (1, 2), False, (), (30.0, None)),
)
SEQUENCES = Sequences(CALLS, "greedy", {}, "pose", "deg")


def test_a_view_has_the_larger_step_of_the_call_that_keeps_it():
    assert steps_beside(SEQUENCES) == {VIEWS[0]: 60.0, VIEWS[1]: 60.0, VIEWS[3]: 30.0}  # r_2 there: nothing measured


def test_a_view_alone_in_its_call_has_no_step():
    assert steps_beside(Sequences((Subsequence(("a",), (0,)),))) == {}


def test_frames_beside_jumps_get_a_mean_of_their_own(tmp_path):
    write_sequences(tmp_path / "sequences.json", SEQUENCES)
    per_view = {name: {"PSNR": 30.0 + i, "bicubic_PSNR": 20.0} for i, name in enumerate(VIEWS)}
    found = measure_order(NO_VIEWS, tmp_path / "hr", per_view, 45.0, tmp_path / "geometry")
    assert found["jumps"] == {
        **{"over_deg": 45.0, "steps": 1, "views": list(VIEWS[:2]), "PSNR": 30.5, "bicubic_PSNR": 20.0}
    }
    assert found["mean_step_deg"] == pytest.approx(np.mean([60, 10, 30]))
    assert (found["worst_step_deg"], found["method"]) == (60.0, "greedy")
    assert found["step_deg"] == {VIEWS[0]: 60.0, VIEWS[1]: 60.0, VIEWS[3]: 30.0}
    assert measure_order(NO_VIEWS, tmp_path / "hr", per_view, 60.0, tmp_path / "geometry")["jumps"] == {
        "over_deg": 60.0,
        "steps": 0,
        "views": [],
    }
    del per_view[VIEWS[0]]  # without a truth it is not measured
    assert measure_order(NO_VIEWS, tmp_path / "hr", per_view, 20.0, tmp_path / "geometry")["jumps"]["views"] == [
        VIEWS[1],
        VIEWS[3],
    ]
    assert mean_of(per_view, VIEWS[:2]) == per_view[VIEWS[1]]  # another run's jumps, in this run's frames


@pytest.mark.parametrize("angles", [None, ()])
def test_without_a_schedule_or_its_angles_there_is_nothing_to_say(tmp_path, angles):
    if angles is not None:
        write_sequences(tmp_path / "sequences.json", Sequences((Subsequence(VIEWS, (0, 1, 2, 3)),)))
    assert measure_order(NO_VIEWS, tmp_path / "hr", {VIEWS[0]: {"PSNR": 1.0}}, 45.0, tmp_path / "geometry") is None


def test_metrics_and_tables_show_it(tmp_path):
    lr, _ = write_scenes(tmp_path)
    out = write_model(tmp_path / "out", lr)
    write_frames(out / "hr", noise=3)
    write_sequences(out / "sequences.json", SEQUENCES)
    render(out, lr, skip_train=True)
    common = CommonParams(device="cpu", skip_done=True, quiet=True)

    def measure(jump_deg):
        measure_models(common, MetricsParams((str(out),), no_lpips=True, no_report=True, jump_deg=jump_deg))
        return json.loads((out / "metrics.json").read_text())["frames"]

    frames = measure(45.0)
    values = [frames["per_view"][name]["PSNR"] for name in VIEWS]
    assert frames["order"]["jumps"]["PSNR"] == pytest.approx(np.mean(values[:2]))
    columns = ["name", "jump_PSNR", "jumps", "mean_step_deg", "worst_step_deg", "frame_PSNR"]
    table = build([read_row(out, "here")], columns, None, False)
    means = [f"{np.mean(values[:2]):.2f}", f"{np.mean(values):.2f}"]
    assert table.rows == [["here", means[0], "1", "33.3", "60.0", means[1]]]
    assert len(measure(20.0)["order"]["jumps"]["views"]) == 3  # another setting is measured anew
    write_sequences(out / "sequences.json", Sequences(CALLS[1:] + CALLS[:1], "greedy", {}, "pose", "deg"))
    before = (out / "metrics.json").stat().st_mtime_ns
    measure(20.0)
    assert (out / "metrics.json").stat().st_mtime_ns > before  # and so is another schedule


def test_flow_between_views_is_how_far_surfaces_move(tmp_path):
    """A wall facing two cameras of equal orientation, s to its side: every surface moves f s / z pixels."""
    K, size, z = np.array([[40.0, 0, 16], [0, 40, 12], [0, 0, 1]]), (32, 24), 4.0
    cameras = {}
    for name, x in (("a", 0.0), ("b", 0.3), ("c", 0.9)):
        pose = np.eye(4)
        pose[0, 3] = -x
        cameras[name] = Camera(name, *size, K, pose)
    depth = np.full(size[::-1], z, np.float32)
    depth[:, :5] = 0  # background does not count
    (tmp_path / "geometry").mkdir()
    for name in "abc":
        np.savez(tmp_path / f"geometry/{name}.npz", z=depth)
    scene = Scene(tmp_path, "blender", cameras, list("abc"), [], ImageStore({}))
    walk = Sequences((Subsequence(("a", "b", "c"), (0, 1, 2), True, (), (4.0, 8.0)),))
    expected = np.mean([40 * 0.3 / z, 40 * 0.6 / z])
    assert mean_step_px(scene, walk, tmp_path / "geometry") == pytest.approx(expected, rel=1e-4)
    assert mean_step_px(scene, Sequences((Subsequence(("a",), (0,)),)), tmp_path / "geometry") is None
    write_sequences(tmp_path / "sequences.json", walk)
    per_view = {name: {"PSNR": 1.0} for name in "abc"}
    assert measure_order(scene, tmp_path / "hr", per_view, 45.0, tmp_path / "geometry")["step_px"] == pytest.approx(
        expected, rel=1e-4
    )
    (tmp_path / "geometry/c.npz").unlink()
    assert "step_px" not in measure_order(scene, tmp_path / "hr", per_view, 45.0, tmp_path / "geometry")
    with pytest.raises(UserError, match=r"c\.npz"):
        mean_step_px(scene, walk, tmp_path / "geometry")


@pytest.mark.parametrize("degrees", [-1.0, 200.0, float("nan")])
def test_an_impossible_angle_is_refused(degrees):
    with pytest.raises(UserError, match="--jump_deg"):
        MetricsParams(jump_deg=degrees)
