"""Measured quality on real video: the published networks, LR, and metric, so every part must be right."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from arguments.upsampling import UpsamplingParams
from scene.images import read_image
from scene.lr_kernel import LRKernel
from upsampling import load, resolve_weights
from upsampling.precision import has_bfloat16

CPU = torch.device("cpu")
TOLERANCE_DB = 0.05


@pytest.fixture(scope="module")
def clip(data_dir: Path) -> tuple[Tensor, Tensor]:
    """LR [12, 3, 88, 112] float32 and HR [12, 3, 352, 448] float64; LR made as MATLAB's imresize does."""
    files = sorted((data_dir / "vid4_calendar_crop" / "hr").glob("*.png"))
    hr = torch.from_numpy(np.stack([read_image(p) for p in files])).permute(0, 3, 1, 2).double() / 255
    kernel = LRKernel("bicubic", "mirror", (448, 352), (112, 88))
    lr = torch.floor(kernel.down(hr).clamp(0, 1) * 255 + 0.5) / 255
    return lr.float(), hr


def _psnr(a: Tensor, b: Tensor) -> float:
    """Mean over frames of the PSNR in dB."""
    return float((-10 * torch.log10(((a - b) ** 2).flatten(1).mean(1))).mean())


def _luma(x: Tensor) -> Tensor:
    return (16 + 65.481 * x[:, 0] + 128.553 * x[:, 1] + 24.966 * x[:, 2]) / 255


def _scores(output: list[Tensor], hr: Tensor) -> tuple[float, float]:
    """(luma, RGB) PSNR of 8-bit frames, no border crop."""
    sr = torch.round(torch.stack(output).clamp(0, 1).double() * 255) / 255
    return _psnr(_luma(sr), _luma(hr)), _psnr(sr, hr)


def _upsampler(**flags: object):
    settings = UpsamplingParams(**{"precision": "fp32", **flags})
    return load(settings, resolve_weights(settings), CPU)


def _check(output: list[Tensor], hr: Tensor, luma: float, rgb: float) -> None:
    assert _scores(output, hr) == pytest.approx((luma, rgb), abs=TOLERANCE_DB)


def test_bicubic(clip):
    _check(list(_upsampler(upsampler="bicubic").upsample(clip[0])), clip[1], 20.5335, 19.0286)


def test_basicvsr_on_the_clip(clip):
    _check(list(_upsampler().upsample(clip[0])), clip[1], 23.8006, 22.0968)


def test_basicvsr_frame_by_frame(clip):
    net = _upsampler()
    _check([next(iter(net.upsample(frame[None]))) for frame in clip[0]], clip[1], 21.7755, 20.1867)


@pytest.mark.parametrize(("name", "luma", "rgb"), [("rlfn", 22.06, 20.50), ("span", 21.82, 20.25)])
def test_single_image_networks(clip, weights_dir, name, luma, rgb):
    _check(list(_upsampler(upsampler=name).upsample(clip[0])), clip[1], luma, rgb)


@pytest.mark.slow
def test_bfloat16_costs_hundredths_of_a_decibel(clip):
    if not has_bfloat16(CPU):
        pytest.skip("this processor has no bfloat16 units")
    _check(list(_upsampler(precision="bf16").upsample(clip[0])), clip[1], 23.7976, 22.0935)


def test_the_checkpoints_differ_as_their_degradations_do(clip):
    """Luma of the first 2 frames (22.85 and 22.36): the BI checkpoint fits bicubic LR, the BD one does not."""
    lr, hr = clip[0][:2], clip[1][:2]
    luma: Callable[[str], float] = lambda id: _scores(list(_upsampler(weights=id).upsample(lr)), hr)[0]  # noqa: E731
    assert luma("basicvsr_vimeo_bi") > luma("basicvsr_vimeo_bd") + 0.4
