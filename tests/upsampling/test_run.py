"""A run: frames on disk one by one, kept on resume, clean on every background, measured against their LR views."""

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import vsr_upsample
from arguments.upsampling import UpsamplingParams
from scene.images import composite, read_image, write_png
from scene.lr_kernel import LRKernel
from scene.sequences import FILE_NAME, Sequences, Subsequence, write_sequences
from tests.scene_factory import picture, write_blender
from upsampling import Job, describe, load, run
from upsampling.alignment import Alignment
from upsampling.consistency import consistency_db, consistency_errors
from upsampling.planes import joined, stored
from upsampling.sources import FolderViews, Source, folder_source
from utils.errors import UserError

CPU = torch.device("cpu")


class Recorder:
    """Nearest-neighbour x4 that remembers the clips it saw, and fails at a chosen frame."""

    scale, num_neighbours = 4, 1

    def __init__(self, fail_at: int = -1) -> None:
        self.clips: list[Tensor] = []
        self.fail_at = fail_at

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
        self.clips.append(frames)
        for i, frame in enumerate(frames):
            if i == self.fail_at:
                raise KeyboardInterrupt
            yield frame.repeat_interleave(4, 1).repeat_interleave(4, 2)


class Darker(Recorder):
    """A network that loses a tenth of the light."""

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
        return (0.9 * frame for frame in super().upsample(frames, alignment))


