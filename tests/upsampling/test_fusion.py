"""Internal and external frames against IE-SRGS's definition, and frames projected onto their LR views."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import vsr_upsample
from arguments.priors import PriorParams
from arguments.upsampling import UpsamplingParams
from scene.alpha import premultiplied
from scene.image_files import read_image, write_png
from scene.lr_kernel import LRKernel, opaque_support_mask
from scene.sequences import FILE_NAME, Sequences, Subsequence, write_sequences
from tests.scene_factory import picture, write_blender
from upsampling import Job, internal_inputs, load, run
from upsampling.consistency import projected
from upsampling.fusion import EPSILON, fused, internal_files, internal_planes, mixed
from upsampling.sources import folder_source
from utils.errors import UserError

CPU = torch.device("cpu")


@given(st.integers(0, 999), st.sampled_from([3, 4]), st.floats(0.0, 2.0))
@settings(max_examples=40, deadline=None)
def test_fusion_is_the_definition_pixel_by_pixel(seed, channels, threshold):
    draw = torch.Generator().manual_seed(seed)
    external, internal = torch.rand(2, channels, 3, 4, generator=draw, dtype=torch.float64)
    result, believed = fused(external, internal, threshold)
    for y in range(3):
        for x in range(4):
            e, i = external[:, y, x], internal[:, y, x]
            difference = float((i[:3] - e[:3]).abs().sum() / (i[:3] + EPSILON).sum())
            assert bool(believed[y, x]) == (difference >= threshold)
            assert torch.equal(result[:, y, x], i if difference >= threshold else e)


def test_a_threshold_of_0_takes_all_and_a_high_one_nothing():
    external, internal = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))
    internal[:, :3] = external[:, :3]  # equal pixels as well
    assert torch.equal(fused(external, internal, 0)[0], internal)
    assert torch.equal(fused(external, internal, 1e9)[0], external)


def test_a_grey_level_on_black_is_worth_no_more_than_a_grey_level():
    external, internal = torch.full((3, 2, 2), 0.4 / 255), torch.zeros(3, 2, 2)
    assert not fused(external, internal, 0.6)[1].any()


@given(st.integers(0, 999), st.sampled_from([3, 4]), st.floats(0, 1))
@settings(max_examples=30, deadline=None)
def test_a_mix_is_the_weighted_mean_with_alpha_in_8_bit(seed, channels, weight):
    draw = torch.Generator().manual_seed(seed)
    external, internal = torch.rand(2, channels, 3, 4, generator=draw)
    external[3:, 0], internal[3:, 0] = 1, 1  # where both are opaque, the mix is
    result = mixed(external, internal, weight)
    expected = (1 - weight) * external.double() + weight * internal.double()
    np.testing.assert_allclose(result[:3], expected[:3], atol=1e-6)
    np.testing.assert_allclose(result[3:] * 255, (expected[3:] * 255).round(), atol=1e-3)
    assert (result[3:, 0] == 1).all()
    assert torch.equal(mixed(external, internal, 1.0)[:3], internal[:3])


# --- projection --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [("bicubic", "renormalise"), ("bicubic", "mirror"), ("area", "renormalise")])
def test_a_projected_frame_is_the_nearest_one_that_agrees_with_its_lr_view(kernel):
    """Least squares by NumPy: min |x' - x| subject to A x' = y."""
    operator = LRKernel(*kernel, (16, 12), (4, 3))
    draw = torch.Generator().manual_seed(1)
    frame = torch.rand(3, 12, 16, generator=draw)
    lr = (torch.rand(3, 4, 3, generator=draw) * 255).to(torch.uint8).numpy()
    result = projected(operator, frame, lr)
    matrix = np.kron(operator.matrix("y"), operator.matrix("x"))
    for c in range(3):
        x, y = frame[c].double().numpy().ravel(), lr[..., c].ravel() / 255
        change = np.linalg.lstsq(matrix, y - matrix @ x, rcond=None)[0]
        np.testing.assert_allclose(result[c].numpy().ravel(), x + change, atol=1e-6)
        np.testing.assert_allclose(matrix @ result[c].double().numpy().ravel(), y, atol=1e-6)


def test_with_alpha_only_pixels_of_one_opacity_speak():
    operator = LRKernel("bicubic", "renormalise", (96, 96), (24, 24))
    frame = torch.from_numpy(premultiplied(picture(0, 96, 96))).permute(2, 0, 1)
    lr = picture(1, 24, 24)  # another texture under the same disc
    result = projected(operator, frame, lr)
    speaking = opaque_support_mask(operator, frame[3])
    assert 0.1 < speaking.double().mean() < 0.9
    before, after = (operator.down(x[:3].double()) for x in (frame, result))
    wanted = torch.from_numpy(premultiplied(lr)).permute(2, 0, 1)[:3].double()
    assert torch.allclose(after[:, speaking], wanted[:, speaking], atol=1e-6)
    assert torch.allclose(after[:, ~speaking], before[:, ~speaking], atol=1e-6)
    assert torch.equal(result[3], frame[3])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three frames of 24x24 px and, at HR size, the truth they were made of: blocks of 3x3 px of random colours."""
    draw, kernel = np.random.default_rng(0), LRKernel("bicubic", "renormalise", (96, 96), (24, 24))
    for i in range(3):
        hr = draw.integers(60, 200, (32, 32, 3), np.uint8).repeat(3, 0).repeat(3, 1)
        small = kernel.down(torch.from_numpy(hr).permute(2, 0, 1).double()).clamp(0, 255).round()
        write_png(tmp_path / "hr" / f"f{i}.png", hr)
        write_png(tmp_path / "lr" / f"f{i}.png", small.permute(1, 2, 0).to(torch.uint8).numpy())
    return tmp_path


