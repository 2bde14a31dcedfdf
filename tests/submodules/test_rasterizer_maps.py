"""Depth and normal maps, absolute screen gradients and contributions of the native rasterizer.

Oracles: the float64 reference draws depth and normals as colours over black; absolute gradients and contributions come
from the dense table of pixel-Gaussian pairs.
"""

from dataclasses import replace

import pytest
import torch
from diff_gaussian_rasterization import RasterOutput, rasterize_extended, set_memory_limit
from diff_gaussian_rasterization.fused import L1SSIM, Statistics, Workspace, train_step
from torch import Tensor

from gaussian_renderer.reference import Layers, blending_weights, prepare, rasterize, raw_alphas
from gaussian_renderer.splats import RenderSettings, Splats, activated, rotations
from scene.gaussians import Gaussians
from tests.submodules.rasterizer_scenes import Case, make_case, posed, relative
from tests.submodules.test_rasterizer_memory import on_threads, smallest_limit
from tests.submodules.test_rasterizer_robustness import poisoned

VALUE_TOLERANCE = 2e-6  # float32 rounding of sums of about 40 splats
GRADIENT_TOLERANCE = 1e-5
SETTINGS = [
    {"sh_degree": 3},
    {"sh_degree": 2, "antialiasing": True, "width": 64, "height": 48},
    {"sh_degree": 1, "scale_modifier": 1.3, "width": 33, "height": 70},
]
MAPS = ("color", "alpha", "inverse_depth", "depth", "normal")
Tensors = dict[str, Tensor]


def leaves_of(case: Case, dtype: torch.dtype, six: list[Tensor] | None = None) -> Tensors:
    """Activated leaves, in the names of rasterize_extended."""
    means, log_scales, quats, logits, sh0, shN = (p.to(dtype) for p in (case.six if six is None else six))
    sh = torch.cat([sh0, shN], dim=1)[:, : (case.sh_degree + 1) ** 2]
    values = {"means": means, "opacities": logits.sigmoid(), "sh": sh, "scales": log_scales.exp(), "quats": quats}
    return {name: value.detach().clone().requires_grad_() for name, value in values.items()}


def draw(case: Case, leaves: Tensors, maps: str = "all", **extra: Tensor) -> tuple[RasterOutput, Tensors]:
    """All maps, and the zeros whose gradients are those of the screen positions."""
    screen = {name: torch.zeros_like(leaves["means"], requires_grad=True) for name in ("means2d", "means2d_abs")}
    return rasterize_extended(case.raster_camera, **leaves, **screen, maps=maps, **extra), screen


def random_gradients(case: Case, names: tuple[str, ...] = MAPS, seed: int = 0) -> Tensors:
    """dL/dmap."""
    g = torch.Generator().manual_seed(seed)
    size = (case.camera.height, case.camera.width)
    shapes = {name: (3, *size) if name in ("color", "normal") else size for name in MAPS}
    return {name: torch.randn(shapes[name], generator=g) for name in names}


def loss(maps: dict[str, Tensor], gradient: Tensors) -> Tensor:
    return sum((maps[name] * g).sum() for name, g in gradient.items())


def gradients(output: RasterOutput, gradient: Tensors, *of: Tensors) -> Tensors:
    """dL/dleaf by name; the graph is kept, so that another gradient can go through it."""
    wanted = {name: leaf for some in of for name, leaf in some.items()}
    found = torch.autograd.grad(
        loss(output._asdict(), gradient), list(wanted.values()), retain_graph=True, allow_unused=True
    )
    return {name: torch.zeros_like(wanted[name]) if g is None else g for name, g in zip(wanted, found, strict=True)}


def normals(case: Case, leaves: Tensors) -> Tensor:
    """Unit axis of the smallest scale, turned towards the camera; which axis and the sign are constants."""
    smallest = leaves["scales"].argmin(dim=1)
    axis = rotations(leaves["quats"])[torch.arange(len(smallest)), :, smallest]
    away = (axis * (leaves["means"] - torch.as_tensor(case.camera.centre))).sum(dim=1).detach()
    return torch.where(away > 0, -1.0, 1.0)[:, None] * axis


