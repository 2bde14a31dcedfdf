"""Spaces: encoding and its inverse, the mode, tiles that blend without a trace where the autoencoder is local."""

from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import avg_pool2d, interpolate

from priors.interfaces import Space
from priors.spaces import LatentSpace, PixelSpace, padded, spans, tiled
from tests.priors.exact_priors import LinearVAE, images, sd3_space
from utils.errors import UserError


def test_pixels_are_minus_one_to_one():
    space, image = PixelSpace(), images(2, 3, 4, 5)
    assert isinstance(space, Space)
    assert torch.equal(space.encode(image), 2 * image - 1)
    assert torch.allclose(space.decode(space.encode(image)), image, atol=1e-15)


def test_scale_and_shift_of_sd3_cancel():
    space, image = sd3_space(), images(2, 3, 8, 12)
    assert isinstance(space, Space)
    assert (space.channels, space.factor) == (12, 2)
    assert torch.allclose(space.decode(space.encode(image)), image, atol=1e-6)


def test_latents_are_shifted_then_scaled():
    space, image = sd3_space(4), images(1, 3, 8, 8)
    mode = LinearVAE(4).encode(2 * image - 1).latent_dist.mode()
    assert torch.allclose(space.encode(image), (mode - 0.0609) * 1.5305, atol=1e-14)


def test_networks_work_in_their_own_precision():
    class Quantised(LinearVAE):
        """Of a VQ family: latents without a distribution; float64 inside."""

        def encode(self, image):
            assert image.dtype == torch.float64
            return SimpleNamespace(latents=super().encode(image).latent_dist.mode())

    space, image = LatentSpace(Quantised()), images(1, 3, 8, 8, dtype=torch.float32)
    assert space.encode(image).dtype == torch.float32
    assert torch.allclose(space.decode(space.encode(image)), image, atol=1e-6)


@pytest.mark.parametrize("size", [(64, 64), (40, 90), (34, 22)])
def test_tiles_of_a_local_autoencoder_do_not_show(size):
    whole, cut = sd3_space(5), sd3_space(5, tile_px=24, overlap_px=8)
    image = images(2, 3, *size)
    z = whole.encode(image)
    assert torch.allclose(cut.encode(image), z, atol=1e-12)
    assert torch.allclose(cut.decode(z), whole.decode(z), atol=1e-12)


def test_gradients_pass_through_tiles():
    whole, cut = sd3_space(5), sd3_space(5, tile_px=24, overlap_px=8)
    slopes = []
    for space in (whole, cut):
        image = images(1, 3, 40, 32).requires_grad_()
        (space.encode(image) ** 2).sum().backward()
        slopes.append(image.grad)
    assert torch.allclose(*slopes, atol=1e-12)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 19), st.sampled_from([1, 2, 3]))
@settings(max_examples=200, deadline=None)
def test_tiles_cover_everything_and_overlap_as_asked(size, tile, overlap, step):
    size, tile, overlap = size * step, tile * step, min(overlap, tile - 1) * step
    found = spans(size, tile, overlap, step)
    assert (found[0][0], found[-1][1]) == (0, size)
    assert all(first % step == 0 and end - first == min(tile, size) for first, end in found)
    assert all(a[1] - b[0] >= overlap and a[0] < b[0] for a, b in pairwise(found))


@pytest.mark.parametrize(("shrink", "grow"), [(1, 1), (4, 1), (1, 4)])
def test_blending_weights_sum_to_one(shrink, grow):
    def apply(x):
        return interpolate(avg_pool2d(x, shrink), scale_factor=grow)

    result = tiled(apply, torch.ones(1, 2, 44, 60), 16, 8, shrink=shrink, grow=grow)
    assert result.shape == (1, 2, 44 * grow // shrink, 60 * grow // shrink)
    assert torch.allclose(result, torch.ones(()), atol=1e-6)


def test_blending_trusts_the_middle_of_tiles():
    """Tiles that are wrong at their borders alone."""

    def apply(x):
        y = x.clone()
        y[..., 0], y[..., -1] = 100.0, 100.0
        return y

    result = tiled(apply, torch.zeros(1, 1, 16, 64, dtype=torch.float64), 16, 8)
    assert result[..., 1:-1].abs().max() < 0.5  # 100 exp(-0.5 (0.47^2 - 0.03^2) / 0.01) at most
    assert (result[..., 0] == 100).all()  # where no other tile looks


def test_padding_repeats_the_border():
    image = images(1, 3, 5, 8)
    wide = padded(image, 4)
    assert wide.shape[-2:] == (8, 8)
    assert torch.equal(wide[..., :5, :], image)
    assert torch.equal(wide[..., 5:, :], image[..., -1:, :].expand(1, 3, 3, 8))


def test_sizes_that_latents_cannot_hold_are_refused():
    with pytest.raises(UserError, match="7x8 px has no latents: sides must be multiples of 2 px"):
        sd3_space().encode(torch.zeros(1, 3, 8, 7))
    for tiles in ({"tile_px": 15}, {"tile_px": 16, "overlap_px": 16}, {"tile_px": 16, "overlap_px": 3}):
        with pytest.raises(UserError, match="multiples of 2 px with overlap < tile"):
            sd3_space(**tiles)


@pytest.fixture(scope="module")
def small_vae():
    """An AutoencoderKL like Stable Diffusion 3's, tiny and untrained."""
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    blocks = ("DownEncoderBlock2D",) * 2, ("UpDecoderBlock2D",) * 2
    return diffusers.AutoencoderKL(
        down_block_types=blocks[0],
        up_block_types=blocks[1],
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        sample_size=16,
    ).eval()


@torch.no_grad()
def test_a_diffusers_autoencoder_is_taken_as_it_is(small_vae):
    space = LatentSpace(small_vae, 1.5305, 0.0609)
    image = images(1, 3, 16, 24, dtype=torch.float32)
    assert (space.channels, space.factor) == (4, 2)
    mean = small_vae.encode(2 * image - 1).latent_dist.mean  # the mode, never a sample
    assert torch.allclose(space.encode(image), (mean - 0.0609) * 1.5305, atol=1e-6)
    assert space.decode(space.encode(image)).shape == image.shape
