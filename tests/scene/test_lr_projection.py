"""Consistency with LR at real sizes: the matrices against Pillow, the pseudo-inverse, and projection within bounds."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scene.lr_kernel import LRKernel, resample_matrix

SIZES = [(256, 128), (240, 80), (256, 64), (256, 32), (1237, 309)]


def image(*shape, seed=0, dtype=torch.float64):
    return torch.rand(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
@pytest.mark.parametrize(("name", "filter_"), [("bicubic", Image.Resampling.BICUBIC), ("area", Image.Resampling.BOX)])
def test_matrices_are_pillows_float_filters(n_in, n_out, name, filter_):
    if name == "area" and n_in % n_out:
        n_out = n_in  # Pillow's box counts whole pixels, the area is exact: equal for whole factors alone
    x = np.random.default_rng(0).random((3, n_in)).astype(np.float32)
    expected = np.asarray(Image.fromarray(x).resize((n_out, 3), filter_))
    np.testing.assert_allclose(x @ resample_matrix(n_in, n_out, name, "renormalise").T, expected, atol=1e-6)


@pytest.mark.parametrize(("n_in", "n_out"), SIZES)
@pytest.mark.parametrize(("name", "border"), [("bicubic", "renormalise"), ("bicubic", "mirror"), ("area", "mirror")])
def test_pinv_is_a_right_inverse_and_the_null_space_projector_idempotent(n_in, n_out, name, border):
    matrix = torch.tensor(resample_matrix(n_in, n_out, name, border))
    inverse = pinv_matrix(n_in, n_out, name, border)
    assert (matrix @ inverse - torch.eye(n_out, dtype=torch.float64)).abs().max() < 1e-10
    null = torch.eye(n_in, dtype=torch.float64) - inverse @ matrix
    assert (null @ null - null).abs().max() < 1e-10


def pinv_matrix(n_in, n_out, name, border):
    """A^+ of one axis, [n_in, n_out]: what `pinv` does to unit vectors, with 1 px along the other axis."""
    rows = torch.eye(n_out, dtype=torch.float64)[:, None]  # [n_out, 1, n_out]
    return LRKernel(name, border, (n_in, 1), (n_out, 1)).pinv(rows)[:, 0].T


@pytest.mark.parametrize(
    ("factor", "largest", "smallest"),
    [(2, 0.7096, 0.4867), (3, 0.5805, 0.4043), (4, 0.5031, 0.3498), (8, 0.3559, 0.2501)],
)
def test_bicubic_is_well_conditioned(factor, largest, smallest):
    values = np.linalg.svd(resample_matrix(96 * factor, 96, "bicubic", "renormalise"), compute_uv=False)
    assert values[[0, -1]] == pytest.approx([largest, smallest], rel=0.02)  # the smallest falls a little with the size


@pytest.mark.parametrize("factor", [2, 3, 4, 8])
def test_float32_projection(factor):
    kernel = LRKernel("bicubic", "renormalise", (48 * factor, 40 * factor), (48, 40))
    x, y = image(3, 40 * factor, 48 * factor, dtype=torch.float32), image(3, 40, 48, seed=1, dtype=torch.float32)
    projected = kernel.project(x, y)
    assert (kernel.down(projected) - y).abs().max() < 2e-6
    assert (kernel.project(projected, y) - projected).abs().max() < 1e-6
    assert (kernel.project(x, kernel.down(x)) - x).abs().max() < 1e-6  # the truth is consistent


# --- project_soft ---

FOURTH = LRKernel("bicubic", "renormalise", (48, 32), (12, 8))


@given(st.integers(0, 99), st.floats(0, 0.1), st.booleans())
@settings(max_examples=40, deadline=None)
def test_soft_projection_ends_within_the_bounds(seed, tolerance, saturated):
    x = 1.5 * image(3, 32, 48, seed=seed) - 0.25
    y = image(3, 8, 12, seed=seed + 100)
    if saturated:
        y = (2 * y - 0.5).clamp(0, 1)
    now = FOURTH.down(FOURTH.project_soft(x, y, tolerance))
    below, above = y - tolerance - now, now - y - tolerance
    assert below[y > 0].max() < 1e-6
    assert above[y < 1].max() < 1e-6


def test_hard_projection_of_unsaturated_views_is_project():
    x, y = image(3, 32, 48), 0.1 + 0.8 * image(3, 8, 12, seed=1)
    assert torch.allclose(FOURTH.project_soft(x, y), FOURTH.project(x, y), atol=1e-14)


def test_saturated_pixels_allow_what_they_hide():
    white = torch.ones(3, 8, 12, dtype=torch.float64)
    brighter, darker = torch.full((3, 32, 48), 1.3).double(), torch.full((3, 32, 48), 0.9).double()
    assert torch.equal(FOURTH.project_soft(brighter, white), brighter)
    assert torch.allclose(FOURTH.down(FOURTH.project_soft(darker, white)), white, atol=1e-12)
    assert torch.equal(FOURTH.project_soft(-brighter, 0 * white), -brighter)
    assert torch.allclose(FOURTH.down(FOURTH.project_soft(brighter, 0 * white)), 0 * white, atol=1e-12)


@pytest.mark.parametrize("contrast", [0.5, 1.6])
def test_half_a_level_leaves_the_truth_of_a_view_that_was_rounded_once(contrast):
    truth = (0.5 + contrast * (image(3, 32, 48) - 0.5)).repeat_interleave(2, 1)[:, :32]
    y = (FOURTH.down(truth).clamp(0, 1) * 255).round() / 255
    assert torch.allclose(FOURTH.project_soft(truth, y, 0.5 / 255 + 1e-12), truth, atol=1e-12)
    assert not torch.allclose(FOURTH.project_soft(truth, y, 0.4 / 255), truth, atol=1e-5)


def test_masked_pixels_say_nothing():
    x, y = image(3, 32, 48), image(3, 8, 12, seed=1)
    mask = image(8, 12, seed=2) > 0.5
    now = FOURTH.down(FOURTH.project_soft(x, y, 0.0, mask))
    assert torch.allclose(now, torch.where(mask, y, FOURTH.down(x)), atol=1e-12)


def test_gradients_flow_where_bounds_are_not_met():
    x, y = (2 * image(1, 32, 48)).requires_grad_(), 0.2 + 0.6 * image(1, 8, 12, seed=1)
    FOURTH.down(FOURTH.project_soft(x, y)).sum().backward()
    assert x.grad.abs().max() < 1e-12  # hard projection: A x is y whatever x is
