"""Spherical harmonics against scipy's complex ones, and the colour clamp."""

import numpy as np
import pytest
import torch
from scipy.special import sph_harm_y

from gaussian_renderer import sh


def directions(n: int = 200) -> torch.Tensor:
    d = torch.randn(n, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return d / d.norm(dim=1, keepdim=True)


def test_basis_is_the_real_combination_of_the_complex_functions() -> None:
    d = directions()
    theta, phi = np.arccos(d[:, 2].numpy()), np.arctan2(d[:, 1].numpy(), d[:, 0].numpy())
    expected = []
    for degree in range(4):
        for m in range(-degree, degree + 1):
            value = sph_harm_y(degree, abs(m), theta, phi)  # Condon-Shortley phase included
            expected.append(value.real if m == 0 else np.sqrt(2) * (value.imag if m < 0 else value.real))
    np.testing.assert_allclose(sh.basis(d, 3).numpy(), np.stack(expected, 1), atol=1e-14)


@pytest.mark.parametrize("degree", range(4))
def test_lower_degrees_are_the_first_columns(degree: int) -> None:
    d = directions()
    assert torch.equal(sh.basis(d, degree), sh.basis(d, 3)[:, : (degree + 1) ** 2])


def test_bands_have_rotation_invariant_energy() -> None:
    values = sh.basis(directions(), 3)
    for degree in range(4):  # Unsoeld's theorem: sum over m of Y^2 = (2l + 1) / (4 pi)
        energy = values[:, degree**2 : (degree + 1) ** 2].square().sum(1)
        torch.testing.assert_close(energy, torch.full_like(energy, (2 * degree + 1) / (4 * np.pi)))


def test_clamped_channels_get_no_gradient() -> None:
    coefficients = torch.zeros(1, 16, 3, dtype=torch.float64)
    coefficients[0, 0] = torch.tensor([1.0, -2.0, -1.0])  # -2 * C0 + 0.5 < 0 < -C0 + 0.5
    coefficients.requires_grad_()
    colors = sh.colors_from_sh(coefficients, directions(1), 3)
    colors.sum().backward()
    assert colors[0, 1] == 0
    assert float(colors[0, 0].detach()) == pytest.approx(0.5 + sh.C0)
    assert coefficients.grad is not None
    assert (coefficients.grad[0, :, 1] == 0).all()
    assert coefficients.grad[0, 0].tolist() == pytest.approx([sh.C0, 0, sh.C0])


@pytest.mark.parametrize("degree", [-1, 4])
def test_refuses_other_degrees(degree: int) -> None:
    with pytest.raises(ValueError, match="need 0 to 3"):
        sh.basis(directions(), degree)
