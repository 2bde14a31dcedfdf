"""Networks and LPIPS on a GPU against the same on the CPU: float32, half precision, tiles, memory, fixed order.

BasicVSR, RLFN and SPAN have their published weights, IconVSR, BasicVSR++ and PSRT made-up ones.
"""

import contextlib
from collections.abc import Iterator
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from diff_gaussian_rasterization import release_memory
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from arguments.upsampling import UpsamplingParams
from evaluation.lpips import Lpips
from scene.image_files import read_image, write_png
from tests.scene_factory import picture
from tests.upsampling import slow_iconvsr
from tests.upsampling import slow_networks as slow
from tests.upsampling.test_networks import moving_texture
from upsampling import Job, load, resolve_weights, run
from upsampling.alignment import Alignment
from upsampling.basicvsr_pp import BasicVSRpp
from upsampling.deformable import deform_conv, torchvision_operator
from upsampling.gpu import memory_bound, session, to_host
from upsampling.iconvsr import IconVSR
from upsampling.psrt import PSRT, attend, without_indices
from upsampling.registry import Upsampler
from upsampling.sources import folder_source
from upsampling.spynet import warp
from upsampling.tiling import SLACK_BYTES, plan, upsample
from utils.compute import use_device
from utils.errors import UserError
from utils.state_dicts import load_strictly

pytestmark = pytest.mark.gpu
CPU = torch.device("cpu")
GB = 1 << 30
SIZES = {
    "basicvsr": (5, 72, 100),
    "basicvsr_pp": (4, 40, 52),
    "iconvsr": (6, 40, 51),
    "psrt": (3, 24, 37),
    "rlfn": (2, 72, 100),
    "span": (2, 72, 100),
}
VIDEO = ("basicvsr", "basicvsr_pp", "iconvsr", "psrt")


@pytest.fixture(scope="module", autouse=True)
def gpu(cuda):
    """float32 convolutions multiply float32 on it, and no workspaces of other tests count in bounds of memory."""
    use_device(cuda)
    release_memory()


@pytest.fixture(scope="module")
def states() -> dict[str, slow.State]:
    return {
        "basicvsr_pp": slow.made(slow.basicvsr_pp_shapes()),
        "iconvsr": slow_iconvsr.made(2),
        "psrt": without_indices(slow.made(slow.psrt_shapes())),
    }


@pytest.fixture
def network(states):
    """A network by name, device and precision."""

    def make(name: str, device: torch.device, precision: torch.dtype = torch.float32) -> Upsampler:
        if name not in states:
            words = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
            flags = UpsamplingParams(upsampler=name, precision=words[precision])
            return load(flags, resolve_weights(flags), device)
        module = {"basicvsr_pp": BasicVSRpp, "iconvsr": partial(IconVSR, 2), "psrt": PSRT}[name]()
        load_strictly(module, states[name], "made")
        return module.to(device).eval().requires_grad_(False).in_precision(precision)  # type: ignore[return-value]

    return make


def _output(net: Upsampler, frames: Tensor) -> Tensor:
    return torch.stack([frame.cpu() for frame in net.upsample(frames)])


def _psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10((a - b).square().mean()))


@pytest.mark.parametrize("name", SIZES)
def test_float32_is_the_cpus(network, cuda, name):
    """Sums are added in another order, and errors of 1e-7 grow along the clip; published weights give 1e-4 or less."""
    frames = moving_texture(*SIZES[name])
    expected = _output(network(name, CPU), frames)
    result = _output(network(name, cuda), frames.to(cuda))
    assert result.dtype == torch.float32
    assert float((result - expected).abs().max()) < 1e-3
    assert _psnr(result, expected) > 80


@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize(("precision", "share"), [(torch.bfloat16, 0.01), (torch.float16, 0.001)])
def test_half_precision_is_near(network, cuda, name, precision, share):
    """Squared error against that of leaving the network's own part out; BasicVSR also as measured on a processor."""
    frames = moving_texture(*SIZES[name])
    exact = _output(network(name, cuda), frames.to(cuda))
    half = _output(network(name, cuda, precision), frames.to(cuda))
    bilinear = F.interpolate(frames, scale_factor=4, mode="bilinear")
    assert float((half - exact).square().mean()) < share * float((exact - bilinear).square().mean())
    if name == "basicvsr":
        assert _psnr(half, exact) > (58 if precision == torch.float16 else 44)  # on a processor 68 and 52


@pytest.mark.parametrize("name", VIDEO)
def test_any_size_and_length(network, cuda, name):
    net = network(name, cuda, torch.float16)
    for t, h, w in ((1, 1, 1), (2, 1, 5), (3, 9, 6)):
        output = _output(net, moving_texture(t, h, w).to(cuda))
        assert output.shape == (t, 3, 4 * h, 4 * w)
        assert bool(torch.isfinite(output).all())


