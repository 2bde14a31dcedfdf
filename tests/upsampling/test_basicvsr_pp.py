"""BasicVSR++: deformable convolution against loops, the whole against a second writing, checkpoints as published."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments.upsampling import UpsamplingParams
from tests.upsampling import slow_networks as slow
from tests.upsampling.test_networks import CPU, moving_texture, openmmlab
from upsampling import load, resolve_weights
from upsampling.alignment import Alignment
from upsampling.basicvsr_pp import BasicVSRpp
from upsampling.deformable import deform_conv
from upsampling.spynet import warp
from upsampling.video_network import from_openmmlab
from utils.errors import UserError
from utils.state_dicts import load_strictly


@pytest.fixture(scope="module")
def state() -> slow.State:
    return slow.made(slow.basicvsr_pp_shapes())


@pytest.fixture(scope="module")
def net(state) -> BasicVSRpp:
    module = BasicVSRpp()
    load_strictly(module, state, "made")
    return module.eval().requires_grad_(False).in_precision(torch.float32)


def _file(tmp_path, content: object) -> UpsamplingParams:
    path = tmp_path / "net.pth"
    torch.save(content, path)
    trusted = hashlib.sha256(path.read_bytes()).hexdigest()
    return UpsamplingParams(upsampler="basicvsr_pp", weights=str(path), trust_weights=trusted, precision="fp32")


@given(st.integers(1, 6), st.integers(1, 7), st.sampled_from([1, 2, 4]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_deformable_convolution_is_its_definition(h, w, groups, seed):
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(8, h, w, generator=g, dtype=torch.float64)
    offset = 3 * torch.randn(groups * 18, h, w, generator=g, dtype=torch.float64)
    mask = torch.rand(groups * 9, h, w, generator=g, dtype=torch.float64)
    weight, bias = torch.randn(5, 8, 3, 3, generator=g).double(), torch.randn(5, generator=g).double()
    expected = slow.deform(x, offset, mask, weight, bias)
    inputs = (v.float()[None] for v in (x, offset, mask))
    result = deform_conv(*inputs, weight.float(), bias.float())[0]
    assert float((result - expected).abs().max()) < 1e-4  # positions in float32


def test_without_offsets_it_is_a_convolution_and_whole_shifts_are_shifts():
    x, weight, bias = torch.randn(1, 32, 9, 7), torch.randn(4, 32, 3, 3), torch.randn(4)
    offset, mask = torch.zeros(1, 16 * 18, 9, 7), torch.ones(1, 16 * 9, 9, 7)
    assert torch.allclose(deform_conv(x, offset, mask, weight, bias), F.conv2d(x, weight, bias, padding=1), atol=1e-4)
    offset[:, 0::2] = 2  # dy
    shifted = F.conv2d(F.pad(x, (0, 0, 0, 2))[:, :, 2:], weight, bias, padding=1)
    assert torch.allclose(
        deform_conv(x, offset, mask, weight, bias)[:, :, :-2][:, :, 1:], shifted[:, :, 1:-2], atol=1e-4
    )


def test_rows_computed_alone_are_the_rows():
    x, weight, bias = torch.randn(1, 32, 9, 7), torch.randn(4, 32, 3, 3), torch.randn(4)
    offset, mask = 3 * torch.randn(1, 16 * 18, 9, 7), torch.rand(1, 16 * 9, 9, 7)
    whole = deform_conv(x, offset, mask, weight, bias)
    part = deform_conv(x, offset[:, :, 4:7], mask[:, :, 4:7], weight, bias, top=4)
    assert torch.allclose(part, whole[:, :, 4:7], atol=1e-5)


@pytest.mark.parametrize(("t", "h", "w"), [(4, 24, 37), (1, 9, 8)])
def test_the_network_is_its_second_writing(net, state, t, h, w):
    frames = moving_texture(t, h, w)
    expected = slow.basicvsr_pp(state, frames.double())
    result = torch.stack(list(net.upsample(frames)))
    assert float((expected - F.interpolate(frames.double(), scale_factor=4, mode="bilinear")).std()) > 0.1
    assert float((result - expected).abs().max()) < 1e-4  # measured 1e-6


def test_the_made_network_moves_things(net):
    """Else the comparison above would not see a wrong alignment."""
    frames = moving_texture(3, 24, 37)
    pyramid = net.spynet.pyramid(frames)
    with torch.inference_mode():
        flow = next(net.spynet.flows(pyramid, [(0, 1)], (24, 37)))
    assert 0.5 < float(flow.abs().mean()) < 8
    assert float((warp(frames[1:2], flow) - frames[1:2]).abs().mean()) > 0.02


def test_parameters_and_tensors_are_those_of_the_published_files(net, state):
    assert sum(p.numel() for p in net.parameters()) == 7_322_927
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == slow.basicvsr_pp_shapes()
    assert len(state) == 274


def test_checkpoints_of_both_publishers_load_strictly(tmp_path, state):
    foreign = {f"generator.{openmmlab(k)}": v for k, v in state.items()} | {"step_counter": torch.ones(1)}
    for content in ({"params": state}, {"state_dict": foreign}):
        flags = _file(tmp_path, content)
        net = load(flags, resolve_weights(flags), CPU)
        assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())
    assert from_openmmlab(state) is state


def test_a_file_without_alignment_is_refused(tmp_path, state):
    """What the public code saves where it was built without CUDA."""
    flags = _file(tmp_path, {"params": {k: v for k, v in state.items() if not k.startswith("deform_align")}})
    with pytest.raises(UserError, match="missing: deform_align 40"):
        load(flags, resolve_weights(flags), CPU)


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"basicvsr_pp_vimeo_bi not found.*--download.*-4ef437e2\.pth from https://"):
        resolve_weights(UpsamplingParams(upsampler="basicvsr_pp"))


@pytest.mark.parametrize(("t", "h", "w"), [(1, 1, 1), (3, 1, 5), (2, 33, 31)])
def test_any_size_and_length(net, t, h, w):
    output = list(net.upsample(moving_texture(t, h, w)))
    assert [tuple(x.shape) for x in output] == [(3, 4 * h, 4 * w)] * t
    assert all(torch.isfinite(x).all() for x in output)


def test_frames_get_only_what_the_alignment_hands_them(net):
    frames = moving_texture(4, 20, 24)
    apart = torch.stack(list(net.upsample(frames, Alignment((None,) * 4, (None,) * 4))))
    each = torch.stack([next(iter(net.upsample(frame[None]))) for frame in frames])
    assert torch.allclose(apart, each, atol=1e-5)
    # 0, 2 and 3 form a clip, 1 stays alone
    skip = torch.stack(list(net.upsample(frames, Alignment((2, None, 3, None), (None, None, 0, 2)))))
    three = torch.stack(list(net.upsample(frames[[0, 2, 3]])))
    assert torch.allclose(skip[[0, 2, 3]], three, atol=1e-5)
    assert torch.allclose(skip[1], each[1], atol=1e-5)


def test_strips_do_not_show_and_bits_repeat(net, monkeypatch):
    frames = moving_texture(3, 20, 24)
    whole, again = (torch.stack(list(net.upsample(frames))) for _ in range(2))
    assert torch.equal(whole, again)
    monkeypatch.setattr("upsampling.deformable.STRIP_PIXELS", {"cpu": 24 * 7})
    assert torch.allclose(torch.stack(list(net.upsample(frames))), whole, atol=1e-5)


def test_bfloat16_is_near(state):
    module = BasicVSRpp()
    load_strictly(module, {k: v * (0.5 if k.startswith("conv_last") else 1) for k, v in state.items()}, "made")
    module.eval().requires_grad_(False)
    frames = moving_texture(2, 20, 24)
    exact = torch.stack(list(module.upsample(frames)))
    half = torch.stack(list(module.in_precision(torch.bfloat16).upsample(frames)))
    assert half.dtype == torch.float32
    residual = exact - F.interpolate(frames, scale_factor=4, mode="bilinear")
    assert float((half - exact).square().mean()) < 0.01 * float(residual.square().mean())
