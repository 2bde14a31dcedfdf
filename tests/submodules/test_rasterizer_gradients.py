"""Native rasterizer against the float64 reference: values, and the gradient of every input of both interfaces."""

import math

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    rasterize_extended,
)
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from gaussian_renderer.reference import rasterize
from gaussian_renderer.splats import RenderSettings, Splats, covariances
from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative

VALUE_TOLERANCE = 2e-6  # float32 rounding of sums of about 40 splats
GRADIENT_TOLERANCE = 1e-5
SETTINGS = [
    {"sh_degree": 3},
    {"sh_degree": 2, "antialiasing": True, "width": 64, "height": 48},
    {"sh_degree": 1, "scale_modifier": 1.3, "width": 33, "height": 70},
    {"sh_degree": 0, "antialiasing": True, "scale_modifier": 0.8},
]


def map_gradients(case: Case, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Random dL/dcolor, dL/dalpha, dL/dinverse_depth."""
    g = torch.Generator().manual_seed(seed)
    size = (case.camera.height, case.camera.width)
    return torch.randn(3, *size, generator=g), torch.randn(size, generator=g), torch.randn(size, generator=g)


def reference_gradients(case: Case, color: Tensor, alpha: Tensor, depth: Tensor):
    leaves, output = case.reference()
    ((output.color * color).sum() + (output.alpha * alpha).sum() + (output.inverse_depth * depth).sum()).backward()
    return leaves, output


@pytest.mark.parametrize("settings", SETTINGS)
def test_fused_values_and_gradients_are_those_of_the_reference(settings):
    case = make_case(5, **settings)
    color, alpha, depth = map_gradients(case)
    leaves, expected = reference_gradients(case, color, alpha, depth)
    workspace, six = Workspace(), case.six
    image, transmittance, inverse_depth = workspace.forward(case.raster_camera, *six, aux=True)
    assert relative(image, expected.color) < VALUE_TOLERANCE
    assert relative(1 - transmittance, expected.alpha) < VALUE_TOLERANCE
    assert relative(inverse_depth, expected.inverse_depth) < VALUE_TOLERANCE
    assert torch.equal(workspace.radii, expected.radii)

    grads = [torch.full_like(p, math.nan) for p in six]  # every element must be written
    means2d = torch.full((len(six[0]), 3), math.nan)
    workspace.backward(color, six, grads, grad_transmittance=-alpha, grad_inverse_depth=depth, grad_means2d=means2d)
    for name, gradient in zip(FIELDS, grads, strict=True):
        wanted = getattr(leaves, name).grad
        assert relative(gradient, torch.zeros_like(gradient) if wanted is None else wanted) < GRADIENT_TOLERANCE, name
    assert relative(means2d, expected.means2d.grad) < GRADIENT_TOLERANCE
    bands = (case.sh_degree + 1) ** 2 - 1
    assert torch.count_nonzero(grads[5][:, bands:]) == 0


@pytest.mark.parametrize("seed", range(8))
def test_gradients_on_random_scenes(seed):
    """Relative L2 <= 1e-5 off the thresholds; a pixel whose splat flips at one is found and left out."""
    case = make_case(100 + seed, n=120, antialiasing=seed % 2 == 1, sh_degree=seed % 4, sigma_px=1.5 + seed)
    _, expected = case.reference()
    workspace, six = Workspace(), case.six
    image, _, _ = workspace.forward(case.raster_camera, *six)
    flipped = ((image - expected.color).abs() > 1e-4).any(dim=0)
    assert flipped.float().mean() <= 1e-3
    color = map_gradients(case, seed)[0] * ~flipped
    leaves, _ = reference_gradients(case, color, torch.zeros_like(color[0]), torch.zeros_like(color[0]))
    grads = [torch.empty_like(p) for p in six]
    workspace.backward(color, six, grads)
    for name, gradient in zip(FIELDS[:5], grads, strict=False):
        assert relative(gradient, getattr(leaves, name).grad) < GRADIENT_TOLERANCE, name


def reference_splats(case: Case, kind: str) -> dict[str, Tensor]:
    """Activated float64 leaves; `kind` names what is precomputed."""
    g = {k: v.double() for k, v in case.gaussians.items()}
    values = {"means": g["means"], "opacities": g["logit_opacities"].sigmoid()}
    if "colors" in kind:
        values["colors"] = g["sh0"][:, 0] * 0.5 + 0.3  # negative ones too: precomputed colours are not clamped
    else:
        values["sh"] = torch.cat([g["sh0"], g["shN"]], dim=1)[:, : (case.sh_degree + 1) ** 2]
    if "covariances" in kind:
        values["covariances"] = covariances(g["log_scales"].exp(), g["quats"], 1.0)
    else:
        values |= {"scales": g["log_scales"].exp(), "quats": g["quats"]}
    return {k: v.detach().clone().requires_grad_() for k, v in values.items()}


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("kind", ["", "colors", "covariances", "colors covariances"])
def test_extended_gradients_are_those_of_the_reference(kind, antialiasing):
    case = make_case(9, sh_degree=2, antialiasing=antialiasing)
    wanted = reference_splats(case, kind)
    ours = {k: v.detach().float().requires_grad_() for k, v in wanted.items()}
    background = torch.tensor(case.background, dtype=torch.float64)
    expected = rasterize(case.camera, Splats(**wanted), RenderSettings(background, 2, 1.0, antialiasing))
    means2d = torch.zeros_like(ours["means"], requires_grad=True)
    got = rasterize_extended(case.raster_camera, ours.pop("means"), ours.pop("opacities"), means2d, **ours)
    color, alpha, depth = map_gradients(case)
    for output in (expected, got):
        ((output.color * color).sum() + (output.alpha * alpha).sum() + (output.inverse_depth * depth).sum()).backward()
    assert relative(got.color, expected.color) < VALUE_TOLERANCE
    assert torch.equal(got.radii, expected.radii)
    assert relative(means2d.grad, expected.means2d.grad) < GRADIENT_TOLERANCE
    for name, value in ours.items():
        assert relative(value.grad, wanted[name].grad) < GRADIENT_TOLERANCE, name


def original_settings(case: Case, **changes: object) -> GaussianRasterizationSettings:
    """Matrices as the original's scene code makes them, with an off-centre frustum."""
    c = case.camera
    view = torch.tensor(c.world_to_camera, dtype=torch.float32)
    near, far = 0.01, 100.0
    projection = torch.zeros(4, 4)
    projection[0, 0], projection[1, 1] = 2 * c.fx / c.width, 2 * c.fy / c.height
    projection[0, 2], projection[1, 2] = 2 * c.cx / c.width - 1, 2 * c.cy / c.height - 1
    projection[2, 2], projection[2, 3] = far / (far - near), -far * near / (far - near)
    projection[3, 2] = 1
    values = {
        "image_height": c.height,
        "image_width": c.width,
        "tanfovx": c.width / (2 * c.fx),
        "tanfovy": c.height / (2 * c.fy),
        "bg": torch.tensor(case.background),
        "scale_modifier": case.scale_modifier,
        "viewmatrix": view.T,
        "projmatrix": (projection @ view).T,
        "sh_degree": case.sh_degree,
        "campos": torch.tensor(c.centre, dtype=torch.float32),
        "prefiltered": False,
        "debug": False,
    }
    return GaussianRasterizationSettings(**(values | changes))


def test_known_api_agrees_with_the_extended_one():
    case = make_case(11, sh_degree=3, scale_modifier=1.2)
    g = case.gaussians
    leaves = {
        "means3D": g["means"],
        "means2D": torch.zeros_like(g["means"]),
        "opacities": g["logit_opacities"].sigmoid(),
        "shs": torch.cat([g["sh0"], g["shN"]], dim=1),
        "scales": g["log_scales"].exp(),
        "rotations": torch.nn.functional.normalize(g["quats"]),
    }
    leaves = {k: v.clone().requires_grad_() for k, v in leaves.items()}
    color, radii = GaussianRasterizer(original_settings(case))(**leaves)
    weights = map_gradients(case)[0]
    (color * weights).sum().backward()

    _, expected = case.reference()
    assert relative(color, expected.color) < 1e-5  # float32 matrices: the principal point comes through a product
    assert torch.equal(radii, expected.radii)
    names = {"means3D": "means", "means2D": "means2d", "shs": "sh", "rotations": "quats"}
    copies = {names.get(k, k): v.detach().clone().requires_grad_() for k, v in leaves.items()}
    order = [copies.pop(k) for k in ("means", "opacities", "means2d")]
    got = rasterize_extended(case.raster_camera, *order, **copies)
    (got.color * weights).sum().backward()
    copies |= dict(zip(("means", "opacities", "means2d"), order, strict=True))
    for name, leaf in leaves.items():
        assert relative(leaf.grad, copies[names.get(name, name)].grad) < 1e-4, name


def test_newer_settings_return_inverse_depth_and_mark_visible_is_the_near_plane():
    case = make_case(12, antialiasing=True)
    g = case.gaussians
    rasterizer = GaussianRasterizer(original_settings(case, antialiasing=True))
    arguments = (g["means"], torch.zeros_like(g["means"]), g["logit_opacities"].sigmoid())
    sh = torch.cat([g["sh0"], g["shN"]], dim=1)
    with torch.no_grad():
        color, _, inverse_depth = rasterizer(*arguments, shs=sh, scales=g["log_scales"].exp(), rotations=g["quats"])
    _, expected = case.reference()
    assert relative(color, expected.color) < 1e-5
    assert relative(inverse_depth, expected.inverse_depth) < 1e-5
    z = np.c_[g["means"].double().numpy(), np.ones(len(sh))] @ case.camera.world_to_camera[2]
    assert torch.equal(rasterizer.markVisible(g["means"]), torch.tensor(z > 0.2))


def test_two_renders_before_their_backward_do_not_disturb_each_other():
    first, second = make_case(20), make_case(21, n=500, width=100, height=80)
    alone = [one_gradient(case) for case in (first, second)]
    losses, leaves = [], []
    for case in (first, second):
        loss, leaf = color_sum(case)
        losses.append(loss)
        leaves.append(leaf)
    for loss in losses:
        loss.backward()
    for leaf, gradient in zip(leaves, alone, strict=True):
        assert torch.equal(leaf.grad, gradient)


def color_sum(case: Case) -> tuple[Tensor, Tensor]:
    g = case.gaussians
    means = g["means"].clone().requires_grad_()
    sh = torch.cat([g["sh0"], g["shN"]], dim=1)
    out = rasterize_extended(
        case.raster_camera,
        means,
        g["logit_opacities"].sigmoid(),
        sh=sh,
        scales=g["log_scales"].exp(),
        quats=g["quats"],
    )
    return (out.color * map_gradients(case)[0]).sum(), means


def one_gradient(case: Case) -> Tensor:
    loss, means = color_sum(case)
    loss.backward()
    assert means.grad is not None
    return means.grad
