"""LRKernel: the definition in plain loops, torch's own filter, MATLAB's border, and the algebra of consistency."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from scene.lr_kernel import (
    LRKernel,
    LRKernelFile,
    opaque_support_mask,
    resample_matrix,
    resolve_kernel,
)
from utils.errors import UserError

SIZES = st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n)))
KERNELS = st.sampled_from([("bicubic", "renormalise"), ("bicubic", "mirror"), ("area", "renormalise")])


def cubic(t):
    """Keys 1981 with a = -1/2, from the paper's piecewise form."""
    t, a = abs(t), -0.5
    if t < 1:
        return (a + 2) * t**3 - (a + 3) * t**2 + 1
    return a * t**3 - 5 * a * t**2 + 8 * a * t - 4 * a if t < 2 else 0.0


def row_by_definition(n_in, n_out, i, kernel, border):
    """Weights of output pixel i, tap by tap."""
    scale = n_in / n_out
    row, total = [0.0] * n_in, 0.0
    for j in range(-3 * n_in - 9, 4 * n_in + 9):
        if kernel == "area":
            weight = max(0.0, min((i + 1) * scale, j + 1) - max(i * scale, j))
        else:
            weight = cubic((j + 0.5 - (i + 0.5) * scale) / scale)
        at = j
        if border == "mirror":
            while not 0 <= at < n_in:  # reflect at the edge, edge pixel included, as often as needed
                at = -1 - at if at < 0 else 2 * n_in - 1 - at
        if 0 <= at < n_in:
            row[at] += weight
            total += weight
    return [w / total for w in row]


@given(SIZES, KERNELS)
@settings(max_examples=40, deadline=None)
def test_matrix_is_the_definition(sizes, kernel):
    n_in, n_out = sizes
    expected = [row_by_definition(n_in, n_out, i, *kernel) for i in range(n_out)]
    np.testing.assert_allclose(resample_matrix(n_in, n_out, *kernel), expected, atol=1e-9)