def reference_maps(case: Case) -> tuple[Tensors, Tensors]:
    """Float64 leaves, and the maps of them."""
    leaves = leaves_of(case, torch.float64)
    splats = Splats(**leaves)
    background = torch.tensor(case.background, dtype=torch.float64)
    settings = RenderSettings(background, case.sh_degree, case.scale_modifier, case.antialiasing)
    output = rasterize(case.camera, splats, settings)

    def as_color(values: Tensor) -> Tensor:
        over_black = replace(settings, background=torch.zeros(3, dtype=torch.float64))
        return rasterize(case.camera, replace(splats, sh=None, colors=values), over_black).color

    pose = torch.as_tensor(case.camera.world_to_camera)
    z = leaves["means"] @ pose[2, :3] + pose[2, 3]
    depth = as_color(z[:, None].expand(-1, 3))[0] / torch.where(output.alpha > 0, output.alpha, 1.0)
    maps = {"color": output.color, "alpha": output.alpha, "inverse_depth": output.inverse_depth}
    return leaves, {**maps, "depth": depth, "normal": as_color(normals(case, leaves))}


def off_thresholds(case: Case, gradient: Tensors, ours: RasterOutput, reference: Tensors) -> Tensors:
    """The gradient without the few pixels in which a splat passed a threshold on one side only."""
    flipped = ((ours.color - reference["color"]).abs() > 1e-4).any(dim=0)
    assert flipped.float().mean() <= 1e-3
    return {name: g * ~flipped for name, g in gradient.items()}


@pytest.mark.parametrize("settings", SETTINGS)
def test_maps_and_their_gradients_are_those_of_the_reference(settings):
    case = make_case(5, **settings)
    wanted, expected = reference_maps(case)
    leaves = leaves_of(case, torch.float32)
    output, _ = draw(case, leaves)
    for name in MAPS:
        assert relative(output._asdict()[name], expected[name]) < VALUE_TOLERANCE, name
    # Where next to nothing is drawn, the rounding of 1 - T is a large share of alpha, by which depth is divided.
    gradient = {name: g * (expected["alpha"] > 0.05) for name, g in random_gradients(case).items()}
    loss(expected, gradient).backward()
    for name, value in gradients(output, gradient, leaves).items():
        assert relative(value, wanted[name].grad) < GRADIENT_TOLERANCE, name


@pytest.mark.parametrize("name", ["depth", "normal"])
@pytest.mark.parametrize("seed", range(3))
def test_gradients_of_one_map_on_random_scenes(seed, name):
    case = make_case(100 + seed, n=120, antialiasing=seed % 2 == 1, sh_degree=1, sigma_px=1.5 + 2 * seed)
    wanted, expected = reference_maps(case)
    leaves = leaves_of(case, torch.float32)
    output, _ = draw(case, leaves)
    gradient = off_thresholds(case, random_gradients(case, (name,), seed), output, expected)
    gradient[name] *= expected["alpha"] > 0.05
    loss(expected, gradient).backward()
    got = gradients(output, gradient, leaves)
    assert torch.count_nonzero(got.pop("sh")) == 0
    for parameter, value in got.items():
        assert relative(value, wanted[parameter].grad) < GRADIENT_TOLERANCE, parameter


@pytest.mark.parametrize("seed", range(2))
def test_the_gradient_of_a_pose_through_all_maps_is_that_of_the_reference(seed):
    """Depth reaches the pose too; normals are in world axes and do not."""
    case = make_case(30 + seed, n=150, antialiasing=seed == 1, sh_degree=2)
    pose = torch.as_tensor(case.camera.world_to_camera).clone().requires_grad_()
    _, expected = reference_maps(replace(case, camera=posed(case.camera, pose)))
    leaves = leaves_of(case, torch.float32)
    output = rasterize_extended(replace(case.raster_camera, world_to_camera=pose), **leaves, maps="all")
    for names in (("depth",), MAPS):
        gradient = off_thresholds(case, random_gradients(case, names, seed), output, expected)
        gradient = {name: g * (expected["alpha"] > 0.05) for name, g in gradient.items()}
        (wanted,) = torch.autograd.grad(loss(expected, gradient), pose, retain_graph=True)
        (found,) = torch.autograd.grad(loss(output._asdict(), gradient), pose, retain_graph=True)
        assert relative(found, wanted) < GRADIENT_TOLERANCE, names
        assert torch.count_nonzero(found[:3]) == 12


def test_more_maps_do_not_change_the_others():
    case = make_case(8)
    leaves = leaves_of(case, torch.float32)
    everything, some = (draw(case, leaves, maps)[0] for maps in ("all", "inverse_depth"))
    for name in ("color", "alpha", "inverse_depth", "radii"):
        assert torch.equal(getattr(some, name), getattr(everything, name)), name
    assert (some.depth, some.normal) == (None, None)


