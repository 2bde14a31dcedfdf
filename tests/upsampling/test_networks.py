"""Networks: the parts against their definitions, key maps, any size and length, the same bits every time."""

import hashlib
import re
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from arguments.upsampling import UpsamplingParams
from upsampling import load, resolve_weights
from upsampling.alignment import Alignment, along_path
from upsampling.basicvsr import BasicVSR
from upsampling.interpolation import KERNELS, interpolation_matrix
from upsampling.precision import has_bfloat16, precision
from upsampling.registry import NETWORKS, network
from upsampling.spynet import SPyNet, warp
from upsampling.video_network import from_openmmlab
from utils.errors import UserError
from utils.state_dicts import load_strictly, read_state_dict
from utils.weights import WEIGHTS, ResolvedWeights, resolve

CPU = torch.device("cpu")


def moving_texture(t: int, h: int, w: int, seed: int = 0) -> torch.Tensor:
    """A smooth texture that shifts by half a pixel a frame, [t, 3, h, w] in 0-1."""
    generator = torch.Generator().manual_seed(seed)
    waves = torch.rand(3, 6, 3, generator=generator)  # [channel, wave, (fx, fy, phase)]
    y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")
    frames = []
    for i in range(t):
        angle = waves[..., :1, None] * (x + i / 2) + waves[..., 1:2, None] * y + 6.3 * waves[..., 2:, None]
        frames.append(0.5 + torch.sin(angle).mean(1) / 2)  # [3, 6, h, w] -> [3, h, w]
    return torch.stack(frames).clamp(0, 1)


@pytest.fixture(scope="module")
def basicvsr() -> BasicVSR:
    flags = UpsamplingParams(precision="fp32")
    return load(flags, resolve_weights(flags), CPU)


