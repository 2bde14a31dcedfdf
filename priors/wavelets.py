"""Separable discrete wavelet transforms in torch, differentiable, with PyWavelets' coefficients and conventions.

One axis of length n, taps of length L: approximation and detail are sum_j taps[j] x[2 k + 1 - j] of the signal
continued by half-sample symmetry, floor((n + L - 1) / 2) each ("symmetric"), or sum_j taps[j] x[2 k + L/2 - j] of the
signal as a period, ceil(n / 2) each, an odd signal first longer by its last sample ("periodization"). Mallat 1989.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import conv1d, conv_transpose1d

from priors.extra import needed
from utils.errors import UserError

MODES = ("symmetric", "periodization")
# Low-pass synthesis taps of the orthogonal wavelets that need no package (Daubechies 1992, table 6.1).
SYNTHESIS = {
    "haar": (0.7071067811865476, 0.7071067811865476),
    "db4": (
        *(0.2303778133088965, 0.7148465705529157, 0.6308807679298589, -0.027983769416859854),
        *(-0.18703481171909309, 0.030841381835560764, 0.0328830116668852, -0.010597401785069032),
    ),
}
Image = Float[Tensor, "*batch H W"]


class Taps(NamedTuple):
    """Low- and high-pass taps of analysis and synthesis, all of one even length."""

    analysis: tuple[tuple[float, ...], tuple[float, ...]]
    synthesis: tuple[tuple[float, ...], tuple[float, ...]]


class Bands(NamedTuple):
    """One level of an image: the low band, details of rows, of columns, of both (PyWavelets' cA, cH, cV, cD).

    size : (H, W) of the image, which odd sides do not give away.
    """

    low: Tensor
    details: tuple[Tensor, Tensor, Tensor]
    size: tuple[int, int]


@lru_cache(maxsize=16)
def taps(wavelet: str) -> Taps:
    """Taps by PyWavelets' name; "haar" and "db4" without that package.

    Raises
    ------
    UserError : the name is not known, or PyWavelets is needed and not installed.
    """
    if wavelet in SYNTHESIS:
        low = SYNTHESIS[wavelet]
        high = tuple(-v if k % 2 else v for k, v in enumerate(reversed(low)))  # quadrature mirror
        return Taps((low[::-1], high[::-1]), (low, high))
    pywt = needed("pywt")
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise UserError(f"wavelet {wavelet!r}: a discrete one of PyWavelets is expected, as haar or db4")
    known = pywt.Wavelet(wavelet)
    return Taps((tuple(known.dec_lo), tuple(known.dec_hi)), (tuple(known.rec_lo), tuple(known.rec_hi)))


def analyse(image: Image, wavelet: str = "db4", mode: str = "symmetric") -> Bands:
    """One level of the transform of the last two axes.

    Raises
    ------
    UserError : unknown wavelet or mode.
    """
    _check(mode)
    low, high = (rows.mT for rows in _split(image.mT, wavelet, mode))
    (a, v), (h, d) = _split(low, wavelet, mode), _split(high, wavelet, mode)
    return Bands(a, (h, v, d), (image.shape[-2], image.shape[-1]))


def synthesise(bands: Bands, wavelet: str = "db4", mode: str = "symmetric") -> Image:
    """The image of one level, the inverse of `analyse`. Raises UserError as `analyse`."""
    _check(mode)
    h, v, d = bands.details
    low = _merged(bands.low, v, wavelet, mode, bands.size[1])
    high = _merged(h, d, wavelet, mode, bands.size[1])
    return _merged(low.mT, high.mT, wavelet, mode, bands.size[0]).mT


def decompose(image: Image, wavelet: str = "db4", level: int = 1, mode: str = "symmetric") -> list[Bands]:
    """Levels from the finest on, each of the low band of the one before.

    Raises
    ------
    UserError : unknown wavelet or mode, or level < 1.
    """
    check(wavelet, level, mode)
    levels = [analyse(image, wavelet, mode)]
    for _ in range(level - 1):
        levels.append(analyse(levels[-1].low, wavelet, mode))
    return levels


def compose(levels: list[Bands], wavelet: str = "db4", mode: str = "symmetric") -> Image:
    """The image of levels from the finest on; only the coarsest one's low band is read."""
    low = levels[-1].low
    for bands in reversed(levels):
        low = synthesise(bands._replace(low=low), wavelet, mode)
    return low


def swap_low_band(image: Image, target: Image, wavelet: str = "db4", level: int = 1, mode: str = "symmetric") -> Image:
    """The details of the image on the low band of the target, both of one size.

    Notes
    -----
    The low band of the result is the target's in the interior; near borders only with "periodization" and even sides,
    since the symmetric bands of an image are dependent there.
    """
    levels = decompose(image, wavelet, level, mode)
    levels[-1] = levels[-1]._replace(low=decompose(target, wavelet, level, mode)[-1].low)
    return compose(levels, wavelet, mode)


def check(wavelet: str, level: int, mode: str) -> None:
    """Raises UserError: one of them is not known, or PyWavelets is needed and not installed."""
    taps(wavelet)
    _check(mode)
    if level < 1:
        raise UserError(f"wavelet level {level}: at least 1")


def _check(mode: str) -> None:
    if mode not in MODES:
        raise UserError(f"wavelet mode {mode!r}; one of {', '.join(MODES)} is expected")


def _split(x: Float[Tensor, "*batch n"], wavelet: str, mode: str) -> tuple[Tensor, Tensor]:
    """Approximation and detail along the last axis."""
    filters = x.new_tensor(taps(wavelet).analysis)[:, None].flip(-1)  # [2, 1, L]
    n, length = x.shape[-1], filters.shape[-1]
    if mode == "symmetric":
        count, first = (n + length - 1) // 2, 2 - length
    else:
        count, first = (n + 1) // 2, 1 - length // 2
    at = torch.arange(first, first + 2 * count + length - 2, device=x.device)
    if mode == "symmetric":
        at = at % (2 * n)  # a reflected signal has period 2 n
        at = torch.where(at < n, at, 2 * n - 1 - at)
    else:
        at = (at % (2 * count)).clamp(max=n - 1)
    bands = conv1d(x.reshape(-1, 1, n)[..., at], filters, stride=2)  # [N, 2, count]
    low, high = bands.unbind(1)
    return low.reshape(*x.shape[:-1], count), high.reshape(*x.shape[:-1], count)


def _merged(low: Float[Tensor, "*batch m"], high: Float[Tensor, "*batch m"], wavelet: str, mode: str, n: int) -> Tensor:
    """The signal of length n of its approximation and detail, along the last axis."""
    filters = low.new_tensor(taps(wavelet).synthesis)[:, None]  # [2, 1, L]
    count, length = low.shape[-1], filters.shape[-1]
    both = torch.stack([low, high], -2).reshape(-1, 2, count)
    full = conv_transpose1d(both, filters, stride=2)[:, 0]  # [N, 2 count + L - 2]
    if mode == "symmetric":
        signal = full[:, length - 2 :]
    else:
        at = (torch.arange(full.shape[-1], device=low.device) - (length // 2 - 1)) % (2 * count)
        signal = full.new_zeros(len(full), 2 * count).index_add(1, at, full)
    return signal[:, :n].reshape(*low.shape[:-1], n)
