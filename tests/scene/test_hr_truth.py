"""The HR truth of a view of a cropped LR set is the part that the LR view was made from."""

import re
import sys

import numpy as np
import pytest

from scene import degrade, downscale, load_scene
from scene.image_files import read_image
from scene.lr_images import lr_image
from scene.lr_kernel import LRKernel
from tests import scene_factory
from utils import errors


@pytest.mark.parametrize("write", [scene_factory.write_blender, scene_factory.write_colmap])
def test_the_truth_is_cropped_like_the_lr_view(tmp_path, monkeypatch, write):
    sizes = {"size": 66} if write is scene_factory.write_blender else {"size": (66, 35)}
    hr = write(tmp_path / "hr", **sizes)
    monkeypatch.setattr(sys, "argv", ["downscale", "-s", str(hr), "-o", str(tmp_path / "lr"), "--scale", "4"])
    downscale.main()
    scene = load_scene(tmp_path / "lr", eval=True)
    for name in scene.train if write is scene_factory.write_blender else [*scene.train, *scene.test]:
        camera = scene.cameras[name]
        assert scene.hr_size(name) == (4 * camera.width, 4 * camera.height)
        image, whole = scene.hr_image(name), read_image(scene.hr_path(name))
        assert whole.shape[1] > image.shape[1]
        assert np.array_equal(image, whole[: image.shape[0], : image.shape[1]])
    if write is scene_factory.write_blender:  # its held-out views are known at HR size only, and whole
        for name in scene.test:
            assert scene.hr_size(name) == (scene.cameras[name].width, scene.cameras[name].height) == (66, 66)


def test_without_truth_there_is_none(tmp_path):
    scene = load_scene(scene_factory.write_blender(tmp_path))
    assert scene.hr_size("train/r_0") is None
    assert scene.hr_image("train/r_0") is None


@pytest.mark.parametrize("write", [scene_factory.write_colmap, scene_factory.write_transforms])
def test_the_truth_of_an_lr_scene_of_an_lr_scene_is_the_one_between(tmp_path, monkeypatch, write):
    """The recorded kernel is that of the second call, and leads from the recorded HR images to the LR images."""
    write(tmp_path / "hr", size=(35, 31))
    for source, out, kernel in (("hr", "between", "area"), ("between", "lr", "bicubic")):
        words = ["-s", str(tmp_path / source), "-o", str(tmp_path / out), "--scale", "2", "--kernel", kernel]
        monkeypatch.setattr(sys, "argv", ["downscale", *words])
        downscale.main()
    scene = load_scene(tmp_path / "lr")
    name, record = scene.train[0], scene.kernel_file
    camera = scene.cameras[name]
    assert scene.hr_path(name).resolve().is_relative_to(tmp_path / "between")
    kernel = LRKernel(record.kernel, record.border, scene.hr_size(name), (camera.width, camera.height))
    assert np.array_equal(scene.images.raw(name), lr_image(scene.hr_image(name), kernel))


@pytest.mark.parametrize("folder", ["hr", "hr/images", "."])
def test_the_truth_of_an_lr_scene_is_never_written_to(tmp_path, monkeypatch, capsys, folder):
    scene_factory.write_colmap(tmp_path / "hr", size=(35, 31))
    monkeypatch.setattr(sys, "argv", ["downscale", "-s", str(tmp_path / "hr"), "-o", str(tmp_path / "lr")])
    downscale.main()
    before = {path: path.read_bytes() for path in (tmp_path / "hr").rglob("*") if path.is_file()}
    words = ["-s", str(tmp_path / "lr"), "-o", str(tmp_path / folder), "--scale", "2", "--overwrite"]
    monkeypatch.setattr(sys, "argv", ["downscale", *words])
    with pytest.raises(SystemExit) as end:
        errors.run(downscale.main)
    assert end.value.code == 2
    assert "which is never written to" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in (tmp_path / "hr").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("tool", [downscale, degrade])
def test_an_lr_scene_with_test_views_of_its_hr_scene_is_no_source(tmp_path, monkeypatch, capsys, tool):
    """Its test views have another size than its training views, and lie where the new scene could not find them."""
    scene_factory.write_blender(tmp_path / "hr", views=2, test_views=1)
    words = ["-s", str(tmp_path / "hr"), "-o", str(tmp_path / "between"), "--scale", "2"]
    monkeypatch.setattr(sys, "argv", ["downscale", *words])
    downscale.main()
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["tool", "-s", str(tmp_path / "between"), "-o", str(tmp_path / "lr")])
    with pytest.raises(SystemExit, match="2"):
        errors.run(tool.main)
    shown = capsys.readouterr().err
    assert re.fullmatch(r"error: .*between is an LR scene, and its test views are those of .*/hr, .*\n", shown)
    assert not (tmp_path / "lr").exists()
