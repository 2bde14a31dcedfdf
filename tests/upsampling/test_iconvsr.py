"""IconVSR against a second writing, its windows against those of the published code, checkpoints of both publishers."""

import hashlib
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments.upsampling import UpsamplingParams
from tests.upsampling import slow_iconvsr, slow_networks
from tests.upsampling.test_networks import CPU, moving_texture, openmmlab
from upsampling import load, resolve_weights
from upsampling.alignment import Alignment, along_path
from upsampling.geometry import Flow
from upsampling.iconvsr import IconVSR, keyframe_windows, mirrored_flow
from upsampling.spynet import warp
from upsampling.tiling import plan, upsample
from upsampling.video_network import from_openmmlab
from utils.errors import UserError
from utils.state_dicts import load_strictly

State = slow_networks.State


@pytest.fixture(scope="module")
def states() -> dict[int, State]:
    """Made-up checkpoints by the reach of their windows."""
    return {reach: slow_iconvsr.made(reach) for reach in (2, 3)}


@pytest.fixture(scope="module")
def nets(states) -> dict[int, IconVSR]:
    found = {}
    for reach, state in states.items():
        module = IconVSR(reach)
        load_strictly(module, state, "made")
        found[reach] = module.eval().requires_grad_(False).in_precision(torch.float32)
    return found


def _file(tmp_path, content: object) -> UpsamplingParams:
    path = tmp_path / "net.pth"
    torch.save(content, path)
    trusted = hashlib.sha256(path.read_bytes()).hexdigest()
    return UpsamplingParams(upsampler="iconvsr", weights=str(path), trust_weights=trusted, precision="fp32")


def _residual(output: torch.Tensor, frames: torch.Tensor) -> torch.Tensor:
    return output - F.interpolate(frames.to(output.dtype), scale_factor=4, mode="bilinear")


@pytest.mark.parametrize(("reach", "t", "h", "w"), [(2, 6, 13, 10), (3, 7, 8, 5)])
def test_the_network_is_its_second_writing(nets, states, reach, t, h, w):
    frames = moving_texture(t, h, w)
    expected = slow_iconvsr.iconvsr(states[reach], frames.double())
    result = torch.stack(list(nets[reach].upsample(frames)))
    assert float(_residual(expected, frames).std()) > 0.1
    assert float((result - expected).abs().max()) < 2e-5  # measured 2e-6


def _known(i: int, s: int, h: int, w: int) -> Flow:
    g = torch.Generator().manual_seed(10 * i + s)
    return Flow(2 * torch.randn(1, 2, h, w, generator=g), (torch.rand(1, 1, h, w, generator=g) > 0.3).float())


def test_known_flow_is_taken_on_the_path(nets, states):
    frames = moving_texture(5, 12, 16)
    alignment = replace(along_path(5), flow_of=lambda i, s: _known(i, s, 12, 16))

    def known(i: int, s: int) -> tuple[torch.Tensor, torch.Tensor]:
        flow = _known(i, s, 12, 16)
        return flow.px[0].double(), flow.visible[0, 0].double()

    expected = slow_iconvsr.iconvsr(states[2], frames.double(), known)
    result = torch.stack(list(nets[2].upsample(frames, alignment)))
    assert float((result - expected).abs().max()) < 2e-5
    assert float((result - torch.stack(list(nets[2].upsample(frames)))).std()) > 0.01


def test_known_flow_of_other_sizes_is_mirrored_as_frames_are():
    """Warping what was extended is extending what was warped, up to where flow leaves the extended image."""
    h, w = 13, 9  # extended by 3 px
    g = torch.Generator().manual_seed(0)
    x, px = torch.rand(1, 2, h, w, generator=g), torch.rand(1, 2, h, w, generator=g) * 1.8 - 0.9
    px[:, 0, :, -1] = px[:, 1, -1] = 0.0  # the edge itself is its own mirror image
    visible = (torch.rand(1, 1, h, w, generator=g) > 0.5).float()
    extend = partial(F.pad, pad=(0, 3, 0, 3), mode="reflect")
    flow = mirrored_flow(Flow(px.clone(), visible))
    warped, expected = warp(extend(x), flow.px), extend(warp(x, px))
    assert torch.allclose(warped[..., : h + 2, : w + 2], expected[..., : h + 2, : w + 2], atol=1e-5)
    assert torch.equal(flow.visible, extend(visible))


