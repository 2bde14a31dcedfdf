"""The conversion of our nouns to the gsplat package's arguments; the package itself only where there is a GPU."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gaussian_renderer import RASTERIZERS, reference, render
from gaussian_renderer.backends import gsplat_arguments
from gaussian_renderer.splats import RenderSettings, Splats, activated, covariances
from scene.gaussians import FIELDS
from tests.gaussian_renderer.scenes import BACKGROUND, converted, make_camera, make_gaussians, relative_error
from utils.errors import UserError

CAMERA = make_camera(40, 30, off_centre=(1.5, -2.0))


def settings(**changes: object) -> RenderSettings:
    base = RenderSettings(torch.tensor(BACKGROUND, dtype=torch.float64))
    return replace(base, **changes)  # type: ignore[arg-type]


def gsplat_projection(arguments: dict[str, Tensor]) -> dict[str, Tensor]:
    """What gsplat documents to do with its arguments, in float64: OpenCV axes, K with corner origin, wxyz quaternions.

    Its limit on the slope is measured from the borders; splats beyond either limit are left out by the caller.
    """
    R, t = arguments["viewmats"][0, :3, :3], arguments["viewmats"][0, :3, 3]
    K = arguments["Ks"][0]
    local = arguments["means"] @ R.T + t
    homogeneous = local @ K.T
    if arguments.get("covars") is None:
        unit = torch.nn.functional.normalize(arguments["quats"], dim=1)
        w, v = unit[:, 0], unit[:, 1:]
        eye = torch.eye(3, dtype=torch.float64)
        cross = torch.stack([torch.linalg.cross(v, eye[k].expand_as(v)) for k in range(3)], dim=2)
        turn = eye + 2 * w[:, None, None] * cross + 2 * cross @ cross
        half = turn @ torch.diag_embed(arguments["scales"])
        world = half @ half.mT
    else:
        world = arguments["covars"]
    x, y, z = local.unbind(1)
    zero = torch.zeros_like(z)
    slopes = torch.stack([torch.stack([1 / z, zero, -x / z**2], 1), torch.stack([zero, 1 / z, -y / z**2], 1)], 1)
    J = K[:2, :2] @ slopes
    plain = J @ R @ world @ R.T @ J.mT
    blurred = plain + arguments["eps2d"] * torch.eye(2, dtype=torch.float64)
    opacities = arguments["opacities"]
    if arguments["rasterize_mode"] == "antialiased":
        opacities = opacities * (torch.linalg.det(plain) / torch.linalg.det(blurred)).clamp(min=0).sqrt()
    return {
        "xy": homogeneous[:, :2] / homogeneous[:, 2:] - 0.5,  # pixel (i, j) is sampled at (i + 1/2, j + 1/2)
        "S": blurred,
        "z": z,
        "opacities": opacities,
        "slope": local[:, :2].abs() / local[:, 2:],
    }


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("ready_made", [False, True])
def test_converted_arguments_project_like_the_reference(antialiasing: bool, ready_made: bool) -> None:
    splats = activated(converted(make_gaussians(200, 3, depth=(0.5, 4), log_scale=-2), torch.float64))
    chosen = settings(antialiasing=antialiasing, scale_modifier=1.0 if ready_made else 0.8, sh_degree=2)
    if ready_made:
        assert splats.scales is not None
        assert splats.quats is not None
        sigma = covariances(splats.scales, splats.quats)
        splats = Splats(splats.means, splats.opacities, covariances=sigma, colors=splats.means.abs())
    arguments = gsplat_arguments(CAMERA, splats, chosen)
    projected = gsplat_projection(arguments)
    layers = reference.prepare(CAMERA, splats, chosen)
    seen = projected["slope"][layers.order].amax(1) < 0.35  # inside every limit: 1.3 * 15 / 49.5 = 0.39
    assert 50 < seen.sum() <= 200
    order, screen = layers.order[seen], layers.screen
    S = torch.stack([screen.xx, screen.xy_cov, screen.xy_cov, screen.yy], dim=1).reshape(-1, 2, 2)
    torch.testing.assert_close(projected["xy"][order], screen.xy[seen])
    torch.testing.assert_close(projected["S"][order], S[seen])
    torch.testing.assert_close(projected["z"][order], screen.z[seen])
    torch.testing.assert_close(
        projected["opacities"][order], layers.opacities[seen], atol=5e-3 * antialiasing, rtol=1e-9
    )
    torch.testing.assert_close(arguments["colors"][order], layers.features[seen])  # RGB and 1 / z


def test_shapes_sizes_and_modes() -> None:
    gaussians = make_gaussians(7, 0)
    arguments = gsplat_arguments(CAMERA, activated(gaussians), replace(settings(), antialiasing=True))
    shapes = {name: tuple(v.shape) for name, v in arguments.items() if isinstance(v, Tensor)}
    assert shapes == {
        "means": (7, 3),
        "quats": (7, 4),
        "scales": (7, 3),
        "opacities": (7,),
        "colors": (7, 4),
        "viewmats": (1, 4, 4),
        "Ks": (1, 3, 3),
        "backgrounds": (1, 4),
    }
    assert all(v.dtype == torch.float32 for v in arguments.values() if isinstance(v, Tensor))
    rest = {name: v for name, v in arguments.items() if not isinstance(v, Tensor)}
    assert rest == {
        "width": 40,
        "height": 30,
        "near_plane": 0.2,
        "eps2d": 0.3,
        "sh_degree": None,
        "packed": False,
        "render_mode": "RGB",
        "rasterize_mode": "antialiased",
    }
    assert arguments["backgrounds"][0].tolist() == pytest.approx([*BACKGROUND, 0])


def test_gradients_pass_the_conversion_and_those_behind_the_camera_do_no_harm() -> None:
    gaussians = converted(make_gaussians(60, 1, depth=(-1, 3)), torch.float64, gradients=True)
    arguments = gsplat_arguments(CAMERA, activated(gaussians), settings())
    sum(arguments[name].sum() for name in ("means", "quats", "scales", "opacities", "colors")).backward()
    for name in FIELDS:
        assert torch.isfinite(getattr(gaussians, name).grad).all()
        assert (getattr(gaussians, name).grad != 0).any()


def test_says_what_is_missing_without_a_gpu() -> None:
    with pytest.raises(UserError, match="needs an NVIDIA GPU"):
        render(CAMERA, make_gaussians(3, 0), background=BACKGROUND, rasterizer="gsplat")


@pytest.mark.gpu
@pytest.mark.parametrize("antialiasing", [False, True])
def test_gsplat_on_a_gpu_agrees_with_the_reference(antialiasing: bool) -> None:
    pytest.importorskip("gsplat", reason="the gsplat package is not installed")
    camera = make_camera(64, 48)
    results = []
    for name in ("gsplat", "reference"):
        g = make_gaussians(300, 5)
        for field in FIELDS:
            setattr(g, field, getattr(g, field).cuda().requires_grad_())
        splats = activated(g)
        out = RASTERIZERS[name](camera, splats, settings(antialiasing=antialiasing))
        (out.color.sum() + out.alpha.square().sum() + out.inverse_depth.sum()).backward()
        results.append((out, g))
    (a, ga), (b, gb) = results
    # The thresholds of the two may flip a few pixels: norms, not maxima.
    for name in ("color", "alpha", "inverse_depth"):
        assert relative_error(getattr(a, name), getattr(b, name).double()) < 1e-3
    assert torch.equal(a.radii, b.radii)
    assert a.means2d.grad is not None
    assert b.means2d.grad is not None
    assert relative_error(a.means2d.grad, b.means2d.grad.double()) < 1e-2
    for field in FIELDS:
        assert relative_error(getattr(ga, field).grad, getattr(gb, field).grad.double()) < 1e-2


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="--rasterizer opengl: one of"):
        render(CAMERA, make_gaussians(3, 0), background=BACKGROUND, rasterizer="opengl")


def test_more_bands_than_stored_are_refused() -> None:
    with pytest.raises(UserError, match="degrees 0 to 1"):
        render(CAMERA, make_gaussians(3, 0, degree=1), background=BACKGROUND, rasterizer="reference", sh_degree=2)