def _run(folder: Path, out: str, **flags: object) -> Path:
    params = UpsamplingParams(upsampler="bicubic", **flags)
    run(Job(load(params, None, CPU), params, folder_source(folder / "lr", "bicubic"), folder / out))
    return folder / out


def _psnr(a: Path, b: Path) -> float:
    difference = read_image(a).astype(float) - read_image(b).astype(float)
    return float(-10 * np.log10((difference**2).mean() / 255**2))


def test_projected_frames_are_nearer_to_the_truth_and_agree_to_8_bit(folder):
    plain, project = _run(folder, "plain"), _run(folder, "projected", project=True)
    reports = [json.loads((f / "consistency.json").read_text()) for f in (plain, project)]
    assert reports[0]["worst_db"] < 35
    assert reports[1]["worst_db"] > 45  # what clipping and rounding leave; measured 72.5
    for i in range(3):
        assert _psnr(project / f"f{i}.png", folder / "hr" / f"f{i}.png") > _psnr(
            plain / f"f{i}.png", folder / "hr" / f"f{i}.png"
        )


def test_internal_frames_everywhere_and_nowhere(folder):
    """Threshold 0 with --project is the refine loop's frame: the render, moved onto the LR view."""
    plain = _run(folder, "plain")
    internal = str(folder / "hr")
    everywhere = _run(folder, "everywhere", internal=internal, internal_threshold=0.0)
    nowhere = _run(folder, "nowhere", internal=internal, internal_threshold=1e9)
    for i in range(3):
        name = f"f{i}.png"
        assert (everywhere / name).read_bytes() == (folder / "hr" / name).read_bytes()
        assert (nowhere / name).read_bytes() == (plain / name).read_bytes()
        assert (read_image(everywhere / "disagreement" / name) == 255).all()
        assert (read_image(nowhere / "disagreement" / name) == 0).all()


def test_the_mask_says_where_the_internal_frame_was_taken(folder):
    plain, internal = _run(folder, "plain"), folder / "wrong"
    for i in range(3):
        image = read_image(plain / f"f{i}.png").copy()
        image[10:20, 30:50] = 255
        write_png(internal / f"f{i}.png", image)
    out = _run(folder, "out", internal=str(internal), internal_threshold=0.6)
    mask = read_image(out / "disagreement" / "f0.png")[..., 0] == 255
    a, b, c = (read_image(f / "f0.png") for f in (plain, internal, out))
    np.testing.assert_array_equal(c, np.where(mask[..., None], b, a))
    assert not np.delete(mask, np.s_[10:20], axis=0).any()


def test_a_run_mixes_in_the_internal_frames_and_leaves_no_mask(folder):
    plain, internal = _run(folder, "plain"), str(folder / "hr")
    out = _run(folder, "mixed", internal=internal, internal_weight=0.3)
    whole = _run(folder, "whole", internal=internal, internal_weight=1.0)
    project = _run(folder, "projected", internal=internal, internal_weight=0.3, project=True)
    for i in range(3):
        a, b, c = (read_image(f / f"f{i}.png").astype(float) for f in (plain, folder / "hr", out))
        assert np.abs(0.7 * a + 0.3 * b - c).max() <= 1  # the plain frame was rounded as well
        assert (whole / f"f{i}.png").read_bytes() == (folder / "hr" / f"f{i}.png").read_bytes()
    assert not (out / "disagreement").exists()
    reports = [json.loads((f / "consistency.json").read_text())["worst_db"] for f in (out, project)]
    assert reports[1] > max(45, reports[0] + 3)


