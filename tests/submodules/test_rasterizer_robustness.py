"""The native rasterizer on values and sizes that nobody wants: finite everywhere, or refused with a clear message."""

import math
import os
import subprocess
import sys

import pytest
import torch
from diff_gaussian_rasterization import RasterCamera, isa, isa_supported, rasterize_extended
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative

SPECIAL = (math.nan, math.inf, -math.inf, 1e38, -1e38, 3.4e38, 1e-38, 1e-42, -0.0, 0.0, 88.0, -104.0)


def poisoned(case: Case, seed: int, share: float = 0.3) -> list[Tensor]:
    """Special values in every parameter; whole zero quaternions; the rest as it was."""
    g = torch.Generator().manual_seed(seed)
    six = case.six
    for p in six:
        values = torch.tensor(SPECIAL)[torch.randint(len(SPECIAL), p.shape, generator=g)]
        p.copy_(torch.where(torch.rand(p.shape, generator=g) < share / p[0].numel(), values, p))
    six[2][::17] = 0
    six[1][::19] = 1e38
    six[0][::23] *= -1
    return six


def render_and_differentiate(camera: RasterCamera, six: list[Tensor]) -> tuple[Workspace, list[Tensor]]:
    workspace = Workspace()
    image, transmittance, depth = workspace.forward(camera, *six, aux=True)
    gradient = torch.full_like(image, math.nan)
    workspace.l1_ssim(image, torch.zeros_like(image), gradient)
    grads = [torch.full_like(p, math.nan) for p in six]
    means2d = torch.full_like(six[0], math.nan)
    ones = torch.ones_like(transmittance)
    workspace.backward(gradient, six, grads, grad_transmittance=ones, grad_inverse_depth=ones, grad_means2d=means2d)
    return workspace, [image, transmittance, depth, gradient, means2d, *grads]


@pytest.mark.parametrize("seed", range(6))
def test_special_values_give_finite_images_and_gradients(seed):
    sizes = ((61, 45), (1, 1), (300, 5), (33, 260), (64, 64), (200, 200))
    width, height = sizes[seed]
    case = make_case(seed, n=2000, width=width, height=height, antialiasing=seed % 2 == 1, sh_degree=3 - seed % 4)
    workspace, results = render_and_differentiate(case.raster_camera, poisoned(case, seed))
    for result in results:
        assert torch.isfinite(result).all()
    assert workspace.facts["invalid"] > 0
    assert (workspace.radii >= 0).all()


def test_each_special_value_alone_is_counted_and_leaves_the_others_untouched():
    """One poisoned Gaussian among 40: the image is that of the 39 others wherever the value cannot be drawn."""
    case = make_case(2, n=40)
    camera = case.raster_camera
    others = [p[1:].clone() for p in case.six]
    expected, _, _ = Workspace().forward(camera, *others)
    for field, name in enumerate(FIELDS):
        six = case.six
        six[0][0] = torch.tensor([0.0, 0.0, 3.0])  # in view
        six[3][0] = 2.0
        six[field][0] = math.nan
        workspace = Workspace()
        image, _, _ = workspace.forward(camera, *six)
        assert workspace.facts["invalid"] == 1, name
        assert workspace.radii[0] == 0, name
        assert torch.equal(image, expected), name


@pytest.mark.parametrize("size", [(0, 0), (0, 7), (7, 0)])
def test_empty_images(size):
    case = make_case(0, n=20)
    c = case.raster_camera
    camera = RasterCamera(*size, c.fx, c.fy, c.cx, c.cy, c.world_to_camera)
    _, results = render_and_differentiate(camera, case.six)
    assert results[0].shape == (3, size[1], size[0])
    assert all(torch.count_nonzero(g) == 0 for g in results[4:])


def test_no_gaussians_give_the_background():
    case = make_case(0, n=24)
    none = [p[:0] for p in case.six]
    image, transmittance, _ = Workspace().forward(case.raster_camera, *none)
    background = torch.tensor(case.background)[:, None, None]
    assert torch.equal(image, background.expand_as(image))
    assert (transmittance == 1).all()
    render_and_differentiate(case.raster_camera, none)
    out = rasterize_extended(case.raster_camera, none[0], none[3], colors=none[0], scales=none[1], quats=none[2])
    assert torch.equal(out.color, image)
    assert out.radii.shape == (0,)


def test_one_gaussian_in_the_middle():
    """At its own centre a splat of opacity 0.6 covers exactly 0.6."""
    camera = RasterCamera(9, 9, 20.0, 20.0, 4.5, 4.5, torch.eye(4))
    out = rasterize_extended(
        camera,
        torch.tensor([[0.0, 0.0, 2.0]]),
        torch.tensor([[0.6]]),
        colors=torch.tensor([[1.0, 0.5, 0.25]]),
        scales=torch.full((1, 3), 0.1),
        quats=torch.tensor([[1.0, 0, 0, 0]]),
    )
    assert out.alpha[4, 4] == pytest.approx(0.6, rel=1e-6)
    assert out.color[:, 4, 4].tolist() == pytest.approx([0.6, 0.3, 0.15], rel=1e-6)
    assert out.inverse_depth[4, 4] == pytest.approx(0.3, rel=1e-6)
    variance = 1.3  # (0.1 * 20 / 2)^2 + 0.3 px^2
    assert out.alpha[4, 6] == pytest.approx(0.6 * math.exp(-2 / variance), rel=1e-5)
    assert out.radii.tolist() == [4]  # 3 sqrt(middle 1.3 + sqrt(the original's floor of 0.1)) = 3.8


