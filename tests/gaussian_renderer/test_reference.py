"""The oracle itself: against loops over single pixels, finite differences, and invariants."""

from dataclasses import replace
from math import ceil, exp, sqrt

import numpy as np
import pytest
import torch
from torch import Tensor

from gaussian_renderer import reference, render
from gaussian_renderer.splats import (
    RenderOutput,
    RenderSettings,
    Splats,
    activated,
    covariances,
    rotations,
    viewed_colors,
)
from scene.cameras import Camera
from scene.gaussians import FIELDS, Gaussians
from tests.gaussian_renderer.scenes import (
    BACKGROUND,
    converted,
    make_camera,
    make_gaussians,
    off_the_edges,
    relative_error,
    rows,
    sure_pixels,
)

F64 = torch.float64


def settings(**changes: object) -> RenderSettings:
    return replace(RenderSettings(torch.tensor(BACKGROUND, dtype=F64)), **changes)  # type: ignore[arg-type]


def exact(n: int, seed: int, **options: object) -> Gaussians:
    return converted(make_gaussians(n, seed, **options), F64)  # type: ignore[arg-type]


def draw(camera: Camera, gaussians: Gaussians, **options: object) -> RenderOutput:
    return reference.render_reference(camera, gaussians, torch.tensor(BACKGROUND, dtype=F64), **options)  # type: ignore[arg-type]


def pixel_by_loops(camera: Camera, splats: Splats, i: int, j: int) -> tuple[list[float], float, float]:
    """One pixel in scalar arithmetic, straight from the definition: colour, alpha, inverse depth."""
    assert splats.scales is not None
    assert splats.quats is not None
    assert splats.colors is not None
    found = []
    for n in range(len(splats.means)):
        x, y, z = camera.world_to_camera[:3, :3] @ splats.means[n].numpy() + camera.world_to_camera[:3, 3]
        if not z > 0.2:
            continue
        tx = z * min(max(x / z, -1.3 * np.tan(camera.fov_x / 2)), 1.3 * np.tan(camera.fov_x / 2))
        ty = z * min(max(y / z, -1.3 * np.tan(camera.fov_y / 2)), 1.3 * np.tan(camera.fov_y / 2))
        J = np.array([[camera.fx / z, 0, -camera.fx * tx / z**2], [0, camera.fy / z, -camera.fy * ty / z**2]])
        w, a, b, c = splats.quats[n].numpy() / np.linalg.norm(splats.quats[n])
        cross = np.array([[0, -c, b], [c, 0, -a], [-b, a, 0]])
        R = np.eye(3) + 2 * w * cross + 2 * cross @ cross  # Rodrigues
        half = J @ camera.world_to_camera[:3, :3] @ R @ np.diag(splats.scales[n].numpy())
        S = half @ half.T + 0.3 * np.eye(2)
        d = np.array([i + 0.5 - camera.cx - camera.fx * x / z, j + 0.5 - camera.cy - camera.fy * y / z])
        found.append((z, n, float(splats.opacities[n]) * exp(-0.5 * d @ np.linalg.solve(S, d))))
    T, color, inverse = 1.0, np.zeros(3), 0.0
    for z, n, raw in sorted(found):
        alpha = min(0.99, raw)
        if alpha < 1 / 255:
            continue
        if T * (1 - alpha) < 1e-4:
            break
        color += T * alpha * splats.colors[n].numpy()
        inverse += T * alpha / z
        T *= 1 - alpha
    return (color + T * np.array(BACKGROUND)).tolist(), 1 - T, inverse


@pytest.mark.parametrize(("opacity", "log_scale"), [(0.0, -2.8), (6.0, -1.5), (-4.0, -2.0)])
def test_every_pixel_is_the_definition(opacity: float, log_scale: float) -> None:
    camera = make_camera(14, 9, focal=12, off_centre=(1.25, -0.75))
    gaussians = exact(60, 1, depth=(-0.5, 4.0), spread=3.0, opacity=opacity, log_scale=log_scale)
    colors = torch.rand(60, 3, dtype=F64, generator=torch.Generator().manual_seed(2))
    splats = activated(gaussians, override_color=colors)
    with torch.no_grad():
        out = reference.rasterize(camera, splats, settings())
    for j in range(camera.height):
        for i in range(camera.width):
            color, alpha, inverse = pixel_by_loops(camera, splats, i, j)
            assert out.color[:, j, i].tolist() == pytest.approx(color, abs=1e-12)
            assert float(out.alpha[j, i]) == pytest.approx(alpha, abs=1e-12)
            assert float(out.inverse_depth[j, i]) == pytest.approx(inverse, abs=1e-12)