def test_an_internal_weight_that_makes_no_sense_is_refused():
    for value in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match=r"--internal_weight .*: a share from 0 to 1"):
            UpsamplingParams(internal="renders", internal_weight=value)
    with pytest.raises(UserError, match=r"--internal_weight 0\.3: .*name a folder with --internal"):
        UpsamplingParams(internal_weight=0.3)
    with pytest.raises(UserError, match=r"--internal_weight 0\.3 mixes all pixels, --internal_threshold 0\.9 .*one"):
        UpsamplingParams(internal="renders", internal_weight=0.3, internal_threshold=0.9)


def test_internal_opacity_is_settled_by_the_lr_view():
    """A model's haze on empty ground and its thin spots inside go, as they do in every frame."""
    lr, image = picture(0, 24, 24), picture(0, 96, 96)
    image[:4, :4, 3], image[46:50, 46:50, 3] = 9, 240
    planes = internal_planes(image, lr)
    assert (planes[3, :4, :4] == 0).all()
    assert (planes[3, 46:50, 46:50] == 1).all()
    rim = (planes[3] > 0) & (planes[3] < 1)
    assert torch.equal(planes[3][rim], torch.from_numpy(image[..., 3] / np.float32(255))[rim])
    assert torch.equal(
        internal_planes(image[..., :3].copy(), lr[..., :3]) * 255,
        torch.from_numpy(image[..., :3]).permute(2, 0, 1).float(),
    )


def test_internal_frames_are_checked_before_any_work(folder):
    source = folder_source(folder / "lr", "bicubic")
    files = internal_files(folder / "hr", ["f1", "f0"], source.views, 4)
    assert list(files.values()) == [folder / "hr" / "f1.png", folder / "hr" / "f0.png"]
    with pytest.raises(UserError, match=r"f0.png: 96x96 px, 3 channels; 48x48 px without alpha"):
        internal_files(folder / "hr", ["f0"], source.views, 2)
    (folder / "hr" / "f2.png").unlink()
    with pytest.raises(UserError, match=r"f2.png: no such frame; render.py --hr_frames 4"):
        internal_inputs(UpsamplingParams(internal=str(folder / "hr")), PriorParams(), source)
    assert internal_inputs(UpsamplingParams(project=True), PriorParams(), source) == {}
    with pytest.raises(UserError, match=r"--project: no LR kernel is known.*--lr_kernel"):
        internal_inputs(UpsamplingParams(project=True), PriorParams(), replace(source, kernel=None))


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_thresholds_that_make_no_sense_are_refused(value):
    with pytest.raises(UserError, match="--internal_threshold"):
        UpsamplingParams(internal_threshold=value)


def _script(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["vsr_upsample.py", *map(str, words)])
    vsr_upsample.main()


def test_the_script_projects_a_scene_with_alpha(tmp_path, monkeypatch):
    scene = write_blender(tmp_path / "scene", views=3, size=32)
    names = ("train/r_0", "train/r_1", "train/r_2")
    write_sequences(tmp_path / "out" / FILE_NAME, Sequences((Subsequence(names, (0, 1, 2)),)))
    words = ("-s", scene, "-m", tmp_path / "out", "--eval", "--upsampler", "bicubic", "--lr_kernel", "bicubic")
    _script(monkeypatch, *words)
    plain = json.loads((tmp_path / "out/hr/consistency.json").read_text())["mean_db"]
    _script(monkeypatch, *words, "--project", "--ensemble", "4", "--overwrite")
    assert json.loads((tmp_path / "out/hr/consistency.json").read_text())["mean_db"] > plain + 3
    outputs = json.loads((tmp_path / "out/run.json").read_text())["steps"]["upsample"]["outputs"]
    assert {f"hr/confidence/{n}.png" for n in names} < set(outputs)
    _script(monkeypatch, *words, "--overwrite")
    assert not list((tmp_path / "out/hr/confidence").rglob("*.png"))  # of other settings: gone


def test_the_script_notices_other_internal_frames(folder, monkeypatch, capsys):
    words = ("--frames", folder / "lr", "-o", folder / "out", "--upsampler", "bicubic", "--internal", folder / "hr")
    _script(monkeypatch, *words)
    _script(monkeypatch, *words, "--skip_done")
    assert "up to date" in capsys.readouterr().err
    write_png(folder / "hr" / "f0.png", np.zeros((96, 96, 3), np.uint8))
    _script(monkeypatch, *words, "--skip_done")
    assert "internal" in capsys.readouterr().err
    with pytest.raises(UserError, match="no LR kernel is known"):
        _script(monkeypatch, *words, "--project", "--overwrite")