@pytest.mark.parametrize(
    ("hr", "lr"),
    [
        *[((24 * factor, 20 * factor), (24, 20)) for factor in (2, 3, 4, 8)],
        *[((1237, 40), (309, 10)), ((49, 33), (6, 4)), ((30, 30), (13, 7)), ((17, 9), (17, 9))],
    ],
)
def test_bicubic_equals_torch_antialiased(hr, lr):
    x = torch.rand(3, hr[1], hr[0], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = interpolate(x[None], size=(lr[1], lr[0]), mode="bicubic", antialias=True, align_corners=False)[0]
    kernel = LRKernel("bicubic", "renormalise", hr, lr)
    assert torch.allclose(kernel.down(x), expected, atol=1e-12)
    assert torch.allclose(kernel.down(x.float()), expected.float(), atol=1e-6)  # float32 sums in another order


def test_area_equals_the_mean_of_boxes():
    x = torch.rand(2, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = x.reshape(2, 4, 3, 5, 4).mean((2, 4))
    assert torch.allclose(LRKernel("area", "renormalise", (20, 12), (5, 4)).down(x), expected, atol=1e-14)


def test_mip_nerf_360_sizes_are_taken():
    kernel = LRKernel("bicubic", "renormalise", (4946, 3286), (618, 411))
    for axis, n in (("x", 618), ("y", 411)):
        start, weight = kernel.taps(axis)
        assert len(start) == n
        assert weight.shape[1] <= 33  # 4 x 8.003 taps and a partial one
    assert kernel.scale == (4946 / 618, 3286 / 411)


@st.composite
def problems(draw, longest=40):
    (width, w), (height, h) = (draw(SIZES.filter(lambda s: s[0] <= longest)) for _ in range(2))
    kernel = LRKernel(*draw(KERNELS), (width, height), (w, h))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    x, y = (torch.randn(2, *size, dtype=torch.float64, generator=generator) for size in ((height, width), (h, w)))
    return kernel, x, y


@given(problems())
@settings(max_examples=60, deadline=None)
def test_transpose_is_the_adjoint(problem):
    kernel, x, y = problem
    assert torch.isclose((kernel.down(x) * y).sum(), (x * kernel.transpose(y)).sum(), atol=1e-9)


@given(problems(longest=10))
@settings(max_examples=40, deadline=None)
def test_pinv_is_the_moore_penrose_inverse(problem):
    kernel, _, _ = problem
    ax, ay = (torch.tensor(kernel.matrix(axis)) for axis in "xy")
    (width, height), (w, h) = kernel.hr_size, kernel.lr_size
    unit = torch.eye(h * w, dtype=torch.float64).reshape(-1, h, w)
    inverse = kernel.pinv(unit).reshape(h * w, height * width).T
    assert torch.allclose(inverse, torch.linalg.pinv(torch.kron(ay, ax)), atol=1e-7)


@given(problems())
@settings(max_examples=60, deadline=None)
def test_project_meets_lr_and_moves_no_further_than_needed(problem):
    kernel, x, y = problem
    projected = kernel.project(x, y)
    assert torch.allclose(kernel.down(projected), y, atol=1e-8)
    assert torch.allclose(kernel.project(projected, y), projected, atol=1e-8)  # a projection
    assert torch.allclose(
        kernel.pinv(kernel.down(projected - x)), projected - x, atol=1e-8
    )  # in the row space: shortest


def test_masked_project_leaves_masked_lr_pixels_as_they_are():
    kernel = LRKernel("bicubic", "renormalise", (24, 16), (6, 4))
    generator = torch.Generator().manual_seed(0)
    x, y = torch.rand(3, 16, 24, generator=generator), torch.rand(3, 4, 6, generator=generator)
    mask = torch.rand(4, 6, generator=generator) > 0.5
    expected = torch.where(mask, y, kernel.down(x))
    assert torch.allclose(kernel.down(kernel.project(x, y, mask)), expected, atol=1e-5)


@given(problems())
@settings(max_examples=40, deadline=None)
def test_taps_are_the_matrix(problem):
    kernel = problem[0]
    for axis in "xy":
        matrix = kernel.matrix(axis)
        start, weight = kernel.taps(axis)
        assert (start.dtype, weight.dtype) == (np.int32, np.float32)
        assert start.min() >= 0
        assert (start + weight.shape[1]).max() <= matrix.shape[1]
        rebuilt = np.zeros_like(matrix)
        for i, first in enumerate(start):
            rebuilt[i, first : first + weight.shape[1]] = weight[i]
        np.testing.assert_array_equal(rebuilt, matrix.astype(np.float32))


def test_float32_and_float64_agree_and_gradients_are_the_transpose():
    kernel = LRKernel("bicubic", "mirror", (20, 12), (5, 3))
    x = torch.rand(1, 12, 20, dtype=torch.float64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    y = kernel.down(x)
    y.square().sum().backward()
    assert torch.allclose(x.grad, kernel.transpose(2 * y.detach()), atol=1e-12)
    assert torch.allclose(kernel.down(x.detach().float()).double(), y.detach(), atol=1e-6)


@pytest.mark.parametrize(("hr", "lr"), [((4, 4), (5, 4)), ((4, 4), (4, 0))])
def test_enlarging_and_empty_sizes_are_refused(hr, lr):
    with pytest.raises(UserError, match="LR size"):
        LRKernel("bicubic", "renormalise", hr, lr)


def test_unknown_kernel_and_wrong_image_size_are_refused():
    with pytest.raises(UserError, match="lanczos"):
        LRKernel("lanczos", "renormalise", (4, 4), (2, 2))
    with pytest.raises(UserError, match="4x4 px, 8x8 is expected"):
        LRKernel("area", "mirror", (8, 8), (2, 2)).down(torch.zeros(3, 4, 4))


# --- where RGBA can be compared ---


def test_opaque_support_is_alpha_constant_over_every_tap():
    kernel = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
    generator = torch.Generator().manual_seed(3)
    alpha = (torch.rand(24, 32, generator=generator) > 0.02).float()
    alpha[:, 20:] = 0.0
    mask = opaque_support_mask(kernel, alpha)
    ay, ax = kernel.matrix("y"), kernel.matrix("x")
    for i in range(6):
        for j in range(8):
            support = alpha.numpy()[np.ix_(ay[i] != 0, ax[j] != 0)]
            assert mask[i, j] == ((support == 1).all() or (support == 0).all())
    assert mask.any()
    assert not mask.all()


@pytest.mark.parametrize("kernel_name", ["bicubic", "area"])
def test_opaque_support_from_lr_alpha_is_never_wider_than_from_hr(kernel_name):
    kernel = LRKernel(kernel_name, "renormalise", (60, 60), (15, 15))
    y, x = torch.meshgrid(torch.arange(60), torch.arange(60), indexing="ij")
    alpha = ((x - 30.0).hypot(y - 31.0) < 18).float()
    exact, guess = opaque_support_mask(kernel, alpha), opaque_support_mask(kernel, kernel.down(alpha).clamp(0, 1))
    assert not (guess & ~exact).any()
    assert guess.sum() >= 0.5 * exact.sum()  # and still says something


def test_opaque_support_refuses_other_sizes():
    with pytest.raises(UserError, match="alpha of 5x5"):
        opaque_support_mask(LRKernel("area", "mirror", (8, 8), (2, 2)), torch.ones(5, 5))


# --- lr_kernel.json ---


class SceneWith:
    """The two fields that resolve_kernel reads."""

    def __init__(self, root, kernel_file):
        self.root, self.kernel_file = root, kernel_file


def test_kernel_file_round_trip(tmp_path):
    written = LRKernelFile(
        "area",
        "mirror",
        4.0,
        "truncate",
        "composited",
        (0.0, 0.0, 0.0),
        "../hr",
        ({"hr": [8, 8], "lr": [2, 2]},),
        {"a": 1},
    )
    written.write(tmp_path / "lr_kernel.json")
    assert LRKernelFile.read(tmp_path / "lr_kernel.json") == written


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "at least"),
        ("[1]", "at least"),
        ('{"kernel": "lanczos"}', "one of bicubic, area"),
        ('{"kernel": "area", "border": 3}', "border = 3 is of the wrong type"),
        ('{"kernel": "area", "scale": true}', "scale = True is of the wrong type"),
        ('{"kernel": "area", "factor": 4}', "unknown field 'factor'"),
        ('{"kernel": "area", "kernel": "area"}', "twice"),
        ("{", "not valid JSON"),
    ],
)
def test_kernel_file_refuses(tmp_path, text, message):
    (tmp_path / "k.json").write_text(text)
    with pytest.raises(UserError, match=message):
        LRKernelFile.read(tmp_path / "k.json")


def test_resolve_kernel_prefers_the_flag_then_the_scene_and_never_guesses(tmp_path):
    (tmp_path / "k.json").write_text('{"kernel": "bicubic", "border": "mirror"}')
    known, unknown = SceneWith(tmp_path, LRKernelFile("area", "mirror")), SceneWith(tmp_path, None)
    assert resolve_kernel(known, "") == ("area", "mirror")
    assert resolve_kernel(known, "bicubic") == ("bicubic", "renormalise")
    assert resolve_kernel(unknown, str(tmp_path / "k.json")) == ("bicubic", "mirror")
    with pytest.raises(UserError, match="give --lr_kernel"):
        resolve_kernel(unknown, "")
    with pytest.raises(UserError, match="bicubic, area, or an existing JSON file"):
        resolve_kernel(unknown, "cubic")