@pytest.mark.parametrize("antialiasing", [False, True])
def test_gradients_are_finite_differences(antialiasing: bool) -> None:
    camera = make_camera(9, 7, focal=11, off_centre=(1.5, -1.0))
    chosen = settings(antialiasing=antialiasing, scale_modifier=1.2, sh_degree=2)
    gaussians = off_the_edges(camera, make_gaussians(8, 4, degree=2, opacity=-0.5, spread=1.5), chosen)
    assert 5 <= gaussians.num <= 20
    assert float(gaussians.opacities.max()) < 0.95  # the cap is straight-through on purpose: tested below
    mask = sure_pixels(camera, gaussians, chosen)
    assert mask.float().mean() > 0.8

    def outputs(*values: Tensor) -> Tensor:
        out = draw(camera, Gaussians(*values), antialiasing=antialiasing, scale_modifier=1.2)
        return torch.cat([out.color, out.alpha[None], out.inverse_depth[None], out.depth[None]])[:, mask]

    inputs = [getattr(converted(gaussians, F64, gradients=True), name) for name in FIELDS]
    assert torch.autograd.gradcheck(outputs, inputs, eps=1e-6, atol=1e-6, rtol=1e-5)


def test_gradients_of_ready_made_colours_and_covariances() -> None:
    camera = make_camera(12, 10, focal=14)
    gaussians = off_the_edges(camera, make_gaussians(6, 4, opacity=-0.5), settings())
    mask = sure_pixels(camera, gaussians, settings())
    g = converted(gaussians, F64)
    colors = torch.rand(g.num, 3, dtype=F64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    sigma = covariances(g.scales, g.quats).requires_grad_()

    def outputs(sigma: Tensor, colors: Tensor) -> Tensor:
        splats = Splats(g.means, g.opacities, covariances=sigma, colors=colors)
        return reference.rasterize(camera, splats, settings()).color[:, mask]

    assert torch.autograd.gradcheck(outputs, (sigma, colors), eps=1e-7, atol=1e-6, rtol=1e-5)


def test_capped_alpha_passes_the_gradient_straight_through() -> None:
    camera = make_camera(5, 5, focal=10)
    to_world = np.linalg.inv(camera.world_to_camera)
    mean = torch.from_numpy(to_world[:3, :3] @ np.array([0, 0, 2.0]) + to_world[:3, 3])[None]
    opacity = torch.tensor([[0.999]], dtype=F64, requires_grad=True)
    unit = torch.ones(1, 3, dtype=F64)
    quat = torch.tensor([[1.0, 0, 0, 0]], dtype=F64)
    out = reference.rasterize(camera, Splats(mean, opacity, unit, quat, colors=unit), settings())
    assert float(out.alpha[2, 2].detach()) == 0.99
    out.alpha[2, 2].backward()
    assert opacity.grad is not None
    assert float(opacity.grad) == pytest.approx(1.0)  # = exp(0), not 0


def test_means2d_holds_the_gradient_in_normalised_coordinates() -> None:
    camera = make_camera(16, 12, off_centre=(2, 1))
    gaussians = converted(off_the_edges(camera, make_gaussians(30, 7), settings()), F64)
    mask = sure_pixels(camera, gaussians, settings())
    weights = torch.randn(3, 16 * 12, dtype=F64, generator=torch.Generator().manual_seed(0)).reshape(3, 12, 16) * mask

    def loss(dx: float, dy: float) -> tuple[Tensor, RenderOutput]:
        shift = np.array([[0, 0, dx], [0, 0, dy], [0, 0, 0]])
        out = draw(replace(camera, K=camera.K + shift), gaussians)
        return (out.color * weights).sum(), out

    value, out = loss(0, 0)
    value.backward()
    assert out.means2d.grad is not None
    # Moving the principal point moves all projected means by as many pixels.
    step = 1e-6
    slope_x = float((loss(step, 0)[0] - loss(-step, 0)[0]).detach()) / (2 * step)
    slope_y = float((loss(0, step)[0] - loss(0, -step)[0]).detach()) / (2 * step)
    assert float(out.means2d.grad[:, 0].sum()) == pytest.approx(slope_x * 16 / 2, rel=1e-6)
    assert float(out.means2d.grad[:, 1].sum()) == pytest.approx(slope_y * 12 / 2, rel=1e-6)
    assert (out.means2d.grad[:, 2] == 0).all()


def test_no_gradient_means_no_graph() -> None:
    with torch.no_grad():
        out = draw(make_camera(), exact(5, 0))
    assert not out.means2d.requires_grad
    assert not out.color.requires_grad


@pytest.mark.parametrize("antialiasing", [False, True])
def test_turning_the_world_changes_nothing(antialiasing: bool) -> None:
    camera, gaussians = make_camera(), exact(80, 3, degree=0)
    axis = torch.nn.functional.normalize(torch.randn(4, dtype=F64, generator=torch.Generator().manual_seed(0)), dim=0)
    turn, shift = rotations(axis[None])[0], torch.tensor([0.4, -2.0, 7.0], dtype=F64)
    moved = np.eye(4)
    moved[:3, :3], moved[:3, 3] = turn, shift
    w1, v1 = axis[0], axis[1:]
    w2, v2 = gaussians.quats[:, :1], gaussians.quats[:, 1:]
    vector = w1 * v2 + w2 * v1 + torch.linalg.cross(v1.expand_as(v2), v2)
    product = torch.cat([w1 * w2 - v2 @ v1[:, None], vector], dim=1)  # Hamilton
    turned = replace(gaussians, means=gaussians.means @ turn.T + shift, quats=product)
    there = replace(camera, world_to_camera=camera.world_to_camera @ np.linalg.inv(moved))
    a, b = draw(camera, gaussians, antialiasing=antialiasing), draw(there, turned, antialiasing=antialiasing)
    for name in ("color", "alpha", "inverse_depth", "depth"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), atol=1e-11, rtol=1e-11)
    assert torch.equal(a.radii, b.radii)


