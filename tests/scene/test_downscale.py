"""Making LR scenes: pixels, intrinsics, references to HR, and that a source is never touched."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.downscale import DownscaleParams
from arguments.flags import make
from arguments.lr_scene import LRSceneParams
from scene import load_scene
from scene.alpha import composite, premultiplied
from scene.downscale import downscale, main
from scene.image_files import read_header, read_image
from scene.lr_images import cropped_size, lr_image, released_image
from scene.lr_kernel import LRKernel, LRKernelFile, opaque_support_mask
from tests.scene_factory import write_blender, write_colmap, write_transforms
from utils import errors
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
WRITERS = {"blender": write_blender, "colmap": write_colmap, "transforms": write_transforms}


def made(source, out, **flags):
    return downscale(*settings_of(DownscaleParams, str(source), str(out), **flags))


def settings_of(cls, source, out, **flags):
    """The two groups of a tool, of flags by name."""
    given = {"source_path": source, "output_path": out, "quiet": True} | flags
    return make(LRSceneParams, given), make(cls, given)


def digest(folder):
    """Every file of a folder with its content and time: what "never touched" means."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return [(p, hashlib.sha256(p.read_bytes()).hexdigest(), p.stat().st_mtime_ns) for p in files]


def write_scene(kind, root, size):
    """A scene of size x size pixels of each kind."""
    return write_blender(root, size=size) if kind == "blender" else WRITERS[kind](root, size=(size, size - 4))


# --- pixels ---


def test_lr_pixels_are_the_filtered_premultiplied_hr_pixels():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    image[:12, :, 3] = 255
    kernel = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
    planes = torch.from_numpy(premultiplied(image)).permute(2, 0, 1)
    expected = kernel.down(planes.double()).permute(1, 2, 0).numpy().clip(0, 1)
    found = lr_image(image, kernel) / 255.0
    assert np.abs(found[..., 3] - expected[..., 3]).max() <= 0.5 / 255 + 1e-6
    mixed = found[..., :3] * found[..., 3:]
    inside = np.all(expected[..., :3] <= expected[..., 3:], axis=2)  # no overshoot, which straight alpha cannot hold
    assert inside.sum() > 20
    assert np.abs(mixed - expected[..., :3])[inside].max() <= 1.0 / 255  # half a level of colour, half of alpha


def test_rgb_pixels_are_rounded_once():
    image = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    kernel = LRKernel("area", "renormalise", (30, 20), (6, 4))
    boxes = image.reshape(4, 5, 6, 5, 3).mean((1, 3))
    assert np.abs(lr_image(image, kernel) - boxes).max() <= 0.5 + 1e-4


def test_lr_view_is_consistent_with_hr_where_alpha_is_constant():
    rng = np.random.default_rng(2)
    image = np.concatenate([rng.integers(0, 256, (64, 64, 3)), np.full((64, 64, 1), 255)], axis=2).astype(np.uint8)
    image[:, 40:] = 0
    kernel = LRKernel("bicubic", "renormalise", (64, 64), (16, 16))
    hr, lr = (
        torch.from_numpy(composite(i, (0.0, 0.0, 0.0))).permute(2, 0, 1) for i in (image, lr_image(image, kernel))
    )
    mask = opaque_support_mask(kernel, torch.from_numpy(image[..., 3] / 255.0))
    error = (kernel.down(hr).clamp(0, 1) - lr).abs()
    assert mask.sum() > 100
    assert error[:, mask].max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize(
    ("size", "scale", "used", "lr"), [((800, 533), 4, (800, 532), (200, 133)), ((7, 5), 5, (5, 5), (1, 1))]
)
def test_crop_rule(size, scale, used, lr):
    assert cropped_size(size, scale) == (used, lr)


def test_given_lego_lr_set_is_reproduced(data_dir, tmp_path):
    """Lego views that have HR truth; the set was made by Pillow in float32: all but 1 in 1000 values within a level."""
    lego = data_dir / "nerf_synthetic_lego"
    names = load_scene(lego / "hr_800").train[::5]
    kernel = LRKernel("bicubic", "renormalise", (800, 800), (200, 200))
    difference = np.concatenate(
        [
            np.abs(
                lr_image(read_image(lego / "hr_800" / f"{name}.png"), kernel).astype(int)
                - read_image(lego / "lr_200" / f"{name}.png")
            ).ravel()
            for name in names
        ]
    )
    assert np.mean(difference <= 1) >= 0.999
    assert np.mean(difference == 0) >= 0.999  # reached: 0.999999, largest difference 1