@pytest.mark.parametrize("reach", [2, 3])
def test_a_window_feature_is_its_second_writing(nets, states, reach):
    frames = moving_texture(2 * reach + 1, 12, 20, seed=3)
    expected = slow_iconvsr.window_feature(slow_networks.doubled(states[reach]), list(frames.double()))
    with torch.inference_mode():
        result = nets[reach].edvr(frames, range(len(frames)))[0]
        backwards = nets[reach].edvr(frames.flip(0), range(len(frames)))[0]
    assert float((result - expected).abs().max()) < 1e-4  # of values up to 10
    assert float((backwards - result).std()) > 0.05 * float(result.std())  # else wrong windows would not show


@given(st.integers(5, 40), st.sampled_from([2, 3]))
@settings(max_examples=40, deadline=None)
def test_windows_of_a_clip_are_those_of_the_published_code(t, reach):
    t = max(t, 2 * reach + 1)
    clip = list(range(t))
    before, behind = {2: ([4, 3], [-4, -5]), 3: ([6, 5, 4], [-5, -6, -7])}[reach]
    padded = [*before, *clip, *(clip[k] for k in behind)]
    expected = {k: tuple(padded[k : k + 2 * reach + 1]) for k in {*range(0, t, 5), t - 1}}
    assert keyframe_windows(along_path(t), reach) == expected


@pytest.mark.parametrize("reach", [2, 3])
@pytest.mark.parametrize("t", [1, 2, 3, 4])
def test_windows_of_short_clips_hold_what_there_is(t, reach):
    windows = keyframe_windows(along_path(t), reach)
    assert set(windows) == {0, t - 1}
    for i, window in windows.items():
        assert len(window) == 2 * reach + 1
        assert window[reach] == i
        for k, frame in enumerate(window, i - reach):
            assert frame == (k if 0 <= k < t else t - 1 if k < 0 else 0)  # an end's stand-ins come from the other end


def test_windows_stay_on_one_line():
    """0, 2, 3 are a clip, 1 is alone, 4 and 5 come behind a cut."""
    windows = keyframe_windows(Alignment((2, None, 3, None, 5, None), (None, None, 0, 2, None, 4)), 2)
    assert windows == {0: (3, 3, 0, 2, 3), 1: (1,) * 5, 3: (0, 2, 3, 0, 0), 4: (5, 5, 4, 5, 4), 5: (5, 4, 5, 4, 4)}


@pytest.mark.parametrize(("reach", "parameters"), [(2, 8_694_991), (3, 8_711_375)])
def test_parameters_and_tensors_are_those_of_the_published_files(nets, states, reach, parameters):
    assert sum(p.numel() for p in nets[reach].parameters()) == parameters
    shapes = slow_iconvsr.shapes(2 * reach + 1)
    assert {k: tuple(v.shape) for k, v in nets[reach].state_dict().items()} == shapes
    assert len(states[reach]) == 414


@pytest.mark.parametrize("reach", [2, 3])
def test_checkpoints_of_both_publishers_load_strictly(tmp_path, states, reach):
    state = states[reach]
    foreign = {f"generator.{openmmlab(slow_iconvsr.openmmlab(k))}": v for k, v in state.items()}
    assert len(set(foreign) & {f"generator.{k}" for k in state}) < 200
    for content in ({"params": state}, {"state_dict": foreign | {"step_counter": torch.ones(1)}}):
        flags = _file(tmp_path, content)
        net = load(flags, resolve_weights(flags), CPU)
        assert net.reach == reach
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert from_openmmlab(state) is state


def test_other_networks_are_refused(tmp_path, states):
    key = "edvr.fusion.feat_fusion.weight"
    for content in (
        {k: v for k, v in states[2].items() if not k.startswith("edvr")},
        states[2] | {key: torch.zeros(64, 3 * 64, 1, 1)},
    ):
        flags = _file(tmp_path, {"params": content})
        with pytest.raises(UserError, match=r"iconvsr: the file has no edvr.* windows of 5 or 7 frames"):
            load(flags, resolve_weights(flags), CPU)
    flags = _file(tmp_path, {"params": {k: v for k, v in states[2].items() if "cas_dcnpack" not in k}})
    with pytest.raises(UserError, match="missing: edvr 4"):
        load(flags, resolve_weights(flags), CPU)


