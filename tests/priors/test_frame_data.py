"""Training data: windows in order, crops that move and keep their truth, samples by number."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from priors.frame_data import (
    ENDLESS,
    FolderSamples,
    batch_indices,
    image_names,
    make_batch,
    natural_key,
    window,
)
from priors.moving_crops import PICTURES, SHIFT_PX, MovingCrops, pictures
from scene.lr_kernel import LRKernel
from tests.priors_factory import smooth_picture, write_pictures
from utils.errors import UserError


def write_clips(root, clips=2, frames=5, low=4, high=8):
    """Frame n of clip c is flat: LR grey 10 c + n, HR grey 100 + 10 c + n."""
    for kind, side, base in ((f"lr_{low}", low, 0), (f"hr_{high}", high, 100)):
        for c in range(clips):
            folder = root / kind / f"clip_{c}"
            folder.mkdir(parents=True, exist_ok=True)
            for n in range(frames):
                Image.new("RGB", (side, side), (base + 10 * c + n,) * 3).save(folder / f"{n}.png")
    return root


def greys(images):
    return (255 * images.mean((-3, -2, -1))).round().int().tolist()


@pytest.mark.parametrize(
    ("frames", "stride", "expected"),
    [(1, 1, [2]), (3, 1, [1, 2, 3]), (3, 2, [0, 2, 4]), (5, 1, [0, 1, 2, 3, 4])],
)
def test_folder_gives_the_window_around_the_middle_in_order(tmp_path, frames, stride, expected):
    samples = FolderSamples(write_clips(tmp_path), 4, 8, frames, stride)
    batch = samples.batch([1, 0])
    assert greys(batch.lr) == [[10 + n for n in expected], expected]
    assert greys(batch.hr) == [112, 102]  # the middle frame, of the clip asked for
    assert batch.names == ("clip_1", "clip_0")


def test_up_is_the_middle_frame_enlarged(tmp_path):
    batch = FolderSamples(write_clips(tmp_path), 4, 8, 3).batch([0])
    assert greys(batch.up) == [2]
    assert batch.up.shape == batch.hr.shape


def test_frames_are_sorted_by_their_numbers(tmp_path):
    for n in (10, 9, 1):
        Image.new("RGB", (2, 2)).save(tmp_path / f"f_{n}.png")
    Image.new("RGB", (2, 2)).save(tmp_path / ".hidden.png")
    (tmp_path / "notes.txt").touch()
    assert image_names(tmp_path) == ["f_1.png", "f_9.png", "f_10.png"]


@given(st.lists(st.text(alphabet="ab019_", max_size=6), max_size=8))
def test_natural_order_does_not_depend_on_the_order_before(names):
    backwards = list(reversed(names))
    backwards.sort(key=natural_key)
    assert backwards == sorted(names, key=natural_key)


def test_folders_that_do_not_fit_are_one_line(tmp_path):
    root = write_clips(tmp_path)
    with pytest.raises(UserError, match=r"5 frames; 3 at stride 3 need 7"):
        FolderSamples(root, 4, 8, 3, 3)
    with pytest.raises(UserError, match="lr_5: no such folder"):
        FolderSamples(root, 5, 8, 3)
    Image.new("RGB", (3, 4)).save(root / "lr_4" / "clip_0" / "2.png")
    with pytest.raises(UserError, match="3x4 px, 4x4 is expected"):
        FolderSamples(root, 4, 8, 3).batch([0])
    (root / "lr_4" / "clip_1" / "0.png").unlink()
    with pytest.raises(UserError, match="are not those of"):
        FolderSamples(root, 4, 8, 3)


def test_limit_takes_the_first_folders(tmp_path):
    assert len(FolderSamples(write_clips(tmp_path, clips=3), 4, 8, 1, limit=2)) == 2


@settings(deadline=None)
@given(st.integers(1, 7), st.integers(1, 12), st.integers(0, 3))
def test_every_sample_is_seen_once_before_any_twice(size, count, seed):
    steps = -(-3 * count // size)
    flat = [i for step in range(1, steps + 1) for i in batch_indices(step, size, count, seed, True)]
    for epoch in range(3):
        assert sorted(flat[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_order_without_shuffling_and_without_end():
    assert batch_indices(2, 3, 4, 0, False) == [3, 0, 1]
    assert batch_indices(2, 3, ENDLESS, 0, True) == [3, 4, 5]


def test_flip_mirrors_all_frames_of_a_sample():
    lr, hr = torch.rand(2, 3, 3, 4, 4), torch.rand(2, 3, 8, 8)
    batch = make_batch(lr, hr, ["a", "b"])
    flipped = batch.flipped([False, True])
    assert torch.equal(flipped.lr[0], lr[0])
    assert torch.equal(flipped.lr[1], lr[1].flip(-1))
    assert torch.equal(flipped.hr[1], hr[1].flip(-1))
    assert torch.equal(flipped.up[1], batch.up[1].flip(-1))


def test_lr_is_the_operator_of_8_bit_hr_rounded_once(tmp_path):
    batch = MovingCrops(write_pictures(tmp_path), "train", 8, 16, 1).batch([0, 1, 2])
    exact = LRKernel("bicubic", "renormalise", (16, 16), (8, 8)).down(batch.hr.double()).clamp(0, 1)
    assert float((batch.lr[:, 0] - exact).abs().max()) <= 0.5 / 255 + 1e-6
    assert torch.equal((255 * batch.hr).round() / 255, batch.hr)


def test_same_number_is_the_same_sample_and_others_differ(tmp_path):
    root = write_pictures(tmp_path)
    samples = MovingCrops(root, "train", 8, 16, 3)
    assert torch.equal(samples.clip(5), MovingCrops(root, "train", 8, 16, 3).clip(5))
    assert not torch.equal(samples.clip(5), samples.clip(7))
    assert not torch.equal(samples.clip(5), MovingCrops(root, "train", 8, 16, 3, seed=1).clip(5))
    assert not torch.equal(samples.clip(5), MovingCrops(root, "val", 8, 16, 3).clip(5))


@pytest.mark.parametrize(("frames", "stride"), [(1, 1), (3, 1), (3, 2), (5, 2)])
def test_middle_frame_is_the_same_for_every_window(tmp_path, frames, stride):
    root = write_pictures(tmp_path)
    hr = MovingCrops(root, "val", 8, 16, frames, stride=stride).batch([0, 1, 2, 3]).hr
    assert torch.equal(hr, MovingCrops(root, "val", 8, 16, 1).batch([0, 1, 2, 3]).hr)


def test_frames_move_by_a_few_pixels_at_most(tmp_path):
    """On a ramp of 1 grey level a pixel the mean grey of a crop is where its centre is."""
    ramp = np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], (64, 200, 3))
    Image.fromarray(np.ascontiguousarray(ramp)).save(tmp_path / "ramp.png")
    samples = MovingCrops(tmp_path, "train", 8, 16, 5)
    centres = torch.stack([255 * samples.clip(i).mean((1, 2, 3)) for i in range(20)])
    steps = centres.diff(dim=1).abs()
    assert float(steps.max()) <= SHIFT_PX + 0.2
    assert float(steps.mean()) > 0.3


def test_training_and_validation_see_different_parts(tmp_path):
    """The left three quarters are black, the rest is white."""
    picture = np.zeros((64, 200, 3), np.uint8)
    picture[:, 150:] = 255
    Image.fromarray(picture).save(tmp_path / "halves.png")
    train, val = (MovingCrops(tmp_path, split, 8, 16, 3).batch(range(16)).hr for split in ("train", "val"))
    assert float(train.max()) == 0
    assert float(val.min()) == 1


def test_clips_have_no_border_in_them(tmp_path):
    """Every sample lies inside its part: of a flat picture all crops are flat."""
    Image.fromarray(np.full((64, 200, 3), 77, np.uint8)).save(tmp_path / "flat.png")
    clips = torch.stack([MovingCrops(tmp_path, "val", 8, 16, 5, stride=2).clip(i) for i in range(8)])
    assert greys(clips) == [[77] * 5] * 8


def test_crops_that_do_not_fit_are_refused(tmp_path):
    Image.fromarray(smooth_picture(100, 64, 0)).save(tmp_path / "narrow.png")
    with pytest.raises(UserError, match=r"val part of 25x64 px is too small"):
        MovingCrops(tmp_path, "val", 8, 16, 3)
    with pytest.raises(UserError, match="reach further"):
        MovingCrops(tmp_path, "train", 8, 16, 7, stride=2)
    with pytest.raises(UserError, match="no PNG or JPEG"):
        MovingCrops(tmp_path / "nothing", "train", 8, 16, 3)


def test_six_photographs_come_with_scikit_image():
    pytest.importorskip("skimage")
    assert [path.stem for path in pictures("skimage")] == list(PICTURES)


def test_window_is_centred():
    assert window(4, 3, 2) == [2, 4, 6]
    assert window(4, 1, 9) == [4]