# --- scenes ---


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("size", [32, 39])
def test_lr_cameras_see_the_cropped_hr_picture_exactly(tmp_path, kind, size):
    """K of the LR view is K of the HR view / scale whatever the crop, and the view keeps its name and pose."""
    hr = load_scene(write_scene(kind, tmp_path / "hr", size))
    made(tmp_path / "hr", tmp_path / "lr")
    lr = load_scene(tmp_path / "lr")
    assert (lr.train, lr.test) == (hr.train, hr.test)
    for name in lr.train:
        here, there = lr.cameras[name], hr.cameras[name]
        assert (here.width, here.height) == (there.width // 4, there.height // 4)
        np.testing.assert_allclose(here.K[:2], there.K[:2] / 4, rtol=1e-12)
        np.testing.assert_allclose(here.world_to_camera, there.world_to_camera, atol=1e-12)


@pytest.mark.parametrize("kind", WRITERS)
def test_hr_truth_is_found_and_not_copied(tmp_path, kind):
    hr = load_scene(write_scene(kind, tmp_path / "hr", 32))
    made(tmp_path / "hr", tmp_path / "lr")
    lr = load_scene(tmp_path / "lr")
    for name in [*lr.train, *lr.test]:
        truth = lr.hr_path(name)
        assert truth is not None
        assert truth.resolve() == hr.images.path(name).resolve()
    largest = max(read_header(p).width for p in (tmp_path / "lr").rglob("*.png"))
    assert largest == 8


def test_blender_test_views_are_the_hr_images(tmp_path):
    write_blender(tmp_path / "hr", size=32)
    made(tmp_path / "hr", tmp_path / "lr")
    lr = load_scene(tmp_path / "lr")
    frames = json.loads((tmp_path / "lr/transforms_test.json").read_text())["frames"]
    assert frames[0]["file_path"] == "../hr/test/r_0"
    assert frames[0]["rotation"] == 0.0126  # fields without a meaning here stay
    assert lr.cameras[lr.test[0]].width == 32


def test_points_and_tracks_come_along(tmp_path):
    for kind in ("colmap", "transforms"):
        hr = load_scene(write_scene(kind, tmp_path / f"hr_{kind}", 39))
        made(tmp_path / f"hr_{kind}", tmp_path / f"lr_{kind}")
        lr = load_scene(tmp_path / f"lr_{kind}")
        np.testing.assert_array_equal(lr.points.xyz, hr.points.xyz)
        assert (lr.tracks is None) == (hr.tracks is None)


def test_the_smaller_images_of_a_colmap_scene_are_taken(tmp_path):
    """-i images_2: sizes, crop and K follow the files, not the model's size, and truth lies in images_2."""
    root = write_colmap(tmp_path / "hr", size=(48, 32))
    (root / "images_2").mkdir()
    for path in (root / "images").iterdir():
        with Image.open(path) as image:
            image.resize((23, 15)).save(root / "images_2" / path.name)
    hr = load_scene(root, images="images_2")
    made(root, tmp_path / "lr", images="images_2", scale=2)
    lr = load_scene(tmp_path / "lr")
    name = lr.train[0]
    assert (lr.cameras[name].width, lr.cameras[name].height) == (11, 7)
    np.testing.assert_allclose(lr.cameras[name].K[:2], hr.cameras[name].K[:2] / 2, rtol=1e-12)
    assert lr.hr_path(name).resolve() == (root / "images_2" / Path(name).name).with_suffix(".png").resolve()


def test_lr_kernel_json_says_how(tmp_path):
    write_blender(tmp_path / "hr", size=39)
    returned = made(tmp_path / "hr", tmp_path / "lr", scale=2, kernel="area")
    read = LRKernelFile.read(tmp_path / "lr/lr_kernel.json")
    assert read == returned
    assert (read.kernel, read.scale, read.rounding, read.alpha, read.hr_root) == (
        "area",
        2.0,
        "round",
        "straight",
        "../hr",
    )
    assert read.sizes == ({"hr": [39, 39], "used": [38, 38], "lr": [19, 19]},)
    assert load_scene(tmp_path / "lr").kernel_file == read


def test_text_model_gets_a_text_camera_file(data_dir, tmp_path):
    """The fixture's cameras distort, so they are refused; as pinholes they are cropped and written as text."""
    source = data_dir / "colmap_fixture/txt"
    names = [line.split()[9] for line in (source / "images.txt").read_text().splitlines() if line.endswith(".JPG")]
    root = tmp_path / "hr"
    (root / "sparse/0").mkdir(parents=True)
    (root / "images").mkdir()
    cameras = [line.split() for line in (source / "cameras.txt").read_text().splitlines() if line[0] != "#"]
    lines = [" ".join([c[0], "PINHOLE", "41", "30", "50", "51", "20.5", "15"]) for c in cameras]
    (root / "sparse/0/cameras.txt").write_text("\n".join(lines) + "\n")
    for name in ("images.txt", "points3D.txt"):
        (root / "sparse/0" / name).write_bytes((source / name).read_bytes())
    for name in names:
        path = root / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (41, 30), (9, 8, 7)).save(path)
    made(root, tmp_path / "lr")
    lr = load_scene(tmp_path / "lr")
    camera = lr.cameras[lr.train[0]]
    assert (camera.width, camera.height, camera.fx, camera.cx) == (10, 7, 12.5, 5.125)
    assert (tmp_path / "lr/sparse/0/cameras.txt").is_file()


