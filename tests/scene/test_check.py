"""python -m scene.check: what is missing is listed, and the exit code says so."""

import subprocess
import sys
from pathlib import Path

import pytest

from scene.check import MIPNERF360_PHOTOGRAPHS, check_scene, main, scenes_under
from scene.images import write_png
from tests.scene_factory import picture, write_blender, write_colmap, write_transforms
from utils import errors
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def run(monkeypatch, capsys):
    """The command in this process: (exit code, stdout, stderr)."""

    def command(*args) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["scene.check", *map(str, args)])
        code = 0
        try:
            errors.run(main)
        except SystemExit as stop:
            code = int(stop.code or 0)
        return code, *capsys.readouterr()

    return command


def test_it_is_a_command(tmp_path):
    write_blender(tmp_path / "a", views=1, test_views=1, size=4)
    command = [sys.executable, "-m", "scene.check", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.partition(":")[0]) == (0, "a"), done.stderr


def test_complete_scenes_exit_zero(tmp_path, run):
    write_blender(tmp_path / "a")
    write_colmap(tmp_path / "b")
    write_transforms(tmp_path / "c")
    code, stdout, stderr = run(tmp_path)
    assert code == 0, stderr
    lines = stdout.splitlines()
    assert [line.partition(":")[0] for line in lines] == ["a", "b", "c"]
    assert all(": complete" in line for line in lines)
    assert "8 train, 2 test views" in lines[0]


def test_what_is_missing_is_listed_and_exits_two(tmp_path, run):
    write_blender(tmp_path / "nerf_synthetic/lego")
    (tmp_path / "nerf_synthetic/lego/train/r_5.png").unlink()
    write_colmap(tmp_path / "mipnerf360/own")
    code, stdout, stderr = run(tmp_path)
    assert code == 2
    assert stdout.count("the folder is not there") == 7 + 9
    assert "nerf_synthetic/lego: INCOMPLETE" in stdout
    assert "transforms_train.json lists 8 views, the data set has 100" in stdout
    assert "transforms_train.json: 1 of 8 images are missing, the first is train/r_5" in stdout
    assert "mipnerf360/own: complete" in stdout
    assert stderr.strip() == "error: 17 of 18 scenes are incomplete or missing, see above"
    assert run(tmp_path, "own")[0] == 0


def test_a_root_with_scenes_of_a_data_set_directly_in_it_expects_all_of_them(tmp_path, run):
    write_blender(tmp_path / "lego")
    write_blender(tmp_path / "own")
    code, stdout, stderr = run(tmp_path)
    assert code == 2
    assert stdout.count("the folder is not there") == 7
    assert "lego: INCOMPLETE" in stdout
    assert "transforms_train.json lists 8 views, the data set has 100" in stdout
    assert "own: complete" in stdout
    assert stderr.strip() == "error: 8 of 9 scenes are incomplete or missing, see above"
    assert run(tmp_path, "own")[0] == 0


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


def test_photographs_of_mip_nerf_360_have_their_number_and_size(tmp_path, monkeypatch):
    write_colmap(tmp_path / "room")
    assert check_scene(tmp_path / "room", "mipnerf360").problems == [
        "images/ holds 9 photographs, the data set has 311",
        "images/ holds photographs of 48x32 px, the data set's have 3114x2075",
    ]
    assert not check_scene(tmp_path / "room").problems
    monkeypatch.setitem(MIPNERF360_PHOTOGRAPHS, "room", (9, 48, 32))
    assert not check_scene(tmp_path / "room", "mipnerf360").problems


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


def test_root_that_is_one_scene_and_root_without_any(tmp_path, run):
    write_blender(tmp_path / "lego")
    assert [entry[0] for entry in scenes_under(tmp_path / "lego", [])] == ["lego"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no scenes found"):
        scenes_under(tmp_path / "empty", [])
    assert run(tmp_path / "nowhere")[0] == 2