def make_recorder(settings: UpsamplingParams, device: torch.device) -> Recorder:
    """--upsampler tests.upsampling.test_run:make_recorder"""
    return Recorder()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five RGBA frames of 24x20 px."""
    for i in range(5):
        write_png(tmp_path / "lr" / f"f{i}.png", picture(i, 24, 20))
    return tmp_path


def _job(folder: Path, net: object, sequences: Sequences | None = None, **kw: object) -> Job:
    source = folder_source(folder / "lr", "bicubic")
    if sequences:
        source = replace(source, sequences=sequences)
    return Job(net, UpsamplingParams(alpha="bicubic"), source, folder / "hr", **kw)  # type: ignore[arg-type]


def _bytes(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.glob("*.png"))}


def test_every_frame_of_a_folder_comes_out_under_its_name(folder):
    outputs, notes = run(_job(folder, Recorder()))
    assert [p.name for p in outputs] == [*(f"f{i}.png" for i in range(5)), "consistency.json", "alignment.json"]
    assert all(read_image(p).shape == (80, 96, 4) for p in outputs[:-2])
    assert notes["frames"] == 5
    assert notes["kept_from_before"] == 0


def test_frames_are_written_as_they_are_ready_and_kept_on_resume(folder):
    whole = folder / "whole"
    run(replace(_job(folder, Recorder()), folder=whole))
    with pytest.raises(KeyboardInterrupt):
        run(_job(folder, Recorder(fail_at=3)))
    assert sorted(_bytes(folder / "hr")) == ["f0.png", "f1.png", "f2.png"]
    before = {p: p.stat().st_mtime_ns for p in (folder / "hr").glob("*.png")}
    _, notes = run(_job(folder, Recorder()), resume=True)
    assert notes["kept_from_before"] == 3
    assert all(p.stat().st_mtime_ns == t for p, t in before.items())
    assert _bytes(folder / "hr") == _bytes(whole)
    assert (folder / "hr" / "consistency.json").read_text() == (whole / "consistency.json").read_text()
    net = Recorder()
    run(_job(folder, net), resume=True)
    assert net.clips == []
    run(_job(folder, net))  # not a resume: everything anew
    assert len(net.clips) == 1


def test_a_schedule_is_obeyed(folder):
    calls = (Subsequence(("f0", "f2", "f1"), (0, 1)), Subsequence(("f3", "f1"), (1,), padded=True))
    net = Recorder()
    outputs, _ = run(_job(folder, net, Sequences((*calls, Subsequence(("f4",), ())))))
    assert [p.stem for p in outputs[:-2]] == ["f0", "f2", "f1"]
    views = FolderViews(folder / "lr")
    plane = lambda name: torch.from_numpy(views.raw(name).astype(np.float32)).permute(2, 0, 1)  # noqa: E731
    assert [len(clip) for clip in net.clips] == [3, 4]
    f3, f1 = (plane(n)[:3] * plane(n)[3:] / 255**2 for n in ("f3", "f1"))
    assert torch.allclose(net.clips[1], torch.stack([f3, f3, f1, f1]), atol=1e-6)  # ends doubled, premultiplied


def test_no_propagation_and_single_images_see_one_frame_at_a_time(folder):
    calls = Sequences((Subsequence(("f0", "f1"), (0,)), Subsequence(("f1", "f2"), (0, 1))))
    net = Recorder()
    run(replace(_job(folder, net, calls), settings=UpsamplingParams(alpha="bicubic", propagation="none")))
    assert [len(clip) for clip in net.clips] == [1, 1, 1]


def test_the_papers_networks_see_bgr(folder):
    plain, compat = Recorder(), Recorder()
    run(replace(_job(folder, plain), folder=folder / "a"))
    run(replace(_job(folder, compat, compat="sequence_matters"), folder=folder / "b"))
    assert torch.equal(compat.clips[0], plain.clips[0].flip(1))
    assert _bytes(folder / "a") == _bytes(folder / "b")


def test_opaque_frames_stay_rgb_or_opaque(tmp_path):
    rgb = picture(0, 16, 16)[..., :3].copy()
    write_png(tmp_path / "lr" / "rgb.png", rgb)
    outputs, _ = run(_job(tmp_path, Recorder()))
    assert read_image(outputs[0]).shape == (64, 64, 3)
    opaque = np.dstack([rgb, np.full((16, 16), 255, np.uint8)])
    write_png(tmp_path / "lr" / "rgb.png", opaque)
    net = Recorder()
    run(replace(_job(tmp_path, net), settings=UpsamplingParams(alpha="network")))
    assert len(net.clips) == 1  # no second pass for an alpha that says nothing
    assert (read_image(outputs[0])[..., 3] == 255).all()


@pytest.mark.parametrize("alpha", ["network", "bicubic"])
def test_one_set_of_frames_is_clean_on_black_and_white(tmp_path, alpha):
    """A disc whose truth is known at HR: no fringe on either background, and nothing at all outside it."""
    hr, lr_size = picture(1, 96, 96), (24, 24)
    kernel = LRKernel("bicubic", "renormalise", (96, 96), lr_size)
    straight = torch.from_numpy(hr.astype(np.float64) / 255).permute(2, 0, 1)
    small = kernel.down(torch.cat([straight[:3] * straight[3:], straight[3:]])).clamp(0, 1)
    write_png(tmp_path / "lr" / "a.png", stored(joined(small[:3].float(), small[3].float(), small[3].float())))
    flags = UpsamplingParams(upsampler="bicubic", alpha=alpha)
    outputs, _ = run(replace(_job(tmp_path, load(flags, None, CPU)), settings=flags))
    frame = read_image(outputs[0])
    for background in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        error = composite(frame, background) - composite(hr, background)
        assert -10 * np.log10((error**2).mean()) > 27  # measured 28.6 on both
        assert np.abs(composite(frame, background)[:8] - background[0]).max() == 0


def test_flat_alpha_is_kept_exactly():
    lr_alpha = torch.zeros(10, 10)
    lr_alpha[:, 4:] = 1
    noisy = lr_alpha.repeat_interleave(4, 0).repeat_interleave(4, 1).add(0.02 * torch.rand(40, 40) - 0.01).clamp(0, 1)
    image = stored(joined(torch.full((3, 40, 40), 0.5), noisy, lr_alpha))
    assert (image[:, :8, 3] == 0).all()
    assert (image[:, 24:, 3] == 255).all()
    assert (image[:, :8, :3] == 0).all()


def test_consistency_is_the_psnr_of_the_downscaled_frame(folder):
    rng = np.random.default_rng(0)
    hr, lr = rng.integers(0, 256, (40, 48, 3), np.uint8), rng.integers(0, 256, (10, 12, 3), np.uint8)
    kernel = LRKernel("area", "renormalise", (48, 40), (12, 10))
    small = hr.reshape(10, 4, 12, 4, 3).mean((1, 3))  # area by its definition
    expected = -10 * np.log10((((small - lr) / 255) ** 2).mean())
    assert consistency_db(kernel, hr, lr) == pytest.approx(expected, abs=1e-6)
    assert consistency_db(kernel, np.repeat(np.repeat(lr, 4, 0), 4, 1), lr) == 100.0
    half = np.dstack([hr, np.full((40, 48), 128, np.uint8)])
    assert consistency_db(kernel, half, np.dstack([lr, np.full((10, 12), 128, np.uint8)])) is None


def test_low_consistency_is_warned_about_and_an_unknown_kernel_is_said(folder, capsys):
    run(_job(folder, Darker()))
    assert "5 of 5 frames are under 35 dB" in capsys.readouterr().err
    report = json.loads((folder / "hr" / "consistency.json").read_text())
    assert report["worst_db"] == min(report["frames"].values()) < 35
    job = _job(folder, Recorder())
    run(replace(job, source=replace(job.source, kernel=None)))
    assert "not measured" in capsys.readouterr().err
    report = json.loads((folder / "hr" / "consistency.json").read_text())
    assert set(report["frames"].values()) == {None}
    assert report["kernel"] is None


def test_frames_of_a_call_must_agree(folder):
    write_png(folder / "lr" / "f9.png", picture(0, 30, 20))
    with pytest.raises(UserError, match=r"f9 \(30x20 px\) and f0 \(24x20 px\) differ"):
        run(_job(folder, Recorder()))


def test_folders_are_checked(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        folder_source(tmp_path / "none", "")
    with pytest.raises(UserError, match="no PNG or JPEG"):
        folder_source(tmp_path, "")
    (tmp_path / "a.png").touch()
    (tmp_path / "a.jpg").touch()
    with pytest.raises(UserError, match="same name"):
        folder_source(tmp_path, "")


def test_a_dry_run_says_what_would_be_done(folder):
    text = describe(_job(folder, Recorder()))
    assert text.startswith("5 frames 24x20 -> 96x80 px in 1 calls (5 frames in all)")
    assert not (folder / "hr").exists()


def test_random_weights_are_stamped(folder, capsys):
    flags = UpsamplingParams(random_weights=True, alpha="bicubic", propagation="none", precision="fp32")
    for name in ("f1", "f2", "f3", "f4"):
        (folder / "lr" / f"{name}.png").unlink()
    _, notes = run(replace(_job(folder, load(flags, None, CPU)), settings=flags))
    assert notes["stamp"] == json.loads((folder / "hr" / "consistency.json").read_text())["stamp"] == "RANDOM WEIGHTS"
    assert "RANDOM WEIGHTS" in capsys.readouterr().err


# --- the script --------------------------------------------------------------------------------------------------


def _script(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["vsr_upsample.py", *map(str, words)])
    vsr_upsample.main()


def test_the_script_on_a_scene(tmp_path, monkeypatch, capsys):
    scene = write_blender(tmp_path / "scene", views=3, size=16)
    names = ("train/r_0", "train/r_1", "train/r_2")
    words = ("-s", scene, "-m", tmp_path / "out", "--eval", "--upsampler", "bicubic", "--lr_kernel", "bicubic")
    with pytest.raises(UserError, match=r"make it with align_sequence\.py"):
        _script(monkeypatch, *words)
    write_sequences(tmp_path / "out" / FILE_NAME, Sequences((Subsequence(names, (0, 1, 2)),)))
    _script(monkeypatch, *words)
    said = capsys.readouterr().out
    assert "next: python train.py" in said
    report = json.loads((tmp_path / "out/hr/consistency.json").read_text())
    assert f"hr; LR consistency {report['mean_db']:.1f} dB in the mean, rms {report['mean_rms_levels']:.2f} " in said
    hr, lr = read_image(tmp_path / "out/hr/train/r_1.png"), read_image(scene / "train/r_1.png")
    errors = consistency_errors(LRKernel("bicubic", "renormalise", (64, 64), (16, 16)), hr, lr)
    assert report["errors"]["train/r_1"]["max_levels"] == pytest.approx(255 * errors.max)
    assert read_image(tmp_path / "out" / "hr" / "train" / "r_1.png").shape == (64, 64, 4)
    record = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]["upsample"]
    assert set(record["outputs"]) == {f"hr/{n}.png" for n in names} | {"hr/consistency.json"}
    _script(monkeypatch, *words, "--skip_done")
    assert "up to date" in capsys.readouterr().err


def test_the_script_on_a_folder_with_a_callable(folder, monkeypatch, capsys):
    callable_name = "tests.upsampling.test_run:make_recorder"
    _script(monkeypatch, "--frames", folder / "lr", "-o", folder / "out", "--upsampler", callable_name)
    assert sorted(_bytes(folder / "out")) == [f"f{i}.png" for i in range(5)]
    assert "wrote 5 frames" in capsys.readouterr().out
    for wrong in ("tests.upsampling.test_run:nothing", "no_such_module:load"):
        with pytest.raises(UserError, match="cannot be imported"):
            _script(monkeypatch, "--frames", folder / "lr", "-o", folder / "x", "--upsampler", wrong)
    for wrong in (":load", ".near:load", "my_lab:"):
        with pytest.raises(UserError, match=r"--upsampler .*MODULE:NAME"):
            _script(monkeypatch, "--frames", folder / "lr", "-o", folder / "x", "--upsampler", wrong)
    with pytest.raises(UserError, match="returned no Upsampler"):
        _script(
            monkeypatch,
            "--frames",
            folder / "lr",
            "-o",
            folder / "x",
            "--upsampler",
            "tests.upsampling.test_run:_job_none",
        )
    with pytest.raises(UserError, match="-s SCENE -m OUT"):
        _script(monkeypatch)


def _job_none(settings: UpsamplingParams, device: torch.device) -> None:
    return None


def test_source_is_what_a_job_needs(folder):
    source = folder_source(folder / "lr", "")
    assert isinstance(source, Source)
    assert source.kernel is None
    assert source.inputs == {"views": [folder / "lr" / f"f{i}.png" for i in range(5)]}