def test_length_of_quaternions_and_order_of_splats_do_not_matter() -> None:
    camera, gaussians = make_camera(), exact(80, 3)
    order = torch.randperm(80, generator=torch.Generator().manual_seed(1))
    shuffled = rows(replace(gaussians, quats=gaussians.quats * 3.7), order)
    a, b = draw(camera, gaussians), draw(camera, shuffled)
    torch.testing.assert_close(a.color, b.color, atol=1e-13, rtol=0)
    assert torch.equal(a.radii[order], b.radii)


def test_equal_depths_are_blended_in_index_order() -> None:
    camera = replace(make_camera(5, 5, focal=10), world_to_camera=np.eye(4))
    one = Splats(
        torch.tensor([[0.0, 0, 2]] * 2, dtype=F64),
        torch.full((2, 1), 0.6, dtype=F64),
        torch.ones(2, 3, dtype=F64),
        torch.tensor([[1.0, 0, 0, 0]] * 2, dtype=F64),
        colors=torch.tensor([[1.0, 0, 0], [0, 1, 0]], dtype=F64),
    )
    color = reference.rasterize(camera, one, settings()).color[:, 2, 2].tolist()
    assert color == pytest.approx([0.6 + 0.16 * 0.3, 0.24 + 0.16 * 0.1, 0.16 * 0.7])


def test_in_bands_of_pixels_as_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    camera, gaussians = make_camera(), exact(50, 5)
    whole = draw(camera, gaussians)
    monkeypatch.setattr(reference, "PAIRS_AT_ONCE", 1000)
    torch.testing.assert_close(draw(camera, gaussians).color, whole.color, atol=1e-14, rtol=0)


def radius_by_loops(camera: Camera, xy: Tensor, S: Tensor, z: float) -> int:
    """The released code's rule in scalars: int() truncates towards zero, tiles of 16."""
    if not z > 0.2:
        return 0
    middle = 0.5 * float(S[0, 0] + S[1, 1])
    radius = ceil(3 * sqrt(middle + sqrt(max(0.1, middle**2 - float(torch.linalg.det(S))))))
    area = 1
    for at, size in ((float(xy[0]), camera.width), (float(xy[1]), camera.height)):
        grid = (size + 15) // 16
        low = min(grid, max(0, int((at - radius) / 16)))
        high = min(grid, max(0, int((at + radius + 15) / 16)))
        area *= high - low
    return radius if area > 0 else 0


