"""Part of a NeRF-synthetic scene: which views, which pixels, and that it needs nothing else."""

import json

import numpy as np
import pytest
from PIL import Image

from arguments.subset import SubsetParams
from scene import load_scene
from scene.lr_images import lr_image
from scene.lr_kernel import LRKernel
from scene.subset import azimuth_deg, write_subset
from tests.evaluation_factory import write_scenes
from tests.scene_factory import write_blender, write_colmap
from utils.errors import UserError


def params(source, out, **options):
    return SubsetParams(str(source), str(out), **options)


def test_half_of_the_views_with_their_cameras(tmp_path):
    whole = write_blender(tmp_path / "hr", views=8, size=16)  # azimuths 0, 45, 90, ... degrees
    counts = write_subset(params(whole, tmp_path / "half", azimuth=(0.0, 135.0)))
    assert counts == {"transforms_train.json": 3, "transforms_test.json": 1}
    scene, half = load_scene(whole, eval=True), load_scene(tmp_path / "half", eval=True)
    assert half.train == ["train/r_0", "train/r_1", "train/r_2"]
    assert [round(azimuth_deg(half, name)) for name in half.train] == [0, 45, 90]
    assert np.array_equal(half.cameras["train/r_2"].world_to_camera, scene.cameras["train/r_2"].world_to_camera)
    assert (tmp_path / "half/train/r_1.png").read_bytes() == (whole / "train/r_1.png").read_bytes()


def test_shrunk_views_are_lr_views(tmp_path):
    whole = write_blender(tmp_path / "hr", views=4, size=32)
    write_subset(params(whole, tmp_path / "small", scale=4))
    small, full = load_scene(tmp_path / "small", eval=True), np.array(Image.open(whole / "test/r_0.png"))
    expected = lr_image(full, LRKernel("bicubic", "renormalise", (32, 32), (8, 8)))
    assert np.array_equal(small.images.raw("test/r_0"), expected)
    assert small.cameras["train/r_3"].fx == pytest.approx(load_scene(whole).cameras["train/r_3"].fx / 4)


def test_views_that_lie_elsewhere_are_taken_along(tmp_path):
    lr, hr = write_scenes(tmp_path)
    write_subset(params(lr, tmp_path / "own", hr_root=str(hr)))
    assert (tmp_path / "own/test/r_1.png").read_bytes() == (hr / "test/r_1.png").read_bytes()
    assert load_scene(tmp_path / "own", eval=True).test == ["test/r_0", "test/r_1"]


def test_a_second_call_changes_nothing_and_another_scene_is_refused(tmp_path):
    whole = write_blender(tmp_path / "hr", views=4, size=16)
    write_subset(params(whole, tmp_path / "out"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    write_subset(params(whole, tmp_path / "out"))
    assert before == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("*")}
    with pytest.raises(UserError, match="holds another scene"):
        write_subset(params(whole, tmp_path / "out", azimuth=(0.0, 100.0)))
    assert len(json.loads((whole / "transforms_train.json").read_text())["frames"]) == 4


def test_what_cannot_be_done_is_refused(tmp_path):
    whole = write_blender(tmp_path / "hr", views=2, size=16)
    with pytest.raises(UserError, match="no training view stands between"):
        write_subset(params(whole, tmp_path / "out", azimuth=(90.0, 100.0)))
    with pytest.raises(UserError, match="16x16 px is no multiple of --scale 3"):
        write_subset(params(whole, tmp_path / "out", scale=3))
    with pytest.raises(UserError, match="NeRF-synthetic scene is expected"):
        write_subset(params(write_colmap(tmp_path / "colmap"), tmp_path / "out"))
    for wrong in ({"azimuth": (10.0, 5.0)}, {"azimuth": (0.0,)}, {"scale": 0}):
        with pytest.raises(UserError, match="expected"):
            params(whole, tmp_path / "out", **wrong)
