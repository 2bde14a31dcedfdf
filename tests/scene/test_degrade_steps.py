"""The steps of degraded views: kernels, noise, JPEG and geometry as promised, and how their values are drawn."""

import io
import json
import math

import numpy as np
import pytest
from PIL import Image

from arguments.degrade import KINDS, DegradeParams
from scene.alpha import premultiplied
from scene.degrade import drawn_steps
from scene.degrade_kernels import Blur, blur_kernel, blurred
from scene.degrade_presets import PRESETS, drawn
from scene.degrade_steps import Jpeg, Noise, Resize, applied, degraded, from_json, jpeg_bytes, noisy, resized, to_json
from scene.lr_images import lr_image
from scene.lr_kernel import LRKernel
from utils.errors import UserError


def a_blur(kind, rng):
    sigma = (rng.uniform(0.2, 3), rng.uniform(0.2, 3))
    both = sigma if kind.endswith("aniso") else (sigma[0], sigma[0])
    size, angle = int(rng.choice(range(7, 22, 2))), rng.uniform(-math.pi, math.pi)
    return Blur(kind, size, both, angle, rng.uniform(0.5, 4), rng.uniform(math.pi / 5, math.pi))


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_sum_to_one_and_are_point_symmetric(kind):
    rng = np.random.default_rng(0)
    for _ in range(20):
        kernel = blur_kernel(a_blur(kind, rng))
        assert kernel.sum() == pytest.approx(1.0, abs=1e-12)
        np.testing.assert_allclose(kernel, kernel[::-1, ::-1], atol=1e-15)


@pytest.mark.parametrize("sigma", [(0.8, 0.8), (1.6, 1.6), (3.0, 3.0), (3.0, 0.9), (1.2, 2.4)])
def test_sigma_is_that_of_the_second_moments(sigma):
    angle = 0.7
    kind = "iso" if sigma[0] == sigma[1] else "aniso"
    kernel = blur_kernel(Blur(kind, 21, sigma, angle))
    y, x = np.mgrid[:21, :21] - 10.0
    moments = np.array([[(kernel * a * b).sum() for b in (x, y)] for a in (x, y)])
    found = np.sqrt(np.linalg.eigvalsh(moments))
    np.testing.assert_allclose(found, sorted(sigma), rtol=0.02)
    if kind == "aniso":
        main_axis = np.linalg.eigh(moments)[1][:, 1 if sigma[0] > sigma[1] else 0]
        assert abs(main_axis @ [math.cos(angle), math.sin(angle)]) == pytest.approx(1, abs=1e-3)


def test_generalised_with_beta_one_is_the_gaussian():
    gaussian, generalised = (blur_kernel(Blur(kind, 15, (2.0, 1.0), 0.4, 1.0)) for kind in KINDS[1:4:2])
    np.testing.assert_allclose(generalised, gaussian, atol=1e-15)


def test_the_sinc_passes_what_is_below_its_cut_off():
    """Zero phase: gain near 1 well below the cut-off, near 0 well above it; along an axis of a large kernel."""
    kernel = blur_kernel(Blur("sinc", 101, cutoff=math.pi / 2))
    x = np.arange(101) - 50.0
    gains = [float((kernel * np.cos(w * x)[None]).sum()) for w in (math.pi / 4, 3 * math.pi / 4)]
    assert gains == pytest.approx([1, 0], abs=0.03)


def test_blurring_is_the_weighted_sum_over_reflected_neighbours():
    rng = np.random.default_rng(1)
    image, blur = rng.random((9, 6, 3)), Blur("aniso", 7, (2.0, 0.7), 0.5)
    kernel, wide = blur_kernel(blur), np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    expected = np.zeros_like(image)
    for i in range(7):
        for j in range(7):
            expected += kernel[i, j] * wide[i : i + 9, j : j + 6]
    np.testing.assert_allclose(blurred(image, blur), expected, atol=1e-12)


# --- steps ---


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("sigma", [2 / 255, 10 / 255])
def test_gaussian_noise_has_the_sigma_of_the_draw(sigma, grey):
    image = np.full((120, 100, 3), 0.5)
    noise = noisy(image, Noise("gaussian", sigma, grey), np.random.default_rng(0)) - image
    n = noise[..., 0].size * (1 if grey else 3)
    assert abs(noise.std() - sigma) < 3 * sigma / math.sqrt(2 * n)
    assert abs(noise.mean()) < 3 * sigma / math.sqrt(n)
    assert (np.ptp(noise, axis=2) == 0).all() == grey


