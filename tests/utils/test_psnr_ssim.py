"""PSNR and SSIM against their definitions written as loops, and against scikit-image."""

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity

from utils.psnr import psnr
from utils.ssim import ssim, ssim_map


def pair(height, width, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    a = torch.rand(3, height, width, generator=generator, dtype=dtype)
    return a, (a + 0.2 * torch.randn(3, height, width, generator=generator, dtype=dtype)).clamp(0, 1)


def ssim_by_loops(a, b):
    """The definition, pixel by pixel: weights of an 11x11 Gaussian, zeros outside the image."""
    x = np.arange(-5, 6)
    window = np.exp(-(x[:, None] ** 2 + x[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = (np.pad(image.numpy(), ((0, 0), (5, 5), (5, 5))) for image in (a, b))
    values = np.empty((3, a.shape[1] - 10, a.shape[2] - 10))
    for c, i, j in np.ndindex(values.shape):
        p, q = a[c, i : i + 11, j : j + 11], b[c, i : i + 11, j : j + 11]
        mp, mq = (window * p).sum(), (window * q).sum()
        vp, vq = (window * p * p).sum() - mp**2, (window * q * q).sum() - mq**2
        cov = (window * p * q).sum() - mp * mq
        values[c, i, j] = (2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4))
    return values


@pytest.mark.parametrize("size", [(17, 13), (4, 23), (1, 1)])
def test_ssim_is_the_definition(size):
    a, b = pair(*size)
    np.testing.assert_allclose(ssim_map(a, b).numpy(), ssim_by_loops(a, b), atol=1e-12)


def test_ssim_interior_agrees_with_scikit_image():
    a, b = pair(40, 50)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "data_range": 1.0}
    _, theirs = structural_similarity(a.numpy(), b.numpy(), channel_axis=0, full=True, **settings)
    np.testing.assert_allclose(ssim_map(a, b)[:, 5:-5, 5:-5].numpy(), theirs[:, 5:-5, 5:-5], atol=1e-12)


def test_ssim_in_float32_is_within_rounding_of_float64():
    a, b = pair(64, 48)
    assert abs(float(ssim(a.float(), b.float())) - float(ssim(a, b))) < 2e-6


def test_ssim_of_equal_images_is_one_and_it_is_symmetric():
    a, b = pair(20, 20)
    assert float(ssim(a, a)) == pytest.approx(1, abs=1e-12)
    assert float(ssim(a, b)) == pytest.approx(float(ssim(b, a)), abs=1e-14)


def test_ssim_gradient():
    a, b = pair(6, 7)
    assert torch.autograd.gradcheck(lambda x: ssim(x, b), a.requires_grad_())


def test_psnr_is_the_definition():
    a, b = pair(9, 8)
    error = sum((float(p) - float(q)) ** 2 for p, q in zip(a.flatten(), b.flatten(), strict=True)) / a.numel()
    assert float(psnr(a, b)) == pytest.approx(10 * np.log10(1 / error), abs=1e-10)


def test_psnr_of_equal_images_is_infinite():
    a, _ = pair(3, 3)
    assert float(psnr(a, a)) == float("inf")
