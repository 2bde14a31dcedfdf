"""DDNM in pixels and in latents: what the LR view says is said exactly, the rest is the prior's."""

import pytest
import torch

from priors.ddnm import Fitted, Settings, ddnm, ddnm_flow, flow_latent, main, plus, visits
from priors.interfaces import Cond
from priors.processes import VP, Flow
from priors.spaces import PixelSpace
from scene.image_files import read_image, write_png
from scene.lr_kernel import LRKernel
from tests.priors.exact_priors import Gaussian, Perfect, images, sd3_space
from utils.errors import UserError
from utils.rng import generator

KERNEL = LRKernel("bicubic", "renormalise", (24, 16), (6, 4))
TOY = LRKernel("area", "renormalise", (4, 1), (2, 1))


def _truth(height=16, width=24):
    """Far enough from 0 and 1 that clipping takes no part."""
    return 0.4 + 0.2 * images(2, 3, height, width)


def _lr_error(image, y, kernel=KERNEL):
    return float((kernel.down(image) - y).abs().max())


class Smooth:
    """A prior in any space that blurs what it is shown: never right, never far off."""

    def __init__(self, space, multiple=1):
        self.process, self.space, self.multiple = Flow(3.0), space, multiple

    def x0(self, x_t, t, cond):
        return 0.3 * x_t + 0.1


@pytest.mark.parametrize("space", [PixelSpace(), sd3_space(12), sd3_space(7)], ids=["pixels", "invertible", "lossy"])
def test_flow_meets_the_lr_view(space):
    y = KERNEL.down(_truth())
    image = ddnm_flow(Smooth(space), Cond(lr=y[:, None]), KERNEL, generator(0), steps=4, strength=1.0)
    assert _lr_error(image, y) < 1e-6


@pytest.mark.parametrize("strength", [1.0, 0.8])
def test_flow_needs_no_last_projection_where_decoding_undoes_encoding(strength):
    y = KERNEL.down(_truth())
    z, space = flow_latent(Smooth(sd3_space(12)), Cond(), KERNEL, generator(0), y, 4, strength)
    assert _lr_error(space.decode(z), y) < 1e-12


def test_flow_alone_misses_the_lr_view_in_a_lossy_space():
    y = KERNEL.down(_truth())
    z, space = flow_latent(Smooth(sd3_space(7)), Cond(), KERNEL, generator(0), y, 4, 1.0)
    assert _lr_error(space.decode(z), y) > 1e-3


@pytest.mark.parametrize("channels", [12, 7])
def test_flow_without_strength_is_the_pseudo_inverse(channels):
    y, space = KERNEL.down(_truth()), sd3_space(channels)
    z, fitted = flow_latent(Smooth(space), Cond(), KERNEL, generator(0), y, 3, 0.0)
    assert torch.allclose(fitted.decode(z), space.decode(space.encode(KERNEL.pinv(y))), atol=1e-12)


