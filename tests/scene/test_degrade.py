"""Degraded LR scenes: the same bytes again, geometry untouched, what the folder says, what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from arguments.degrade import DegradeParams
from arguments.downscale import DownscaleParams
from scene import load_scene
from scene.degradation_file import DegradationFile
from scene.degrade import degrade, main
from scene.degrade_steps import degraded, from_json
from scene.downscale import downscale
from scene.image_files import read_header, read_image
from scene.lr_kernel import resolve_kernel
from tests.scene.test_downscale import WRITERS, digest, settings_of, write_scene
from upsampling.sources import known_kernel
from utils.errors import UserError


def made(source, out, **flags):
    return degrade(*settings_of(DegradeParams, str(source), str(out), **flags))


def made_clean(source, out, **flags):
    return downscale(*settings_of(DownscaleParams, str(source), str(out), **flags))


def images(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.png"))}


@pytest.mark.parametrize("per", ["scene", "view"])
def test_the_same_seed_gives_the_same_bytes_and_another_one_others(tmp_path, per):
    write_scene("blender", tmp_path / "hr", 32)
    for out, seed in (("a", 3), ("b", 3), ("c", 4)):
        made(tmp_path / "hr", tmp_path / out, per=per, seed=seed)
    a, b, c = (images(tmp_path / out) for out in "abc")
    assert a == b
    assert all(a[k] != c[k] for k in a)


def test_values_are_drawn_once_a_scene_or_once_a_view(tmp_path):
    write_scene("blender", tmp_path / "hr", 32)
    scene = made(tmp_path / "hr", tmp_path / "w1", per="scene")
    views = made(tmp_path / "hr", tmp_path / "w2", per="view")
    assert list(scene.steps) == [""]
    assert set(views.steps) == {f"train/r_{i}" for i in range(8)}
    assert len({json.dumps(steps) for steps in views.steps.values()}) == 8
    assert len(set(scene.noise_seeds.values())) == 8  # noise is drawn in each view
    assert DegradationFile.read(tmp_path / "w2/degradation.json") == views


def test_a_view_can_be_made_again_from_what_the_file_says(tmp_path):
    write_scene("blender", tmp_path / "hr", 39)
    made(tmp_path / "hr", tmp_path / "lr", per="view", seed=7)
    document = json.loads((tmp_path / "lr/degradation.json").read_text())
    (sizes,) = document["sizes"]
    for name in ("train/r_0", "train/r_5"):
        image = read_image(tmp_path / "hr" / f"{name}.png")
        steps = from_json(document["steps"][name], name)
        again = degraded(image, steps, tuple(sizes["used"]), tuple(sizes["lr"]), document["noise_seeds"][name])
        np.testing.assert_array_equal(again, read_image(tmp_path / "lr" / f"{name}.png"))


@pytest.mark.parametrize("kind", WRITERS)
@pytest.mark.parametrize("size", [32, 39])
def test_cameras_and_truth_are_those_of_scene_downscale(tmp_path, kind, size):
    """Geometry untouched: every file but the pictures and the marker is what scene.downscale writes."""
    write_scene(kind, tmp_path / "hr", size)
    before = digest(tmp_path / "hr")
    made(tmp_path / "hr", tmp_path / "lr")
    made_clean(tmp_path / "hr", tmp_path / "clean")
    assert digest(tmp_path / "hr") == before
    skipped = {"degradation.json", "lr_kernel.json", ".lock"}
    ours, theirs = (
        {p.relative_to(root): p for p in root.rglob("*") if p.is_file() and p.name not in skipped}
        for root in (tmp_path / "lr", tmp_path / "clean")
    )
    assert set(ours) == set(theirs)
    assert all(ours[p].read_bytes() == theirs[p].read_bytes() for p in ours if p.suffix != ".png")
    lr, clean = load_scene(tmp_path / "lr"), load_scene(tmp_path / "clean")
    assert (lr.train, lr.test) == (clean.train, clean.test)
    for name in [*lr.train, *lr.test]:
        np.testing.assert_array_equal(lr.cameras[name].K, clean.cameras[name].K)
        assert lr.hr_path(name).resolve() == clean.hr_path(name).resolve()
        assert lr.hr_size(name) == clean.hr_size(name)
    header = read_header(lr.images.path(lr.train[0]))
    assert (header.width, header.channels) == (size // 4, 4 if kind == "blender" else 3)


def test_projection_and_the_lr_kernel_are_refused(tmp_path):
    write_scene("blender", tmp_path / "hr", 32)
    made(tmp_path / "hr", tmp_path / "lr")
    assert not (tmp_path / "lr/lr_kernel.json").exists()
    scene = load_scene(tmp_path / "lr")
    with pytest.raises(UserError, match=r"degraded \(degradation.json.*no linear operator made them; for the LR loss"):
        resolve_kernel(scene, "")
    assert resolve_kernel(scene, "bicubic") == ("bicubic", "renormalise")  # an approximation, asked for
    assert known_kernel(scene, "bicubic") is None  # nothing is projected onto them, or measured against them
    with pytest.raises(UserError, match="bicubic, area, or an existing JSON file"):
        known_kernel(scene, "cubic")


def test_a_second_call_does_nothing_and_other_settings_need_overwrite(tmp_path):
    write_scene("blender", tmp_path / "hr", 32)
    first = made(tmp_path / "hr", tmp_path / "lr")
    written = digest(tmp_path / "lr")
    assert made(tmp_path / "hr", tmp_path / "lr") == first
    assert digest(tmp_path / "lr") == written
    with pytest.raises(UserError, match="--overwrite"):
        made(tmp_path / "hr", tmp_path / "lr", seed=1)
    assert made(tmp_path / "hr", tmp_path / "lr", seed=1, overwrite=True).seed == 1


def test_one_folder_holds_one_kind_of_lr_scene(tmp_path):
    write_scene("blender", tmp_path / "hr", 32)
    made(tmp_path / "hr", tmp_path / "lr")
    with pytest.raises(UserError, match="not made by this tool"):
        made_clean(tmp_path / "hr", tmp_path / "lr")
    made_clean(tmp_path / "hr", tmp_path / "lr", overwrite=True)
    assert not (tmp_path / "lr/degradation.json").exists()
    made(tmp_path / "hr", tmp_path / "lr", overwrite=True)
    assert not (tmp_path / "lr/lr_kernel.json").exists()


def test_an_interrupted_call_of_the_other_tool_is_not_continued_over_ours(tmp_path, monkeypatch):
    """Degraded views must never pass for those that a kernel made."""
    write_scene("blender", tmp_path / "hr", 32)

    def dies(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("scene.downscale.lr_image", dies)
        with pytest.raises(KeyboardInterrupt):
            made_clean(tmp_path / "hr", tmp_path / "lr")
    made(tmp_path / "hr", tmp_path / "lr", overwrite=True)
    written = digest(tmp_path / "lr")
    with pytest.raises(UserError, match="not made by this tool"):
        made_clean(tmp_path / "hr", tmp_path / "lr")
    assert digest(tmp_path / "lr") == written


def test_an_interrupted_call_is_continued_and_ends_the_same(tmp_path, monkeypatch):
    write_scene("blender", tmp_path / "hr", 32)
    made(tmp_path / "hr", tmp_path / "whole")
    calls = []

    def dies_at_the_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return degraded(*args)

    monkeypatch.setattr("scene.degrade.degraded", dies_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        made(tmp_path / "hr", tmp_path / "lr")
    assert not (tmp_path / "lr/degradation.json").exists()
    made(tmp_path / "hr", tmp_path / "lr")
    assert len(calls) == 3 + 6  # 8 views, 2 were done
    assert images(tmp_path / "lr") == images(tmp_path / "whole")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"scale": 0}, "1 or more"),
        ({"sigma": (2.0,)}, "belongs to --preset classical"),
        ({"preset": "classical", "sigma": (1.0, 2.0, 3.0)}, "one or two numbers"),
        ({"preset": "classical", "jpeg": 101}, "1 to 100"),
        ({"preset": "classical", "cutoff": 0.0}, "--cutoff from 0 to 1"),
        ({"seed": -1}, "0 or more"),
    ],
)
def test_settings_that_make_no_sense_are_refused(flags, message):
    with pytest.raises(UserError, match=message):
        settings_of(DegradeParams, "a", "b", **flags)


def test_classical_values_are_those_of_the_flags(tmp_path):
    write_scene("colmap", tmp_path / "hr", 32)
    flags = {"sigma": (1.6,), "resize": "area", "noise": 5.1, "poisson": 0.5, "jpeg": 50}
    found = made(tmp_path / "hr", tmp_path / "lr", preset="classical", **flags).steps
    names = [[step["step"] for step in steps] for steps in found.values()]
    assert names == [["blur", "resize", "noise", "noise", "jpeg"]]
    assert [found[""][i][key] for i, key in ((0, "sigma"), (2, "level"), (3, "level"), (4, "quality"))] == [
        [1.6, 1.6],
        pytest.approx(0.02),
        0.5,
        50,
    ]


def test_an_even_kernel_is_refused(tmp_path):
    write_scene("blender", tmp_path / "hr", 32)
    with pytest.raises(UserError, match="an odd number"):
        made(tmp_path / "hr", tmp_path / "lr", preset="classical", blur_px=8)
    assert not (tmp_path / "lr").exists()


def test_command_line(tmp_path, monkeypatch, capsys):
    hr, lr = write_scene("blender", tmp_path / "hr", 32), tmp_path / "lr"
    words = ["degrade", "-s", str(hr), "-o", str(lr), "--preset", "mild", "--per", "view", "--seed", "2", "--quiet"]
    monkeypatch.setattr("sys.argv", words)
    main()
    assert "32x32 -> 8x8, degraded: mild, per view, seed 2" in capsys.readouterr().out
    assert Path(lr / "degradation.json").is_file()
