"""prepare_frames: the published layout, windows that are really taken, and no wrong data in silence."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from priors.enlarge import enlarged
from priors.frame_data import FolderSamples
from priors.prepare_frames import PrepareParams, prepare
from scene.image_files import read_image
from scene.lr_kernel import LRKernel, LRKernelFile
from scene.sequences import Sequences, Subsequence, write_sequences
from tests.priors_factory import smooth_picture, write_videos
from tests.scene_factory import write_blender
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def params(frames_path, out, **changes):
    return PrepareParams(frames_path=str(frames_path), out=str(out), **({"size": "8,32", "quiet": True} | changes))


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*.png"))


def as_planes(path):
    return torch.from_numpy(read_image(path)).permute(2, 0, 1).double() / 255


def test_layout_and_names_are_those_of_the_published_code(tmp_path):
    write_videos(tmp_path / "videos", videos=2, frames=3)
    script = [sys.executable, str(ROOT / "scripts" / "prepare_frames.py"), "--frames_path", str(tmp_path / "videos")]
    words = ["--n_frames", "3", "--interval", "1", "--split", "val", "--out", str(tmp_path / "set"), "--size", "8,32"]
    done = subprocess.run(
        [*script, *words, "--n_worker", "2"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert "2 windows of 3 frames" in done.stdout
    out = tmp_path / "set_3_frames_1_seconds_8_32_val"
    expected = [
        f"{kind}/vid_{v}/{n:05}.png" for kind in ("hr_32", "lr_8", "sr_8_32") for v in range(2) for n in range(3)
    ]
    assert tree(out) == expected


@pytest.mark.parametrize(
    ("frames", "interval", "taken"), [(1, 1, [4]), (3, 1, [3, 4, 5]), (3, 3, [1, 4, 7]), (5, 2, [0, 2, 4, 6, 8])]
)
def test_n_frames_at_the_stride_are_really_taken(tmp_path, frames, interval, taken):
    write_videos(tmp_path / "videos", videos=1, frames=9, width=32, height=32)
    out = prepare(params(tmp_path / "videos", tmp_path / "set", n_frames=frames, interval=interval))
    made = [read_image(out / "hr_32" / "vid_0" / f"{n:05}.png") for n in taken]
    assert len(tree(out / "hr_32")) == frames
    for n, image in zip(taken, made, strict=True):
        assert np.array_equal(image, read_image(tmp_path / "videos" / "vid_0" / f"frame_{n}.png"))


def test_all_windows_of_a_video(tmp_path):
    write_videos(tmp_path / "videos", videos=1, frames=5)
    out = prepare(params(tmp_path / "videos", tmp_path / "set", windows="all"))
    assert sorted(p.name for p in (out / "lr_8").iterdir()) == ["vid_0_00001", "vid_0_00002", "vid_0_00003"]
    assert [p.name for p in sorted((out / "lr_8" / "vid_0_00002").iterdir())] == [f"{n:05}.png" for n in (1, 2, 3)]


@pytest.mark.parametrize(("width", "height"), [(37, 41), (61, 33), (32, 32), (35, 32)])
def test_odd_sizes_are_cut_around_their_middle(tmp_path, width, height):
    write_videos(tmp_path / "videos", videos=1, frames=1, width=width, height=height)
    out = prepare(params(tmp_path / "videos", tmp_path / "set", n_frames=1))
    source = read_image(tmp_path / "videos" / "vid_0" / "frame_0.png")
    side = min(width, height)
    top, left = (height - side) // 2, (width - side) // 2
    square = torch.from_numpy(source[top : top + side, left : left + side].copy()).permute(2, 0, 1).double() / 255
    exact = LRKernel("bicubic", "renormalise", (side, side), (32, 32)).down(square).clamp(0, 1)
    made = as_planes(out / "hr_32" / "vid_0" / "00000.png")
    assert float((made - exact).abs().max()) <= 0.5 / 255 + 1e-5


@pytest.mark.parametrize("kernel", ["bicubic", "area"])
def test_lr_is_the_recorded_operator_of_the_saved_hr(tmp_path, kernel):
    write_videos(tmp_path / "videos", videos=1, frames=1)
    out = prepare(params(tmp_path / "videos", tmp_path / "set", n_frames=1, resample=kernel))
    record = LRKernelFile.read(out / "lr_kernel.json")
    operator = LRKernel(record.kernel, record.border, tuple(record.sizes[0]["used"]), tuple(record.sizes[0]["lr"]))
    exact = operator.down(as_planes(out / "hr_32" / "vid_0" / "00000.png")).clamp(0, 1)
    made = as_planes(out / "lr_8" / "vid_0" / "00000.png")
    assert float((made - exact).abs().max()) <= 0.5 / 255 + 1e-9


def test_sr_is_the_enlarged_saved_lr(tmp_path):
    write_videos(tmp_path / "videos", videos=1, frames=1)
    out = prepare(params(tmp_path / "videos", tmp_path / "set", n_frames=1))
    lr = as_planes(out / "lr_8" / "vid_0" / "00000.png").float()
    expected = enlarged(lr[None], 32, 32)[0].clamp(0, 1)
    made = as_planes(out / "sr_8_32" / "vid_0" / "00000.png")
    assert float((made - expected).abs().max()) <= 0.5 / 255 + 1e-5


def test_any_number_of_workers_and_any_format_of_the_source(tmp_path):
    for suffix in (".png", ".jpg"):
        write_videos(tmp_path / suffix, videos=3, frames=3, suffix=suffix)
        one = prepare(params(tmp_path / suffix, tmp_path / f"one{suffix}"))
        four = prepare(params(tmp_path / suffix, tmp_path / f"four{suffix}", n_worker=4))
        assert tree(one) == tree(four)
        assert len(tree(one)) == 27
        assert all((one / name).read_bytes() == (four / name).read_bytes() for name in tree(one))


def scene_with_sequences(tmp_path):
    scene = write_blender(tmp_path / "scene", views=6, test_views=1, size=32, rgba=True)
    order = [f"train/r_{n}" for n in (3, 0, 5, 1)]
    first, second = Subsequence(tuple(order), (0, 1, 2, 3)), Subsequence(("train/r_2", "train/r_4"), (0, 1))
    write_sequences(tmp_path / "sequences.json", Sequences((first, second)))
    return scene, order


def test_subsequences_give_windows_in_their_order(tmp_path):
    scene, order = scene_with_sequences(tmp_path)
    flags = {"sequences": str(tmp_path / "sequences.json"), "white_background": True}
    out = prepare(params(scene, tmp_path / "set", **flags))
    assert [p.name for p in sorted((out / "hr_32").iterdir())] == ["scene_001_00001", "scene_001_00002"]
    clips = json.loads((out / "prepared.json").read_text())["clips"]
    assert clips["scene_001_00002"] == order[1:]
    made = read_image(out / "hr_32" / "scene_001_00001" / "00000.png")
    source = read_image(scene / f"{order[0]}.png")
    assert np.array_equal(made[source[..., 3] == 255], source[source[..., 3] == 255][:, :3])
    assert (made[source[..., 3] == 0] == 255).all()


def test_prepared_folder_is_what_training_reads(tmp_path):
    write_videos(tmp_path / "videos", videos=2, frames=5)
    out = prepare(params(tmp_path / "videos", tmp_path / "set", n_frames=5))
    batch = FolderSamples(out, 8, 32, 5).batch([0, 1])
    assert batch.lr.shape == (2, 5, 3, 8, 8)
    middle = as_planes(out / "lr_8" / "vid_1" / "00002.png").float()
    assert torch.equal(batch.lr[1, 2], middle)


def test_second_call_does_nothing_and_an_interrupted_one_goes_on(tmp_path):
    write_videos(tmp_path / "videos", videos=1, frames=3)
    out = prepare(params(tmp_path / "videos", tmp_path / "set"))
    before = {name: (out / name).stat().st_mtime_ns for name in tree(out)}
    prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert {name: (out / name).stat().st_mtime_ns for name in tree(out)} == before
    (out / "prepared.json").rename(out / ".prepare_frames.started.json")  # as a killed call leaves it
    (out / "hr_32" / "vid_0" / "00001.png").unlink()
    prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert (out / "hr_32" / "vid_0" / "00001.png").is_file()
    assert (out / "hr_32" / "vid_0" / "00000.png").stat().st_mtime_ns == before["hr_32/vid_0/00000.png"]


@pytest.mark.parametrize("name", ["hr_32/vid_0/00001.png", "lr_kernel.json"])
@pytest.mark.parametrize("damage", [Path.unlink, lambda path: path.write_bytes(path.read_bytes()[:-1] + b"x")])
def test_a_file_that_is_missing_or_changed_is_made_anew_and_no_other(tmp_path, capsys, name, damage):
    write_videos(tmp_path / "videos", videos=2, frames=3)
    flags = params(tmp_path / "videos", tmp_path / "set", quiet=False)
    out = prepare(flags)
    content, times = (out / name).read_bytes(), {path: (out / path).stat().st_mtime_ns for path in tree(out)}
    damage(out / name)
    prepare(flags)
    assert f"{name} is missing or changed (1 in all)" in capsys.readouterr().err
    assert (out / name).read_bytes() == content
    siblings = {name.replace("hr_32", kind) for kind in ("hr_32", "lr_8", "sr_8_32")}
    assert all((out / path).stat().st_mtime_ns == times[path] for path in times if path not in siblings)
    prepare(flags)
    assert "up to date" in capsys.readouterr().err


def test_a_damaged_folder_is_not_complete_until_it_is_repaired(tmp_path):
    """A source frame that cannot be read any more: one line, and no prepared.json that says all is well."""
    write_videos(tmp_path / "videos", videos=1, frames=3)
    out = prepare(params(tmp_path / "videos", tmp_path / "set"))
    (out / "hr_32" / "vid_0" / "00001.png").unlink()
    path = tmp_path / "videos" / "vid_0" / "frame_1.png"
    content = path.read_bytes()
    path.write_bytes(bytes(len(content)))
    with pytest.raises(UserError, match=r"frame_1\.png"):
        prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert not (out / "prepared.json").exists()
    path.write_bytes(content)
    prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert (out / "hr_32" / "vid_0" / "00001.png").is_file()


def test_a_record_without_files_is_completed(tmp_path):
    write_videos(tmp_path / "videos", videos=1, frames=3)
    out = prepare(params(tmp_path / "videos", tmp_path / "set"))
    record = json.loads((out / "prepared.json").read_text())
    (out / "prepared.json").write_text(json.dumps({k: v for k, v in record.items() if k != "outputs"}))
    (out / "hr_32" / "vid_0" / "00001.png").unlink()
    prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert json.loads((out / "prepared.json").read_text()) == record


def test_folder_of_another_source_is_refused(tmp_path):
    write_videos(tmp_path / "videos", videos=1, frames=3)
    write_videos(tmp_path / "others", videos=2, frames=3)
    prepare(params(tmp_path / "videos", tmp_path / "set"))
    with pytest.raises(UserError, match="another source or other settings"):
        prepare(params(tmp_path / "others", tmp_path / "set"))


def test_short_videos_are_left_out(tmp_path):
    write_videos(tmp_path / "videos", videos=2, frames=3)
    (tmp_path / "videos" / "vid_0" / "frame_2.png").unlink()
    out = prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert [p.name for p in (out / "hr_32").iterdir()] == ["vid_1"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_frames": 2}, "an odd number"),
        ({"interval": 0}, "1 or more"),
        ({"n_worker": 0}, "1 or more"),
        ({"size": "16"}, "two whole numbers"),
        ({"size": "16,-1"}, "two whole numbers"),
        ({"size": "64,32"}, "LR <= HR"),
        ({"interval": 5}, r"3 frames at --interval 5 need 11 frames, the longest clip has 3"),
        ({"size": "8,64"}, r"vid_0/frame_0.png: 37x41 px is smaller than the HR side"),
        ({"frames_path": "nowhere"}, "one folder a video"),
        ({"out": ""}, "--out NAME"),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path, changes, message):
    write_videos(tmp_path / "videos", videos=1, frames=3)
    with pytest.raises(UserError, match=message) as caught:
        prepare(replace(params(tmp_path / "videos", tmp_path / "set"), **changes))
    assert "\n" not in str(caught.value)


def test_results_are_not_written_into_the_source(tmp_path):
    write_videos(tmp_path / "videos", videos=1, frames=3)
    with pytest.raises(UserError, match="which is a source"):
        prepare(params(tmp_path / "videos", tmp_path / "videos" / "set"))


def test_unknown_view_and_damaged_frame_are_one_line(tmp_path):
    scene, _ = scene_with_sequences(tmp_path)
    write_sequences(tmp_path / "other.json", Sequences((Subsequence(("train/r_9",), (0,)),)))
    with pytest.raises(UserError, match=r"no view 'train/r_9'"):
        prepare(params(scene, tmp_path / "set", sequences=str(tmp_path / "other.json")))
    write_videos(tmp_path / "videos", videos=1, frames=3)
    path = tmp_path / "videos" / "vid_0" / "frame_1.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(UserError, match=r"frame_1\.png"):
        prepare(params(tmp_path / "videos", tmp_path / "set"))
    assert not (tmp_path / "set_3_frames_1_seconds_8_32_train" / "prepared.json").exists()


def test_wrong_flag_of_the_script_is_one_line(tmp_path):
    script = [sys.executable, str(ROOT / "scripts" / "prepare_frames.py")]
    done = subprocess.run([*script, "--n_frame", "3"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: scripts/prepare_frames.py: unknown flag --n_frame; did you mean --n_frames?\n"


def test_pictures_of_the_tests_differ():
    assert not np.array_equal(smooth_picture(32, 32, 0), smooth_picture(32, 32, 1))
