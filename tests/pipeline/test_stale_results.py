"""What lies in OUT from before, or was changed since, never passes for a result; no source is written into."""

import hashlib
import json
import shutil
import sys
from pathlib import Path

import pytest

import align_sequence
import render
import train
import vsr_upsample
from scene.image_files import read_image, write_png
from tests.evaluation_factory import render as render_views
from tests.evaluation_factory import write_model, write_scenes
from tests.scene_factory import write_blender
from utils.errors import UserError


def call(monkeypatch: pytest.MonkeyPatch, script, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", [f"{script.__name__}.py", *map(str, words)])
    script.main()


def contents(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture
def scene(tmp_path) -> Path:
    return write_blender(tmp_path / "scene", views=3, size=16)


@pytest.fixture
def words(scene, tmp_path) -> list[object]:
    return ["-s", scene, "-m", tmp_path / "out", "--eval", "--device=cpu"]


def upsample(monkeypatch, words, upsampler: str, out: Path, *more: str) -> dict[str, str]:
    filters = ["--lr_kernel", "bicubic", "--scale", "2", "--upsampler", upsampler, *more]
    call(monkeypatch, vsr_upsample, *words, *filters)
    return contents(out / "hr")


def dying(write: int):
    """write_png of a process that dies as it writes one more than `write` images."""
    written = []

    def write_or_die(path, image):
        if len(written) == write:
            raise KeyboardInterrupt
        written.append(path)
        write_png(path, image)

    return write_or_die


def test_no_frame_of_other_settings_survives_a_killed_run(words, tmp_path, monkeypatch):
    out, lanczos = tmp_path / "out", tmp_path / "lanczos"
    call(monkeypatch, align_sequence, *words, "--ordering", "file")
    shutil.copytree(out, lanczos)
    expected = upsample(monkeypatch, [*words[:3], lanczos, *words[4:]], "lanczos", lanczos)
    assert upsample(monkeypatch, words, "bicubic", out) != expected
    with monkeypatch.context() as patch:
        patch.setattr("upsampling.write_png", dying(1))
        with pytest.raises(KeyboardInterrupt):
            upsample(patch, words, "lanczos", out, "--overwrite")
    assert upsample(monkeypatch, words, "lanczos", out, "--overwrite") == expected
    notes = json.loads((out / "run.json").read_text())["steps"]["upsample"]["notes"]
    assert notes["kept_from_before"] == 1


def test_a_changed_frame_is_made_again(words, tmp_path, monkeypatch):
    out = tmp_path / "out"
    call(monkeypatch, align_sequence, *words, "--ordering", "file")
    expected = upsample(monkeypatch, words, "bicubic", out)
    frames = sorted(out.glob("hr/train/*.png"))
    frames[1].write_bytes(frames[0].read_bytes())
    assert upsample(monkeypatch, words, "bicubic", out, "--skip_done") == expected


def test_an_edited_schedule_is_kept_and_a_broken_one_is_refused(words, tmp_path, monkeypatch, capsys):
    order = [*words, "--ordering", "file", "--skip_done", "--overwrite"]  # as run.py calls it
    call(monkeypatch, align_sequence, *order)
    path = tmp_path / "out" / "sequences.json"
    schedule = json.loads(path.read_text())
    schedule["sequences"][0]["frames"].reverse()
    edited = json.dumps(schedule)
    path.write_text(edited)
    capsys.readouterr()
    call(monkeypatch, align_sequence, *order)
    assert path.read_text() == edited
    assert "sequences.json was edited by hand and is used; remove it to order anew" in capsys.readouterr().err
    call(monkeypatch, align_sequence, *order)
    assert "order: up to date" in capsys.readouterr().err
    schedule["sequences"][0]["frames"][0]["save"] = False
    path.write_text(json.dumps(schedule))
    for _ in range(2):
        with pytest.raises(UserError, match="saved by no subsequence"):
            call(monkeypatch, align_sequence, *order)
        assert json.loads(path.read_text()) == schedule
    path.unlink()
    call(monkeypatch, align_sequence, *order)
    assert path.read_text() != edited


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    return write_scenes(tmp_path_factory.mktemp("sets"))


def test_no_render_of_other_settings_survives_a_killed_run(sets, tmp_path, monkeypatch):
    model = write_model(tmp_path / "model", sets[0])
    render_views(model, sets[0], background="black", skip_train=True)
    with monkeypatch.context() as patch:
        patch.setattr("evaluation.rendering.write_png", dying(2))
        with pytest.raises(KeyboardInterrupt):
            render_views(model, sets[0], background="white", skip_train=True, overwrite=True)
    render_views(model, sets[0], background="white", skip_train=True, overwrite=True)
    white = render_views(model, sets[0], background="white", skip_train=True, output_path=str(tmp_path / "white"))
    assert contents(model / "test") == contents(white / "test")


def test_one_numbering_at_a_time(sets, tmp_path):
    model = write_model(tmp_path / "model", sets[0])
    render_views(model, sets[0], skip_train=True)
    render_views(model, sets[0], skip_train=True, keep_names=True, overwrite=True)
    write_png(model / "test/ours_7/renders/stray.png", read_image(model / "test/ours_7/renders/r_0.png"))
    (model / "test/ours_7/renders/r_1.png").unlink()
    render_views(model, sets[0], skip_train=True, keep_names=True, overwrite=True)
    for kind in ("renders", "gt"):
        assert sorted(p.name for p in (model / "test/ours_7" / kind).iterdir()) == ["r_0.png", "r_1.png"]


def test_renders_go_with_their_model(sets, tmp_path, capsys):
    model = write_model(write_model(tmp_path / "model", sets[0], iteration=40), sets[0], iteration=30)
    for iteration in (30, 40):
        render_views(model, sets[0], iteration=iteration)
    (model / "test" / "theirs_40").mkdir()
    shutil.rmtree(model / "point_cloud/iteration_40")
    write_model(model, sets[0], iteration=20)
    render_views(model, sets[0], iteration=20)
    assert sorted(p.name for p in (model / "test").iterdir()) == ["ours_20", "ours_30", "theirs_40"]
    assert sorted(p.name for p in (model / "train").iterdir()) == ["ours_20", "ours_30"]
    assert "no model of this iteration" in capsys.readouterr().err
    methods = json.loads((model / "run.json").read_text())["steps"]["render"]["notes"]["methods"]
    assert set(methods) == {f"{split}/ours_{n}" for split in ("test", "train") for n in (20, 30)}


@pytest.mark.parametrize("out", ["", "below"])
def test_nothing_is_written_into_a_source(scene, sets, tmp_path, monkeypatch, out):
    frames, (lr, hr) = scene / "train", sets
    model = write_model(tmp_path / "model", lr)
    before = contents(tmp_path / "scene"), contents(lr), contents(hr)
    attempts = [
        (align_sequence, "-s", scene, "-m", scene / out),
        (align_sequence, "-s", lr, "-m", hr / out),
        (vsr_upsample, "--frames", frames, "-o", frames / out, "--upsampler", "bicubic"),
        (train, "-s", scene, "-m", scene / out, "--iterations", "2"),
        (train, "-s", scene, "-m", frames / out, "--frames", frames, "--iterations", "2"),
        (train, "-s", lr, "-m", hr / out, "--iterations", "2", "--frames", "none"),
        (render, "-m", model, "--output_path", lr / out),
        (render, "-m", model, "--output_path", hr / out),
    ]
    for attempt in attempts:
        with pytest.raises(UserError, match="is a source"):
            call(monkeypatch, *attempt)
    assert (contents(tmp_path / "scene"), contents(lr), contents(hr)) == before
