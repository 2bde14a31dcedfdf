"""The rasterizer's formulas one by one: values against numpy in float64, derivatives against central differences.

Letters: p = 3D position, S = screen covariance (xx, xy, yy) [px^2], d = pixel - centre [px]. The headers are templates:
in double their derivatives agree with differences of their own values to 1e-7; in float they agree with double.
"""

import ctypes
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from gaussian_renderer import sh
from gaussian_renderer.reference import ALPHA_MAX, blending_weights
from gaussian_renderer.splats import covariances, full_covariances, rotations

HEADERS = Path(__file__).resolve().parents[2] / "submodules" / "diff-gaussian-rasterization" / "csrc"
SOURCE = Path(__file__).with_name("core_formulas.cpp")
PROJECTION = ["project", "project_gradient", "conic", "screen_gradient", "band", "surface"]
COLOUR = ["basis", "basis_gradient", "direction", "direction_gradient", "blend", "blend_gradient", "pixel_gradient"]
FORMULAS = [*PROJECTION, *COLOUR, "ssim", "exponential", "adam"]
ACTIVATED, PRECOMPUTED, FILTERED = 1, 2, 4
CONSTANT = 1e-7  # the headers' constants are float32
F = ctypes.c_float


class Settings(ctypes.Structure):
    """The camera, the form of the Gaussians, and Adam's factors, as core_formulas.cpp declares them."""

    _fields_ = (
        *(("rotation", F * 9), ("translation", F * 3), ("centre", F * 3)),
        *((name, F) for name in ("fx", "fy", "cx", "cy", "jacobian_fx", "jacobian_fy", "limit_x", "limit_y")),
        *(("background", F * 3), ("scale_modifier", F), ("dilation", F)),
        *((name, ctypes.c_int) for name in ("width", "height", "sh_degree")),
        *(("antialiasing", ctypes.c_bool), ("options", ctypes.c_int)),
        *(
            (name, F)
            for name in ("rate", "inverse_root", "beta1", "beta2", "one_minus_beta1", "one_minus_beta2", "eps")
        ),
    )


class Formulas:
    """The compiled headers: evaluate(name, in [n, k], outputs) -> [n, outputs], in the dtype of `in`."""

    def __init__(self, library: Path):
        self.native = ctypes.CDLL(str(library))
        assert self.native.settings_bytes() == ctypes.sizeof(Settings)

    def __call__(self, name: str, values: np.ndarray, outputs: int, settings: Settings | None = None) -> np.ndarray:
        values = np.ascontiguousarray(values)
        out = np.zeros((len(values), outputs), values.dtype)
        function = {"float32": self.native.evaluate_float, "float64": self.native.evaluate_double}[values.dtype.name]
        reference = ctypes.byref(settings or camera_settings())
        sizes = (len(values), values.ctypes.data_as(ctypes.c_void_p), values.shape[1])
        function(FORMULAS.index(name), reference, *sizes, out.ctypes.data_as(ctypes.c_void_p), outputs)
        return out