def test_tiles_and_chunks_do_not_show(network, cuda):
    """As on the CPU: 50 dB there with an overlap of 8 px; here the usual 32."""
    net = network("basicvsr", cuda)
    frames = moving_texture(4, 60, 400).to(cuda)
    whole = dict(upsample(net, frames, frozenset(range(4)), 8 * GB))
    bound = net.working_bytes(4, 60, 280) + SLACK_BYTES + (16 * 16 + 12 * 4) * 60 * 400  # type: ignore[attr-defined]
    assert plan(net, 4, 60, 400, bound).tiles[1] > 1
    tiled = dict(upsample(net, frames, frozenset(range(4)), bound))
    assert tiled.keys() == whole.keys()
    assert all(frame.is_cuda for frame in tiled.values())
    assert min(_psnr(tiled[i].cpu(), whole[i].cpu()) for i in whole) > 45


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("name", VIDEO)
@pytest.mark.parametrize("bound", [3 * GB // 2, 3 * GB])
def test_the_memory_bound_holds(network, cuda, name, precision, bound, capsys):
    """And was planned well: nothing had to be tried again with less."""
    net = network(name, cuda, precision)
    frames = torch.rand(3, 3, 240, 320, generator=torch.Generator().manual_seed(0)).to(cuda)
    with session(cuda, bound) as notes:
        torch.cuda.reset_peak_memory_stats(cuda)
        done = [position for position, _ in to_host(upsample(net, frames, frozenset({0, 2}), bound))]
        assert torch.cuda.max_memory_allocated(cuda) <= bound
    assert done == [0, 2]
    assert notes["max_memory_gb"] == bound / GB
    assert "half of --max_memory" not in capsys.readouterr().err


class Greedy:
    """Doubles pixels, and takes half as much memory again as it says."""

    scale, num_neighbours, overlap = 2, 0, 4
    bytes_per_pixel = 4096

    def working_bytes(self, t: int, h: int, w: int) -> int:
        return self.bytes_per_pixel * h * w

    def upsample(self, frames: Tensor, alignment: Alignment | None = None) -> Iterator[Tensor]:
        h, w = frames.shape[-2:]
        for frame in frames:
            extra = torch.empty(self.working_bytes(1, h, w) * 3 // 2, dtype=torch.uint8, device=frame.device)
            yield frame.repeat_interleave(2, 1).repeat_interleave(2, 2) + 0 * extra[:1]


def test_half_the_memory_is_tried_once_when_it_runs_out(cuda, capsys):
    frames = torch.rand(2, 3, 640, 640, generator=torch.Generator().manual_seed(0)).to(cuda)
    bound = Greedy.bytes_per_pixel * 640 * 640 + SLACK_BYTES + 12 * 2 * 640 * 640  # the whole frame just fits
    with session(cuda, bound):
        frames_out = dict(upsample(Greedy(), frames, frozenset({0, 1}), bound))
    assert capsys.readouterr().err.count("half of --max_memory") == 1
    for i, frame in frames_out.items():
        expected = frames[i].repeat_interleave(2, 1).repeat_interleave(2, 2)
        assert torch.allclose(frame, expected, atol=1e-5)


def test_without_the_flag_the_bound_is_what_is_free(cuda):
    free, total = torch.cuda.mem_get_info(cuda)
    assert 0.5 * free < memory_bound(0, cuda) < total
    assert memory_bound(2, cuda) == 2 * GB
    with session(cuda, memory_bound(0, cuda)) as notes:
        assert torch.backends.cudnn.benchmark == notes["autotuned"]
        assert not torch.backends.cudnn.allow_tf32


def test_frames_arrive_in_order_and_whole(cuda):
    frames = {i: torch.full((3, 500, 700), float(i), device=cuda) for i in (0, 4, 5, 9)}
    arrived = list(to_host(iter(frames.items())))
    assert [position for position, _ in arrived] == [0, 4, 5, 9]
    assert all(not frame.is_cuda and bool((frame == position).all()) for position, frame in arrived)
    assert list(to_host(iter(()))) == []


@pytest.mark.parametrize("name", VIDEO)
def test_a_fixed_order_gives_the_same_bits(network, cuda, name, monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    frames = moving_texture(*SIZES[name]).to(cuda)
    net = network(name, cuda, torch.float16)
    with contextlib.ExitStack() as stack:
        stack.callback(torch.use_deterministic_algorithms, False)
        torch.use_deterministic_algorithms(True)
        with session(cuda, 4 * GB) as notes:
            first, second = (_output(net, frames) for _ in range(2))
    assert notes["deterministic"]
    assert not notes["autotuned"]
    assert torch.equal(first, second)


# --- parts ----------------------------------------------------------------------------------------------------------


def _deformation(h: int, w: int) -> list[Tensor]:
    """x, offset, mask, weight, bias of BasicVSR++'s size."""
    g = torch.Generator().manual_seed(h)
    shapes = [(1, 128, h, w), (1, 288, h, w), (1, 144, h, w), (64, 128, 3, 3), (64,)]
    x, offset, mask, weight, bias = (torch.randn(shape, generator=g) for shape in shapes)
    return [x, 5 * offset, mask.sigmoid(), 0.03 * weight, bias]


@pytest.mark.parametrize(("h", "w"), [(20, 33), (1, 7)])
def test_deformable_convolution_is_the_cpus_and_torchvisions(cuda, h, w):
    inputs = _deformation(h, w)
    expected = deform_conv(*inputs)
    on_gpu = [x.to(cuda) for x in inputs]
    assert torch.allclose(deform_conv(*on_gpu).cpu(), expected, atol=1e-3)
    operator = torchvision_operator()
    if operator is None:
        pytest.skip("torchvision cannot be imported here")
    x, offset, mask, weight, bias = on_gpu
    assert torch.allclose(operator(x, offset, weight, bias, padding=1, mask=mask).cpu(), expected, atol=1e-3)


def test_basicvsr_pp_is_the_same_with_and_without_torchvision(network, cuda, monkeypatch):
    if torchvision_operator() is None:
        pytest.skip("torchvision cannot be imported here")
    net, frames = network("basicvsr_pp", cuda), moving_texture(3, 40, 52).to(cuda)
    with_it = _output(net, frames)
    monkeypatch.setattr("upsampling.deformable.torchvision_operator", lambda: None)
    assert torch.allclose(_output(net, frames), with_it, atol=1e-3)


@pytest.mark.parametrize("mode", ["bilinear", "nearest"])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_warping_is_the_cpus(cuda, mode, padding):
    g = torch.Generator().manual_seed(0)
    x, flow = torch.randn(2, 8, 30, 41, generator=g), 9 * torch.randn(2, 2, 30, 41, generator=g)
    result, expected = warp(x.to(cuda), flow.to(cuda), padding, mode).cpu(), warp(x, flow, padding, mode)
    other = (result - expected).abs() > 1e-3
    assert float(other.float().mean()) < (1e-3 if mode == "nearest" else 1e-9)  # nearest: ties may fall to either side


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_attention_is_the_cpus_and_a_fused_kernel_takes_it(cuda, dtype):
    """Heads are 20 wide, filled up to 24: fused kernels refuse other widths."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(5, 6, 192, 20, generator=g).to(dtype) for _ in range(3))
    bias = torch.randn(6, 192, 192, generator=g)
    expected = attend(q.float(), k.float(), v.float(), bias.to(dtype).float())
    with torch.inference_mode(), sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):
        result = attend(q.to(cuda), k.to(cuda), v.to(cuda), bias.to(cuda))
    bound = {torch.float32: 1e-4, torch.bfloat16: 0.03, torch.float16: 0.004}[dtype]
    assert float((result.float().cpu() - expected).abs().max()) < bound


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_psrt_attends_by_a_fused_kernel(network, cuda, precision):
    """Both kinds of windows: no kernel may be left that takes what the network hands over only unfused."""
    frames = moving_texture(*SIZES["psrt"]).to(cuda)
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION]):
        output = _output(network("psrt", cuda, precision), frames)
    assert bool(torch.isfinite(output).all())


def test_lpips_is_the_cpus(cuda):
    try:
        on_cpu = Lpips()
    except UserError as error:
        pytest.skip(str(error))
    on_gpu = Lpips(device=cuda)
    truth = moving_texture(1, 90, 120)[0]
    for seed in (1, 2):  # the second finds the truth remembered
        noise = torch.rand(truth.shape, generator=torch.Generator().manual_seed(seed))
        image = (truth + 0.1 * noise).clamp(0, 1)
        assert on_gpu(image, truth, "truth") == pytest.approx(on_cpu(image, truth), abs=1e-5)
    assert on_gpu._batch(torch.empty(1, 3, 90, 120)) >= 2  # variants of one network pass through it together


def test_a_run_leaves_the_cpus_frames(cuda, tmp_path, network):
    for i in range(3):
        write_png(tmp_path / "lr" / f"f{i}.png", picture(i, 48, 40))
    flags, images = UpsamplingParams(precision="fp32"), {}
    for device in (CPU, cuda):
        source = folder_source(tmp_path / "lr", "bicubic")
        job = Job(network("basicvsr", device), flags, source, tmp_path / device.type, device=device)
        outputs, notes = run(job)
        images[device.type] = [read_image(path).astype(int) for path in outputs[:3]]
    assert notes["frames"] == 3
    for a, b in zip(images["cpu"], images["cuda"], strict=True):
        assert abs(a - b)[..., 3].max() <= 1  # rounding to 8 bit; colour is divided by alpha, so only where it is 255
        assert abs(a - b)[a[..., 3] == 255].max() <= 2