@pytest.mark.parametrize("grey", [False, True])
def test_poisson_noise_is_that_of_photons_times_its_scale(grey):
    """256 grey levels: 256 photons at white, so the variance at value m is scale^2 m / 256."""
    ramp = np.rint(np.linspace(0, 255, 256)) / 255
    image = np.repeat(np.tile(ramp, (400, 1))[..., None], 3, axis=2)
    scale = 0.5
    noise = noisy(image, Noise("poisson", scale, grey), np.random.default_rng(0)) - image
    for level in (64, 128, 180):  # far from where clipping shows
        columns = noise[:, level]
        n = columns[:, 0].size * (1 if grey else 3)
        expected = scale * math.sqrt(ramp[level] / 256)
        assert abs(columns.std() - expected) < 3 * expected / math.sqrt(2 * n)
    assert (np.ptp(noise, axis=2) < 1e-12).all() == grey


LUMINANCE = (
    "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
    "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
)  # Annex K of the JPEG standard, table K.1


@pytest.mark.parametrize("quality", [10, 30, 50, 75, 95, 100])
def test_the_jpeg_quality_is_honoured(quality):
    """The file's luminance table is Annex K's, scaled as the Independent JPEG Group does; chroma is halved."""
    image = np.random.default_rng(0).random((32, 40, 3))
    percent = 5000 // quality if quality < 50 else 200 - 2 * quality
    expected = [min(max((int(v) * percent + 50) // 100, 1), 255) for v in LUMINANCE.split()]
    with Image.open(io.BytesIO(jpeg_bytes(image, quality))) as opened:
        assert opened.quantization[0] == expected
        assert [layer[1:3] for layer in opened.layer] == [(2, 2), (1, 1), (1, 1)]


@pytest.mark.parametrize("size", [(7, 5), (13, 9), (30, 8), (40, 24), (1, 1)])
def test_area_is_the_mean_over_the_box_at_any_ratio(size):
    image = np.random.default_rng(0).random((9, 13, 3))
    fine = np.repeat(np.repeat(image, size[1], axis=0), size[0], axis=1)  # every box a whole number of parts
    expected = fine.reshape(size[1], 9, size[0], 13, 3).mean((1, 3))
    np.testing.assert_allclose(resized(image, size, "area"), expected, atol=1e-12)


@pytest.mark.parametrize("mode", ["area", "bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(6, 4), (17, 11), (40, 30)])
def test_pixel_centres_stay_where_they_are(mode, size):
    """Resizing commutes with mirroring: nothing is drawn to one side."""
    image = np.random.default_rng(0).random((20, 24, 3))
    mirrored = resized(image[::-1, ::-1], size, mode)[::-1, ::-1]
    np.testing.assert_allclose(mirrored, resized(image, size, mode), atol=1e-12)


@pytest.mark.parametrize("size", [(6, 4), (17, 11), (40, 30)])
def test_a_ramp_over_position_stays_one(size):
    x = (np.arange(24) + 0.5) / 24
    image = np.repeat(np.tile(x, (20, 1))[..., None], 3, axis=2)
    expected = (np.arange(size[0]) + 0.5) / size[0]
    inner = (expected > 0.05) & (expected < 0.95)
    assert np.abs(resized(image, size, "bilinear")[..., 0] - expected)[:, inner].max() < 1e-12


def checkerboard(width, height, cell=16):
    """A checkerboard of soft cells under a bump off the centre, so that its centroid tells of any shift.

    Hard edges, sampled without antialiasing, would move by themselves: that is the degradation, not the geometry.
    """
    y, x = np.mgrid[:height, :width] + 0.5
    board = 0.4 + 0.4 * np.sin(np.pi * x / cell) * np.sin(np.pi * y / cell)
    bump = np.exp(-0.5 * (((x / width - 0.46) / 0.14) ** 2 + ((y / height - 0.55) / 0.13) ** 2))
    return np.repeat((board * bump)[..., None], 3, axis=2)


def centroid(image):
    """Of the first channel, as fractions of the sides."""
    plane = image[..., 0]
    h, w = plane.shape
    return (
        np.array([(plane.sum(0) * (np.arange(w) + 0.5)).sum() / w, (plane.sum(1) * (np.arange(h) + 0.5)).sum() / h])
        / plane.sum()
    )


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkerboard_stays_where_it_is(preset):
    """Every blur and resize of drawn degradations together: under 0.02 LR px. Noise and JPEG have no direction."""
    image = checkerboard(247, 198)
    hr, lr = (247, 198), (61, 49)  # a ratio of its own along each axis
    for seed in range(24):
        found = image
        for step in drawn(PRESETS[preset], np.random.default_rng(seed)):
            if isinstance(step, Blur | Resize):
                found = applied(step, found, hr, lr, np.random.default_rng(0))
        assert found.shape[:2] == (49, 61)
        assert np.abs((centroid(found) - centroid(image)) * lr).max() < 0.02


def test_classical_steps_move_no_checkerboard():
    image = checkerboard(240, 200)
    for resize in ("area", "bilinear", "bicubic", "antialiased"):
        params = DegradeParams(preset="classical", resize=resize, blur="aniso", sigma=(2.0, 1.0))
        found = image
        for step in drawn_steps(params, [])[""]:
            found = applied(step, found, (240, 200), (60, 50), np.random.default_rng(0))
        assert np.abs((centroid(found) - centroid(image)) * (60, 50)).max() < 0.02


# --- whole images ---


def test_only_making_small_is_what_scene_downscale_does():
    image = np.random.default_rng(0).integers(0, 256, (25, 33, 4), dtype=np.uint8)
    kernel = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
    found = degraded(image, (Resize("antialiased"),), (32, 24), (8, 6), 0)
    difference = np.abs(found.astype(int) - lr_image(image, kernel))
    assert difference.max() <= 1  # a product rounded on the other side of a half


def test_alpha_is_only_made_small():
    image = np.random.default_rng(0).integers(0, 256, (24, 32, 4), dtype=np.uint8)
    kernel = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
    steps = (Blur("iso", 9, (2.0, 2.0)), Resize("area"), Noise("gaussian", 0.1), Jpeg(30))
    found = degraded(image, steps, (32, 24), (8, 6), 0)
    assert np.abs(found[..., 3].astype(int) - lr_image(image, kernel)[..., 3]).max() <= 1
    assert np.abs(found[..., :3].astype(int) - lr_image(image, kernel)[..., :3]).mean() > 2


def test_hidden_colour_has_no_influence():
    """Colour is premultiplied first: what lies under alpha 0 does not bleed into the picture."""
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (24, 32, 4), dtype=np.uint8)
    image[:, 16:, 3] = 0
    other = image.copy()
    other[:, 16:, :3] = rng.integers(0, 256, (24, 16, 3))
    steps = drawn(PRESETS["realesrgan"], np.random.default_rng(3))
    assert (premultiplied(image) == premultiplied(other)).all()
    first, second = (degraded(i, steps, (32, 24), (8, 6), 5) for i in (image, other))
    np.testing.assert_array_equal(first, second)


def test_steps_that_end_elsewhere_are_refused():
    with pytest.raises(UserError, match="end at 16x12 px"):
        degraded(np.zeros((24, 32, 3), np.uint8), (Resize("area", 0.5, "hr"),), (32, 24), (8, 6), 0)


# --- draws ---


def test_draws_stay_within_the_table():
    """The values of section 7 of the reference, over 300 draws of each preset."""
    limits = {"realesrgan": ((1, 30), (1, 25), 3.0, 2.5, 30), "mild": ((1, 15), (1, 12), 2.0, 1.0, 60)}
    for name, (first, second, poisson, poisson_again, quality) in limits.items():
        all_steps = [drawn(PRESETS[name], np.random.default_rng(seed)) for seed in range(300)]
        full = [steps for steps in all_steps if len(steps) > 1]
        for steps in full:
            noises = [s for s in steps if isinstance(s, Noise)]
            bounds = [first, second], [poisson, poisson_again]
            for i, noise in enumerate(noises):
                high = bounds[0][i][1] / 255 if noise.kind == "gaussian" else bounds[1][i]
                assert 0 < noise.level <= high
            assert len(noises) == 2
            assert all(quality <= s.quality <= 100 for s in steps if isinstance(s, Jpeg))
            assert sum(isinstance(s, Jpeg) for s in steps) == 2
            last = [s for s in steps if isinstance(s, Resize)][-1]
            assert (last.of, last.factor) == ("lr", 1.0)
        jpeg_last = np.mean([isinstance(steps[-1], Jpeg) for steps in full])
        assert abs(jpeg_last - 0.5) < 4 * 0.5 / math.sqrt(len(full))
    assert any(len(steps) == 1 for steps in all_steps)  # mild: one in a hundred is clean


def test_kinds_of_kernels_come_as_often_as_the_table_says():
    blurs = [drawn(PRESETS["realesrgan"], np.random.default_rng(seed))[0] for seed in range(2000)]
    expected = dict(zip(KINDS, [0.9 * p for p in (0.45, 0.25, 0.12, 0.03, 0.12, 0.03)] + [0.1], strict=True))
    for kind, chance in expected.items():
        found = np.mean([b.kind == kind for b in blurs])
        assert abs(found - chance) < 4 * math.sqrt(chance * (1 - chance) / len(blurs))


def test_steps_survive_json():
    steps = drawn(PRESETS["realesrgan"], np.random.default_rng(0))
    assert from_json(json.loads(json.dumps(to_json(steps))), "x") == steps
    with pytest.raises(UserError, match="x: not the steps"):
        from_json([{"step": "melt"}], "x")
