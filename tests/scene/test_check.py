"""python -m scene.check: what is missing is listed, and the exit code says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from scene.check import check_scene, scenes_under
from scene.images import write_png
from tests.scene_factory import picture, write_blender, write_colmap, write_transforms
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


def run(*args) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "scene.check", *map(str, args)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_complete_scenes_exit_zero(tmp_path):
    write_blender(tmp_path / "a")
    write_colmap(tmp_path / "b")
    write_transforms(tmp_path / "c")
    done = run(tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a", "b", "c"]
    assert all(": complete" in line for line in lines)
    assert "8 train, 2 test views" in lines[0]


def test_what_is_missing_is_listed_and_exits_two(tmp_path):
    write_blender(tmp_path / "nerf_synthetic/lego")
    (tmp_path / "nerf_synthetic/lego/train/r_5.png").unlink()
    write_colmap(tmp_path / "mipnerf360/room")
    done = run(tmp_path)
    assert done.returncode == 2
    assert done.stdout.count("the folder is not there") == 7 + 8
    assert "nerf_synthetic/lego: INCOMPLETE" in done.stdout
    assert "transforms_train.json lists 8 views, the data set has 100" in done.stdout
    assert "transforms_train.json: 1 of 8 images are missing, the first is train/r_5" in done.stdout
    assert "mipnerf360/room: complete" in done.stdout
    assert done.stderr.strip() == "error: 16 of 17 scenes are incomplete or missing, see above"
    assert run(tmp_path, "room").returncode == 0


def test_colmap_problems(tmp_path):
    write_colmap(tmp_path)
    for name in ("images_2", "images_4"):
        for i in range(9):
            write_png(tmp_path / name / f"view_{i:03}.png", picture(i, 24, 16)[..., :3])
    (tmp_path / "images_2/view_003.png").unlink()
    (tmp_path / "sparse/0/points3D.bin").unlink()
    problems = check_scene(tmp_path).problems
    assert "sparse/0/points3D.bin is missing" in problems
    assert "images_2: 1 of 9 images are missing, the first is view_003" in problems
    assert "images_4: view_000 is 24x16 px, not 1/4 of 48x32" in problems


def test_missing_parts_of_each_kind(tmp_path):
    assert check_scene(tmp_path / "none").problems == ["the folder is not there"]
    write_blender(tmp_path / "b")
    (tmp_path / "b/transforms_test.json").unlink()
    assert check_scene(tmp_path / "b").problems == ["transforms_test.json is missing"]
    (tmp_path / "m").mkdir()
    problems = check_scene(tmp_path / "m", "mipnerf360").problems
    assert problems == ["sparse/0/images.bin (or .txt) is missing", "images/ is missing or holds no PNG or JPEG"]


def test_mixed_sizes_and_unreadable_images(tmp_path):
    write_blender(tmp_path)
    write_png(tmp_path / "train/r_1.png", picture(1, 16, 16))
    (tmp_path / "test/r_1.png").write_bytes(b"")
    problems = " | ".join(check_scene(tmp_path).problems)
    assert "transforms_train.json: images of mixed sizes: 7 of 32x32 RGBA, 1 of 16x16 RGBA" in problems
    assert "r_1.png: is empty" in problems


def test_a_problem_only_the_reader_sees_is_reported(tmp_path):
    write_blender(tmp_path)
    text = (tmp_path / "transforms_train.json").read_text()
    (tmp_path / "transforms_train.json").write_text(text.replace("[0.0, 0.0, 0.0, 1.0]", "[0.0, 0.0, 0.0, 2.0]"))
    assert "last row" in check_scene(tmp_path).problems[0]


def test_root_that_is_one_scene_and_root_without_any(tmp_path):
    write_blender(tmp_path / "lego")
    assert [entry[0] for entry in scenes_under(tmp_path / "lego", [])] == ["lego"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no scenes found"):
        scenes_under(tmp_path / "empty", [])
    assert run(tmp_path / "nowhere").returncode == 2
