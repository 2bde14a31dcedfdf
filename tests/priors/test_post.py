"""Colour fixes against their definitions, and the final projection on images with saturated areas."""

import pytest
import torch
from torch.nn.functional import conv2d, pad

from priors import post
from scene.lr_kernel import LRKernel
from tests.priors.exact_priors import images


def test_adain_has_the_statistics_of_the_reference():
    image, reference = 0.2 + 0.3 * images(2, 3, 20, 24), images(2, 3, 5, 6, seed=1)
    result = post.color_adain(image, reference)
    for part in (torch.mean, lambda x, d: x.std(d, correction=0)):
        assert torch.allclose(part(result, (-2, -1)), part(reference, (-2, -1)), atol=1e-5)


def test_adain_of_a_flat_channel_stays_flat():
    result = post.color_adain(torch.full((1, 3, 8, 8), 0.2), images(1, 3, 8, 8, dtype=torch.float32))
    assert (result - result[..., :1, :1]).abs().max() < 1e-5


def test_low_band_is_the_blur_of_nine_taps_level_by_level():
    image = images(1, 3, 40, 31)
    row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
    taps = (row[:, None] * row / 16).expand(3, 1, 3, 3)
    expected = image
    for gap in (1, 2, 4, 8, 16):
        expected = conv2d(pad(expected, [gap] * 4, mode="replicate"), taps, dilation=gap, groups=3)
    assert torch.allclose(post.low_band(image), expected, atol=1e-12)


def test_wavelet_high_and_low_make_the_image():
    image = images(2, 3, 20, 24, dtype=torch.float32)
    assert torch.allclose(post.color_wavelet(image, image), image, atol=1e-5)


def test_wavelet_takes_a_colour_drift_away():
    truth = images(1, 3, 32, 32)
    drift = torch.tensor([0.1, -0.2, 0.05], dtype=torch.float64)[:, None, None]
    assert torch.allclose(post.color_wavelet(truth + drift, truth), truth, atol=1e-12)


@pytest.fixture
def photo():
    """A smooth picture with edges, part of it saturated, and its LR view rounded once to 8 bit."""
    y, x = torch.meshgrid(torch.arange(64.0), torch.arange(48.0), indexing="ij")
    wave = 0.5 + 0.35 * torch.sin(x / 3) * torch.cos(y / 5) + 0.1 * (x > 20)
    truth = torch.stack([wave, 1 - wave, 0.6 * wave + 0.2])[None]
    truth[..., 10:30, 30:44] = 1.0
    kernel = LRKernel("bicubic", "renormalise", (48, 64), (12, 16))
    lr = (kernel.down(truth).clamp(0, 1) * 255).round() / 255
    return truth, kernel, lr


def test_projection_rounds_make_a_valid_image_of_the_lr_view(photo):
    truth, kernel, lr = photo
    guess = truth + 0.1 * images(*truth.shape, dtype=torch.float32) - 0.08
    result = post.project(guess, kernel, lr, rounds=10)
    assert result.min() >= 0
    assert result.max() <= 1
    said = (lr > 0) & (lr < 1)
    error = (kernel.down(result) - lr)[said]
    assert error.square().mean().sqrt() < 1e-3
    saved = kernel.down((result * 255).round() / 255)
    assert ((saved - lr)[said]).square().mean().sqrt() < 1e-3
    assert (result - truth).square().mean() < 0.5 * (guess.clamp(0, 1) - truth).square().mean()


def test_projection_of_an_unsaturated_photo_is_exact_and_its_png_nearly(photo):
    truth, kernel, _ = photo
    truth = 0.25 + 0.5 * truth
    lr = (kernel.down(truth) * 255).round() / 255
    result = post.project(truth + 0.05 * images(*truth.shape, dtype=torch.float32), kernel, lr, rounds=10)
    assert (kernel.down(result) - lr).abs().max() < 1e-3
    error = kernel.down((result * 255).round() / 255) - lr
    assert error.square().mean().sqrt() < 1e-3
    assert error.abs().max() < 3e-3


def test_projection_leaves_the_truth_alone_within_the_rounding_of_its_lr_view(photo):
    truth, kernel, lr = photo
    result = post.project(truth, kernel, lr, tolerance=0.5 / 255 + 1e-6, rounds=3)
    assert torch.allclose(result, truth, atol=1e-6)
