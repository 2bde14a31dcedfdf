"""The native rasterizer against the float64 reference: values, every gradient, and the edges of the definition."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor

from gaussian_renderer import RASTERIZERS, render
from gaussian_renderer.splats import SOLID_ALPHA, RenderOutput, RenderSettings, Splats, activated, covariances
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
from utils.errors import UserError

# float32 rounds to 6e-8; a sum over some hundred splats and pixels of both signs loses up to two digits.
TOLERANCE = 1e-5
MAPS = ("color", "alpha", "inverse_depth", "depth")


def settings(**changes: object) -> RenderSettings:
    return replace(RenderSettings(torch.tensor(BACKGROUND)), **changes)  # type: ignore[arg-type]


def draw(name: str, camera: Camera, gaussians: Gaussians, chosen: RenderSettings) -> RenderOutput:
    return render(
        camera,
        gaussians,
        background=chosen.background,
        rasterizer=name,
        sh_degree=chosen.sh_degree,
        scale_modifier=chosen.scale_modifier,
        antialiasing=chosen.antialiasing,
    )


def loss(out: RenderOutput, masks: dict[str, Tensor]) -> Tensor:
    """A random linear function of all maps, over the pixels where each is sure."""
    g = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for name in MAPS:
        value = getattr(out, name)
        total = total + (value * torch.randn(value.shape, generator=g, dtype=torch.float64) * masks[name]).sum()
    return total


def errors(camera: Camera, gaussians: Gaussians, chosen: RenderSettings, name: str = "native") -> dict[str, float]:
    """Relative L2 errors of float32 maps and gradients, on the pixels away from thresholds; radii must be equal.

    Gradients are those of the activated values: a sigmoid near 1 has lost its digits before any rasterizer sees it.
    """
    results = []
    sure = sure_pixels(camera, gaussians, chosen)
    masks = dict.fromkeys(MAPS, sure)
    for rasterizer, dtype in (("reference", torch.float64), (name, torch.float32)):
        leaves = {
            k: v.detach().to(dtype).requires_grad_() for k, v in vars(activated(gaussians)).items() if v is not None
        }
        out = RASTERIZERS[rasterizer](camera, Splats(**leaves), chosen)
        if rasterizer == "reference":
            masks["depth"] = sure & ((out.alpha.detach() - SOLID_ALPHA).abs() > 1e-3)
        loss(out, masks).backward()
        values = {k: (getattr(out, k) * masks[k]).detach() for k in MAPS}
        gradients = {f"gradient of {k}": v.grad for k, v in {**leaves, "means2d": out.means2d}.items()}
        results.append(({**values, **gradients}, out.radii))
    (exact, radii), (found, found_radii) = results
    assert torch.equal(found_radii, radii)
    return {k: relative_error(found[k], exact[k]) for k in exact}


KINDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "faint": {"opacity": -4.0, "log_scale": -2.0},
    "wide": {"spread": 4.0},
    "opaque": {"opacity": 5.0, "log_scale": -1.8},
    "close": {"depth": (0.05, 1.5)},
    "behind": {"depth": (-2.0, 2.5)},
}


@hypothesis_settings(max_examples=40, derandomize=True, deadline=None)
@given(
    n=st.integers(100, 300),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(sorted(KINDS)),
    size=st.sampled_from([(40, 30), (64, 48), (33, 65), (16, 16), (7, 50), (1, 1)]),
    off_centre=st.sampled_from([(0.0, 0.0), (3.25, -2.5), (-12.0, 9.0)]),
    degree=st.integers(0, 3),
    antialiasing=st.booleans(),
    scale_modifier=st.sampled_from([1.0, 0.4, 1.7]),
)
def test_values_and_gradients_on_random_scenes(
    n: int,
    seed: int,
    kind: str,
    size: tuple[int, int],
    off_centre: tuple[float, float],
    degree: int,
    antialiasing: bool,
    scale_modifier: float,
) -> None:
    camera = make_camera(*size, focal=1.1 * max(size), off_centre=off_centre)
    chosen = settings(sh_degree=degree, antialiasing=antialiasing, scale_modifier=scale_modifier)
    gaussians = off_the_edges(camera, make_gaussians(n, seed, **KINDS[kind]), chosen)
    # One splat whose tail alone is in the picture can be arbitrarily ill-conditioned; some dozens are not.
    assume(gaussians.num >= 10)
    for name, error in errors(camera, gaussians, chosen).items():
        assert error <= TOLERANCE, (name, error)


@pytest.mark.parametrize("seed", range(4))
def test_opaque_stack(seed: int) -> None:
    """100 nearly opaque splats over the same pixels: the stop at T = 1e-4 and the cap at 0.99 are the rule."""
    camera = make_camera(48, 40)
    gaussians = off_the_edges(camera, make_gaussians(100, seed, spread=0.1, opacity=7.0, log_scale=-1.5), settings())
    found = errors(camera, gaussians, settings())
    assert max(found.values()) <= TOLERANCE, found


EXTREMES: dict[str, dict[str, Any]] = {
    "huge": {"n": 20, "log_scale": 2.0, "opacity": -2.0},
    "smaller than a pixel": {"n": 200, "log_scale": -6.0, "opacity": 2.0},
    "few": {"n": 4},
    "tails only": {"n": 40, "spread": 2.5, "depth": (0.1, 1.0)},
}


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("kind", EXTREMES)
def test_extremes_lose_little_more_than_plain_float32(kind: str, antialiasing: bool) -> None:
    """Where the equations are ill-conditioned, plain PyTorch in float32 is the yardstick: 3e-5, or 4 x its error."""
    camera, chosen = make_camera(48, 40), settings(antialiasing=antialiasing)
    for seed in range(3):
        gaussians = off_the_edges(camera, make_gaussians(seed=seed, **EXTREMES[kind]), chosen)
        native, plain = (errors(camera, gaussians, chosen, name) for name in ("native", "reference"))
        assert all(native[k] <= max(3 * TOLERANCE, 4 * plain[k]) for k in native), (native, plain)


def test_gradients_of_stored_parameters() -> None:
    camera = make_camera(64, 48)
    gaussians = off_the_edges(camera, make_gaussians(200, 3), settings())
    masks = dict.fromkeys(MAPS, sure_pixels(camera, gaussians, settings()))
    masks["depth"] = torch.zeros_like(masks["depth"])
    g32, g64 = (converted(gaussians, dtype, gradients=True) for dtype in (torch.float32, torch.float64))
    loss(draw("native", camera, g32, settings()), masks).backward()
    loss(draw("reference", camera, g64, settings()), masks).backward()
    for name in FIELDS:
        assert relative_error(getattr(g32, name).grad, getattr(g64, name).grad) <= TOLERANCE


@pytest.mark.parametrize("size", [-20.0, -60.0])
def test_splats_of_no_size_are_drawn_by_the_dilation_alone(size: float) -> None:
    camera, gaussians = make_camera(), make_gaussians(30, 3, opacity=2.0)
    gaussians.log_scales[:] = size
    sure = off_the_edges(camera, gaussians, settings())
    mask = sure_pixels(camera, sure, settings())
    native = draw("native", camera, sure, settings())
    exact = draw("reference", camera, converted(sure, torch.float64), settings())
    assert (exact.radii[exact.radii > 0] == 3).all()  # ceil(3 sqrt(0.3 + sqrt(0.1))) px
    assert torch.equal(native.radii, exact.radii)
    assert relative_error(native.color * mask, exact.color * mask) <= TOLERANCE


def test_nothing_visible_leaves_the_background() -> None:
    camera = make_camera()
    g = converted(make_gaussians(50, 4, depth=(-5, -1)), torch.float32, gradients=True)
    out = draw("native", camera, g, settings())
    expected = torch.tensor(BACKGROUND)[:, None, None].expand(3, camera.height, camera.width)
    assert torch.equal(out.color, expected)
    for name in ("alpha", "inverse_depth", "depth"):
        assert (getattr(out, name) == 0).all()
    assert (out.radii == 0).all()
    out.color.sum().backward()
    for name in FIELDS:
        assert (getattr(g, name).grad == 0).all()


@pytest.mark.parametrize("n", [0, 1])
def test_none_and_one(n: int) -> None:
    camera = make_camera()
    gaussians = rows(make_gaussians(1, 0, spread=0.1, opacity=3), torch.arange(n))
    out = draw("native", camera, gaussians, settings())
    assert out.radii.shape == (n,)
    assert bool((out.alpha > 0).any()) == (n == 1)
    exact = draw("reference", camera, converted(gaussians, torch.float64), settings())
    assert relative_error(out.color, exact.color) <= TOLERANCE


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("means", float("nan")),
        ("means", float("inf")),
        ("log_scales", 80.0),
        ("log_scales", float("inf")),
        ("log_scales", float("nan")),
        ("quats", 0.0),
        ("logit_opacities", float("-inf")),
    ],
)
def test_a_broken_splat_spoils_neither_picture_nor_gradients(field: str, value: float) -> None:
    camera, gaussians = make_camera(), make_gaussians(40, 6)
    getattr(gaussians, field)[7] = value
    others = torch.arange(40) != 7
    g = converted(gaussians, torch.float32, gradients=True)
    out = draw("native", camera, g, settings())
    assert torch.equal(out.color, draw("native", camera, rows(gaussians, others), settings()).color)
    out.color.sum().backward()
    for name in FIELDS:
        assert torch.isfinite(getattr(g, name).grad[others]).all()


def test_ready_made_colours_and_covariances() -> None:
    camera, chosen = make_camera(off_centre=(2, -1)), settings(antialiasing=True)
    gaussians = off_the_edges(camera, make_gaussians(80, 5), chosen)
    mask = sure_pixels(camera, gaussians, chosen)
    colors = torch.rand(gaussians.num, 3, generator=torch.Generator().manual_seed(0))
    results = []
    for name, dtype in (("native", torch.float32), ("reference", torch.float64)):
        splats = activated(converted(gaussians, torch.float64))
        assert splats.scales is not None
        assert splats.quats is not None
        values = (splats.means, splats.opacities, covariances(splats.scales, splats.quats), colors)
        leaves = [v.detach().to(dtype).requires_grad_() for v in values]
        ready = Splats(leaves[0], leaves[1], covariances=leaves[2], colors=leaves[3])
        out = RASTERIZERS[name](camera, ready, chosen)
        loss(out, dict.fromkeys(MAPS, mask) | {"depth": torch.zeros_like(mask)}).backward()
        results.append([out.color.detach() * mask, *(leaf.grad for leaf in leaves)])
    for value, exact in zip(*results, strict=True):
        assert value is not None
        assert exact is not None
        assert relative_error(value, exact) <= TOLERANCE


@pytest.mark.parametrize("kind", ["usual", "opaque", "faint", "behind"])
def test_few_pixels_flip_inside_the_band_of_the_thresholds(kind: str) -> None:
    """Nothing kept off here: float32 may decide otherwise than float64 in at most 0.1 % of the pixels."""
    camera = make_camera(120, 90, focal=130)
    gaussians = make_gaussians(400, 1, **KINDS[kind])
    native = draw("native", camera, gaussians, settings())
    exact = draw("reference", camera, converted(gaussians, torch.float64), settings())
    flipped = ((native.color - exact.color).abs().amax(0) > 1e-4) | ((native.alpha - exact.alpha).abs() > 1e-4)
    assert flipped.float().mean() <= 1e-3
    # A flipped alpha of 1/255, or what is left at T = 1e-4, is all that can change.
    assert (native.alpha - exact.alpha).abs().max() < 1 / 255 + 1e-4


def test_same_bits_for_any_number_of_threads() -> None:
    before = torch.get_num_threads()
    camera, results = make_camera(100, 70, focal=110), []
    try:
        for threads in (1, 2, 7):
            torch.set_num_threads(threads)
            g = converted(make_gaussians(3000, 8), torch.float32, gradients=True)
            out = draw("native", camera, g, settings())
            (out.color.sum() + out.alpha.sum() + out.inverse_depth.sum()).backward()
            assert out.means2d.grad is not None
            results.append([out.color.detach(), out.radii, out.means2d.grad, *(getattr(g, k).grad for k in FIELDS)])
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(UserError, match="float64 on cpu; it needs float32"):
        draw("native", make_camera(), converted(make_gaussians(3, 0), torch.float64), settings())


def test_python_paths_give_the_same_picture_and_gradients() -> None:
    camera, results = make_camera(), []
    gaussians = off_the_edges(camera, make_gaussians(60, 8), settings())
    mask = sure_pixels(camera, gaussians, settings())
    for in_python in (False, True):
        g = converted(gaussians, torch.float32, gradients=True)
        out = render(camera, g, background=BACKGROUND, convert_SHs_python=in_python, compute_cov3D_python=in_python)
        (out.color * mask).square().sum().backward()
        results.append([out.color.detach() * mask, *(getattr(g, name).grad for name in FIELDS)])
    for value, expected in zip(*results, strict=True):
        assert relative_error(value, expected) <= 3 * TOLERANCE