def test_opaque_stack_stops_and_everything_behind_gets_no_gradient():
    camera = RasterCamera(16, 16, 20.0, 20.0, 8.0, 8.0, torch.eye(4))
    n = 600  # more than two batches of a tile
    means = torch.zeros(n, 3)
    means[:, 2] = torch.linspace(1, 5, n)
    means.requires_grad_()
    opacities = torch.full((n, 1), 0.9, requires_grad=True)
    out = rasterize_extended(
        camera,
        means,
        opacities,
        colors=torch.rand(n, 3, generator=torch.Generator().manual_seed(0)),
        scales=torch.full((n, 3), 5.0),
        quats=torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4),
    )
    out.color.sum().backward()
    assert (1 - out.alpha.detach()).min() >= 0.9e-4
    assert torch.count_nonzero(opacities.grad[3:]) < 20  # T = 1e-4 after four such layers in the middle
    assert torch.count_nonzero(opacities.grad[20:]) == 0


def test_ties_in_depth_go_to_the_lower_index():
    camera = RasterCamera(8, 8, 20.0, 20.0, 4.0, 4.0, torch.eye(4))
    shapes = {"scales": torch.full((2, 3), 1.0), "quats": torch.tensor([[1.0, 0, 0, 0]]).expand(2, 4)}
    means, opacities = torch.tensor([[0.0, 0, 2]]).expand(2, 3), torch.full((2, 1), 0.99)
    out = rasterize_extended(camera, means, opacities, colors=torch.eye(3)[:2].contiguous(), **shapes)
    assert out.color[0, 4, 4] > 50 * out.color[1, 4, 4]


def test_inputs_that_do_not_fit_are_named():
    case = make_case(0, n=24)
    camera, six = case.raster_camera, case.six
    workspace = Workspace()
    bad = {
        "means": (TypeError, six[0].double()),
        "log_scales": (ValueError, six[1][:-1]),
        "quats": (ValueError, six[2].T.contiguous().T),
        "sh0": (ValueError, six[4][:, 0]),
        "shN": (TypeError, None),
    }
    for name, (error, value) in bad.items():
        wrong = [value if field == name else p for field, p in zip(FIELDS, six, strict=True)]
        with pytest.raises(error, match=name):
            workspace.forward(camera, *wrong) if name != "shN" else workspace.forward(camera, *six[:5], value)
    with pytest.raises(ValueError, match="call forward first"):
        Workspace().backward(torch.zeros(3, 1, 1), six, six)
    with pytest.raises(ValueError, match="exactly one of spherical harmonics"):
        rasterize_extended(camera, six[0], six[3], scales=six[1], quats=six[2])
    with pytest.raises(ValueError, match="exactly one of the pair"):
        rasterize_extended(camera, six[0], six[3], colors=six[0], scales=six[1])
    with pytest.raises(ValueError, match="coefficients"):
        rasterize_extended(camera, six[0], six[3], sh=six[5][:, :4].contiguous(), scales=six[1], quats=six[2])


def run_with(name: str, code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "SPLAT_ISA": name},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize("name", ["avx512", "avx2", "scalar"])
def test_every_instruction_set_agrees(name, tmp_path):
    if not isa_supported(name):
        pytest.skip(f"this processor has no {name}")
    code = (
        "import sys, torch\n"
        "from tests.submodules.rasterizer_scenes import make_case\n"
        "from tests.submodules.test_rasterizer_robustness import poisoned, render_and_differentiate\n"
        "from diff_gaussian_rasterization import isa\n"
        f"assert isa() == {name!r}\n"
        "case = make_case(6, n=400, antialiasing=True)\n"
        "_, clean = render_and_differentiate(case.raster_camera, case.six)\n"
        "_, rough = render_and_differentiate(case.raster_camera, poisoned(case, 1))\n"
        "assert all(torch.isfinite(t).all() for t in rough)\n"
        f"torch.save(clean, {str(tmp_path / 'results.pt')!r})\n"
    )
    done = run_with(name, code)
    assert done.returncode == 0, done.stderr
    case = make_case(6, n=400, antialiasing=True)
    _, here = render_and_differentiate(case.raster_camera, case.six)
    for mine, theirs in zip(here, torch.load(tmp_path / "results.pt"), strict=True):
        assert relative(theirs, mine) < 2e-5


def test_unknown_instruction_set_is_refused():
    done = run_with("sse9", "import diff_gaussian_rasterization as d; d.isa()")
    assert done.returncode != 0
    assert "SPLAT_ISA=sse9: unknown instruction set; use one of" in done.stderr
    assert isa() in done.stderr


def test_a_graph_alive_at_exit_is_no_leak():
    script = (
        "import sys, torch; from tests.submodules.rasterizer_scenes import make_case;"
        "from diff_gaussian_rasterization import rasterize_extended;"
        "means = torch.tensor([[0.0, 0, 3]], requires_grad=True); one = torch.ones(1, 4);"
        "sys.kept = rasterize_extended(make_case(0, n=1).raster_camera, means, one[:, :1] / 2, colors=one[:, :3],"
        " scales=one[:, :3], quats=one)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stderr == ""
