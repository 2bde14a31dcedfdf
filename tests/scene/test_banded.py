"""Bands: the dense product in fewer operations, its own gradient, and a pseudo-inverse that stays exact."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.banded import Band, separable
from scene.lr_kernel import LRKernel, resample_matrix
from utils.rng import generator

CPU = torch.device("cpu")


def band(n_out: int, n_in: int, dtype: torch.dtype = torch.float64) -> Band:
    small, large = sorted((n_out, n_in))
    matrix = resample_matrix(large, small, "bicubic", "mirror")
    return Band.of(matrix if n_out < n_in else matrix.T, dtype, CPU)


@given(st.integers(1, 150), st.integers(1, 150), st.integers(1, 150), st.integers(1, 150), st.integers(0, 9))
@settings(max_examples=40, deadline=None)
def test_is_the_dense_product(h, height, w, width, seed):
    draws = np.random.default_rng(seed)
    y, x = draws.standard_normal((h, height)), draws.standard_normal((w, width))
    y[:, : height // 2], x[: w // 2] = 0.0, 0.0  # columns and whole blocks of rows that hold nothing
    image = draws.standard_normal((2, height, width))
    found = separable(torch.from_numpy(image), Band.of(y, torch.float64, CPU), Band.of(x, torch.float64, CPU))
    np.testing.assert_allclose(found.numpy(), y @ image @ x.T, atol=1e-10)


@pytest.mark.parametrize("sizes", [(3, 8, 20, 70), (20, 70, 3, 8), (5, 5, 9, 4)])
def test_gradients_are_those_of_the_product(sizes):
    h, height, w, width = sizes
    y, x = band(h, height), band(w, width)
    image = torch.randn(1, height, width, dtype=torch.float64, generator=generator(0), requires_grad=True)
    assert torch.autograd.gradcheck(lambda i: separable(i, y, x), (image,))
    assert torch.autograd.gradgradcheck(lambda i: separable(i, y, x) ** 2, (image,))


def test_most_of_the_zeros_are_gone():
    kept = band(200, 800)
    for blocks in (kept.rows, kept.transposed):
        assert sum(block.weight.numel() for block in blocks) < 800 * 200 / 8


@pytest.mark.parametrize(("kernel", "border"), [("bicubic", "renormalise"), ("bicubic", "mirror"), ("area", "mirror")])
@pytest.mark.parametrize(("hr", "lr"), [((800, 533), (200, 133)), ((401, 300), (133, 38))])
def test_the_pseudo_inverse_is_exact(kernel, border, hr, lr):
    operator = LRKernel(kernel, border, hr, lr)
    y = torch.rand(3, lr[1], lr[0], dtype=torch.float64, generator=generator(0))
    x = torch.rand(3, hr[1], hr[0], dtype=torch.float64, generator=generator(1))
    assert (operator.down(operator.pinv(y)) - y).abs().max() < 1e-10
    single = operator.project(x.float(), y.float())
    assert (operator.down(single) - y.float()).abs().max() < 2e-6
    assert torch.equal(single, operator.project(x.float(), y.float()))
