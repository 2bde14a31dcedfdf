"""The transform against PyWavelets, its inverse, and what a swap of low bands keeps."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from priors import wavelets
from tests.priors.exact_priors import images, normal
from utils.errors import UserError

WAVELETS, MODES = ("db4", "haar"), ("symmetric", "periodization")
EVERY = pytest.mark.parametrize(("wavelet", "mode"), [(w, m) for w in WAVELETS for m in MODES])


@given(st.integers(1, 40), st.integers(1, 40), st.sampled_from(WAVELETS), st.sampled_from(MODES), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_every_size_is_reconstructed(height, width, wavelet, mode, level):
    image = normal(2, height, width, seed=height + 41 * width)
    levels = wavelets.decompose(image, wavelet, level, mode)
    assert torch.allclose(wavelets.compose(levels, wavelet, mode), image, atol=1e-10)


@EVERY
def test_float32_is_reconstructed(wavelet, mode):
    image = images(1, 3, 75, 64, dtype=torch.float32)
    result = wavelets.synthesise(wavelets.analyse(image, wavelet, mode), wavelet, mode)
    assert (result - image).abs().max() < 1e-5


@EVERY
@pytest.mark.parametrize("size", [(64, 50), (33, 47), (5, 3)])
def test_bands_are_those_of_pywavelets(wavelet, mode, size):
    pywt = pytest.importorskip("pywt")
    image = images(2, 3, *size)
    bands = wavelets.analyse(image, wavelet, mode)
    low, details = pywt.dwt2(image.numpy(), wavelet, mode)
    for ours, theirs in zip((bands.low, *bands.details), (low, *details), strict=True):
        torch.testing.assert_close(ours, torch.from_numpy(theirs), atol=1e-12, rtol=0)


@pytest.mark.parametrize("wavelet", ["db4", "haar", "db2", "bior2.2", "sym8"])
def test_taps_are_those_of_pywavelets(wavelet):
    pywt = pytest.importorskip("pywt")
    theirs, ours = pywt.Wavelet(wavelet), wavelets.taps(wavelet)
    assert ours.analysis == (tuple(theirs.dec_lo), tuple(theirs.dec_hi))
    assert ours.synthesis == (tuple(theirs.rec_lo), tuple(theirs.rec_hi))


def test_low_band_of_the_symmetric_mode_is_longer_than_half():
    assert wavelets.analyse(torch.zeros(800, 16)).low.shape == (403, 11)


def test_gradients_are_those_of_the_definition():
    image = normal(4, 6).requires_grad_()

    def everything(x):
        bands = wavelets.analyse(x, "db4", "symmetric")
        return bands.low, wavelets.synthesise(bands._replace(low=bands.low**2), "db4", "symmetric")

    assert torch.autograd.gradcheck(everything, image)


@EVERY
@pytest.mark.parametrize("level", [1, 2])
def test_swap_gives_the_low_band_of_the_target_in_the_interior(wavelet, mode, level):
    image, target = images(3, 128, 160), images(3, 128, 160, seed=1)
    swapped = wavelets.swap_low_band(image, target, wavelet, level, mode)
    ours, theirs = (wavelets.decompose(x, wavelet, level, mode)[-1].low for x in (swapped, target))
    margin = 8 if mode == "symmetric" else 0
    inside = (..., *[slice(margin, n - margin) for n in ours.shape[-2:]])
    assert torch.allclose(ours[inside], theirs[inside], atol=1e-10)


def test_swap_with_itself_changes_nothing():
    image = images(3, 33, 40)
    assert torch.allclose(wavelets.swap_low_band(image, image, "db4", 2), image, atol=1e-12)


def test_unknown_names_are_refused():
    image = torch.zeros(1, 8, 8)
    with pytest.raises(UserError, match="mode 'zero'; one of symmetric, periodization"):
        wavelets.analyse(image, "db4", "zero")
    with pytest.raises(UserError, match="level 0"):
        wavelets.decompose(image, "db4", 0)
    pytest.importorskip("pywt")
    with pytest.raises(UserError, match="wavelet 'db99'"):
        wavelets.analyse(image, "db99")