@pytest.mark.parametrize(("t", "h", "w"), [(1, 1, 1), (3, 1, 5), (6, 2, 3)])
def test_any_size_and_length(nets, t, h, w):
    output = list(nets[3].upsample(moving_texture(t, h, w)))
    assert [tuple(x.shape) for x in output] == [(3, 4 * h, 4 * w)] * t
    assert all(torch.isfinite(x).all() for x in output)


def test_frames_get_only_what_the_alignment_hands_them(nets):
    frames = moving_texture(4, 12, 16)
    each = torch.stack([next(iter(nets[2].upsample(frame[None]))) for frame in frames])
    apart = torch.stack(list(nets[2].upsample(frames, Alignment((None,) * 4, (None,) * 4))))
    assert torch.allclose(apart, each, atol=1e-5)
    skip = torch.stack(list(nets[2].upsample(frames, Alignment((2, None, 3, None), (None, None, 0, 2)))))
    three = torch.stack(list(nets[2].upsample(frames[[0, 2, 3]])))
    assert torch.allclose(skip[[0, 2, 3]], three, atol=1e-5)
    assert torch.allclose(skip[1], each[1], atol=1e-5)
    assert float((skip[0] - each[0]).abs().max()) > 1e-3


def test_tiles_of_a_larger_clip(nets, monkeypatch):
    """Tiles begin at multiples of 4 px, so the coarse levels of each are parts of the whole's."""
    net = nets[2]
    monkeypatch.setattr("upsampling.tiling.SMALLEST_TILE", 32)
    monkeypatch.setattr("upsampling.tiling.SLACK_BYTES", 0)
    monkeypatch.setattr(IconVSR, "overlap", 12)
    frames = moving_texture(3, 18, 96)
    cut = plan(net, 3, 18, 96, net.working_bytes(3, 18, 96))
    assert cut.tiles == (1, 2)
    whole = torch.stack(list(net.upsample(frames))).clamp(0, 1)
    tiled = torch.stack([frame for _, frame in upsample(net, frames, frozenset(range(3)), cut.bytes)])
    assert not torch.equal(tiled, whole)
    assert float((tiled - whole).square().mean()) < 0.01 * float(_residual(whole, frames).square().mean())


def test_chunks_are_clips_with_keyframes_of_their_own(nets, monkeypatch):
    net = nets[2]
    monkeypatch.setattr("upsampling.tiling.SLACK_BYTES", 0)
    monkeypatch.setattr(IconVSR, "num_neighbours", 3)
    frames = moving_texture(9, 12, 16)
    cut = plan(net, 9, 12, 16, net.working_bytes(8, 12, 16) + 100_000)
    assert len(cut.chunks) == 2
    parts = [frame for _, frame in upsample(net, frames, frozenset(range(9)), cut.bytes)]
    for first, last, kept, end in cut.chunks:
        alone = list(net.upsample(frames[first:last]))
        assert all(torch.equal(parts[i], alone[i - first].clamp(0, 1)) for i in range(kept, end))


def test_strips_do_not_show_and_bits_repeat(nets, monkeypatch):
    frames = moving_texture(2, 20, 24)
    whole, again = (torch.stack(list(nets[2].upsample(frames))) for _ in range(2))
    assert torch.equal(whole, again)
    monkeypatch.setattr("upsampling.deformable.STRIP_PIXELS", {"cpu": 24 * 7})
    assert torch.allclose(torch.stack(list(nets[2].upsample(frames))), whole, atol=1e-5)


def test_bfloat16_is_near(states):
    module = IconVSR(2)
    load_strictly(module, {k: v * (0.5 if k.startswith("conv_last") else 1) for k, v in states[2].items()}, "made")
    module.eval().requires_grad_(False)
    frames = moving_texture(2, 20, 24)
    exact = torch.stack(list(module.upsample(frames)))
    half = torch.stack(list(module.in_precision(torch.bfloat16).upsample(frames)))
    assert half.dtype == torch.float32
    assert float((half - exact).square().mean()) < 0.01 * float(_residual(exact, frames).square().mean())