@pytest.mark.parametrize("size", [(40, 30), (16, 16), (33, 48)])
def test_radii_follow_the_released_rule(size: tuple[int, int]) -> None:
    camera, gaussians = make_camera(*size, focal=20), exact(600, 11, depth=(-0.5, 3), spread=6, opacity=-3)
    out = draw(camera, gaussians)
    screen = reference.project(camera, activated(gaussians), settings())
    S = torch.stack([screen.xx, screen.xy_cov, screen.xy_cov, screen.yy], -1).reshape(-1, 2, 2)
    expected = [radius_by_loops(camera, screen.xy[n], S[n], float(screen.z[n])) for n in range(gaussians.num)]
    assert out.radii.dtype == torch.int32
    assert out.radii.tolist() == expected
    assert 50 < sum(r > 0 for r in expected) < 550  # both cases occur


def test_a_splat_counts_as_visible_whatever_its_opacity() -> None:
    out = draw(make_camera(), exact(40, 2, opacity=-30))
    assert (out.alpha == 0).all()
    assert (out.radii > 0).any()


def test_depth_is_stated_where_the_model_is_solid() -> None:
    camera, gaussians = make_camera(), exact(200, 2, depth=(1, 3), opacity=2)
    out = draw(camera, gaussians)
    solid = out.alpha > 0.5
    assert solid.any()
    assert not solid.all()
    torch.testing.assert_close(out.depth[solid], (out.alpha / out.inverse_depth)[solid])
    assert (out.depth[~solid] == 0).all()
    assert (out.depth[solid] > 0.9).all()  # depths are 1 to 3 before the camera's small shift
    assert (out.depth[solid] < 3.5).all()


@pytest.mark.parametrize(
    "broken",
    [
        {"means": np.nan},
        {"means": np.inf},
        {"log_scales": 80.0},
        {"log_scales": np.inf},
        {"log_scales": -np.inf},
        {"quats": 0.0},
        {"means": -3.0},
    ],
)
def test_a_broken_splat_is_culled_and_spoils_no_gradient(broken: dict[str, float]) -> None:
    camera = make_camera()
    gaussians = exact(20, 6)
    for name, value in broken.items():
        getattr(gaussians, name)[7] = value
    others = torch.arange(20) != 7
    g = converted(gaussians, F64, gradients=True)
    out = draw(camera, g)
    invisible = broken.get("log_scales") == -np.inf  # zero size is no error: the dilation alone is drawn
    if not invisible:
        torch.testing.assert_close(out.color, draw(camera, rows(gaussians, others)).color, atol=1e-14, rtol=0)
        assert out.radii[7] == 0
    out.color.sum().backward()
    for name in FIELDS:
        assert torch.isfinite(getattr(g, name).grad[others]).all()
        assert invisible or (torch.nan_to_num(getattr(g, name).grad[7]) == 0).all()


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n: int) -> None:
    camera = make_camera()
    g = converted(rows(make_gaussians(1, 0, spread=0.1, opacity=3), torch.arange(n)), F64, gradients=True)
    out = draw(camera, g)
    assert out.color.shape == (3, camera.height, camera.width)
    assert out.radii.shape == (n,)
    assert bool((out.alpha > 0).any()) == (n > 0)
    if n == 0:
        torch.testing.assert_close(out.color, torch.tensor(BACKGROUND, dtype=F64)[:, None, None].expand_as(out.color))
    (out.color.sum() + out.depth.sum()).backward()
    assert g.means.grad is not None


def test_single_precision_is_near_double() -> None:
    camera = make_camera()
    gaussians = off_the_edges(camera, make_gaussians(150, 9), settings())
    mask = sure_pixels(camera, gaussians, settings())
    a = reference.render_reference(camera, gaussians, torch.tensor(BACKGROUND))
    b = draw(camera, converted(gaussians, F64))
    assert a.color.dtype == torch.float32
    assert relative_error(a.color[:, mask], b.color[:, mask]) < 1e-5


def test_python_paths_and_overrides_are_the_same_picture() -> None:
    camera, gaussians = make_camera(), exact(60, 8)
    options = {"background": BACKGROUND, "rasterizer": "reference", "sh_degree": 2, "scale_modifier": 0.7}
    whole = render(camera, gaussians, **options)  # type: ignore[arg-type]
    python = render(camera, gaussians, convert_SHs_python=True, compute_cov3D_python=True, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(whole.color, python.color, atol=1e-14, rtol=0)
    sh = torch.cat([gaussians.sh0, gaussians.shN], dim=1)
    colors = viewed_colors(camera, gaussians.means, sh, 2)
    override = render(camera, gaussians, override_color=colors, **options)  # type: ignore[arg-type]
    torch.testing.assert_close(whole.color, override.color, atol=1e-14, rtol=0)
