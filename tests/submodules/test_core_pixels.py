"""What a splat gathers from pixels on the way back (core/pixel.h), against autograd of the image's definition."""

import math

import numpy as np
import torch

from gaussian_renderer.reference import blending_weights
from tests.submodules.test_core_formulas import Formulas, assert_close, formulas

__all__ = ["formulas"]  # the fixture
PIXELS = torch.tensor([[0.0, 0.0], [3.0, 1.0], [1.0, 7.0]], dtype=torch.float64)  # as in core_formulas.cpp
LAYERS = 6


def random_layers(n: int = 40, seed: int = 10) -> np.ndarray:
    """[n, 6 * 14 + 3 * 9]: splats (x, y, a, b, c, log2 of the opacity, 8 features), then pixels."""
    r = np.random.default_rng(seed)
    splats = np.concatenate(
        [
            r.normal([1, 2], 3, (n, LAYERS, 2)),
            r.uniform([0.05, -0.2, 0.05], [0.3, 0.2, 0.3], (n, LAYERS, 3)),
            np.log2(r.uniform(0.3, 0.95, (n, LAYERS, 1))),
            r.normal(size=(n, LAYERS, 8)),
        ],
        axis=2,
    )
    splats[: n // 3, 1:3, 2:5] = 0  # these cover all pixels: capped, and where they end
    splats[: n // 3, 1:3, 5] = np.log2([0.997, 0.98])
    pixels = r.normal(size=(n, 3, 9))
    return np.hstack([splats.reshape(n, -1), pixels.reshape(n, -1)]).astype(np.float32).astype(np.float64)


def sums_by_autograd(x: np.ndarray) -> np.ndarray:
    """The 16 sums of each splat [n, 6, 16] from derivatives of the image with respect to alpha, colour and position."""
    splats, pixels = (torch.from_numpy(part) for part in np.split(x, [LAYERS * 14], axis=1))
    s, q = splats.reshape(-1, LAYERS, 14), pixels.reshape(-1, 3, 9)
    features = s[..., None, 6:].expand(-1, -1, 3, -1).clone().requires_grad_()  # [n, layers, pixels, 8]
    centre = s[..., None, :2].expand(-1, -1, 3, -1).clone().requires_grad_()
    a, b, c, log2_opacity = (v[..., None] for v in s[..., 2:6].unbind(-1))
    dx, dy = (PIXELS - centre).unbind(-1)
    u, v = a * dx + b * dy, c * dy
    log_alpha = (math.log(2) * (log2_opacity - u * u - v * v)).requires_grad_()
    log_alpha.retain_grad()
    weights, transmittance = blending_weights(log_alpha.exp().transpose(0, 1).flatten(1))
    weights, transmittance = weights.reshape(LAYERS, -1, 3).transpose(0, 1), transmittance.reshape(-1, 3)
    ((weights * (features * q[:, None, :, :8]).sum(-1)).sum() + (transmittance * q[..., 8]).sum()).backward()
    assert log_alpha.grad is not None
    assert centre.grad is not None
    assert features.grad is not None
    z, u, v = log_alpha.grad, u.detach(), v.detach()
    moments = [(z * f).sum(-1) for f in (torch.ones_like(u), u, v, u * u, u * v, v * v)]
    of_features = [features.grad[..., k].sum(-1) for k in range(8)]
    # d ln(alpha) / d centre = 2 ln(2) (a u, b u + c v)
    x_px, y_px = centre.grad.abs().sum(2).unbind(-1)
    absolute = [x_px / (2 * math.log(2) * a[..., 0].abs().clamp(min=1e-30)), y_px / (2 * math.log(2))]
    return torch.stack([*moments, *of_features, *absolute], -1).numpy()


def test_sums_of_splats_over_pixels(formulas: Formulas):
    """Through buckets of two, each begun at what is known behind it; some pixels end before the last bucket."""
    x = random_layers()
    wanted = sums_by_autograd(x).reshape(len(x), -1)
    got, single = (formulas("pixel_gradient", x.astype(t), LAYERS * 16) for t in (np.float64, np.float32))
    assert (wanted[: len(x) // 3].reshape(-1, LAYERS, 16)[:, 4:, :6] == 0).any()
    assert_close(got, wanted, 1e-6)  # 2^x is a polynomial of 1.5e-7
    assert_close(single, got, 2e-5)