def test_absolute_gradients_do_not_change_the_others():
    """The same bits: turning the statistic on must not send a training elsewhere."""
    case = make_case(8, antialiasing=True)
    leaves = leaves_of(case, torch.float32)
    gradient = random_gradients(case, MAPS[:3])
    output, screen = draw(case, leaves, "inverse_depth")
    absolute = screen.pop("means2d_abs")
    plain = gradients(output, gradient, leaves, screen)
    both = gradients(output, gradient, leaves, screen, {"means2d_abs": absolute})
    assert torch.count_nonzero(both["means2d_abs"]) > 0
    for name, value in plain.items():
        assert torch.equal(value, both[name]), name


def dense_layers(case: Case) -> tuple[Layers, Tensor]:
    """What is drawn, front to back in float64, and the pixels [P, 2]."""
    values = Gaussians(**{k: v.double() for k, v in case.gaussians.items()})
    background = torch.tensor(case.background, dtype=torch.float64)
    settings = RenderSettings(background, case.sh_degree, case.scale_modifier, case.antialiasing)
    rows, columns = torch.meshgrid(torch.arange(case.camera.height), torch.arange(case.camera.width), indexing="ij")
    return prepare(case.camera, activated(values), settings), torch.stack([columns, rows], -1).reshape(-1, 2).double()


def dense_absolute(case: Case, color_gradient: Tensor) -> Tensor:
    """Sums over pixels of |dL/dx|, |dL/dy| [N, 2] in NDC units: every pair has a position of its own."""
    layers, pixels = dense_layers(case)
    screen = layers.screen
    xy = screen.xy[:, None].expand(-1, len(pixels), 2).clone().requires_grad_()  # [M, P, 2]
    dx, dy = (pixels - xy).unbind(-1)
    distance = screen.yy[:, None] * dx * dx - 2 * screen.xy_cov[:, None] * dx * dy + screen.xx[:, None] * dy * dy
    raw = layers.opacities[:, None] * (-0.5 * distance / screen.det[:, None]).exp()
    weights, transmittance = blending_weights(raw)
    image = layers.features[:, :3].T @ weights
    image = image + torch.tensor(case.background, dtype=torch.float64)[:, None] * transmittance
    (image * color_gradient.reshape(3, -1)).sum().backward()
    absolute = torch.zeros(len(case.gaussians["means"]), 2, dtype=torch.float64)
    absolute[layers.order] = xy.grad.abs().sum(dim=1)
    return absolute * torch.tensor([case.camera.width / 2, case.camera.height / 2])


@pytest.mark.parametrize("maps", ["inverse_depth", "all"])
def test_absolute_gradients_are_sums_over_pixels(maps):
    case = make_case(14, n=150, width=50, height=37, sh_degree=1, sigma_px=4.0)
    output, screen = draw(case, leaves_of(case, torch.float32), maps)
    _, expected = reference_maps(case)
    gradient = off_thresholds(case, random_gradients(case, ("color",)), output, expected)
    got = gradients(output, gradient, screen)
    absolute = got["means2d_abs"]
    assert relative(absolute[:, :2], dense_absolute(case, gradient["color"])) < GRADIENT_TOLERANCE
    assert torch.count_nonzero(absolute[:, 2]) == 0
    assert (absolute >= got["means2d"].abs() * (1 - 1e-5)).all()


def test_statistics_add_norms_of_absolute_gradients_of_visible_gaussians():
    case = make_case(15, n=200, scale_modifier=1.0)
    target = torch.rand(3, case.camera.height, case.camera.width, generator=torch.Generator().manual_seed(0))
    norm = torch.ones(200)
    for _ in range(2):
        step = train_step(
            case.raster_camera,
            case.six,
            learning_rates=None,
            losses=[L1SSIM(target)],
            stats=Statistics(absolute_norm=norm),
        )
    grad = torch.empty_like(target)
    Workspace().l1_ssim(step.image, target, grad)
    output, screen = draw(case, leaves_of(case, torch.float32), "inverse_depth")
    expected = gradients(output, {"color": grad}, screen)["means2d_abs"].norm(dim=1) * (step.radii > 0)
    assert relative(norm - 1, 2 * expected) < 1e-5  # the parameters are activated here in float32 by PyTorch


