"""PSRT: its attention against a plain softmax, the whole against a second writing, checkpoints as published."""

import hashlib

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments.upsampling import UpsamplingParams
from tests.upsampling import slow_networks as slow
from tests.upsampling.test_networks import CPU, moving_texture
from upsampling import load, resolve_weights
from upsampling.alignment import Alignment
from upsampling.propagation import Arrival
from upsampling.psrt import PSRT, Windows, attend, patch_aligned, relative_positions, without_indices
from utils.errors import UserError
from utils.state_dicts import load_strictly


@pytest.fixture(scope="module")
def state() -> slow.State:
    return slow.made(slow.psrt_shapes())


@pytest.fixture(scope="module")
def net(state) -> PSRT:
    module = PSRT()
    load_strictly(module, without_indices(state), "made")
    return module.eval().requires_grad_(False).in_precision(torch.float32)


def _file(tmp_path, state: slow.State) -> UpsamplingParams:
    path = tmp_path / "net.pth"
    torch.save({"params": state}, path)
    trusted = hashlib.sha256(path.read_bytes()).hexdigest()
    return UpsamplingParams(upsampler="psrt", weights=str(path), trust_weights=trusted, precision="fp32")


@given(st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.sampled_from([1, 8, 20]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_attention_is_softmax(n, heads, tokens, width, seed):
    g = torch.Generator().manual_seed(seed)
    q, k, v = (2 * torch.randn(n, heads, tokens, width, generator=g) for _ in range(3))
    bias = torch.randn(heads, tokens, tokens, generator=g)
    result = attend(q, k, v, bias)
    for i in range(n):
        for head in range(heads):
            parts = (x[i, head].double() for x in (q, k, v))
            assert torch.allclose(result[i, head].double(), slow.attention(*parts, bias[head].double()), atol=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_windows_that_do_not_fit_one_call_are_all_attended(net, monkeypatch, number):
    block = net.get_submodule(f"patch_align.forward_1.layers.1.residual_group.blocks.{number}")
    x = torch.randn(3, 40, 20, 120, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        whole = block(x, Windows.of(40, 20, CPU), bool(number))
        monkeypatch.setattr("upsampling.psrt.WINDOW_BATCH", 6)
        assert torch.allclose(block(x, Windows.of(40, 20, CPU), bool(number)), whole, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shifted", [False, True])
def test_masks_have_no_gaps_along_their_last_axis(net, monkeypatch, shifted, dtype):
    """Fused kernels of GPUs refuse others, and attention would be computed unfused without a word."""
    seen = []
    fused = F.scaled_dot_product_attention

    def attention(*args, attn_mask, **options):
        seen.append(attn_mask.stride(-1))
        return fused(*args, attn_mask=attn_mask, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", attention)
    attention_of = net.get_submodule("patch_align.forward_1.layers.1.residual_group.blocks.0.attn")
    qkv = torch.randn(3, 2, 192, 3, 6, 20, generator=torch.Generator().manual_seed(0)).to(dtype)
    attention_of._mixed(qkv, Windows.of(24, 16, CPU), shifted)
    assert seen == [1] * (4 if shifted else 1)


def test_the_index_of_positions_is_its_definition():
    assert torch.equal(relative_positions(CPU), slow.position_index())


@pytest.mark.parametrize(("h", "w"), [(8, 8), (24, 16), (13, 20), (5, 3)])
@pytest.mark.parametrize("number", [0, 1])
def test_a_block_is_its_second_writing(net, state, h, w, number):
    """Number 1 shifts its windows, so tokens from two ends of the image meet and must not see each other."""
    key = f"patch_align.forward_1.layers.1.residual_group.blocks.{number}"
    block = net.get_submodule(key)
    x = torch.randn(3, h, w, 120, generator=torch.Generator().manual_seed(h))
    expected = slow.swin_block(slow.doubled(state), key, x.double(), 4 * number)
    with torch.inference_mode():
        result = block(x, Windows.of(h, w, CPU), bool(number))
    assert float((result - expected).abs().max()) < 1e-4


@pytest.mark.parametrize(("h", "w"), [(16, 24), (13, 21), (8, 9)])
def test_patches_move_by_their_mean_flow(h, w):
    g = torch.Generator().manual_seed(w)
    x, flow = torch.randn(1, 4, h, w, generator=g), 6 * torch.randn(1, 2, h, w, generator=g)
    assert torch.equal(patch_aligned(Arrival(x, flow))[0], slow.patch_moved(x[0], flow[0].double()))


@pytest.mark.parametrize(("t", "h", "w"), [(3, 13, 8), (1, 16, 16)])
def test_the_network_is_its_second_writing(net, state, t, h, w):
    frames = moving_texture(t, h, w)
    expected = slow.psrt(state, frames.double())
    result = torch.stack(list(net.upsample(frames)))
    assert float((expected - F.interpolate(frames.double(), scale_factor=4, mode="bilinear")).std()) > 0.1
    assert float((result - expected).abs().max()) < 1e-4  # measured 3e-6


def test_parameters_and_tensors_are_those_of_the_published_files(net, state):
    assert sum(p.numel() for p in net.parameters()) == 13_366_943
    shapes = {k: s for k, s in slow.psrt_shapes().items() if not k.endswith("relative_position_index")}
    assert {k: tuple(v.shape) for k, v in net.state_dict().items()} == shapes
    assert len(state) == 1154
    assert len(state) - len(shapes) == 72


def test_a_published_file_loads_strictly(tmp_path, state):
    flags = _file(tmp_path, state)
    net = load(flags, resolve_weights(flags), CPU)
    assert all(torch.equal(v, state[k]) for k, v in net.state_dict().items())


def test_other_windows_and_a_missing_branch_are_refused(tmp_path, state):
    key = "patch_align.forward_2.layers.0.residual_group.blocks.3.attn.relative_position_index"
    flags = _file(tmp_path, state | {key: state[key].T.contiguous()})
    with pytest.raises(UserError, match=r"forward_2.*not the index of 3x8x8 windows"):
        load(flags, resolve_weights(flags), CPU)
    flags = _file(tmp_path, {k: v for k, v in state.items() if not k.startswith("patch_align")})
    with pytest.raises(UserError, match="missing: patch_align"):  # saved where the public code saw no GPU
        load(flags, resolve_weights(flags), CPU)


def test_missing_weights_say_how_to_get_them(tmp_path, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path))
    with pytest.raises(
        UserError, match=r"psrt_vimeo not found.*fetch PSRT_Vimeo\.pth from https://drive\S* \(linked on \S*RethinkVSR"
    ):
        resolve_weights(UpsamplingParams(upsampler="psrt"))


@pytest.mark.parametrize(("t", "h", "w"), [(1, 1, 1), (2, 1, 5), (3, 9, 6)])
def test_any_size_and_length(net, t, h, w):
    output = list(net.upsample(moving_texture(t, h, w)))
    assert [tuple(x.shape) for x in output] == [(3, 4 * h, 4 * w)] * t
    assert all(torch.isfinite(x).all() for x in output)


def test_frames_get_only_what_the_alignment_hands_them(net):
    frames = moving_texture(3, 8, 16)
    apart = torch.stack(list(net.upsample(frames, Alignment((None,) * 3, (None,) * 3))))
    each = torch.stack([next(iter(net.upsample(frame[None]))) for frame in frames])
    assert torch.allclose(apart, each, atol=1e-5)
    skip = torch.stack(list(net.upsample(frames, Alignment((2, None, None), (None, None, 0)))))
    pair = torch.stack(list(net.upsample(frames[[0, 2]])))
    assert torch.allclose(skip[[0, 2]], pair, atol=1e-5)
    assert float((skip[0] - each[0]).abs().max()) > 1e-3


def test_bfloat16_is_near_and_bits_repeat(state):
    module = PSRT()
    load_strictly(module, without_indices(state), "made")
    module.eval().requires_grad_(False)
    frames = moving_texture(1, 16, 16)
    exact, again = (torch.stack(list(module.upsample(frames))) for _ in range(2))
    assert torch.equal(exact, again)
    half = torch.stack(list(module.in_precision(torch.bfloat16).upsample(frames)))
    assert half.dtype == torch.float32
    residual = exact - F.interpolate(frames, scale_factor=4, mode="bilinear")
    assert float((half - exact).square().mean()) < 0.01 * float(residual.square().mean())
