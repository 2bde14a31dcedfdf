"""What metrics.py says of frames beyond their PSNR: gain over single frames, information maps; the report's part."""

import json
import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation.information import enlarged, grouped
from evaluation.report import write_report
from evaluation.report.data import RunData, frame_facts
from evaluation.report.diagnostics import frames_section, view_rows, worst_first
from evaluation.run_metrics import measure_models
from scene import load_scene
from tests.evaluation.test_report import HOSTILE, Page, check
from tests.evaluation_factory import LR_PX, render, write_frames, write_model, write_scenes
from upsampling.information import SurfaceView, information_maps
from utils.errors import UserError

VIEWS = [f"train/r_{i}" for i in range(4)]


def ball_depth(camera, radius=1.0):
    """z [h, w] of a ball at the origin, 0 beside it."""
    y, x = np.mgrid[: camera.height, : camera.width] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(camera.K).T
    centre = camera.world_to_camera[:3, 3]
    along, square = rays @ centre, (rays**2).sum(-1)
    inside = along**2 - square * (centre @ centre - radius**2)
    return np.where(inside > 0, (along - np.sqrt(np.maximum(inside, 0))) / square, 0).astype(np.float32)


def write_geometry(out, scene):
    for name in scene.train:
        z = ball_depth(scene.cameras[name])
        path = out / "geometry" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(path, z=z, alpha=(z > 0).astype(np.float32))


