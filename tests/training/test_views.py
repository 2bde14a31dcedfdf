"""What is compared with what: modes, sizes, kernels, backgrounds; every missing thing is a one-line error."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.loading import ModelParams
from arguments.training import OptimizationParams
from scene import load_scene
from tests.training_factory import LR_SIZE, VIEWS, write_scene
from training.views import training_views
from utils.errors import UserError

MODEL = ModelParams(lr_kernel="bicubic")
SR = OptimizationParams()


@pytest.fixture
def root(tmp_path):
    return write_scene(tmp_path)


def views(root, frames="hr", model=MODEL, optimisation=SR, scale=0, confidence=None):
    scene, folder = load_scene(root / "lr"), root / "out" / frames if frames else None
    return training_views(scene, folder, model, optimisation, scale, "cpu", confidence)


def test_frames_and_lr_views_are_paired(root):
    found = views(root)
    assert len(found.views) == 8
    targets = found.targets("train/r_3", (0.0, 0.0, 0.0))
    assert targets.hr.shape == (3, 2 * LR_SIZE, 2 * LR_SIZE)
    assert targets.lr.shape == (3, LR_SIZE, LR_SIZE)
    camera = found.views["train/r_3"].camera
    assert (camera.width, camera.cx) == (2 * LR_SIZE, LR_SIZE)
    assert found.views["train/r_3"].kernel.scale == (2, 2)


def test_one_background_for_both(root):
    targets = views(root).targets("train/r_0", (1.0, 0.0, 0.5))
    corner = torch.tensor([1.0, 0.0, 128 / 255])  # composed colours are rounded to 8 bit, half to even or up
    for image in (targets.hr, targets.lr):
        torch.testing.assert_close(image[:, 0, 0], corner, atol=1 / 255, rtol=0)


def test_without_frames_the_scene_is_its_own_target(root):
    found = views(root, frames=None, model=ModelParams())
    targets = found.targets("train/r_0", (0.0, 0.0, 0.0))
    assert targets.lr is None
    assert targets.hr.shape == (3, LR_SIZE, LR_SIZE)


def test_lr_views_alone_need_only_a_scale(root):
    found = views(root, frames=None, optimisation=OptimizationParams(lambda_tex=0.0), scale=3)
    targets = found.targets("train/r_0", (0.0, 0.0, 0.0))
    assert targets.hr is None
    assert targets.lr.shape == (3, LR_SIZE, LR_SIZE)
    assert found.largest.width == 3 * LR_SIZE


def test_frames_alone_need_no_kernel(root):
    found = views(root, model=ModelParams(), optimisation=OptimizationParams(lambda_tex=1.0))
    assert found.targets("train/r_0", (0.0, 0.0, 0.0)).lr is None


def test_subpixel_names_the_kernel(root):
    found = views(root, model=ModelParams(), optimisation=OptimizationParams(subpixel="avg"))
    assert found.views["train/r_0"].kernel.kernel == "area"


def test_a_missing_frame_is_named(root):
    (root / "out/hr/train/r_5.png").unlink()
    with pytest.raises(UserError, match=r"r_5\.png: no such frame"):
        views(root)


def test_a_frame_of_the_wrong_size_is_named(root):
    Image.new("RGBA", (33, 32)).save(root / "out/hr/train/r_2.png")
    with pytest.raises(UserError, match=r"r_2\.png: 33x32"):
        views(root)
    with pytest.raises(UserError, match="32x32 px, but 4 times"):
        views(root, scale=4)


def test_no_kernel_is_assumed(root):
    with pytest.raises(UserError, match="lr_kernel"):
        views(root, model=ModelParams())


def test_scale_without_frames_says_what_to_do(root):
    with pytest.raises(UserError, match=r"vsr_upsample\.py"):
        views(root, frames=None, scale=2)


def test_a_missing_lr_view_is_named(root):
    shutil.move(root / "lr/train/r_4.png", root / "gone.png")
    with pytest.raises(UserError, match="r_4"):
        views(root)


@pytest.fixture
def maps(root):
    """A weight map for each view: its left half full, its right half 51 / 255."""
    grey = np.full((2 * LR_SIZE, 2 * LR_SIZE), 255, np.uint8)
    grey[:, LR_SIZE:] = 51
    (root / "maps/train").mkdir(parents=True)
    for i in range(VIEWS):
        Image.fromarray(grey).save(root / f"maps/train/r_{i}.png")
    return root / "maps"


def test_weights_do_not_depend_on_the_background(root, maps):
    found = views(root, confidence=maps)
    for background in ((0.0, 0.0, 0.0), (1.0, 0.0, 0.5)):
        weight = found.targets("train/r_1", background).weight
        assert weight.shape == (1, 2 * LR_SIZE, 2 * LR_SIZE)
        assert weight[0, 5].tolist() == pytest.approx([1.0] * LR_SIZE + [0.2] * LR_SIZE)
    assert views(root).targets("train/r_1", (0.0, 0.0, 0.0)).weight is None


@pytest.mark.parametrize("frames", [None, "hr"])
def test_weights_need_frames_that_are_used(root, maps, frames):
    alone = OptimizationParams(lambda_tex=0.0)
    with pytest.raises(UserError, match=r"--confidence .*: weights of pseudo-HR frames, but none are used"):
        views(root, frames=frames, optimisation=alone, scale=2, confidence=maps)


@pytest.mark.parametrize(
    ("image", "words"),
    [
        (None, "no such weight map"),
        (Image.new("L", (32, 31)), "32x31 px, but its frame has 32x32"),
        (Image.new("RGB", (32, 32), (1, 2, 1)), "a grey image is expected"),
        (Image.new("LA", (32, 32)), "a grey image is expected"),
    ],
)
def test_a_map_that_does_not_fit_is_named(root, maps, image, words):
    path = maps / "train/r_6.png"
    path.unlink() if image is None else image.save(path)
    with pytest.raises(UserError, match=rf"r_6\.png: .*{words}"):
        views(root, confidence=maps)
    with pytest.raises(UserError, match="no such folder"):
        views(root, confidence=root / "nowhere")