def dense_contributions(case: Case) -> Tensor:
    layers, pixels = dense_layers(case)
    weights, _ = blending_weights(raw_alphas(layers, pixels))
    table = torch.zeros(3, len(case.gaussians["means"]), dtype=torch.float64)
    table[:, layers.order] = torch.stack([weights.amax(dim=1), weights.sum(dim=1), (weights > 0).double().sum(dim=1)])
    return table


def contributions(case: Case, six: list[Tensor], out: Tensor, workspace: Workspace | None = None) -> Tensor:
    """Combine one view with the rows of `out` [3, N]: largest weight, sum, pixels. Returns the transmittance."""
    workspace = workspace or Workspace()
    _, transmittance, _ = workspace.forward(case.raster_camera, *six)
    workspace.contributions(*out)
    return transmittance


@pytest.mark.parametrize("settings", SETTINGS)
def test_contributions_are_those_of_the_dense_table(settings):
    case = make_case(16, **settings)
    expected = dense_contributions(case)
    got = torch.zeros(3, len(case.six[0]))
    transmittance = contributions(case, case.six, got)
    assert relative(got[0], expected[0]) < GRADIENT_TOLERANCE
    assert relative(got[1], expected[1]) < GRADIENT_TOLERANCE
    assert (got[2] - expected[2]).abs().sum() <= 1e-4 * expected[2].sum()  # pairs at a threshold
    assert got[1].sum().item() == pytest.approx((1 - transmittance).sum().item(), rel=1e-5)


def test_contributions_of_several_views_are_combined_in_place():
    views = [make_case(17, width=width, n=90) for width in (61, 40)]
    singles = torch.zeros(2, 3, 90)
    together = torch.zeros(3, 90)
    for case, single in zip(views, singles, strict=True):
        contributions(case, case.six, single)
        contributions(case, case.six, together)
    assert torch.equal(together[0], singles[:, 0].amax(dim=0))
    assert relative(together[1], singles[:, 1].sum(dim=0)) < 1e-6
    assert torch.equal(together[2], singles[:, 2].sum(dim=0))


def everything(case: Case, six: list[Tensor], workspace: Workspace | None = None) -> Tensors:
    """All that this file is about, from one set of parameters."""
    leaves = leaves_of(case, torch.float32, six)
    output, screen = draw(case, leaves)
    table = torch.zeros(3, len(six[0]))
    contributions(case, six, table, workspace)
    maps = {name: value.detach() for name, value in output._asdict().items()}
    return {**maps, **gradients(output, random_gradients(case), leaves, screen), "contributions": table}


def test_same_bits_for_any_number_of_threads():
    case = make_case(18, n=3000, width=150, height=133)
    before = torch.get_num_threads()
    try:
        results = []
        for threads in (1, 2, 3, 7):
            torch.set_num_threads(threads)
            results.append(everything(case, case.six))
    finally:
        torch.set_num_threads(before)
    for result in results[1:]:
        for name, value in result.items():
            assert torch.equal(value, results[0][name]), name


def test_same_bits_in_bands():
    case = make_case(5, n=2000, width=200, height=330, sigma_px=8.0)
    expected = everything(case, case.six)
    limit = smallest_limit(case) + 200_000
    workspace = Workspace(limit)
    set_memory_limit(limit)
    try:
        with on_threads(1):  # each thread takes memory
            results = everything(case, case.six, workspace)
    finally:
        set_memory_limit(0)
    assert workspace.facts["bands"] > 1
    for name, value in results.items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize("seed", range(4))
def test_special_values_stay_finite(seed):
    width, height = ((61, 45), (1, 1), (33, 140), (64, 64))[seed]
    case = make_case(seed, n=2000, width=width, height=height, antialiasing=seed % 2 == 1)
    results = everything(case, poisoned(case, seed))
    if seed == 0:
        assert torch.count_nonzero(results["means2d_abs"]) > 0
    for name, value in results.items():
        assert torch.isfinite(value).all(), name


@pytest.mark.parametrize("count", [0, 1])
def test_no_gaussians_and_one_behind_the_camera_draw_nothing(count):
    case = make_case(0, n=30)
    six = [p[:count].clone() for p in case.six]
    six[0] -= torch.tensor([0.0, 0.0, 50.0])
    for name, value in everything(case, six).items():
        if name != "color":
            assert torch.count_nonzero(value) == 0, name