def measure(*folders, **options):
    options = {"no_lpips": True, "no_report": True} | options
    return measure_models(CommonParams(quiet=True, device="cpu"), MetricsParams(tuple(map(str, folders)), **options))


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model with frames, single frames three times as noisy, geometry, and what upsampling says of its frames."""
    root = tmp_path_factory.mktemp("diagnostics")
    lr, _ = write_scenes(root)
    out = write_model(root / "out", lr)
    write_frames(out / "hr", noise=1)
    write_frames(root / "single", noise=3)
    write_geometry(out, load_scene(lr, eval=True))
    frames = {name: 40.0 + i for i, name in enumerate(VIEWS)}
    errors = {name: {"rms_levels": 0.5 + i, "max_levels": 2.25 * (i + 1)} for i, name in enumerate(VIEWS[:3])}
    content = {"frames": frames | {VIEWS[3]: None}, "errors": errors | {VIEWS[3]: None}}
    (out / "hr" / "consistency.json").write_text(json.dumps(content))
    neighbours = [
        {"name": VIEWS[2], "angle_deg": 25.0, "visible": 0.5, "flow_px": 3.0, "weight": 0.2},
        {"name": VIEWS[1], "angle_deg": 7.25, "visible": 0.9, "flow_px": 1.0, "weight": 0.8},
    ]
    views = {name: {"neighbours": neighbours, "flow_px": 1.0 + i, "disagreement": 0.1} for i, name in enumerate(VIEWS)}
    alignment = {"flow": "geometry", "propagation": "graph", "views": views}
    (out / "hr" / "alignment.json").write_text(json.dumps(alignment))
    (out / "hr" / "confidence" / "train").mkdir(parents=True)
    for name in VIEWS:
        Image.new("L", (48, 48), 200).save(out / "hr" / "confidence" / f"{name}.png")
    for background in ("white", "black"):
        render(out, lr, background=background, output_path=str(out / background), skip_train=True)
    measure(out / "white", out / "black", single_frames=str(root / "single"))
    return out


def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("background", ["white", "black"])
def test_gain_over_single_frames(model, background):
    """Noise of one grey level against noise of three: 20 log10(3) = 9.5 dB where nothing is clipped."""
    frames = metrics(model / background)["frames"]
    assert set(frames["per_view"]) == set(VIEWS)
    for values in [frames, *frames["per_view"].values()]:
        assert values["PSNR"] - values["single_PSNR"] == pytest.approx(9.54, abs=0.3)


def neighbours(scene, limit_deg):
    """Names of the views within so many degrees of each, seen from the origin at which all cameras look."""
    away = {name: scene.cameras[name].centre / np.linalg.norm(scene.cameras[name].centre) for name in VIEWS}
    return {a: [b for b in VIEWS if away[a] @ away[b] > np.cos(np.deg2rad(limit_deg))] for a in VIEWS}


@pytest.mark.parametrize(("kind", "limit_deg"), [("all", 180), ("near", 30)])
def test_information_maps_are_those_of_the_geometry(model, kind, limit_deg):
    scene = load_scene(model.parent / "toy" / "lr", eval=True)
    depths = {name: torch.from_numpy(ball_depth(scene.cameras[name])) for name in VIEWS}
    views = {name: SurfaceView(scene.cameras[name], z) for name, z in depths.items()}
    information = metrics(model / "black")["information"]
    assert information["scale"] == 4
    found = information[kind]
    for name, expected in information_maps(views, 4, neighbours(scene, limit_deg)):
        picture = np.asarray(Image.open(model / "black" / "information" / kind / f"{name}.png"))
        assert picture.shape[:2] == (LR_PX, LR_PX)
        np.testing.assert_array_equal(picture[..., 0], np.rint(expected.numpy() * 255))
        assert found["per_view"][name] == pytest.approx(float(expected[expected > 0].mean()))
    assert 1 / 16 <= found["mean"] < 1
    recorded = json.loads((model / "black" / "run.json").read_text())["steps"]["metrics"]["outputs"]
    assert f"information/{kind}/{VIEWS[0]}.png" in recorded


def test_gain_is_compared_with_the_information(model):
    gain = metrics(model / "white")["information"]["all"]["gain"]
    assert gain["block_px"] == 8
    assert gain["blocks"] > 10
    assert -1 <= gain["rank_correlation"] <= 1
    assert -1 <= gain["rank_correlation_views"] <= 1
    assert [group["information"] for group in gain["groups"]] == sorted(g["information"] for g in gain["groups"])
    assert all(group["gain_db"] == pytest.approx(9.5, abs=1.5) for group in gain["groups"])


def test_without_single_frames_and_geometry(model, tmp_path):
    shutil.copytree(model / "black" / "test", tmp_path / "black" / "test")
    record = json.loads((model / "black" / "run.json").read_text())
    record["steps"]["render"]["notes"]["model"] = str(model)
    del record["steps"]["metrics"]
    (tmp_path / "black" / "run.json").write_text(json.dumps(record))
    measure(tmp_path / "black", hr_root=str(model.parent / "toy" / "hr"))
    assert "single_PSNR" not in metrics(tmp_path / "black")["frames"]
    assert "gain" not in metrics(tmp_path / "black")["information"]["all"]
    (model / "geometry").rename(model / "elsewhere")
    try:
        measure(tmp_path / "black", hr_root=str(model.parent / "toy" / "hr"))
    finally:
        (model / "elsewhere").rename(model / "geometry")
    assert metrics(tmp_path / "black")["information"] is None


def test_broken_input_is_one_line(model, tmp_path):
    with pytest.raises(UserError, match=r"--single_frames .*nowhere: no such folder"):
        measure(model / "black", single_frames=str(tmp_path / "nowhere"))
    write_frames(tmp_path / "single")
    (tmp_path / "single" / "train" / "r_2.png").unlink()
    with pytest.raises(UserError, match=r"r_2.png: not there; --single_frames"):
        measure(model / "black", single_frames=str(tmp_path / "single"))
    Image.new("RGB", (5, 5)).save(tmp_path / "single" / "train" / "r_2.png")
    with pytest.raises(UserError, match=r"r_2.png: 5x5 px, the HR truth of its view has 48x48"):
        measure(model / "black", single_frames=str(tmp_path / "single"))
    with pytest.raises(UserError, match="--no_frames contradicts"):
        measure(model / "black", single_frames=str(tmp_path), no_frames=True)


def test_broken_geometry_is_one_line(model, tmp_path):
    path = model / "geometry" / f"{VIEWS[1]}.npz"
    whole = path.read_bytes()
    path.write_bytes(whole[:100])
    try:
        with pytest.raises(UserError, match=r"r_1.npz"):
            measure(model / "black")
    finally:
        path.write_bytes(whole)


def test_report_shows_the_frames_view_by_view(model):
    measure(model / "black", single_frames=str(model.parent / "single"))
    path = write_report(model / "black")
    page = check(path)
    assert "frames" in page.ids
    content = path.read_text()
    assert f"{VIEWS[1]} (7.2°, sees 90 %, weight 0.80), {VIEWS[2]} (25.0°, sees 50 %, weight 0.20)" in content
    for heading in (
        "gain over single [dB]",
        "LR consistency [dB]",
        "disagreement",
        "flow [px]",
        "information, near views",
    ):
        assert heading in content
    assert "Rank correlation" in content
    assert [values for values in page.all("table") if values.get("class") == "sort"]
    options = {values["value"] for values in page.all("option")}
    assert {"near", "all", "confidence", "lr", "ours", "truth"} <= options
    gain = metrics(model / "black")["frames"]
    assert f"{gain['PSNR'] - gain['single_PSNR']:+.2f} dB against single frames" in content


def test_report_says_how_far_frames_are_from_their_lr_views(model):
    content = write_report(model / "black").read_text()
    assert "LR error, rms [levels]" in content
    assert "differs from its LR view by 1.50 of 255 grey levels (root mean square, mean over 3 frames)" in content
    assert "and nowhere by more than 6.8." in content
    table = content[content.index("LR error, largest [levels]") :]
    cells = re.findall(r"<td[^>]*>([^<]*)</td>", table[table.index(f">{VIEWS[1]}<") :])
    assert {"41.0", "1.50", "4.5"} <= set(cells[:8])  # of its own row: dB, rms, largest
    facts = frame_facts(model / "hr")
    assert facts[VIEWS[3]]["consistency"] is None
    assert "rms_levels" not in facts[VIEWS[3]]


def test_report_without_diagnostics_leaves_the_part_out(tmp_path):
    content = {"methods": {}, "frames": None, "information": None}
    assert frames_section(RunData(tmp_path, tmp_path, content)) is None


def test_odd_facts_of_frames_are_shown_or_left_out(tmp_path):
    facts = {
        HOSTILE: {"flow_px": None, "disagreement": 0.5, "neighbours": [{"name": HOSTILE}, {"weight": 1.0}, 3]},
        "b": {"disagreement": 0.1, "consistency": None, "neighbours": []},
        "c": {},
    }
    shown = frames_section(RunData(tmp_path, tmp_path, {"methods": {}, "frames": None}, frames=facts))
    assert HOSTILE not in shown
    assert "flow [px]" not in shown
    Page(shown)
    assert shown.index("&lt;script") < shown.index(">b<") < shown.index(">c<")  # larger disagreement first


def test_worst_views_come_first_by_gain(tmp_path):
    per_view = {"a": {"PSNR": 30.0, "single_PSNR": 29.0}, "b": {"PSNR": 25.0, "single_PSNR": 25.5}}
    content = {
        "methods": {},
        "frames": {"per_view": per_view},
        "information": {"all": {"per_view": {"a": 0.5, "b": None}}},
    }
    rows = view_rows(RunData(tmp_path, tmp_path, content))
    assert rows["a"] == {"PSNR": 30.0, "gain": 1.0, "all": 0.5}
    assert worst_first(rows) == ["b", "a"]
    chart = frames_section(RunData(tmp_path, tmp_path, content))
    assert "b: -0.50" in chart  # a loss has a bar too


def test_gain_that_follows_the_information_correlates_fully():
    rng = np.random.default_rng(1)
    information, before = rng.permutation(100) / 100, np.full(100, 0.01)
    found = grouped(information, before, before * (1 - 0.5 * information))
    assert found["rank_correlation"] == pytest.approx(1)
    assert found["rank_correlation_relative"] == pytest.approx(1)
    first, *_, last = found["groups"]
    assert first["information"] == pytest.approx(0.095)
    assert first["gain_db"] == pytest.approx(-10 * np.log10(1 - 0.5 * 0.095), abs=0.01)
    assert last["gain_db"] > first["gain_db"]


def test_enlarging_repeats_pixels():
    small = np.arange(6.0).reshape(2, 3)
    np.testing.assert_array_equal(enlarged(small, 8, 12), np.kron(small, np.ones((4, 4))))
    np.testing.assert_array_equal(enlarged(small, 3, 5), small[[0, 1, 1]][:, [0, 0, 1, 2, 2]])
