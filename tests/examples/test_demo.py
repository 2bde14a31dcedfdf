"""The driver of `make demo`: its table, its settings file, what it refuses."""

import re
from pathlib import Path

import numpy as np
import pytest

from arguments.pipeline import plan
from arguments.steps import parse
from evaluation.protocols import Protocol
from examples import demo
from examples.demo_scene.poses import CAMERA_ANGLE_X
from examples.demo_scene.render import RenderSettings, View
from examples.demo_scene.write import SceneSettings, write_scene
from utils.atomic import read_json, write_json
from utils.errors import UserError

ROOT = Path(demo.__file__).resolve().parents[1]
LR = {"lr_kernel": "bicubic, renormalise", "lr_rounding": "8 bit", "scale": 4.0}
HR = {"scene": "5a40f3eb", "lr_kernel": "none", "lr_rounding": "none", "scale": 1.0}


def result_files(out: Path, **changes: object) -> None:
    """What the scripts leave behind, with numbers that say where they come from."""
    for v, variant in enumerate(demo.VARIANTS):
        steps = ["train"] if variant == "hr" else ["order", "upsample", "train"]
        if variant == "seqsplat":
            lr_model = {"train": {"seconds": 100.0, "peak_bytes": 1}}
            write_json(out / variant / "lr_model" / "run.json", {"schema": 1, "steps": lr_model})
        records = {name: {"seconds": 10.0 * (i + 1), "peak_bytes": (v + i) * 10**8} for i, name in enumerate(steps)}
        write_json(out / variant / "run.json", {"schema": 1, "steps": records})
        for b, background in enumerate(demo.BACKGROUNDS):
            folder = out / variant / background
            write_json(folder / "run.json", {"schema": 1, "steps": {"render": {"seconds": 1.0 + b, "peak_bytes": 1}}})
            facts = {
                "scene": "key" if variant == "hr" else "lr",
                "views": 12,
                "background": background,
                "truth": background,
            } | LR
            facts |= (HR if variant == "hr" else {}) | changes.get(variant, {})
            mean = {"PSNR": 20.0 + v + 0.123456, "SSIM": 0.8, "LPIPS": 0.3 - 0.1 * v, "LPIPS_alex": 0.5}
            metrics = {
                "schema": 1,
                "methods": {"test/ours_100": {"protocol": Protocol(**facts).to_json(), "mean": mean, "views": {}}},
                "frames": None if variant == "hr" else {"PSNR": 30.0 + v + b},
                "weights": {},
            }
            write_json(folder / "metrics.json", metrics)


def test_table_has_a_row_for_each_variant_and_background(tmp_path):
    result_files(tmp_path)
    table = demo.comparison(tmp_path, str(ROOT / "configs" / "demo.toml"))
    rows = {(row["variant"], row["background"]): row for row in table["rows"]}
    assert list(rows) == [(v, b) for v in ("bicubic", "single", "video", "seqsplat", "hr") for b in ("white", "black")]
    names = ["variant", "background", "PSNR", "SSIM", "LPIPS", "frame_PSNR", "seconds", "peak_MB"]
    assert all(list(row) == names for row in table["rows"])
    video = rows["video", "black"]
    assert (video["PSNR"], video["SSIM"], video["LPIPS"]) == (22.1235, 0.8, 0.1)
    assert video["frame_PSNR"] == 33.0
    assert video["seconds"] == 10 + 20 + 30 + 2
    assert video["peak_MB"] == 400
    assert rows["seqsplat", "white"]["seconds"] == 10 + 20 + 30 + 100 + 1
    assert rows["hr", "white"]["frame_PSNR"] is None
    assert rows["hr", "white"]["seconds"] == 11
    assert table["protocol"]["scale"] == 4.0
    assert table["protocol"]["settings"]["train"]["random_background"] is True
    assert "background" not in table["protocol"]


def test_table_takes_the_last_iteration_of_several(tmp_path):
    result_files(tmp_path)
    path = tmp_path / "video" / "black" / "metrics.json"
    metrics = read_json(path)
    (result,) = metrics["methods"].values()
    for name in ("test/ours_20", "test/theirs"):
        metrics["methods"][name] = result | {"mean": result["mean"] | {"PSNR": 99.0}}
    write_json(path, metrics)
    rows = demo.comparison(tmp_path, str(ROOT / "configs" / "demo.toml"))["rows"]
    assert max(row["PSNR"] for row in rows) < 99


def test_table_refuses_to_mix_protocols(tmp_path):
    result_files(tmp_path, video={"views": 11})
    with pytest.raises(UserError, match="'views'"):
        demo.comparison(tmp_path, str(ROOT / "configs" / "demo.toml"))


