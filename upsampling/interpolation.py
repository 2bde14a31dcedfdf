"""Weight-free upsampling: separable cubic (a = -1/2) and Lanczos-3 filters, borders mirrored as MATLAB's imresize."""

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from arguments.upsampling import UpsamplingParams
from scene.lr_kernel import keys_cubic
from upsampling.alignment import Alignment
from upsampling.registry import State, Upsampler, network

Kernel = Callable[[np.ndarray], np.ndarray]
LANCZOS_LOBES = 3


def lanczos(t: np.ndarray) -> np.ndarray:
    """sinc(t) sinc(t / 3) inside |t| < 3 (Duchon 1979)."""
    return np.where(np.abs(t) < LANCZOS_LOBES, np.sinc(t) * np.sinc(t / LANCZOS_LOBES), 0.0)


KERNELS: dict[str, tuple[Kernel, int]] = {"bicubic": (keys_cubic, 2), "lanczos": (lanczos, LANCZOS_LOBES)}


@lru_cache(maxsize=64)
def interpolation_matrix(n: int, scale: int, kernel: str) -> Float[np.ndarray, "m n"]:
    """One axis: [scale * n, n], each row the weights of one output pixel, summing to 1."""
    function, support = KERNELS[kernel]
    centre = (np.arange(scale * n)[:, None] + 0.5) / scale - 0.5  # in input pixels
    taps = np.floor(centre).astype(int) + np.arange(1 - support, 1 + support)[None, :]
    weights = function(centre - taps)
    period = taps % (2 * n)  # a mirrored image repeats after twice its length
    matrix = np.zeros((scale * n, n))
    rows = np.broadcast_to(np.arange(scale * n)[:, None], taps.shape)
    np.add.at(matrix, (rows, np.where(period < n, period, 2 * n - 1 - period)), weights)
    return matrix / matrix.sum(axis=1, keepdims=True)


class Interpolation:
    """A filter as an Upsampler; any scale >= 1."""

    num_neighbours = 0

    def __init__(self, kernel: str, scale: int, device: torch.device) -> None:
        self.kernel, self.scale, self.device = kernel, scale, device

    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See registry.Upsampler. Computed in float64, rounded once: flat areas stay exactly flat."""
        rows, cols = (
            torch.tensor(interpolation_matrix(n, self.scale, self.kernel), device=frames.device)
            for n in frames.shape[-2:]
        )
        for frame in frames:
            yield (rows @ frame.double() @ cols.T).float()


@network("bicubic")
def load_bicubic(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    return Interpolation("bicubic", settings.scale, device)


@network("lanczos")
def load_lanczos(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    return Interpolation("lanczos", settings.scale, device)
