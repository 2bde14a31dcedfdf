"""render.py on a small model: files, truths, backgrounds, remembered settings, geometry, depth and flight."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.render import RenderParams
from evaluation.flight import flight_path, key_cameras
from evaluation.rendering import COLOURS, depth_picture, load_job, scene_name
from evaluation.saved import parse_with_saved, saved_settings
from scene import load_scene
from scene.images import composite
from scene.ply import read_gaussians
from scene.trained_model import find_model
from tests.evaluation_factory import HR_PX, LR_PX, render, write_model, write_scenes
from tests.scene_factory import picture, write_blender
from utils.errors import UserError
from utils.record import step

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


@pytest.fixture
def model(tmp_path, scenes):
    return write_model(tmp_path / "model", scenes[0])


def read(path):
    return np.asarray(Image.open(path))


@pytest.mark.parametrize(("background", "level"), [("white", 255), ("black", 0)])
def test_files_truth_and_background(model, scenes, background, level):
    render(model, scenes[0], background=background)
    for split, count in (("test", 2), ("train", 4)):
        for kind in ("renders", "gt"):
            names = sorted(p.name for p in (model / split / "ours_7" / kind).iterdir())
            assert names == [f"{i:05d}.png" for i in range(count)]
    rgba = picture(1, HR_PX, HR_PX).astype(float)
    alpha = rgba[..., 3:] / 255
    expected = np.rint(rgba[..., :3] * alpha + level * (1 - alpha))
    np.testing.assert_array_equal(read(model / "train/ours_7/gt/00001.png"), expected)
    corner = read(model / "test/ours_7/renders/00000.png")[0, 0]
    assert (np.abs(corner.astype(int) - level) < 40).all()


def test_keep_names(model, scenes):
    render(model, scenes[0], keep_names=True, skip_train=True)
    assert sorted(p.name for p in (model / "test/ours_7/renders").iterdir()) == ["r_0.png", "r_1.png"]
    assert not (model / "train").exists()


@pytest.mark.parametrize("pipeline", [PipelineParams(), PipelineParams(rasterizer="reference")])
def test_half_precision_is_refused_where_nothing_draws_it(model, scenes, pipeline):
    settings = ModelParams(source_path=str(scenes[0]), model_path=str(model))
    with pytest.raises(UserError, match=f"--half_sh: .*--rasterizer {pipeline.rasterizer} on cpu"):
        load_job(load_scene(scenes[0]), settings, pipeline, RenderParams(half_sh=True), "cpu")


def test_output_path_leaves_the_model_alone(model, scenes, tmp_path):
    before = sorted(p for p in model.rglob("*"))
    out = render(model, scenes[0], output_path=str(tmp_path / "white"), background="white", skip_test=True)
    assert (out / "train/ours_7/renders/00003.png").is_file()
    assert sorted(p for p in model.rglob("*")) == before


def test_other_settings_need_overwrite(model, scenes):
    render(model, scenes[0], background="white", skip_train=True)
    with pytest.raises(UserError, match=r"background.*--overwrite"):
        render(model, scenes[0], background="black", skip_train=True)
    render(model, scenes[0], background="black", skip_train=True, overwrite=True)


def test_second_split_and_iteration_add_to_the_record(model, scenes):
    render(model, scenes[0], skip_train=True)
    write_model(model, scenes[0], iteration=9)
    render(model, scenes[0])
    methods = json.loads((model / "run.json").read_text())["steps"]["render"]["notes"]["methods"]
    assert set(methods) == {"test/ours_7", "test/ours_9", "train/ours_9"}
    assert methods["train/ours_9"]["views"]["00002.png"] == "train/r_2"


def test_geometry_of_every_view_at_lr_size(model, scenes):
    render(model, scenes[0], geometry=True)
    names = sorted(str(p.relative_to(model / "geometry")) for p in (model / "geometry").rglob("*.npz"))
    assert names == [f"test/r_{i}.npz" for i in range(2)] + [f"train/r_{i}.npz" for i in range(4)]
    for name in names:
        with np.load(model / "geometry" / name) as arrays:
            z, alpha = arrays["z"], arrays["alpha"]
        assert z.shape == alpha.shape == (LR_PX, LR_PX)
        assert z.dtype == alpha.dtype == np.float32
        assert ((z > 0) == (alpha > 0.5)).all()
        assert (z > 0).any()
        assert z[z > 0].min() > 4.03 - 1.3 * 3**0.5 - 0.1  # the splats' cube, seen from radius 4.03


def test_hr_frames_are_the_train_views_as_frames_are_stored(model, scenes):
    """On any background the RGBA frame is what the model shows, but for rounding colour and opacity to 8 bit."""
    render(model, scenes[0], hr_frames=3, background="white")
    files = sorted((model / "hr_frames").rglob("*.png"))
    assert [str(p.relative_to(model / "hr_frames")) for p in files] == [f"train/r_{i}.png" for i in range(4)]
    scene = load_scene(scenes[0])
    for background in ("white", "black"):
        settings = ModelParams(source_path=str(scenes[0]), model_path=str(model))
        job = load_job(scene, settings, PipelineParams(), RenderParams(background=background), "cpu")
        shown = job.draw(scene.cameras["train/r_2"].resized(3 * LR_PX, 3 * LR_PX)).color.clamp(0, 1)
        frame = read(files[2])
        assert frame.shape == (3 * LR_PX, 3 * LR_PX, 4)
        error = np.abs(composite(frame, COLOURS[background]) * 255 - shown.permute(1, 2, 0).numpy() * 255)
        assert error.max() < 1.6  # alpha, colour and the composed picture are each rounded once
    assert (read(files[2])[..., 3] > 0).mean() > 0.2


def test_hr_frames_of_a_scene_without_alpha_are_plain_pictures(tmp_path):
    scene = write_blender(tmp_path / "scene", views=2, test_views=1, size=LR_PX, rgba=False)
    model = write_model(tmp_path / "model", scene)
    render(model, scene, hr_frames=2, background="white")
    render(model, scene, background="white", skip_test=True)
    assert read(model / "hr_frames/train/r_1.png").shape == (2 * LR_PX, 2 * LR_PX, 3)
    small = np.asarray(Image.open(model / "hr_frames/train/r_1.png").resize((LR_PX, LR_PX), Image.Resampling.BOX))
    assert np.abs(small.astype(int) - read(model / "train/ours_7/renders/00001.png").astype(int)).mean() < 12


@pytest.mark.parametrize("wrong", [{"hr_frames": -1}, {"hr_frames": 17}, {"hr_frames": 4, "geometry": True}])
def test_hr_frames_are_asked_for_alone_and_in_sensible_sizes(wrong):
    with pytest.raises(UserError, match="--hr_frames"):
        RenderParams(**wrong)


def test_depth_files(model, scenes):
    render(model, scenes[0], depth=True, skip_train=True)
    depth = np.load(model / "test/ours_7/depth/00001.npy")
    shown = read(model / "test/ours_7/depth/00001.png")
    assert depth.shape == shown.shape[:2] == (HR_PX, HR_PX)
    assert ((shown[..., 0] > 0) == (depth > 0)).all()


def test_depth_picture_is_brighter_where_nearer():
    grey = depth_picture(np.array([[0.0, 1.0], [2.0, 4.0]]))[..., 0]
    assert grey[0, 0] == 0 < grey[1, 1] < grey[1, 0] < grey[0, 1]


def test_flight_is_a_video(model, scenes):
    render(model, scenes[0], flight=True, flight_seconds=1.0, flight_fps=6)
    video = cv2.VideoCapture(str(model / "flight.mp4"))
    frames = []
    while True:
        ok, frame = video.read()
        if not ok:
            break
        frames.append(frame)
    assert len(frames) == 6
    assert frames[0].shape == (HR_PX, HR_PX, 3)
    assert not list(model.glob(".*.tmp*"))


def test_flight_passes_its_keys_and_is_smooth(scenes):
    scene = load_scene(scenes[0])
    keys = key_cameras([scene.cameras[name] for name in scene.train], 4)
    path = flight_path(keys, 301, 20, 10)
    np.testing.assert_allclose(path[0].world_to_camera, keys[0].world_to_camera, atol=1e-9)
    np.testing.assert_allclose(path[-1].world_to_camera, keys[-1].world_to_camera, atol=1e-9)
    centres = np.array([camera.centre for camera in path])
    for key in keys:
        assert np.linalg.norm(centres - key.centre, axis=1).min() < 0.05
    steps = np.diff(centres, axis=0)
    assert np.linalg.norm(np.diff(steps, axis=0), axis=1).max() < 0.2 * np.linalg.norm(steps, axis=1).max()
    for camera in path[::50]:
        rotation = camera.world_to_camera[:3, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)


def test_flight_through_one_camera_stands_still(scenes):
    scene = load_scene(scenes[0])
    (first, *_, last) = flight_path([scene.cameras[scene.train[0]]], 3, 8, 8)
    np.testing.assert_array_equal(first.world_to_camera, last.world_to_camera)


def test_left_out_values_come_from_the_model(tmp_path, scenes):
    folder = write_model(tmp_path / "m", scenes[0], white_background=True, resolution=2)
    _, model, _, _ = parse_with_saved("render", ["-m", str(folder)])
    assert (model.source_path, model.white_background, model.resolution, model.eval) == (str(scenes[0]), True, 2, True)
    _, model, _, _ = parse_with_saved("render", ["-m", str(folder), "-r", "-1"])
    assert model.resolution == -1


def test_the_truth_of_training_is_found_again(tmp_path, scenes):
    folder = write_model(tmp_path / "m", scenes[0])
    with step(folder, "train", {"lr_kernel": "area", "dilation": 0.1}, {}, (), CommonParams(quiet=True)) as run:
        run.notes["hr_root"] = "../truth"
    saved = saved_settings(folder)
    assert (saved["hr_root"], saved["lr_kernel"]) == (str(tmp_path / "truth"), "area")
    _, _, pipeline, _ = parse_with_saved("render", ["-m", str(folder)])
    assert pipeline.dilation == 0.1


def test_latest_iteration_and_missing_ones(tmp_path, scenes):
    folder = write_model(write_model(tmp_path / "m", scenes[0], iteration=7), scenes[0], iteration=30)
    assert find_model(folder)[1] == 30
    assert read_gaussians(find_model(folder, 7)[0]).num == 60
    with pytest.raises(UserError, match="no iteration 8; there are 7, 30"):
        find_model(folder, 8)


def test_missing_model_is_one_line_and_exit_code_2(tmp_path):
    command = [sys.executable, str(ROOT / "render.py"), "-m", str(tmp_path / "missing"), "-s", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_scene_names():
    assert scene_name(Path("/data/lego/lr_200")) == "lego"
    assert scene_name(Path("/data/bonsai")) == "bonsai"