def test_a_missing_result_is_named(tmp_path):
    result_files(tmp_path)
    (tmp_path / "single" / "white" / "metrics.json").unlink()
    with pytest.raises(UserError, match=r"single/white/metrics\.json"):
        demo.comparison(tmp_path, str(ROOT / "configs" / "demo.toml"))


@pytest.mark.parametrize("variant", ["bicubic", "single", "video", "seqsplat"])
def test_variants_are_what_their_names_say(variant):
    words = ["-s", "LR", "-m", "OUT", "--config", str(ROOT / "configs" / "demo.toml")]
    steps = demo.STEPS.get(variant, ("order", "upsample", "train"))
    commands = {c.step: set(c.arguments) for c in plan([*words, "--steps", *steps, *demo.VARIANTS[variant]])}
    assert list(commands) == list(steps)
    order, upsample, train = (commands[name] for name in ("order", "upsample", "train"))
    assert (f"--ordering={'greedy' if variant in ('video', 'seqsplat') else 'file'}" in order) is True
    assert ("--flow=learned" in upsample) is (variant == "video")
    assert ("geometry" in commands) is (variant == "seqsplat")
    *_, optimisation, training, _ = parse("train", tuple(train))
    ours = variant == "seqsplat"
    assert (training.init_points == "lr_model") is ours
    assert (optimisation.lambda_tex_final >= 0) is ours
    assert f"--upsampler={'bicubic' if variant == 'bicubic' else 'basicvsr'}" in upsample
    assert ("--propagation=none" in upsample) is (variant == "single")
    assert {"--random_background", "--eval", "--skip_done"} <= train


class Ball:
    """Stands for the path tracer: a chequered ball seen from the pose, with its exact depth."""

    def __init__(self, settings):
        self.size = settings.size

    def __call__(self, pose, number):
        focal = 0.5 * self.size / np.tan(0.5 * CAMERA_ANGLE_X)
        offset = (np.arange(self.size) + 0.5 - self.size / 2) / focal
        rays = np.stack([*np.meshgrid(offset, -offset), -np.ones((self.size, self.size))], -1) @ pose[:3, :3].T
        centre = pose[:3, 3]
        a, b, c = (rays**2).sum(-1), rays @ centre, centre @ centre - 1.0
        under_root = b**2 - a * c
        z = np.where(under_root > 0, (-b - np.sqrt(np.maximum(under_root, 0))) / a, 0)
        chequers = np.floor(6 * (centre + z[..., None] * rays)).sum(-1) % 2
        rgba = np.stack([60 + 120 * chequers, 90 + 0 * z, 200 - 150 * chequers, np.full_like(z, 255)], -1)
        return View((rgba * (z > 0)[..., None]).astype(np.uint8), z.astype(np.float32))


@pytest.mark.slow
def test_all_variants_end_to_end(tmp_path):
    settings = SceneSettings(train_views=6, test_views=2, cloud_points=800, render=RenderSettings(size=128))
    hr = write_scene(tmp_path / "hr", settings, Ball)
    config = (ROOT / "configs" / "demo.toml").read_text()
    config = re.sub(r"^iterations = .*$", "iterations = 30", config, flags=re.M)
    (tmp_path / "short.toml").write_text(config)
    out = tmp_path / "demo"
    files = demo.make(out, hr, str(tmp_path / "short.toml"), demo.Budget(), ["--device", "auto", "--threads", "0"])
    assert all(path.is_file() for path in files)
    table = read_json(out / "table.json")
    assert len(table["rows"]) == 10
    for row in table["rows"]:
        assert 10 < row["PSNR"] < 60
        assert row["peak_MB"] > 100
    results = read_json(out / "video" / "white" / "results.json")
    assert list(results["ours_30"]) == ["SSIM", "PSNR", "LPIPS"]
    frames = read_json(out / "seqsplat" / "white" / "metrics.json")["frames"]
    assert frames["single_PSNR"] == read_json(out / "single" / "white" / "metrics.json")["frames"]["PSNR"]
    links = [f'href="../seqsplat/{background}/report/index.html"' for background in demo.BACKGROUNDS]
    assert all(link in (out / "report" / "index.html").read_text() for link in links)
    models = {path: path.stat().st_mtime_ns for path in out.glob("*/point_cloud/*/*.ply")}
    assert len(models) == 5
    demo.make(out, hr, str(tmp_path / "short.toml"), demo.Budget(), ["--device", "auto", "--threads", "0"])
    assert {path: path.stat().st_mtime_ns for path in models} == models
