"""DiffuseHigh: sharpening, the low band, the sizes it goes through, and the names of its settings."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

from priors.diffusehigh import Settings, drawn_sigma, enlarged_to, guidance_image, img2img, main, settings, sharpened
from priors.hooks import ProjectLR
from priors.interfaces import Cond
from priors.processes import EDM, VP
from priors.spaces import PixelSpace
from priors.wavelets import analyse
from scene.image_files import read_image, write_png
from scene.lr_kernel import LRKernel
from tests.priors.exact_priors import images, sd3_space
from utils.errors import UserError
from utils.rng import generator

SMALL = settings(target_height=[24, 40], target_width=[32, 48], num_inference_steps=10, noising_steps=4, dwt_steps=2)


class Fading:
    """A base generator that knows nothing but how to fade what it is shown; counts its calls."""

    def __init__(self, space=None, keeps=0.5):
        self.process, self.calls = EDM(VP.scaled_linear(1000, 0.00085, 0.012)), []
        self.space, self.keeps = space or PixelSpace(), keeps

    def x0(self, x_t, t, cond):
        self.calls.append((tuple(x_t.shape[-2:]), t, cond.guidance))
        return self.keeps * x_t


@pytest.mark.parametrize("level", [0.0, 0.3, 1.0])
def test_sharpening_keeps_a_constant(level):
    image = torch.full((1, 3, 9, 7), level)
    assert torch.allclose(sharpened(image, 2.0, 0.7), image, atol=1e-6)


def test_sharpening_is_its_definition():
    """Against loops in float64; 1 px from the border, where mirroring takes no part."""
    image, sigma, alpha = images(1, 3, 8, 9), 0.8, 1.5
    weights = np.array([[np.exp(-(i * i + j * j) / (2 * sigma**2)) for i in (-1, 0, 1)] for j in (-1, 0, 1)])
    weights /= weights.sum()
    for y, x in ((1, 1), (4, 5), (6, 7)):
        blur = (image[0, :, y - 1 : y + 2, x - 1 : x + 2].numpy() * weights).sum((1, 2))
        wanted = (1 + alpha) * image[0, :, y, x].numpy() - alpha * blur
        assert np.allclose(sharpened(image, alpha, sigma)[0, :, y, x].numpy(), wanted, atol=1e-12)


def test_sigma_is_uniform_in_its_bounds():
    draws = np.sort([drawn_sigma((0.1, 2.0), generator(k)) for k in range(2000)])
    assert draws[0] >= 0.1
    assert draws[-1] <= 2.0
    distance = np.abs((draws - 0.1) / 1.9 - (np.arange(2000) + 0.5) / 2000).max()
    assert distance < 1.95 / 2000**0.5  # Kolmogorov and Smirnov, p = 1e-3


def test_without_low_band_it_is_img2img():
    image = images(1, 3, 16, 20, dtype=torch.float32)
    for changes in ({"dwt_steps": 0}, {"enable_dwt": False}):
        chosen = replace(SMALL, target_height=(24,), target_width=(32,), **changes)
        made = enlarged_to(Fading(), Cond(), image, generator(1), chosen)
        rng = generator(1)
        guide = guidance_image(image, 32, 24, chosen, rng)
        plain = img2img(Fading(), Cond(guidance=chosen.diffusehigh_guidance_scale), guide, rng, chosen)
        assert torch.equal(made, plain.clamp(0, 1))


def test_the_low_band_is_that_of_the_guide():
    """With the swap in every step, in pixels: low bands agree 8 coefficients from the border."""
    image = 0.4 + 0.2 * images(1, 3, 40, 48)
    chosen = replace(SMALL, dwt_steps=4, enable_sharpening=False, target_height=(80,), target_width=(96,))
    made = enlarged_to(Fading(keeps=0.1), Cond(), image, generator(1), chosen)
    guide = guidance_image(image, 96, 80, chosen, generator(1))
    low, wanted = (analyse(x).low[..., 8:-8, 8:-8] for x in (made, guide))
    assert torch.allclose(low, wanted, atol=1e-6)


def test_it_walks_the_last_steps_at_every_size():
    prior = Fading()
    made = enlarged_to(prior, Cond(), images(2, 3, 16, 20, dtype=torch.float32), generator(1), SMALL)
    assert made.shape == (2, 3, 40, 48)
    assert 0 <= float(made.min()) <= float(made.max()) <= 1
    sigmas = prior.process.times(10)[-5:-1]
    assert prior.calls == [(size, t, 10.0) for size in ((24, 32), (40, 48)) for t in sigmas]


def test_fifty_steps_begin_the_last_fifteen_at_time_281():
    process = EDM(replace(VP.scaled_linear(1000, 0.00085, 0.012), spacing="leading", offset=1))
    start = process.times(50)[-16]
    assert start == pytest.approx(0.779, abs=5e-4)
    assert process.network_time(start) == pytest.approx(281, abs=1e-6)


def test_sizes_that_are_no_whole_latents():
    prior = Fading(sd3_space(12))
    chosen = replace(SMALL, target_height=(17,), target_width=(23,))
    assert enlarged_to(prior, Cond(), images(1, 3, 8, 10), generator(1), chosen).shape == (1, 3, 17, 23)


def test_a_projection_may_follow():
    """As an upsampler: the LR view is the guidance image, and its pixels are met."""
    truth = 0.3 + 0.4 * images(1, 3, 24, 32)
    kernel = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
    lr = kernel.down(truth)
    chosen = replace(SMALL, target_height=(24,), target_width=(32,), dwt_steps=1)
    made = enlarged_to(Fading(keeps=0.1), Cond(), lr, generator(1), chosen, hooks=[ProjectLR(kernel, lr)])
    assert float((kernel.down(made) - lr).abs().max()) < 1e-6


def test_both_names_of_the_sharpness():
    assert settings(sharpness_factor=2.0) == settings(sharpening_alpha=2.0) == Settings(sharpening_alpha=2.0)
    with pytest.raises(UserError, match="give one"):
        settings(sharpness_factor=2.0, sharpening_alpha=2.0)
    assert settings(target_height=512, target_width=512, sharpening_sigma=0.5).sharpening_sigma == (0.5, 0.5)
    assert settings(sharpening_sigma=(0.5,)).sharpening_sigma == (0.5, 0.5)  # a flag of one word


@pytest.mark.parametrize(
    "wrong",
    [
        {"target_height": [1, 2], "target_width": 1},
        {"noising_steps": 0},
        {"noising_steps": 51},
        {"sharpening_sigma": (2.0, 0.1)},
        {"sharpening_sigma": (0.1, 1.0, 2.0)},
        {"dwt_wave": "db4x"},
        {"dwt_mode": "nowhere"},
        {"dwt_level": 0},
        {"sharpening_kernel_size": 4},
        {"sharpnes": 1.0},
    ],
)
def test_settings_that_make_no_walk_are_refused(wrong):
    with pytest.raises(UserError):
        settings(**wrong)


def test_the_sharpened_guide_is_sharper_than_pillows_enlargement(tmp_path):
    """Not a defect of direction: sharpening raises the variance of a Laplacian, as Pillow's filter measures it."""
    image = images(1, 3, 16, 16, dtype=torch.float32)
    variances = []
    for on in (False, True):
        guide = guidance_image(image, 32, 32, replace(SMALL, enable_sharpening=on), generator(1)).clamp(0, 1)
        grey = Image.fromarray((guide[0].mean(0) * 255).byte().numpy())
        variances.append(np.asarray(grey.filter(ImageFilter.FIND_EDGES), float).var())
    assert variances[1] > variances[0]


@pytest.mark.parametrize("guided", [False, True])
def test_command_line(tmp_path, guided):
    pytest.importorskip("diffusers")
    pytest.importorskip("transformers")
    from tests.priors import tiny_models

    folder, out = tiny_models.save_sdxl(tmp_path / "model"), tmp_path / "out.png"
    sizes = ["--target_height", "72", "--target_width", "80", "--num_inference_steps", "4", "--noising_steps", "2"]
    words = ["--prompt", "a cab", "-o", str(out), "--model", str(folder), "--device", "cpu", *sizes]
    if guided:
        write_png(tmp_path / "lr.png", np.full((9, 10, 3), 128, np.uint8))
        words += ["--guidance_image", str(tmp_path / "lr.png"), "--enable_sharpening", "false"]
    main(words)
    assert read_image(out).shape == (72, 80, 3)