# --- behaviour ---


@pytest.mark.parametrize("kind", WRITERS)
def test_source_is_never_touched_and_a_second_call_does_nothing(tmp_path, kind):
    write_scene(kind, tmp_path / "hr", 32)
    before = digest(tmp_path / "hr")
    first = made(tmp_path / "hr", tmp_path / "lr")
    written = digest(tmp_path / "lr")
    assert made(tmp_path / "hr", tmp_path / "lr") == first
    assert digest(tmp_path / "lr") == written
    assert digest(tmp_path / "hr") == before


def test_an_interrupted_call_is_continued_and_ends_the_same(tmp_path, monkeypatch):
    write_blender(tmp_path / "hr", size=32)
    made(tmp_path / "hr", tmp_path / "whole")
    calls = []

    def dies_at_the_third(image, kernel):
        calls.append(image)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return lr_image(image, kernel)

    monkeypatch.setattr("scene.downscale.lr_image", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "hr", tmp_path / "lr")
    assert not (tmp_path / "lr/lr_kernel.json").exists()
    calls.clear()
    monkeypatch.setattr("scene.downscale.lr_image", lambda image, kernel: calls.append(1) or lr_image(image, kernel))
    made(tmp_path / "hr", tmp_path / "lr")
    assert len(calls) == 6  # 8 views, 2 were done

    def files(folder):
        return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}

    assert files(tmp_path / "lr") == files(tmp_path / "whole")


def test_other_settings_need_overwrite(tmp_path):
    write_blender(tmp_path / "hr", size=32)
    made(tmp_path / "hr", tmp_path / "lr")
    with pytest.raises(UserError, match="--overwrite"):
        made(tmp_path / "hr", tmp_path / "lr", scale=2)
    made(tmp_path / "hr", tmp_path / "lr", scale=2, overwrite=True)
    assert load_scene(tmp_path / "lr").cameras["train/r_0"].width == 16


def test_a_changed_source_is_noticed(tmp_path):
    write_blender(tmp_path / "hr", size=32)
    made(tmp_path / "hr", tmp_path / "lr")
    Image.new("RGBA", (32, 32), (1, 2, 3, 255)).save(tmp_path / "hr/train/r_0.png")
    with pytest.raises(UserError, match="another source"):
        made(tmp_path / "hr", tmp_path / "lr")


@pytest.mark.parametrize("out", ["hr", "hr/lr", "."])
def test_output_in_or_around_the_source_is_refused(tmp_path, out):
    write_blender(tmp_path / "hr", size=32)
    before = digest(tmp_path)
    with pytest.raises(UserError, match="never written to"):
        made(tmp_path / "hr", tmp_path / out)
    assert digest(tmp_path) == before


def test_a_foreign_folder_and_a_link_into_the_source_are_refused(tmp_path):
    write_blender(tmp_path / "hr", size=32)
    write_blender(tmp_path / "other", size=16)
    before = digest(tmp_path)
    with pytest.raises(UserError, match="not made by this tool"):
        made(tmp_path / "hr", tmp_path / "other")
    assert digest(tmp_path) == before
    (tmp_path / "lr").mkdir()
    (tmp_path / "lr/train").symlink_to(tmp_path / "hr/train")
    with pytest.raises(UserError, match="through a link"):
        made(tmp_path / "hr", tmp_path / "lr", overwrite=True)
    assert digest(tmp_path / "hr") == [entry for entry in before if entry[0].is_relative_to(tmp_path / "hr")]