@given(st.integers(2, 7), st.integers(2, 7), st.sampled_from(["zeros", "border"]), st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_warp_is_bilinear_sampling_at_pixel_plus_flow(h, w, padding, seed):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 2, h, w, generator=generator)
    flow = 4 * torch.randn(1, 2, h, w, generator=generator)
    result = warp(x, flow, padding)

    def pixel(channel: int, row: int, col: int) -> float:
        if padding == "border":
            row, col = min(max(row, 0), h - 1), min(max(col, 0), w - 1)
        return float(x[0, channel, row, col]) if 0 <= row < h and 0 <= col < w else 0.0

    for row in range(h):
        for col in range(w):
            at_x, at_y = col + float(flow[0, 0, row, col]), row + float(flow[0, 1, row, col])
            left, top = int(at_x // 1), int(at_y // 1)
            for channel in range(2):
                expected = sum(
                    (1 - abs(at_x - c)) * (1 - abs(at_y - r)) * pixel(channel, r, c)
                    for r in (top, top + 1)
                    for c in (left, left + 1)
                )
                assert float(result[0, channel, row, col]) == pytest.approx(expected, abs=1e-4)


def test_spynet_finds_a_shift(basicvsr):
    frames = moving_texture(2, 64, 64)
    spynet: SPyNet = basicvsr.spynet
    pyramid = spynet.pyramid(frames)
    with torch.inference_mode():
        flow = spynet([x[:1] for x in pyramid], [x[1:] for x in pyramid], (64, 64))
    inner = flow[0, :, 16:48, 16:48].mean((1, 2))  # frame 1 shows what lies half a pixel to the right in frame 0
    assert float(inner[0]) == pytest.approx(-0.5, abs=0.15)
    assert float(inner[1]) == pytest.approx(0.0, abs=0.15)


@pytest.mark.parametrize("id", ["basicvsr_vimeo_bi", "basicvsr_vimeo_bd", "basicvsr_reds4"])
def test_every_basicvsr_checkpoint_loads_strictly(id):
    flags = UpsamplingParams(weights=id, precision="fp32")
    net = load(flags, resolve_weights(flags), CPU)
    assert sum(p.numel() for p in net.parameters()) == 6_291_311
    assert len(net.state_dict()) == 316


@pytest.mark.parametrize(("name", "parameters"), [("rlfn", 317_218), ("span", 150_688)])
def test_single_image_networks_load_strictly(name, parameters, weights_dir):
    flags = UpsamplingParams(upsampler=name)
    net = load(flags, resolve_weights(flags), CPU)
    assert sum(p.numel() for p in net.parameters()) == parameters


def openmmlab(key: str) -> str:
    """OpenMMLab's name of a BasicSR key, written independently of the map under test."""
    key = key.replace("backward_trunk", "backward_resblocks").replace("forward_trunk", "forward_resblocks")
    key = key.replace("upconv1", "upsample1.upsample_conv").replace("upconv2", "upsample2.upsample_conv")
    found = re.fullmatch(r"(spynet\.basic_module\.\d\.basic_module)\.(\d)\.(\w+)", key)
    return f"{found[1]}.{int(found[2]) // 2}.conv.{found[3]}" if found else key


def test_openmmlab_checkpoints_load_strictly(tmp_path):
    state = read_state_dict(resolve("basicvsr_vimeo_bi"))
    foreign = {f"generator.{openmmlab(k)}": v for k, v in state.items()} | {"step_counter": torch.ones(1)}
    path = tmp_path / "mm.pth"
    torch.save({"state_dict": foreign}, path)
    trusted = ResolvedWeights(path, "test", hashlib.sha256(path.read_bytes()).hexdigest(), "test", "test")
    mapped = from_openmmlab(read_state_dict(trusted))
    assert mapped.keys() == state.keys()
    assert all(torch.equal(mapped[k], v) for k, v in state.items())
    with torch.device("meta"):
        net = BasicVSR()
    load_strictly(net, mapped, "mm.pth")


@pytest.mark.parametrize(("t", "h", "w"), [(1, 1, 1), (2, 1, 5), (3, 7, 2), (2, 33, 31)])
def test_any_size_and_length(basicvsr, t, h, w):
    output = list(basicvsr.upsample(moving_texture(t, h, w)))
    assert [tuple(x.shape) for x in output] == [(3, 4 * h, 4 * w)] * t
    assert all(torch.isfinite(x).all() for x in output)


@pytest.mark.parametrize("name", ["rlfn", "span"])
@pytest.mark.parametrize(("h", "w"), [(1, 1), (3, 40), (14, 15), (37, 23)])
def test_any_size_of_single_images(name, h, w, weights_dir):
    flags = UpsamplingParams(upsampler=name)
    net = load(flags, resolve_weights(flags), CPU)
    image = moving_texture(1, h, w)
    output = next(iter(net.upsample(image)))
    assert output.shape == (3, 4 * h, 4 * w)
    if h > 20:
        assert float((F.avg_pool2d(output, 4) - image[0]).abs().mean()) < 0.02


def test_the_same_bits_every_time(basicvsr):
    frames = moving_texture(3, 24, 20)
    first, second = (torch.stack(list(basicvsr.upsample(frames))) for _ in range(2))
    assert torch.equal(first, second)


def test_the_tail_in_strips_is_the_whole_tail(basicvsr, monkeypatch):
    frames = moving_texture(2, 40, 20)
    whole = torch.stack(list(basicvsr.upsample(frames)))
    monkeypatch.setattr("upsampling.video_network.TAIL_PIXELS", {"cpu": 20 * 9})
    assert torch.allclose(torch.stack(list(basicvsr.upsample(frames))), whole, atol=1e-5)


def test_frames_get_only_what_the_alignment_hands_them(basicvsr):
    frames = moving_texture(3, 24, 20)
    apart = torch.stack(list(basicvsr.upsample(frames, Alignment((None,) * 3, (None,) * 3))))
    each = torch.stack([next(iter(basicvsr.upsample(frame[None]))) for frame in frames])
    assert torch.allclose(apart, each, atol=1e-5)
    together = torch.stack(list(basicvsr.upsample(frames)))
    assert float((together - each).abs().max()) > 1e-3
    # 0 and 2 exchange directly, 1 stays alone: the same as the clip of the two
    skip = torch.stack(list(basicvsr.upsample(frames, Alignment((2, None, None), (None, None, 0)))))
    pair = torch.stack(list(basicvsr.upsample(frames[[0, 2]])))
    assert torch.allclose(skip[[0, 2]], pair, atol=1e-5)
    assert torch.allclose(skip[1], each[1], atol=1e-5)


def test_alignments_are_checked_and_cut():
    path = along_path(5)
    assert (path.backward, path.forward) == ((1, 2, 3, 4, None), (None, 0, 1, 2, 3))
    assert path.part(1, 4) == along_path(3)
    for backward, forward in [((0, None), (None, 0)), ((1, None), (None, 1)), ((2, None), (None, 0)), ((None,), ())]:
        with pytest.raises(ValueError, match="not an alignment"):
            Alignment(backward, forward)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("scale", [1, 2, 3, 4])
def test_filters_keep_constants_and_the_cubic_keeps_ramps(kernel, scale):
    matrix = interpolation_matrix(12, scale, kernel)
    assert matrix.sum(1) == pytest.approx(1.0, abs=1e-12)
    ramp = matrix @ torch.arange(12.0).double().numpy()
    expected = (torch.arange(12.0 * scale).double().numpy() + 0.5) / scale - 0.5
    inner = slice(3 * scale, -3 * scale)
    assert ramp[inner] == pytest.approx(expected[inner], abs=1e-9 if kernel == "bicubic" else 0.02)


def test_the_cubic_filter_is_pillows():
    """Pillow's float bicubic has the same a = -1/2 and differs only at the border."""
    import numpy as np
    from PIL import Image

    image = moving_texture(1, 20, 24)[0, 0].numpy()
    expected = np.asarray(Image.fromarray(image).resize((96, 80), Image.Resampling.BICUBIC))
    ours = interpolation_matrix(20, 4, "bicubic") @ image @ interpolation_matrix(24, 4, "bicubic").T
    assert ours[8:-8, 8:-8] == pytest.approx(expected[8:-8, 8:-8], abs=1e-5)


def test_names_are_unknown_or_taken():
    with pytest.raises(UserError, match="did you mean basicvsr"):
        resolve_weights(UpsamplingParams(upsampler="basicvs"))
    with pytest.raises(ValueError, match="registered twice"):
        network("rlfn")(NETWORKS["rlfn"].build)
    for entry in NETWORKS.values():
        assert not entry.weights or entry.weights in WEIGHTS


def test_weights_of_another_network_and_another_scale_are_refused(tmp_path):
    with pytest.raises(UserError, match="belongs to rlfn"):
        resolve_weights(UpsamplingParams(weights="rlfn_x4"))
    with pytest.raises(UserError, match=r"neither a file nor one of basicvsr_vimeo_bi"):
        resolve_weights(UpsamplingParams(weights="nowhere.pth"))
    flags = UpsamplingParams(scale=2)
    with pytest.raises(UserError, match="--scale 2: basicvsr magnifies 4 times"):
        load(flags, resolve_weights(flags), CPU)


def test_auto_precision_follows_the_processor():
    assert precision("fp32", CPU) == torch.float32
    assert precision("bf16", CPU) == torch.bfloat16
    with pytest.raises(UserError, match="fp16: runs on a GPU only"):
        precision("fp16", CPU)
    assert (precision("auto", CPU) == torch.bfloat16) == has_bfloat16(CPU)


@pytest.mark.parametrize("name", ["basicvsr", "basicvsr_pp", "iconvsr", "psrt"])
def test_every_visit_of_a_frame_is_counted(name):
    net = load(UpsamplingParams(upsampler=name, random_weights=True, precision="fp32"), None, CPU)
    ticks: list[int] = []
    for _ in net.upsample(moving_texture(3, 8, 8), replace(along_path(3), tick=lambda: ticks.append(1))):
        pass
    assert len(ticks) == 3 * net.visits
