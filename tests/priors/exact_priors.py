"""Priors and autoencoders whose answers are known in closed form."""

from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch.nn.functional import pixel_shuffle, pixel_unshuffle

from priors.interfaces import Cond, StepContext
from priors.spaces import LatentSpace, PixelSpace
from utils.rng import generator


@dataclass(eq=False)
class Perfect:
    """Knows the image, whatever it is shown."""

    process: object
    truth: torch.Tensor
    space: object = PixelSpace()

    def x0(self, x_t, t, cond):
        return self.truth.expand_as(x_t)


@dataclass(eq=False)
class Gaussian:
    """Data N(mean, cov) over all C h w elements: E[x0 | x_t], and one network's call a step is counted."""

    process: object
    mean: torch.Tensor  # [n]
    cov: torch.Tensor  # [n, n]
    space: object = PixelSpace()

    def x0(self, x_t, t, cond):
        a, _, s = self.process.coefficients(t)
        marginal = a * a * self.cov + s * s * torch.eye(len(self.mean), dtype=self.cov.dtype)
        gain = a * torch.linalg.solve(marginal, self.cov).T  # cov marginal^-1
        return (self.mean + (x_t.flatten(1) - a * self.mean) @ gain.T).reshape(x_t.shape)


class LinearVAE:
    """Blocks of 2 x 2 px through a matrix: invertible with 12 channels, lossy with fewer; its latents are shifted."""

    dtype = torch.float64

    def __init__(self, channels=12, seed=0):
        mix = torch.randn(12, 12, dtype=torch.float64, generator=generator(seed, "vae"))
        self.mix = torch.linalg.qr(mix).Q[:channels]  # [channels, 12], orthonormal rows
        self.config = SimpleNamespace(latent_channels=channels, block_out_channels=(8, 8))

    def encode(self, image):
        latents = torch.einsum("cd,bdhw->bchw", self.mix, pixel_unshuffle(image, 2)) + 0.3
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: latents))

    def decode(self, z):
        return SimpleNamespace(sample=pixel_shuffle(torch.einsum("cd,bchw->bdhw", self.mix, z - 0.3), 2))


def sd3_space(channels=12, **tiles):
    """With the scale and shift of Stable Diffusion 3."""
    return LatentSpace(LinearVAE(channels), 1.5305, 0.0609, **tiles)


def context(prior, cond=None, index=0, steps=10):
    """Of a step whose times do not matter."""
    return StepContext(prior, cond or Cond(), index, steps, 0.5, 0.4)


def images(*shape, seed=0, dtype=torch.float64):
    """Uniform in 0-1."""
    return torch.rand(shape, dtype=dtype, generator=generator(seed, "images"))


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype, generator=generator(seed, "normal"))
