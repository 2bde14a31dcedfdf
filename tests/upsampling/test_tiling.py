"""Cutting a clip bounds memory and must not show."""

import re
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from arguments.upsampling import UpsamplingParams
from upsampling import load, resolve_weights
from upsampling.alignment import Alignment, along_path
from upsampling.gpu import memory_bound, session, to_host
from upsampling.tiling import SLACK_BYTES, _ramps, _spans, _tile_side, plan, upsample, work
from utils.errors import UserError

CPU = torch.device("cpu")
GB = 1 << 30


class Reach:
    """A network whose output sees exactly half of `overlap` in pixels, and `num_neighbours` frames, around."""

    scale, num_neighbours, overlap = 2, 2, 6
    bytes_per_pixel = 1000

    def __init__(self) -> None:
        self.clips: list[tuple[int, int, int]] = []
        self.failures = 0

    def working_bytes(self, t: int, h: int, w: int) -> int:
        return self.bytes_per_pixel * t * h * w

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
        t, _, h, w = frames.shape
        self.clips.append((t, h, w))
        for i in range(t):
            if self.failures and i == 1:
                self.failures -= 1
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
            around = frames[max(i - 2, 0) : i + 3].mean(0)
            seen = torch.nn.functional.avg_pool2d(around[None], 7, 1, 3, count_include_pad=False)[0]
            yield seen.repeat_interleave(2, 1).repeat_interleave(2, 2)


class Own:
    """A network of the user's own that yields what it is given."""

    scale, num_neighbours = 2, 0

    def __init__(self, frames: list[object]) -> None:
        self.frames = frames

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[object]:
        yield from self.frames


def _run(net: object, frames: Tensor, max_bytes: int, wanted: range | None = None) -> dict[int, Tensor]:
    return dict(upsample(net, frames, frozenset(wanted or range(len(frames))), max_bytes))  # type: ignore[arg-type]