@pytest.fixture(scope="module")
def formulas(tmp_path_factory: pytest.TempPathFactory) -> Formulas:
    if not shutil.which("g++"):
        pytest.skip("g++ is needed")
    library = tmp_path_factory.mktemp("core") / "core.so"
    flags = ["-std=c++17", "-O1", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    subprocess.run(["g++", *flags, f"-I{HEADERS}", SOURCE, "-o", library], check=True)
    return Formulas(library)


def camera_settings(options: int = 0, **changes: object) -> Settings:
    s = Settings(fx=70, fy=75, cx=30, cy=24, jacobian_fx=70, jacobian_fy=75, limit_x=0.55, limit_y=0.45)
    cos, sin = np.cos(0.3), np.sin(0.3)
    s.rotation[:] = [cos, 0, sin, 0.02, 1, -0.03, -sin, 0.01, cos]
    s.translation[:], s.centre[:] = [0.1, -0.2, 0.3], [0.4, 0.1, -0.5]
    s.scale_modifier, s.dilation, s.width, s.height, s.sh_degree = 1.25, 0.3, 60, 48, 3
    s.options = options
    for name, value in changes.items():
        setattr(s, name, value)
    return s


def differences(function: Callable[[np.ndarray], np.ndarray], x: np.ndarray, step: float = 1e-5) -> np.ndarray:
    """Central differences [n, outputs, inputs] of a function [n, inputs] -> [n, outputs]."""
    columns = []
    for k in range(x.shape[1]):
        h = np.zeros_like(x)
        h[:, k] = step
        columns.append((function(x + h) - function(x - h)) / (2 * step))
    return np.stack(columns, axis=2)


def assert_close(got: np.ndarray, wanted: np.ndarray, tolerance: float) -> None:
    """Relative to the largest value of each column."""
    scale = np.abs(wanted).max(axis=0) + 1e-30
    assert (np.abs(got - wanted) / scale).max() <= tolerance


def random_gaussians(options: int, n: int = 60, seed: int = 0) -> np.ndarray:
    """[n, 18]: position, scale, quat, sigma, opacity, filter; a third beyond the limits of J."""
    r = np.random.default_rng(seed)
    position = r.uniform(-1, 1, (n, 3)) * [2.5, 2, 1] + [0, 0, 4]
    scale = r.normal(-1.5, 0.5, (n, 3))
    opacity = r.normal(0, 1, (n, 1))
    if options & ACTIVATED:
        scale, opacity = np.exp(scale), 1 / (1 + np.exp(-opacity))
    root = r.normal(0, 0.3, (n, 3, 3))
    sigma = (root @ root.transpose(0, 2, 1) + 0.02 * np.eye(3))[:, (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)]
    filter_3d = r.uniform(0, 0.6, (n, 1)) * (r.random((n, 1)) < 0.8)
    x = np.hstack([position, scale, r.normal(size=(n, 4)), sigma, opacity, filter_3d])
    return x.astype(np.float32).astype(np.float64)


def projection_by_numpy(x: np.ndarray, s: Settings, pose: np.ndarray | None = None) -> np.ndarray:
    """[n, 9]: x, y, xx, xy, yy, opacity, 1 / z, det, det without dilation, from the definition.

    pose : [n, 12], rotation and translation for each Gaussian, instead of those of `s`.
    """
    if pose is None:
        pose = np.tile([*s.rotation, *s.translation], (len(x), 1))
    W = pose[:, :9].reshape(-1, 3, 3)
    px, py, z = (np.einsum("nij,nj->ni", W, x[:, :3]) + pose[:, 9:]).T
    slope_x, slope_y = np.clip(px / z, -s.limit_x, s.limit_x), np.clip(py / z, -s.limit_y, s.limit_y)
    zero = np.zeros_like(z)
    J = np.stack([s.fx / z, zero, -s.fx * slope_x / z, zero, s.fy / z, -s.fy * slope_y / z], 1).reshape(-1, 2, 3)
    scales = x[:, 3:6] if s.options & ACTIVATED else np.exp(x[:, 3:6])
    opacity = x[:, 16] if s.options & ACTIVATED else 1 / (1 + np.exp(-x[:, 16]))
    if s.options & FILTERED:
        wide = np.sqrt(scales**2 + x[:, 17:] ** 2)
        opacity, scales = opacity * np.sqrt((scales**2).prod(1) / (wide**2).prod(1)), wide
    sigma = torch.from_numpy(x[:, 10:16])
    if not s.options & PRECOMPUTED:
        sigma = covariances(torch.from_numpy(scales), torch.from_numpy(x[:, 6:10]), s.scale_modifier)
    S = (J @ W) @ full_covariances(sigma).numpy() @ (J @ W).transpose(0, 2, 1)
    raw_det = S[:, 0, 0] * S[:, 1, 1] - S[:, 0, 1] ** 2
    xx, yy = S[:, 0, 0] + s.dilation, S[:, 1, 1] + s.dilation
    det = xx * yy - S[:, 0, 1] ** 2
    if s.antialiasing:
        opacity = opacity * np.sqrt(np.maximum(2.5e-5, raw_det / det))
    return np.stack([s.fx * px / z + s.cx, s.fy * py / z + s.cy, xx, S[:, 0, 1], yy, opacity, 1 / z, det, raw_det], 1)


FORMS = [0, ACTIVATED, PRECOMPUTED, ACTIVATED | PRECOMPUTED, FILTERED, ACTIVATED | FILTERED]


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_projection(formulas: Formulas, form: int, antialiasing: bool):
    x, s = random_gaussians(form), camera_settings(form, antialiasing=antialiasing)
    wanted = projection_by_numpy(x, s)
    got, single = formulas("project", x, 12, s), formulas("project", x.astype(np.float32), 12, s)
    assert_close(got[:, :9], wanted, 1e-6)  # exp is a polynomial of 1.5e-7
    assert_close(single, got, 2e-5 if form & PRECOMPUTED else 5e-6)
    middle = (wanted[:, 2] + wanted[:, 4]) / 2
    longest = middle + np.sqrt(np.maximum(0.1, middle**2 - wanted[:, 7]))
    assert np.abs(got[:, 10] - np.ceil(3 * np.sqrt(longest))).max() <= 1e-9
    assert got[:, 9].all()


def test_what_cannot_be_projected_is_refused(formulas: Formulas):
    x = random_gaussians(FILTERED, n=12)
    x[:10] = np.where(np.arange(18) < 6, [0.0, 0, 4, -2, -2, -2, *[0] * 12], x[:10])
    x[np.arange(9), [0, 1, 2, 3, 6, 16, 17, 17, 4]] = [np.nan, np.inf, -5, np.nan, 1e30, np.inf, np.nan, np.inf, 1e4]
    x[9, 6:10] = 0
    for dtype in (np.float32, np.float64):
        drawable = formulas("project", x.astype(dtype), 12, camera_settings(FILTERED))[:, 9]
        assert drawable.tolist() == [0.0] * 10 + [1.0] * 2


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_projection_gradient(formulas: Formulas, form: int, antialiasing: bool):
    x, s = random_gaussians(form), camera_settings(form, antialiasing=antialiasing)
    weights = np.random.default_rng(1).normal(size=(len(x), 8)) * [1, 1, 0.1, 0.1, 0.1, 3, 3, 1]

    def with_depth(values: np.ndarray) -> np.ndarray:
        return np.hstack([values[:, :7], 1 / values[:, 6:7]])

    jacobian = differences(lambda x: with_depth(formulas("project", x, 12, s)), x)  # [n, 8, 18]
    wanted = np.einsum("no,noi->ni", weights, jacobian)[:, :17]
    got = formulas("project_gradient", np.hstack([x, weights]), 29, s)
    single = formulas("project_gradient", np.hstack([x, weights]).astype(np.float32), 29, s)
    used = [*range(3), *(range(10, 16) if form & PRECOMPUTED else range(3, 10)), 16]
    assert_close(got[:, used], wanted[:, used], 3e-6)
    assert_close(single[:, used], got[:, used], 3e-5)
    pose = np.tile([*s.rotation, *s.translation], (len(x), 1))
    jacobian = differences(lambda pose: with_depth(projection_by_numpy(x, s, pose)), pose)
    assert_close(got[:, 17:], np.einsum("no,noi->ni", weights, jacobian), 3e-6)


def random_ellipses(n: int = 50, seed: int = 0) -> np.ndarray:
    """[n, 4]: xx, xy, yy, opacity."""
    r = np.random.default_rng(seed)
    xx, yy = r.uniform(0.4, 30, (2, n, 1))
    return np.hstack([xx, r.uniform(-0.95, 0.95, (n, 1)) * np.sqrt(xx * yy), yy, r.uniform(0.05, 1, (n, 1))])


def log_alpha(x: np.ndarray) -> np.ndarray:
    """ln(opacity) - d^T S^-1 d / 2 of [n, 6]: xx, xy, yy, opacity, d."""
    xx, xy, yy, opacity, dx, dy = x.T
    return np.log(opacity) - 0.5 * (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / (xx * yy - xy * xy)


def test_conic_and_its_gradient(formulas: Formulas):
    r, ellipses = np.random.default_rng(2), random_ellipses()
    n, pixels = len(ellipses), 7
    offsets, z = r.normal(0, 3, (n, pixels, 2)), r.normal(size=(n, pixels))
    x = np.concatenate([np.repeat(ellipses[:, None], pixels, 1), offsets], 2).reshape(-1, 6)
    got = formulas("conic", x, 9)
    assert_close(got[:, 5:6] * np.log(2), log_alpha(x)[:, None], 3e-7)
    assert_close(formulas("conic", x.astype(np.float32), 9), got, 1e-5)

    u, v = got[:, 3:5].T.reshape(2, n, pixels)
    moments = np.stack([(z * f).sum(1) for f in (np.ones_like(u), u, v, u * u, u * v, v * v)], 1)
    b, c = got[:, 1:3].T.reshape(2, n, pixels)
    absolute = np.stack([np.abs(z * u).sum(1), np.abs(z * (b * u + c * v)).sum(1)], 1)
    gradient = formulas("screen_gradient", np.hstack([ellipses, moments, absolute]), 8)
    slopes = differences(lambda x: log_alpha(x)[:, None], x)[:, 0].reshape(n, pixels, 6)
    of_pixels = slopes * z[..., None]
    wanted = of_pixels.sum(1)[:, [4, 5, 0, 1, 2, 3]] * [-1, -1, 1, 1, 1, 1]  # the centre moves against d
    assert_close(gradient[:, :6], wanted, 1e-6)
    assert_close(gradient[:, 6:], np.abs(of_pixels[..., 4:]).sum(1), 1e-6)


@pytest.mark.parametrize("form", [0, ACTIVATED, FILTERED])
def test_surface_normal(formulas: Formulas, form: int):
    x, s = random_gaussians(form), camera_settings(form)
    weights = np.random.default_rng(4).normal(size=(len(x), 3))
    got = formulas("surface", np.hstack([x, weights]), 7, s)
    axes = rotations(torch.from_numpy(x[:, 6:10])).numpy()
    wanted = axes[np.arange(len(x)), :, x[:, 3:6].argmin(1)]
    wanted *= -np.sign((wanted * (x[:, :3] - np.array(s.centre))).sum(1, keepdims=True))
    assert_close(got[:, :3], wanted, 1e-9)
    jacobian = differences(lambda x: formulas("surface", np.hstack([x, weights]), 7, s)[:, :3], x)
    gradient = np.einsum("no,noi->ni", weights, jacobian)
    assert_close(got[:, 3:], gradient[:, 6:10], 1e-7)
    assert np.abs(np.delete(gradient, np.s_[6:10], 1)).max() == 0
    tied = np.where(np.arange(21) // 3 == 1, -1.0, np.hstack([x, weights]))  # three equal scales: the first axis
    assert_close(np.abs(formulas("surface", tied, 7, s)[:, :3]), np.abs(axes[:, :, 0]), 1e-9)


def test_ellipse_bounds_and_band(formulas: Formulas):
    """Against the outline at 20,000 angles, and at as many heights within the band."""
    r, ellipses = np.random.default_rng(3), random_ellipses()
    x = np.hstack([ellipses, np.zeros((len(ellipses), 2))])
    bounds = formulas("conic", x, 9)[:, 6:]
    angle = np.linspace(0, 2 * np.pi, 20001)
    xx, xy, yy, opacity = ellipses.T[:, :, None]
    reach = np.sqrt(2 * np.log(255 * opacity))
    dy = reach * np.sqrt(yy) * np.sin(angle)
    dx = xy / yy * dy + reach * np.sqrt(xx - xy * xy / yy) * np.cos(angle)
    assert_close(bounds[:, 0], dx.max(1), 1e-5)
    assert_close(bounds[:, 1], dy.max(1), 1e-5)
    assert_close(bounds[:, 2], np.take_along_axis(dy, dx.argmax(1)[:, None], 1)[:, 0], 3e-3)
    low = bounds[:, 1] * r.uniform(-0.95, 0.5, len(x))
    x[:, 4], x[:, 5] = low, low + r.uniform(0.2, 3, len(x))
    dy = np.linspace(x[:, 4], np.minimum(x[:, 5], bounds[:, 1]), 20001, axis=1)
    middle, half = xy / yy * dy, np.sqrt(np.maximum(reach**2 - dy**2 / yy, 0) * (xx - xy * xy / yy))
    assert_close(formulas("band", x, 2), np.stack([(middle - half).min(1), (middle + half).max(1)], 1), 1e-5)


@pytest.mark.parametrize("degree", range(4))
def test_spherical_harmonics(formulas: Formulas, degree: int):
    r, s = np.random.default_rng(degree), camera_settings(sh_degree=degree)
    x, k = r.normal(size=(40, 3)), (degree + 1) ** 2
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    wanted = sh.basis(torch.from_numpy(x), degree).numpy()
    assert_close(formulas("basis", x, 16, s)[:, :k], wanted, CONSTANT)
    assert_close(formulas("basis", x.astype(np.float32), 16, s)[:, :k], wanted, 1e-6)
    weights = r.normal(size=(40, 16))
    jacobian = differences(lambda x: formulas("basis", x, 16, s), x)
    gradient = formulas("basis_gradient", np.hstack([x, weights]), 3, s)
    assert_close(gradient, np.einsum("no,noi->ni", weights, jacobian), CONSTANT)


def test_viewing_direction(formulas: Formulas):
    r, s = np.random.default_rng(5), camera_settings()
    x, weights = r.normal(size=(40, 3)) * 3, r.normal(size=(40, 3))
    ray = x - np.array(s.centre[:], float)
    distance = np.linalg.norm(ray, axis=1, keepdims=True)
    assert_close(formulas("direction", x, 4), np.hstack([ray / distance, 1 / distance]), 1e-12)
    jacobian = differences(lambda x: formulas("direction", x, 4)[:, :3], x)
    gradient = formulas("direction_gradient", np.hstack([x, weights]), 3)
    assert_close(gradient, np.einsum("no,noi->ni", weights, jacobian), 1e-8)


def test_blending_and_its_gradient(formulas: Formulas):
    """Six splats a pixel, some capped; a third of the pixels ends before its last splat."""
    r = np.random.default_rng(6)
    alphas = r.uniform(0.02, 0.9, (90, 6))
    alphas[:30, 1], alphas[:30, 3] = 0.995, 0.998
    leaves = torch.from_numpy(alphas.T.copy()).requires_grad_()
    weights, transmittance = blending_weights(leaves)
    got = formulas("blend", alphas, 7)
    assert_close(got, np.vstack([weights.detach(), transmittance.detach()[None]]).T, 1e-7)
    assert (got[:30, 4:6] == 0).all()
    assert (got[30:, :6] > 0).all()

    colours = r.normal(size=(90, 7))  # (colour . gradient) of each splat and of the background
    factors = torch.from_numpy(colours.T.copy())
    ((weights * factors[:6]).sum() + (transmittance * factors[6]).sum()).backward()
    gradient = formulas("blend_gradient", np.hstack([alphas, colours]), 12)
    assert leaves.grad is not None
    assert_close(gradient[:, :6], (leaves.grad * leaves.detach()).T.numpy(), 1e-6)
    assert_close(gradient[:, 6:], got[:, :6], 1e-6)
    assert np.float32(ALPHA_MAX) == np.float32(0.99)


def test_ssim_terms(formulas: Formulas):
    r = np.random.default_rng(7)
    x, y = r.random((2, 60, 9))
    moments = np.stack([x.mean(1), y.mean(1), (x * x + y * y).mean(1), (x * y).mean(1)], 1)
    mean_x, mean_y, square, cross = moments.T
    product, squares = mean_x * mean_y, mean_x**2 + mean_y**2
    wanted = (2 * product + 1e-4) * (2 * (cross - product) + 9e-4) / ((squares + 1e-4) * (square - squares + 9e-4))
    got = formulas("ssim", moments, 4)
    assert_close(got[:, 0], wanted, CONSTANT)
    jacobian = differences(lambda m: formulas("ssim", m, 4)[:, :1], moments, 1e-6)[:, 0]
    assert_close(got[:, 1:], jacobian[:, [0, 2, 3]], 1e-7)
    assert_close(formulas("ssim", moments.astype(np.float32), 4), got, 2e-5)


def test_exponential_and_logarithm(formulas: Formulas):
    x = np.concatenate([np.linspace(-80, 80, 4001), np.random.default_rng(8).normal(size=1000)])[:, None]
    x = x[np.abs(x[:, 0]) > 1e-6].astype(np.float32).astype(np.float64)
    wanted = np.hstack([np.exp(x), np.log2(np.abs(x)), np.exp2(x), np.exp2(x / 2)])
    got, single = (formulas("exponential", x.astype(t), 4).astype(np.float64) for t in (np.float64, np.float32))
    # float32 loses half a unit of the reduced argument: |x| 2^-24 relative to e^x
    for values, per_unit in ((got, 2e-8), (single, 1.2e-7)):
        allowed = 2.5e-7 + per_unit * np.abs(x[:, 0])
        for k in (0, 2, 3):
            assert (np.abs(values[:, k] / wanted[:, k] - 1) <= allowed).all()
        assert (np.abs(values[:, 1] - wanted[:, 1]) <= 2e-7 + 1.2e-7 * np.abs(wanted[:, 1])).all()
    bounds = formulas("exponential", np.array([[1e30], [-1e30], [np.nan]], np.float32), 4)[:, 0]
    assert bounds == pytest.approx([2.0**126, 2.0**-126, 2.0**-126], rel=1e-6)


def test_adam_step(formulas: Formulas):
    r = np.random.default_rng(9)
    x = np.abs(r.normal(size=(50, 4))) * [1, 1, 0.1, 0.1]
    lr, b1, b2, eps, t = 0.01, 0.9, 0.999, 1e-8, 7
    factors = {"rate": lr / (1 - b1**t), "inverse_root": (1 - b2**t) ** -0.5, "beta1": b1, "beta2": b2}
    s = camera_settings(**factors, one_minus_beta1=1 - b1, one_minus_beta2=1 - b2, eps=eps)
    gradient, parameter, mean, square = x.T
    mean, square = b1 * mean + (1 - b1) * gradient, b2 * square + (1 - b2) * gradient**2
    parameter = parameter - lr * (mean / (1 - b1**t)) / (np.sqrt(square / (1 - b2**t)) + eps)
    for dtype in (np.float64, np.float32):
        assert_close(formulas("adam", x.astype(dtype), 3, s), np.stack([parameter, mean, square], 1), 3e-7)


def test_the_headers_compile_for_cuda(tmp_path: Path):
    nvcc = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")
    if not nvcc:
        pytest.skip("nvcc is not installed")
    flags = ["-std=c++17", "-x", "cu", "-c", "-Werror", "all-warnings", "-Xcompiler", "-Wall,-Wextra"]
    done = subprocess.run(
        [nvcc, *flags, f"-I{HEADERS}", SOURCE, "-o", tmp_path / "core.o"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "warning" not in done.stdout + done.stderr
