"""Lenses taken out: every pixel of the pinhole shows what the distorted camera saw in that direction."""

import numpy as np
import pytest

from scene.cameras import intrinsics
from scene.undistort import Distortion, undistortion
from utils.errors import UserError

SIZE = (160, 120)
K = intrinsics(150.0, 148.0, 78.0, 61.0)
LENSES = [
    Distortion((-0.06, 0.0, 0.0, 0.0)),
    Distortion((0.12, 0.02, 0.0, 0.0)),
    Distortion((-0.08, 0.02, 7e-4, -4e-4)),
    Distortion((0.05, 0.01, 1e-3, 1e-3, 0.002, 0.01, 0.0, 0.0)),
    Distortion((0.05, -0.01, 0.002, 0.0), fisheye=True),
]


def distort(u, v, lens: Distortion):
    """The camera models as COLMAP defines them, written out."""
    if lens.fisheye:
        k1, k2, k3, k4 = lens.coefficients
        r = np.hypot(u, v)
        theta = np.arctan(r)
        bent = theta * (1 + k1 * theta**2 + k2 * theta**4 + k3 * theta**6 + k4 * theta**8)
        factor = np.where(r > 1e-12, bent / np.maximum(r, 1e-12), 1.0)
        return u * factor, v * factor
    k1, k2, p1, p2, k3, k4, k5, k6 = (*lens.coefficients, *(0.0,) * (8 - len(lens.coefficients)))
    r2 = u * u + v * v
    radial = (1 + k1 * r2 + k2 * r2**2 + k3 * r2**3) / (1 + k4 * r2 + k5 * r2**2 + k6 * r2**3)
    return (
        u * radial + 2 * p1 * u * v + p2 * (r2 + 2 * u * u),
        v * radial + 2 * p2 * u * v + p1 * (r2 + 2 * v * v),
    )


def ground(u, v):
    """A smooth picture of directions, 0-255."""
    return 127.5 + 60 * np.sin(9 * u + 2 * v) + 60 * np.cos(3 * u - 8 * v)


def rays(matrix):
    y, x = np.mgrid[: SIZE[1], : SIZE[0]] + 0.5  # corner origin
    return (x - matrix[0, 2]) / matrix[0, 0], (y - matrix[1, 2]) / matrix[1, 1]


def photograph(lens: Distortion) -> np.ndarray:
    """What the distorted camera sees: each pixel's ray found by fixed-point iteration of the model."""
    target_u, target_v = rays(K)
    u, v = target_u.copy(), target_v.copy()
    for _ in range(200):
        bent_u, bent_v = distort(u, v, lens)
        u, v = u + target_u - bent_u, v + target_v - bent_v
    assert np.abs(np.stack(distort(u, v, lens)) - [target_u, target_v]).max() < 1e-10
    return np.repeat(np.rint(ground(u, v))[..., None], 3, axis=2).astype(np.uint8)


@pytest.mark.parametrize("lens", LENSES)
def test_the_pinhole_sees_the_true_directions(lens):
    change = undistortion(K, SIZE, lens, "here")
    got = change.apply(photograph(lens))[..., 0].astype(float)
    error = np.abs(got - ground(*rays(change.K_pinhole)))
    # 8-bit rounding twice plus bicubic interpolation; a half-pixel mistake of the origin gives 2 to 4 grey levels.
    assert error[2:-2, 2:-2].mean() < 0.5
    assert error.max() < 3.0


@pytest.mark.parametrize("lens", LENSES)
def test_every_pixel_has_a_source_and_no_more_zoom_than_needed(lens):
    change = undistortion(K, SIZE, lens, "here")
    fx, fy, cx, cy = change.K_pinhole[0, 0], change.K_pinhole[1, 1], change.K_pinhole[0, 2], change.K_pinhole[1, 2]
    assert (cx, cy) == (K[0, 2], K[1, 2])
    assert fx / K[0, 0] == pytest.approx(fy / K[1, 1])
    u, v = distort(*rays(change.K_pinhole), lens)
    x, y = u * K[0, 0] + cx, v * K[1, 1] + cy
    slack = min(x.min(), y.min(), SIZE[0] - x.max(), SIZE[1] - y.max())
    assert slack >= -1e-4
    if fx > K[0, 0] * (1 + 1e-9):
        assert slack < 1e-2


def test_barrel_lens_keeps_the_focal_length():
    assert np.array_equal(undistortion(K, SIZE, LENSES[0], "here").K_pinhole, K)


def test_alpha_is_premultiplied():
    image = np.zeros((SIZE[1], SIZE[0], 4), np.uint8)
    image[:, 80:] = (200, 100, 50, 255)
    hidden = image.copy()
    hidden[:, :80, :3] = 255
    change = undistortion(K, SIZE, LENSES[1], "here")
    assert np.array_equal(change.apply(image), change.apply(hidden))


def test_impossible_lens_names_the_camera():
    with pytest.raises(UserError, match=r"camera 4: distortion .* cannot be undone"):
        undistortion(K, SIZE, Distortion((1e6, 0.0, 0.0, 0.0)), "camera 4")