@pytest.mark.parametrize(("t", "h", "w"), [(1, 200, 150), (23, 20, 30), (11, 150, 300)])
def test_the_cut_does_not_show_when_the_overlap_covers_the_reach(t, h, w):
    frames = torch.rand(t, 3, h, w, generator=torch.Generator().manual_seed(0))
    whole = _run(Reach(), frames, 100 * GB)
    net = Reach()
    net.bytes_per_pixel = 10**9 // (h * w * min(t, 12))  # 1 GB holds 12 frames
    cut = _run(net, frames, SLACK_BYTES + 10**9 // 2)
    assert len(net.clips) > 1
    assert list(cut) == list(range(t))
    assert all(torch.allclose(cut[i], whole[i], atol=1e-5) for i in range(t))


@given(st.integers(1, 40), st.integers(20, 300), st.integers(20, 300), st.integers(1, 3000))
@settings(max_examples=100, deadline=None)
def test_plans_keep_every_frame_once_and_stay_under_the_bound(t, h, w, megabytes):
    net, bound = Reach(), SLACK_BYTES + megabytes * 10**6
    try:
        cut = plan(net, t, h, w, bound)  # type: ignore[arg-type]
    except UserError:
        assume(False)
    assert cut.bytes <= bound
    kept = [i for _, _, first, last in cut.chunks for i in range(first, last)]
    assert kept == list(range(t))
    for first, last, start, end in cut.chunks:
        assert 0 <= first <= start < end <= last <= t
        assert start - first == min(start, net.num_neighbours)
        assert last - end >= min(t - end, net.num_neighbours)


@given(st.integers(64, 300), st.integers(1, 4), st.sampled_from([1, 8]))
@settings(max_examples=100, deadline=None)
def test_tiles_begin_at_multiples_and_are_no_larger_than_planned(n, count, multiple):
    net = Reach()
    net.multiple, net.overlap = multiple, 16
    spans = _spans(n, count, net.overlap, multiple)
    assert all(first % multiple == 0 for first, _ in spans)
    assert max(last - first for first, last in spans) <= _tile_side(net, n, count)


def test_without_a_gpu_the_bound_is_what_the_flag_says_and_frames_pass_through():
    assert memory_bound(0, CPU) == 4 * GB
    assert memory_bound(1.5, CPU) == 3 * GB // 2
    frames = {3: torch.rand(3, 2, 2), 5: torch.rand(3, 2, 2)}
    assert all(frame is frames[i] for i, frame in to_host(iter(frames.items())))
    with session(CPU, GB) as notes:
        assert notes == {}


@given(st.integers(1, 200), st.integers(1, 6), st.integers(0, 40), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_blending_weights_sum_to_one(n, count, overlap, scale):
    spans = _spans(n, min(count, n), overlap)
    total = torch.zeros(scale * n)
    for (first, last), weight in zip(spans, _ramps(spans, n, scale, overlap), strict=True):
        assert float(weight.min()) >= 0
        total[scale * first : scale * last] += weight
    assert torch.allclose(total, torch.ones(()), atol=1e-6)


def test_chunks_that_nobody_wants_are_not_computed():
    frames = torch.rand(30, 3, 20, 20)
    net = Reach()
    bound = SLACK_BYTES + 1000 * 12 * 400
    assert list(_run(net, frames, bound, range(28, 30))) == [28, 29]
    assert len(net.clips) == 1


def test_half_the_memory_is_tried_once_when_it_runs_out(capsys):
    frames = torch.rand(6, 3, 20, 20)
    net = Reach()
    net.failures = 1
    assert list(_run(net, frames, 4 * GB)) == list(range(6))
    assert "half of --max_memory" in capsys.readouterr().err
    net.failures = 2
    with pytest.raises(RuntimeError, match="allocate"):
        _run(net, frames, 4 * GB)


def test_too_little_memory_names_the_flag():
    with pytest.raises(UserError, match=r"--max_memory 0.10: 300x200 px need 0.\d\d GB or more"):
        plan(Reach(), 3, 200, 300, GB // 10)  # type: ignore[arg-type]


def test_the_memory_that_is_asked_for_counts_both_passes_and_is_enough():
    with pytest.raises(UserError, match=r"--max_memory 0.10: .* need") as refusal:
        plan(Reach(), 3, 200, 300, GB // 20, passes=2)  # type: ignore[arg-type]
    needed = float(re.search(r"need (\S+) GB", str(refusal.value))[1])
    plan(Reach(), 3, 200, 300, int(needed * GB) // 2, passes=2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="or more"):
        plan(Reach(), 3, 200, 300, int((needed - 0.02) * GB) // 2, passes=2)  # type: ignore[arg-type]


class FiledReach(Reach):
    """Its graph fits where features lie in a file; tiles would keep the HR frames of all views."""

    scale = 4

    def graph_bytes(self, t: int, h: int, w: int, in_file: bool, learned: bool) -> int:
        return h * w * (5000 + (40 if in_file else 600) * t)


def test_the_memory_that_a_graph_is_said_to_need_is_the_least():
    with pytest.raises(UserError, match="need") as refusal:
        plan(FiledReach(), 50, 300, 400, GB // 2, graph=True)  # type: ignore[arg-type]
    needed = float(re.search(r"need (\S+) GB", str(refusal.value))[1])
    cut = plan(FiledReach(), 50, 300, 400, int(needed * GB), graph=True)  # type: ignore[arg-type]
    assert (cut.tiles, cut.in_file) == ((1, 1), True)
    with pytest.raises(UserError, match="or more"):
        plan(FiledReach(), 50, 300, 400, int((needed - 0.02) * GB), graph=True)  # type: ignore[arg-type]


def test_basicvsr_in_chunks_and_tiles_is_basicvsr(monkeypatch):
    monkeypatch.setattr("upsampling.tiling.SMALLEST_TILE", 16)
    flags = UpsamplingParams(precision="fp32")
    net = load(flags, resolve_weights(flags), CPU)
    net.num_neighbours, net.overlap = 2, 8
    y, x = torch.meshgrid(torch.arange(20.0), torch.arange(56.0), indexing="ij")
    grey = [0.5 + 0.2 * torch.sin(0.9 * (x + i / 2)) + 0.2 * torch.cos(0.7 * y + 0.3 * x) for i in range(6)]
    frames = torch.stack(grey)[:, None].expand(-1, 3, -1, -1).contiguous()
    whole = _run(net, frames, 4 * GB)
    need = net.working_bytes
    for attribute, bound in (("frames", need(5, 20, 56) + SLACK_BYTES + 100_000), ("tiles", None)):
        if bound is None:
            bound = need(5, 20, 44) + SLACK_BYTES + 16 * 16 * 2 * 20 * 56 + 300_000
        cut = plan(net, 6, 20, 56, bound)
        assert (len(cut.chunks) > 1) if attribute == "frames" else (cut.tiles[1] > 1)
        result = _run(net, frames, bound)
        psnr = min(float(-10 * torch.log10(((result[i] - whole[i]) ** 2).mean())) for i in range(6))
        assert psnr > 45  # measured 52 (chunks) and 50 (tiles); 8-bit rounding alone gives 59


@pytest.mark.slow
def test_the_memory_bound_holds():
    """Peak memory of a 3-frame clip at 192x192 under two bounds, each in a process of its own."""
    import subprocess

    code = (
        "import sys, resource, torch; from arguments.upsampling import UpsamplingParams as U; import upsampling as up\n"
        "from upsampling.tiling import upsample\n"
        "f = U(); net = up.load(f, up.resolve_weights(f), torch.device('cpu'))\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "n = sum(1 for _ in upsample(net, torch.rand(3, 3, 192, 192), frozenset({0, 2}), int(sys.argv[1])))\n"
        "print(n, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    for bound in (GB * 9 // 20, GB):
        done = subprocess.run([sys.executable, "-c", code, str(bound)], capture_output=True, text=True, check=True)
        frames, kilobytes = map(int, done.stdout.split())
        assert frames == 2
        assert kilobytes * 1024 < bound


@pytest.mark.parametrize(("megabytes", "tiles"), [(1, 2), (100, 1)])
def test_the_work_of_a_cut_is_what_it_ticks(megabytes, tiles, monkeypatch):
    monkeypatch.setattr("upsampling.tiling.SMALLEST_TILE", 16)
    ticks: list[int] = []
    path, everything = replace(along_path(2), tick=lambda: ticks.append(1)), frozenset(range(2))
    bound = SLACK_BYTES + megabytes * 1_000_000
    for _ in upsample(Reach(), torch.rand(2, 3, 12, 48), everything, bound, path):  # type: ignore[arg-type]
        pass
    cut = plan(Reach(), 2, 12, 48, bound)  # type: ignore[arg-type]
    assert cut.tiles == (1, tiles)
    assert len(ticks) == work(cut, everything, visits=0) == 2 * tiles


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        ([torch.zeros(3, 10, 12)], "yields 1 frames for 2 views"),
        ([torch.zeros(1, 3, 10, 12)] * 2, r"yields \[1, 3, 10, 12\] torch.float32; a frame \[3, 10, 12\] of floats"),
        ([torch.zeros(3, 5, 6)] * 2, r"yields \[3, 5, 6\]"),
        ([torch.zeros(3, 10, 12, dtype=torch.uint8)] * 2, "torch.uint8"),
        ([None, None], "yields NoneType"),
    ],
)
def test_frames_that_a_network_of_ones_own_must_not_yield(frames, message):
    with pytest.raises(UserError, match=rf"test_tiling\.Own\.upsample: .*{message}"):
        _run(Own(frames), torch.rand(2, 3, 5, 6), GB)
    assert len(_run(Own([torch.zeros(3, 10, 12)] * 2), torch.rand(2, 3, 5, 6), GB)) == 2
