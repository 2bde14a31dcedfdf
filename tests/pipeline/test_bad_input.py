"""Bad input through the scripts: one line that says what and where, exit code 2, nothing left behind."""

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests import scene_factory
from tests.forked import ScriptProcess


def edit_json(path: Path, change) -> None:
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


def missing_images(scene: Path) -> None:
    (scene / "train" / "r_3.png").unlink()


def truncated_png(scene: Path) -> None:
    path = scene / "train" / "r_3.png"
    path.write_bytes(path.read_bytes()[:-200])


def mismatched_sizes(scene: Path) -> None:
    Image.new("RGBA", (16, 16)).save(scene / "train" / "r_3.png")


def nan_pose(scene: Path) -> None:
    edit_json(
        scene / "transforms_train.json", lambda d: d["frames"][3]["transform_matrix"][0].__setitem__(0, float("nan"))
    )


def cameras_without_images(scene: Path) -> None:
    for path in (scene / "train").iterdir():
        path.unlink()


def no_cameras(scene: Path) -> None:
    for split in ("train", "test"):
        edit_json(scene / f"transforms_{split}.json", lambda d: d.__setitem__("frames", []))


def path_that_climbs_out(scene: Path) -> None:
    edit_json(scene / "transforms_train.json", lambda d: d["frames"][3].__setitem__("file_path", "../../etc/passwd"))


def absolute_path(scene: Path) -> None:
    edit_json(scene / "transforms_train.json", lambda d: d["frames"][3].__setitem__("file_path", "/etc/passwd"))


def not_json(scene: Path) -> None:
    (scene / "transforms_train.json").write_text("{")


def train(folder: Path, scene: Path, *words: str, setup: Callable[[], None] | None = None) -> tuple[int, str]:
    (folder / "words.txt").unlink(missing_ok=True)
    argv = ["-s", str(scene), "-m", str(folder / "out"), "--iterations", "5", "--device", "cpu", *words]
    process = ScriptProcess(argv, folder / "words.txt", setup)
    return process.wait(), process.text()


def refused(folder: Path, scene: Path, *words: str, setup: Callable[[], None] | None = None) -> str:
    """Run train.py, see it refuse in one line, and see that it left no artefact; returns the line."""
    code, text = train(folder, scene, *words, setup=setup)
    errors = [line for line in text.splitlines() if line.startswith("error: ")]
    assert code == 2, text
    assert len(errors) == 1, text
    assert "Traceback" not in text
    left = [p.name for p in (folder / "out").rglob("*") if p.is_file() and not p.name.startswith(".")]
    assert not left, f"left behind: {left}"
    return errors[0]


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (missing_images, "r_3"),
        (truncated_png, "r_3.png"),
        (mismatched_sizes, "r_3"),
        (nan_pose, "r_3"),
        (cameras_without_images, "missing"),
        (no_cameras, "scene"),
        (path_that_climbs_out, "passwd"),
        (absolute_path, "passwd"),
        (not_json, "transforms_train.json"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_a_spoiled_scene_is_refused(tmp_path, spoil, expected):
    scene = scene_factory.write_blender(tmp_path / "scene")
    spoil(scene)
    assert expected in refused(tmp_path, scene)


def test_no_scene_and_an_empty_folder(tmp_path):
    assert "nowhere" in refused(tmp_path, tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty" in refused(tmp_path, tmp_path / "empty")


def test_a_ply_and_a_checkpoint_from_a_stranger(tmp_path):
    scene = scene_factory.write_blender(tmp_path / "scene")
    stranger = tmp_path / "stranger.ply"
    stranger.write_bytes(
        b"ply\nformat binary_little_endian 1.0\nelement vertex 100000000000\nproperty float x\nend_header\n"
    )
    assert "stranger.ply" in refused(tmp_path, scene, "--init_ply", str(stranger))
    (tmp_path / "chkpnt7000.pth").write_bytes(pickle.dumps((np.zeros(3), 7000)))
    assert "chkpnt7000.pth" in refused(tmp_path, scene, "--start_checkpoint", str(tmp_path / "chkpnt7000.pth"))


def test_frames_of_the_wrong_size_and_missing_frames(tmp_path):
    scene = scene_factory.write_blender(tmp_path / "scene")
    frames = tmp_path / "frames" / "train"
    frames.mkdir(parents=True)
    for i in range(8):
        Image.fromarray(scene_factory.picture(i, 64, 64)).save(frames / f"r_{i}.png")
    flags = ["--frames", str(frames.parent), "--lr_kernel", "bicubic", "--eval"]
    Image.fromarray(scene_factory.picture(5, 60, 64)).save(frames / "r_5.png")
    assert "r_5" in refused(tmp_path, scene, *flags)
    (frames / "r_5.png").unlink()
    assert "r_5" in refused(tmp_path, scene, *flags)


def test_lr_views_without_a_known_kernel(tmp_path):
    scene = scene_factory.write_blender(tmp_path / "scene")
    frames = tmp_path / "frames" / "train"
    frames.mkdir(parents=True)
    for i in range(8):
        Image.fromarray(scene_factory.picture(i, 64, 64)).save(frames / f"r_{i}.png")
    assert "--lr_kernel" in refused(tmp_path, scene, "--frames", str(frames.parent), "--eval")


def test_colmap_ids_with_gaps_work(tmp_path):
    scene = scene_factory.write_colmap(tmp_path / "scene")
    code, text = train(tmp_path, scene, "--eval")
    assert code == 0, text
    assert (tmp_path / "out" / "point_cloud" / "iteration_5" / "point_cloud.ply").is_file()


def unknown_instructions() -> None:
    os.environ["SPLAT_ISA"] = "foo"


def test_an_unknown_instruction_set_is_refused_by_both_engines(tmp_path):
    scene = scene_factory.write_blender(tmp_path / "scene")
    for words in ((), ("--convert_SHs_python",)):
        code, text = train(tmp_path, scene, *words, "--overwrite", setup=unknown_instructions)
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        assert code == 2, text
        assert len(errors) == 1, text
        assert "SPLAT_ISA=foo: unknown instruction set; use one of" in errors[0]
        assert "Traceback" not in text