def test_a_distorting_lens_is_refused(tmp_path):
    write_colmap(tmp_path / "hr", model=(2, (40.0, 24.0, 16.0, 0.1)))
    with pytest.raises(UserError, match="undistort the HR scene first"):
        made(tmp_path / "hr", tmp_path / "lr")


def test_too_small_an_image_is_refused(tmp_path):
    write_blender(tmp_path / "hr", size=32)
    with pytest.raises(UserError, match="too small for --scale 64"):
        made(tmp_path / "hr", tmp_path / "lr", scale=64)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"scale": 0}, "1 or more"),
        ({"white_background": True}, "--compat only"),
        ({"compat": "sequence_matters", "kernel": "area"}, "one kernel"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        settings_of(DownscaleParams, "a", "b", **flags)


def test_command_line(tmp_path):
    write_blender(tmp_path / "hr", size=32, views=2, test_views=1)
    command = [sys.executable, "-m", "scene.downscale", "-s", str(tmp_path / "hr"), "-o", str(tmp_path / "lr")]
    result = subprocess.run([*command, "--scale=4"], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "32x32 -> 8x8" in result.stdout


def test_a_wrong_flag_is_one_line_and_exit_code_2(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["downscale", "-s", "a", "-o", "b", "--scales", "2"])
    with pytest.raises(SystemExit, match="2"):
        errors.run(main)
    assert "did you mean --scale?" in capsys.readouterr().err


# --- the paper's release ---


def test_released_pixels_are_composited_first_and_truncated():
    image = np.random.default_rng(3).integers(0, 256, (32, 32, 4), dtype=np.uint8)
    rgb = composite(image, (0.0, 0.0, 0.0), quantise=False)
    kernel = LRKernel("bicubic", "renormalise", (32, 32), (8, 8))
    exact = kernel.down(torch.from_numpy(rgb).permute(2, 0, 1).double()).permute(1, 2, 0).numpy() * 255
    found = released_image(image, (0.0, 0.0, 0.0), factor=4)
    assert np.abs(found - (exact.clip(0, 255) - 0.5)).max() <= 0.5 + 1e-3  # Q22: the fraction is dropped


def test_release_on_nerf_synthetic_loses_alpha(tmp_path):
    write_blender(tmp_path / "hr", size=32)
    written = made(tmp_path / "hr", tmp_path / "lr", compat="sequence_matters", white_background=True)
    assert (written.rounding, written.alpha, written.background) == ("truncate", "composited", (1.0, 1.0, 1.0))
    lr = load_scene(tmp_path / "lr")
    image = lr.images.raw(lr.train[0])
    assert image.shape == (8, 8, 3)
    assert image[0, 0].min() >= 254  # white, but for truncation


def test_release_sizes_on_mip_nerf_360(tmp_path):
    """LR = round(full / 8), truth = 4 x LR beside it (Q24): 45 x 29 px give 6 x 4 (Python's round) and 24 x 16."""
    write_colmap(tmp_path / "hr", size=(45, 29))
    made(tmp_path / "hr", tmp_path / "lr", compat="sequence_matters")
    lr = load_scene(tmp_path / "lr", compat="sequence_matters")
    camera = lr.cameras[lr.train[0]]
    assert (camera.width, camera.height) == (6, 4)
    np.testing.assert_allclose([camera.fx, camera.fy], [40 * 6 / 45, 41 * 4 / 29])  # by the actual sizes
    truth = lr.hr_path(lr.train[0])
    assert truth == tmp_path / "lr/images_gt" / f"{Path(lr.train[0]).name}.png"
    assert (read_header(truth).width, read_header(truth).height) == (24, 16)
    truth.unlink()
    with pytest.raises(UserError, match="parts of it are missing"):
        made(tmp_path / "hr", tmp_path / "lr", compat="sequence_matters")


def test_release_knows_no_transforms_json(tmp_path):
    write_transforms(tmp_path / "hr")
    with pytest.raises(UserError, match="NeRF-synthetic and COLMAP"):
        made(tmp_path / "hr", tmp_path / "lr", compat="sequence_matters")
