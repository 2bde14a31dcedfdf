"""The HR truth of a view of a cropped LR set is the part that the LR view was made from."""

import sys

import numpy as np
import pytest

from scene import downscale, load_scene
from scene.image_files import read_image
from tests import scene_factory


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