@pytest.mark.parametrize(("width", "height", "multiple"), [(23, 15, 1), (23, 15, 3), (9, 31, 2)])
def test_flow_of_any_size(width, height, multiple):
    kernel = LRKernel("bicubic", "renormalise", (width, height), (width // 4, height // 4))
    truth = _truth(height, width)
    prior = Smooth(sd3_space(12), multiple)
    image = ddnm_flow(prior, Cond(), kernel, generator(0), steps=2, lr=kernel.down(truth))
    assert image.shape == truth.shape
    assert _lr_error(image, kernel.down(truth), kernel) < 1e-6
    fitted = Fitted(prior.space, width, height, multiple)
    assert fitted.encode(truth).shape[-2:] == fitted.latent_size
    assert all(side % multiple == 0 for side in fitted.latent_size)
    assert torch.allclose(fitted.decode(fitted.encode(truth)), truth, atol=1e-12)


def test_flow_in_tiles_is_flow_where_the_prior_looks_at_single_latents():
    y, prior = KERNEL.down(_truth()), Smooth(sd3_space(12))
    ends = [flow_latent(prior, Cond(), KERNEL, generator(0), y, 3, 0.8, tile, 2)[0] for tile in (0, 5)]
    assert torch.allclose(*ends, atol=1e-12)


def test_flow_with_a_perfect_prior_is_perfect():
    truth, space = _truth(), sd3_space(12)
    prior = Perfect(Flow(3.0), space.encode(truth), space)
    image = ddnm_flow(prior, Cond(), KERNEL, generator(0), steps=3, strength=1.0, lr=KERNEL.down(truth))
    assert torch.allclose(image, truth, atol=1e-6)


@pytest.mark.parametrize("travel", [(1, 1), (5, 3)])
def test_pixels_meet_the_lr_view(travel):
    y, prior = KERNEL.down(_truth()), Smooth(PixelSpace())
    prior.process = VP.linear(1000, 1e-4, 2e-2)
    settings = Settings(steps=10, travel_length=travel[0], travel_repeats=travel[1])
    assert _lr_error(ddnm(prior, Cond(), KERNEL, generator(0), settings, lr=y), y) < 1e-6


def _walks(count, settings, y, deviation):
    """Walks with a prior of independent pixels, mean 0 in [-1, 1]."""
    cov = deviation**2 * torch.eye(12, dtype=torch.float64)
    prior = Gaussian(VP.linear(1000, 1e-4, 2e-2), torch.zeros(12, dtype=torch.float64), cov)
    return ddnm(prior, Cond(), TOY, generator(1), settings, lr=y.expand(count, -1, -1, -1))


def test_in_the_null_space_samples_are_those_of_the_prior():
    """Independent pixels: y says nothing about differences within a box, which keep the prior's mean and deviation."""
    y = torch.tensor([[0.55, 0.45]], dtype=torch.float64).expand(1, 3, 1, 2)
    x = _walks(3000, Settings(steps=250), y, 0.2)
    inside = ((x[..., 0::2] - x[..., 1::2]) / 2**0.5).flatten()  # 0.2 in [-1, 1] is 0.1 here
    assert abs(float(inside.mean())) < 4 * 0.1 / len(inside) ** 0.5
    assert float(inside.std()) == pytest.approx(0.1, rel=0.05)


def test_noise_in_the_lr_view_is_damped():
    """With the prior's own deviation of box means 0.035 and noise of 0.1, DDNM+ comes much nearer than DDNM."""
    truth = torch.full((1, 3, 1, 2), 0.5, dtype=torch.float64)
    y = truth + 0.1 * torch.randn((500, 3, 1, 2), dtype=torch.float64, generator=generator(2))
    hard = TOY.down(_walks(500, Settings(steps=50), y, 0.1)) - truth
    soft = TOY.down(_walks(500, Settings(steps=50, noise=0.1), y, 0.1)) - truth
    assert float(hard.std()) == pytest.approx(0.1, rel=0.1)
    assert float(soft.std()) < 0.06


def test_in_latents_masks_and_tolerances_are_kept_too():
    """Where the view says nothing the image is the prior's; elsewhere y is met, up to the tolerance and not nearer."""
    y, mask = KERNEL.down(_truth()), torch.ones(KERNEL.lr_size[::-1], dtype=torch.bool)
    mask[:, : mask.shape[1] // 2] = False

    def errors(**given):
        prior = Smooth(sd3_space(12))
        image = ddnm_flow(prior, Cond(), KERNEL, generator(0), steps=3, strength=1.0, lr=y, **given)
        return (KERNEL.down(image) - y).abs().amax((0, 1))

    masked = errors(mask=mask)
    assert masked[mask].max() < 1e-6
    assert masked[~mask].max() > 1e-2
    prior = Smooth(sd3_space(7))  # lossy, so that the last projection has something to do
    image = ddnm_flow(prior, Cond(), KERNEL, generator(0), steps=3, strength=1.0, lr=y, tolerance=1 / 255)
    assert 0.9 / 255 < float((KERNEL.down(image) - y).abs().max()) < 1 / 255 + 1e-6


@pytest.mark.parametrize("sigma", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("noise", [0.0, 0.2, 5.0])
def test_noise_of_the_view_and_fresh_noise_add_up(sigma, noise):
    weight, variance = plus(sigma, 0.7, noise)
    assert 0 <= weight <= 1
    assert variance >= 0
    assert variance + (0.7 * weight * noise) ** 2 == pytest.approx(sigma**2, abs=1e-12)


def test_time_travel_goes_back_to_where_it_began():
    assert visits(3, 1, 1) == [(0, None), (1, None), (2, None)]
    assert visits(3, 2, 2) == [(0, None), (1, 0), (0, None), (1, None), (2, 2), (2, None)]


@pytest.mark.parametrize("wrong", [{"eta": 1.5}, {"noise": -1.0}, {"steps": 0}, {"travel_repeats": 0}])
def test_settings_that_make_no_walk_are_refused(wrong):
    with pytest.raises(UserError, match="expected"):
        Settings(**wrong)


def test_command_line(tmp_path):
    pytest.importorskip("diffusers")
    from tests.priors import tiny_models

    folder = tiny_models.save_sd3(tmp_path / "model")
    truth = torch.rand((3, 13, 18), generator=generator(3)) * 0.5 + 0.25
    write_png(tmp_path / "lr.png", (truth.permute(1, 2, 0) * 255).round().byte().numpy())
    words = ["--model_id", str(folder), "--texts", str(folder / "texts.safetensors"), "--device", "cpu", "--scale", "2"]
    out = tmp_path / "result.png"
    main([*words, "--lr_img_path", str(tmp_path / "lr.png"), "--num_inference_steps", "2", "--savepath", str(out)])
    image = torch.from_numpy(read_image(out)).permute(2, 0, 1)[None] / 255
    assert image.shape == (1, 3, 26, 36)
    lr = LRKernel("bicubic", "renormalise", (36, 26), (18, 13)).down(image)
    assert float((lr - (truth * 255).round() / 255).square().mean().sqrt()) < 1e-3  # diffusion.md, section 2
