"""The ensemble: flips of clips, streamed mean and variance against NumPy's, and what a run leaves on disk."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from arguments.loading import ModelParams
from arguments.upsampling import UpsamplingParams
from scene.image_files import read_image, write_png
from scene.lr_kernel import LRKernel
from scene.sequences import FILE_NAME, Sequences, Subsequence, write_sequences
from tests.scene_factory import picture, write_blender
from tests.upsampling.test_run import Recorder
from upsampling import Job, describe, load, resolve_weights, run
from upsampling.alignment import Alignment, Graph, along_path, handed
from upsampling.ensemble import FLIPS, Flip, confidence, flips, mean_over_flips
from upsampling.geometry import Flow
from upsampling.sources import folder_source, scene_source
from upsampling.spynet import warp
from utils.errors import UserError

CPU = torch.device("cpu")


class Lopsided(Recorder):
    """Not flip-equivariant: brighter to the right and to the bottom."""

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
        for frame in super().upsample(frames, alignment):
            h, w = frame.shape[-2:]
            yield 0.5 * frame + 0.2 * torch.linspace(0, 1, w) + 0.1 * torch.linspace(0, 1, h)[:, None]


class Follower(Recorder):
    """A network that is flip-equivariant as long as the flows are mirrored with the frames."""

    def upsample(self, frames: Tensor, alignment: Alignment | Graph | None = None) -> Iterator[Tensor]:
        assert isinstance(alignment, Alignment)
        assert alignment.flow_of is not None
        self.clips.append(frames)
        for i, frame in enumerate(frames):
            arrived = [
                handed(frames[s][None], alignment.flow_of(i, s))[0]
                for s in (alignment.backward[i], alignment.forward[i])
                if s is not None
            ]
            mixed = torch.stack([frame, *arrived]).mean(0)
            yield mixed.repeat_interleave(4, 1).repeat_interleave(4, 2)


def test_flips_mirror_images_and_undo_themselves():
    image = torch.arange(12.0).reshape(1, 3, 4)
    expected = [
        image,
        image[..., ::1, range(3, -1, -1)],
        image[:, [2, 1, 0]],
        image[:, [2, 1, 0]][..., range(3, -1, -1)],
    ]
    assert all(torch.equal(flip(image), e) for flip, e in zip(FLIPS, expected, strict=True))
    assert all(torch.equal(flip(flip(image)), image) for flip in FLIPS)
    assert len({tuple(flip(image).flatten().tolist()) for flip in FLIPS}) == 4


@pytest.mark.parametrize("flip", FLIPS)
def test_a_mirrored_flow_warps_mirrored_images_to_the_mirrored_result(flip):
    draw = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 9, 13, generator=draw)
    flow = 3 * torch.randn(1, 2, 9, 13, generator=draw)
    assert torch.allclose(warp(flip(image), flip.flow(Flow(flow)).px), flip(warp(image, flow)), atol=1e-5)


def test_known_flows_and_what_they_show_are_mirrored_with_the_frames(tmp_path):
    draw = torch.Generator().manual_seed(0)
    frames = torch.rand(3, 3, 9, 13, generator=draw)
    known = {
        pair: Flow(
            2 * torch.randn(1, 2, 9, 13, generator=draw), (torch.rand(1, 1, 9, 13, generator=draw) > 0.3).float()
        )
        for pair in ((0, 1), (1, 2), (1, 0), (2, 1))
    }
    alignment = replace(along_path(3), flow_of=lambda i, s: known[i, s])

    def deviations(mirrored: bool) -> float:
        def estimate(flip):
            return enumerate(Follower().upsample(flip(frames), alignment.mapped(flip.flow) if mirrored else alignment))

        return max(float(deviation.max()) for _, _, deviation in mean_over_flips(estimate, 4, tmp_path))

    assert deviations(mirrored=True) < 1e-5  # warps are computed in float32
    assert deviations(mirrored=False) > 0.1


def test_a_run_mirrors_the_flows_of_geometry(tmp_path):
    """A plane seen by eight cameras: the estimates agree, so the flows were mirrored; they are not zero."""
    scene = write_blender(tmp_path / "scene", views=8, test_views=1, size=24)
    out, names = tmp_path / "out", tuple(f"train/r_{i}" for i in range(8))
    write_sequences(out / FILE_NAME, Sequences((Subsequence(names, tuple(range(8))),)))
    for name in names:
        (out / "geometry" / name).parent.mkdir(parents=True, exist_ok=True)
        np.savez(out / "geometry" / f"{name}.npz", z=np.full((24, 24), 4, np.float32), alpha=np.ones((24, 24)))
    flags = UpsamplingParams(ensemble=4, flow="geometry", propagation="path", max_angle=90, alpha="bicubic")
    source = scene_source(ModelParams(source_path=str(scene), lr_kernel="bicubic", eval=True), flags, out, "")
    runs = {}
    for count in (1, 4):
        net = Follower()
        settings = replace(flags, ensemble=count)
        run(Job(net, settings, source, out / f"hr{count}"))  # type: ignore[arg-type]
        runs[count] = [read_image(out / f"hr{count}" / f"{name}.png").astype(int) for name in names]
        assert len(net.clips) == count
    assert all((read_image(out / "hr4" / "confidence" / f"{name}.png") >= 254).all() for name in names)
    assert max(np.abs(a - b).max() for a, b in zip(runs[1], runs[4], strict=True)) <= 1
    plain = read_image(scene / f"{names[3]}.png").astype(int).repeat(4, 0).repeat(4, 1)
    assert np.abs(runs[4][3] - plain).max() > 20  # the neighbours did take part


def test_estimates_are_distinct_flips_and_the_given_order_comes_last():
    assert [flips(1), flips(4)] == [FLIPS[:1], FLIPS]
    assert flips(2) == (Flip(backwards=True), Flip())
    assert len({*flips(8)}) == 8
    assert flips(8)[4:] == FLIPS
    clip = torch.arange(24.0).reshape(2, 1, 3, 4)
    for flip in flips(8):
        assert torch.equal(flip.clip(flip.clip(clip)), clip)
        for i in range(2):
            assert torch.equal(flip(flip.clip(clip)[flip.position(i, 2)]), clip[i])


@given(st.sampled_from([1, 2, 4, 8]), st.integers(1, 3), st.integers(0, 99))
@settings(max_examples=30, deadline=None)
def test_mean_and_deviation_are_numpys(tmp_path_factory, count, frames, seed):
    draw = torch.Generator().manual_seed(seed)
    truth = torch.rand(count, frames, 3, 5, 7, generator=draw)
    folder = tmp_path_factory.mktemp("sums")
    made = iter(truth)

    def estimate(flip):
        return ((10 * i, flip(x)) for i, x in sorted(enumerate(next(made)), reverse=flip.backwards))

    results = list(mean_over_flips(estimate, count, folder))
    assert [position for position, _, _ in results] == [10 * i for i in range(frames)]
    for i, (_, mean, deviation) in enumerate(results):
        np.testing.assert_allclose(mean, truth[:, i].numpy().mean(0), atol=1e-6)
        if count == 1:
            assert deviation is None
        else:
            expected = np.sqrt(truth[:, i].double().numpy().var(0).mean(0))
            np.testing.assert_allclose(deviation, expected, atol=1e-6)
    assert list(folder.iterdir()) == []


def test_confidence_falls_linearly_from_255_to_0():
    deviation = torch.tensor([[0.0, 0.04, 0.1, 0.3]])
    assert confidence(deviation).tolist() == [[255, 153, 0, 0]]


def test_sums_that_cannot_be_kept_are_a_clear_error(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write into .*file.*--ensemble"):
        next(mean_over_flips(lambda flip: iter([(0, torch.zeros(3, 2, 2))]), 2, tmp_path / "file"))


def _job(folder: Path, net: object, **flags: object) -> Job:
    return Job(net, UpsamplingParams(alpha="bicubic", **flags), folder_source(folder / "lr", "bicubic"), folder / "hr")  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for i in range(3):
        write_png(tmp_path / "lr" / f"f{i}.png", picture(i, 24, 20))
    return tmp_path


def test_a_run_writes_the_mean_of_four_and_its_confidence(folder):
    net = Lopsided()
    outputs, notes = run(_job(folder, net, ensemble=4))
    names = [f"f{i}" for i in range(3)]
    assert [str(p.relative_to(folder / "hr")) for p in outputs] == [
        *(f"{n}.png" for n in names),
        *(f"confidence/{n}.png" for n in names),
        "consistency.json",
        "alignment.json",
    ]
    assert len(net.clips) == 4
    assert notes["frames"] == 3
    # The mean over flips of a ramp is flat: half the frame and half of 0.3; the deviation is that of the ramps.
    lr = read_image(folder / "lr" / "f1.png").astype(float)
    inside = lr[10, 12, :3].repeat(1) / 255
    assert read_image(outputs[1])[42, 50, :3] == pytest.approx(255 * (0.5 * inside + 0.15), abs=1.5)
    x, y = np.meshgrid(np.linspace(-0.1, 0.1, 96), np.linspace(-0.05, 0.05, 80))
    expected = 255 * (1 - np.sqrt(x**2 + y**2) / 0.1).clip(0, 1)
    np.testing.assert_allclose(read_image(outputs[4])[..., 0], expected, atol=1.01)


def test_a_killed_ensemble_leaves_frames_that_are_complete_and_goes_on(folder):
    whole = folder / "whole"
    run(replace(_job(folder, Lopsided(), ensemble=4), folder=whole))

    class Interrupted(Lopsided):
        def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
            self.fail_at = 1 if len(self.clips) == 3 else -1
            yield from super().upsample(frames, alignment)

    with pytest.raises(KeyboardInterrupt):
        run(_job(folder, Interrupted(), ensemble=4))
    assert sorted(os.listdir(folder / "hr")) == ["confidence", "f0.png"]
    net = Lopsided()
    _, notes = run(_job(folder, net, ensemble=4), resume=True)
    assert notes["kept_from_before"] == 1
    files = sorted(p.relative_to(whole) for p in whole.rglob("*") if p.is_file())
    assert len(files) == 8
    assert all((folder / "hr" / p).read_bytes() == (whole / p).read_bytes() for p in files)


def test_a_confidence_that_was_removed_is_made_again(folder):
    outputs, _ = run(_job(folder, Lopsided(), ensemble=4))
    lost = folder / "hr" / "confidence" / "f1.png"
    before = lost.read_bytes()
    lost.unlink()
    again, notes = run(_job(folder, Lopsided(), ensemble=4), resume=True)
    assert (again, notes["kept_from_before"]) == (outputs, 2)
    assert lost.read_bytes() == before


def test_an_equivariant_filter_is_as_sure_as_can_be(folder):
    flags = {"upsampler": "bicubic", "scale": 2}
    net = load(UpsamplingParams(**flags), None, CPU)
    run(replace(_job(folder, net, **flags), folder=folder / "one"))
    run(_job(folder, net, ensemble=4, **flags))
    for i in range(3):
        assert (read_image(folder / "hr" / "confidence" / f"f{i}.png") == 255).all()
        one, four = (read_image(folder / kind / f"f{i}.png").astype(int) for kind in ("one", "hr"))
        assert np.abs(one - four).max() <= 1


# --- both orders of the views ---


class Fading(Recorder):
    """Brighter from frame to frame: the only thing that the order of a clip changes."""

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
        for i, frame in enumerate(super().upsample(frames, alignment)):
            yield (0.4 + 0.1 * i) * frame


class Chunked(Recorder):
    """Has no room for more than three frames at a time."""

    overlap = 0

    def working_bytes(self, t: int, h: int, w: int) -> int:
        return (t > 3) << 40


CALLS = (Subsequence(("f0", "f2", "f1"), (0, 1)), Subsequence(("f3", "f1", "f4"), (1,), padded=True))


@pytest.mark.parametrize("count", [2, 8])
@pytest.mark.parametrize("network", [Recorder, Chunked])
def test_frames_of_both_orders_are_found_again_under_their_names(folder, network, count):
    """A network that looks at one frame: the same files, though a call saves a part, is padded, or is cut."""
    for i in (3, 4):
        write_png(folder / "lr" / f"f{i}.png", picture(i, 24, 20))
    last = Subsequence(("f4", "f3", "f2", "f1", "f0"), (0, 1, 4))
    source = replace(folder_source(folder / "lr", "bicubic"), sequences=Sequences((*CALLS, last)))
    written = {}
    for n in (1, count):
        net = network()
        flags = UpsamplingParams(ensemble=n)
        job = Job(net, flags, source, folder / f"hr{n}")  # type: ignore[arg-type]
        outputs, _ = run(job)
        written[n] = {p.stem: p.read_bytes() for p in outputs if p.parent == job.folder and p.suffix == ".png"}
        assert "(26 frames" if n == 1 else f"({count * 13} frames" in describe(job)
    assert len(net.clips) > 3 * 2 * count if network is Chunked else len(net.clips) == 3 * 2 * count
    assert written[1] == written[count]
    assert sorted(written[1]) == [f"f{i}" for i in range(5)]
    assert all((read_image(folder / f"hr{count}" / "confidence" / f"f{i}.png") == 255).all() for i in range(5))


def test_a_run_in_both_orders_goes_on_where_it_was_killed(folder):
    whole = replace(_job(folder, Fading(), ensemble=2), folder=folder / "whole")
    run(whole)
    frame, deviation = (read_image(p / "f0.png").astype(float) for p in (whole.folder, whole.folder / "confidence"))
    lr = read_image(folder / "lr" / "f0.png").astype(float)
    assert frame[40, 48, :3] == pytest.approx(0.5 * lr[10, 12, :3], abs=1)  # the mean of 0.4 and 0.6
    spread = 0.1 * np.sqrt((lr[10, 12, :3] ** 2).mean()) / 255  # of each of the two about it
    assert deviation[40, 48, 0] == pytest.approx(255 * (1 - spread / 0.1), abs=1)

    class Interrupted(Fading):
        def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
            self.fail_at = 2 if len(self.clips) == 1 else -1
            yield from super().upsample(frames, alignment)

    with pytest.raises(KeyboardInterrupt):
        run(_job(folder, Interrupted(), ensemble=2))
    assert sorted(p.name for p in (folder / "hr").glob("*.png")) == ["f0.png", "f1.png"]
    _, notes = run(_job(folder, Fading(), ensemble=2), resume=True)
    assert notes["kept_from_before"] == 2
    for path in whole.folder.rglob("*.*"):
        assert (folder / "hr" / path.relative_to(whole.folder)).read_bytes() == path.read_bytes()


@pytest.mark.parametrize("count", [2, 8])
def test_both_orders_of_frames_that_are_made_alone_are_refused(folder, count):
    for flags in ({"upsampler": "span"}, {"propagation": "none"}):
        with pytest.raises(UserError, match=f"--ensemble {count}: every frame is made alone.*--ensemble {count // 2}"):
            UpsamplingParams(ensemble=count, **flags)
    alone = Recorder()
    alone.num_neighbours = 0  # a network of the user's own
    with pytest.raises(UserError, match=f"--ensemble {count}: every frame is made alone"):
        describe(_job(folder, alone, ensemble=count))


def test_basicvsr_gains_on_a_real_clip_and_knows_where_it_errs(data_dir, tmp_path):
    """Mean of four against one on three frames of Vid4; the deviation says where the error is."""
    files = sorted((data_dir / "vid4_calendar_crop" / "hr").glob("*.png"))[:3]
    hr = torch.from_numpy(np.stack([read_image(p) for p in files])).permute(0, 3, 1, 2)[..., :192, :192].double() / 255
    lr = LRKernel("bicubic", "mirror", (192, 192), (48, 48)).down(hr).clamp(0, 1).float()
    flags = UpsamplingParams()
    net = load(flags, resolve_weights(flags), CPU)

    def estimate(flip):
        return enumerate(frame.clamp(0, 1) for frame in net.upsample(flip(lr)))

    errors = {}
    for count in (1, 4):
        made = list(mean_over_flips(estimate, count, tmp_path))
        errors[count] = torch.stack([((mean - hr[i]) ** 2).mean(0) for i, mean, _ in made])
    gain = float(10 * torch.log10(errors[1].mean() / errors[4].mean()))
    assert gain > 0.05  # dB, measured 0.07
    deviation = torch.stack([d for _, _, d in made])
    unsure = deviation > deviation.quantile(0.8)
    ratio = float(errors[4][unsure].mean() / errors[4][~unsure].mean())
    assert ratio > 1.5  # measured 1.9
