"""The forward pass on a GPU: images, maps, radii and contributions against the CPU's kernels and float64.

A pixel next to a threshold (alpha = 1/255, T = 1e-4) may fall on either side: `assert_same` allows a few, none by much.
"""

from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import RasterCamera, RasterOutput, rasterize_extended
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from tests.submodules.rasterizer_scenes import Case, make_case, relative
from tests.submodules.rasterizer_view import filter_of
from tests.submodules.test_rasterizer_maps import MAPS, VALUE_TOLERANCE, leaves_of, reference_maps
from tests.submodules.test_rasterizer_robustness import poisoned

pytestmark = pytest.mark.gpu

SIZES = [(1, 1), (2, 3), (16, 16), (17, 33), (61, 45), (300, 17), (5, 300), (160, 144)]  # width, height


def to(device: Any, *tensors: Tensor) -> list[Tensor]:
    return [t.to(device) for t in tensors]


def assert_same(found: Tensor, expected: Tensor, tolerance: float = 2e-5, share: float = 1e-3) -> None:
    """Equal within rounding, except in a share of the values, and there by less than one splat at the threshold."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    assert found.shape == expected.shape
    assert found.isfinite().all()
    if found.numel() == 0:
        return
    scale = max(1.0, float(expected.abs().max()))
    difference = (found - expected).abs() / scale
    assert (difference > tolerance).double().mean() <= share
    assert difference.max() <= 2 / 255


def assert_same_maps(found: RasterOutput, expected: RasterOutput, tolerance: float = 2e-5) -> None:
    for name in ("color", "alpha", "inverse_depth", "normal"):
        if getattr(expected, name) is not None:
            assert_same(getattr(found, name), getattr(expected, name), tolerance)
    if expected.depth is not None:  # the sum: where next to nothing is drawn its quotient with alpha is rounding
        assert found.depth is not None
        assert_same(found.depth.cpu() * found.alpha.cpu(), expected.depth * expected.alpha, tolerance)
    assert_same_radii(found.radii, expected.radii)


def assert_same_radii(found: Tensor, expected: Tensor) -> None:
    """Ceilings: by one where 3 sigma is next to a whole number."""
    difference = (found.cpu() - expected).abs()
    assert found.dtype == torch.int32
    assert (difference > 0).double().sum() <= 1 + 1e-3 * len(expected)
    assert (difference[(found.cpu() > 0) & (expected > 0)] <= 1).all()


def draw(case: Case, device: Any, maps: Any = "all", **extra: Tensor) -> RasterOutput:
    leaves = {name: leaf.detach().to(device) for name, leaf in leaves_of(case, torch.float32).items()}
    extra = {name: value.to(device) for name, value in extra.items()}
    for name in ("sh", "scales", "quats"):  # what is given instead
        if {"sh": "colors", "scales": "covariances", "quats": "covariances"}[name] in extra:
            del leaves[name]
    return rasterize_extended(case.raster_camera, **leaves, **extra, maps=maps)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("sh_degree", range(4))
def test_maps_and_radii_are_those_of_the_cpu(cuda: Any, size: tuple[int, int], sh_degree: int) -> None:
    width, height = size
    case = make_case(
        sh_degree, n=1500, width=width, height=height, sh_degree=sh_degree, antialiasing=sh_degree % 2 == 1
    )
    assert_same_maps(draw(case, cuda), draw(case, "cpu"))


@pytest.mark.parametrize("antialiasing", [False, True])
def test_maps_are_those_of_the_reference(cuda: Any, antialiasing: bool) -> None:
    case = make_case(5, antialiasing=antialiasing)
    _, expected = reference_maps(case)
    found = draw(case, cuda)._asdict()
    for name in MAPS:
        assert relative(found[name].cpu(), expected[name]) < VALUE_TOLERANCE, name


@pytest.mark.parametrize("sigma_px", [0.3, 8.0, 60.0, 400.0])
def test_from_tiny_splats_to_ones_with_thousands_of_tiles(cuda: Any, sigma_px: float) -> None:
    """Large ones are counted and listed by whole warps; lists are much longer than a batch of 256."""
    case = make_case(7, n=3000, width=410, height=333, sigma_px=sigma_px)
    assert_same_maps(draw(case, cuda), draw(case, "cpu"))


def test_what_is_given_instead_of_harmonics_and_shapes(cuda: Any) -> None:
    case = make_case(3, n=800, width=100, height=60)
    g = torch.Generator().manual_seed(0)
    colors = torch.rand(800, 3, generator=g) * 2 - 0.5  # below 0 too: not clamped
    root = torch.randn(800, 3, 3, generator=g) * 0.03
    sigma = (root @ root.mT)[:, (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)].contiguous()
    for extra in ({"colors": colors}, {"covariances": sigma}, {"colors": colors, "covariances": sigma}):
        maps = "inverse_depth" if "covariances" in extra else "all"
        assert_same_maps(draw(case, cuda, maps, **extra), draw(case, "cpu", maps, **extra))
    filtered = {"filter_3d": filter_of(case)}
    assert_same_maps(draw(case, cuda, **filtered), draw(case, "cpu", **filtered))


@pytest.mark.parametrize("seed", range(6))
def test_hostile_scenes(cuda: Any, seed: int) -> None:
    """The same Gaussians are refused, counted and drawn, and nothing of them reaches a neighbour."""
    width, height = ((61, 45), (1, 1), (300, 5), (33, 260), (64, 64), (200, 200))[seed]
    case = make_case(seed, n=20_000, width=width, height=height, antialiasing=seed % 2 == 1, sh_degree=3 - seed % 4)
    six = poisoned(case, seed)
    there, here = Workspace(device=cuda), Workspace()
    found = there.forward(case.raster_camera, *to(cuda, *six), aux=True)
    expected = here.forward(case.raster_camera, *six, aux=True)
    for a, b in zip(found, expected, strict=True):
        assert a is not None
        assert b is not None
        assert_same(a, b, tolerance=1e-4, share=5e-3)  # a Gaussian more or less changes all pixels that it reaches
    assert there.facts["invalid"] == here.facts["invalid"] > 0
    assert abs(there.facts["drawn"] - here.facts["drawn"]) <= 1 + 1e-3 * here.facts["drawn"]
    assert_same_radii(there.radii, here.radii)


def test_other_levels_and_a_way_back_leave_the_same_bits(cuda: Any) -> None:
    case = make_case(8, n=2000, width=130, height=99)
    six = to(cuda, *case.six)
    plain, with_depth = (Workspace(device=cuda).forward(case.raster_camera, *six, aux=aux) for aux in (False, True))
    assert torch.equal(plain[0], with_depth[0])
    assert torch.equal(plain[1], with_depth[1])
    some, all_maps = draw(case, cuda, "inverse_depth"), draw(case, cuda, "all")
    leaves = {name: leaf.detach().to(cuda).requires_grad_() for name, leaf in leaves_of(case, torch.float32).items()}
    kept = rasterize_extended(case.raster_camera, **leaves)
    for name in ("color", "alpha", "inverse_depth", "radii"):
        assert torch.equal(getattr(some, name), getattr(all_maps, name)), name
        assert torch.equal(getattr(some, name), getattr(kept, name)), name


def test_same_bits_in_every_run(cuda: Any) -> None:
    case = make_case(9, n=5000, width=200, height=150, sigma_px=6.0)
    first = draw(case, cuda)
    for _ in range(5):
        again = draw(case, cuda)
        for name, value in first._asdict().items():
            assert torch.equal(getattr(again, name), value), name


def test_ties_in_depth_go_to_the_lower_index(cuda: Any) -> None:
    """600 splats in one place: more than two batches of a tile, in the order of their indices."""
    n = 600
    camera = RasterCamera(40, 40, 20.0, 20.0, 20.0, 20.0, torch.eye(4))
    means = torch.tensor([[0.0, 0, 2]]).expand(n, 3).contiguous()
    colors = torch.rand(n, 3, generator=torch.Generator().manual_seed(0))
    shapes = {"scales": torch.full((n, 3), 1.0), "quats": torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4).contiguous()}
    values = {"means": means, "opacities": torch.full((n, 1), 0.01), "colors": colors, **shapes}
    expected = rasterize_extended(camera, **values)
    found = rasterize_extended(camera, **{name: value.to(cuda) for name, value in values.items()})
    assert_same_maps(found, expected)
    assert (expected.alpha[20, 20] > 0.99).item()


@pytest.mark.parametrize("size", [(0, 0), (0, 7), (7, 0)])
def test_empty_images(cuda: Any, size: tuple[int, int]) -> None:
    case = make_case(0, n=40)
    c = case.raster_camera
    camera = RasterCamera(*size, c.fx, c.fy, c.cx, c.cy, c.world_to_camera)
    workspace = Workspace(device=cuda)
    image, transmittance, _ = workspace.forward(camera, *to(cuda, *case.six))
    assert image.shape == (3, size[1], size[0])
    assert transmittance.shape == size[::-1]
    here = Workspace()
    here.forward(camera, *case.six)
    assert_same_radii(workspace.radii, here.radii)
    table = torch.zeros(3, 40, device=cuda)
    workspace.contributions(*table)
    assert torch.count_nonzero(table) == 0


@pytest.mark.parametrize("count", [0, 1, 33])
def test_nothing_drawn_gives_the_background(cuda: Any, count: int) -> None:
    case = make_case(0, n=40)
    six = [p[:count].clone() for p in case.six]
    six[0] -= torch.tensor([0.0, 0.0, 50.0])  # behind the camera
    workspace = Workspace(device=cuda)
    image, transmittance, inverse_depth = workspace.forward(case.raster_camera, *to(cuda, *six), aux=True)
    background = torch.tensor(case.background, device=cuda)[:, None, None]
    assert torch.equal(image, background.expand_as(image))
    assert (transmittance == 1).all()
    assert inverse_depth is not None
    assert torch.count_nonzero(inverse_depth) == 0
    assert (workspace.facts["drawn"], workspace.facts["instances"]) == (0, 0)
    assert (workspace.radii == 0).all()
    table = torch.zeros(3, count, device=cuda)
    workspace.contributions(*table)
    assert torch.count_nonzero(table) == 0


def test_one_workspace_for_scenes_and_images_of_all_sizes(cuda: Any) -> None:
    workspace = Workspace(device=cuda)
    for seed, (n, width, height) in enumerate(
        [(500, 40, 40), (4000, 300, 200), (0, 10, 10), (60, 17, 5), (4000, 1, 1)]
    ):
        case = make_case(seed, n=max(n, 24), width=width, height=height)
        six = [p[:n] for p in case.six]
        found = workspace.forward(case.raster_camera, *to(cuda, *six))
        assert_same(found[0], Workspace().forward(case.raster_camera, *six)[0])


def test_on_another_stream(cuda: Any) -> None:
    case = make_case(4, n=2000, width=100, height=80)
    expected = draw(case, cuda)
    stream = torch.cuda.Stream(cuda)
    stream.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(stream):
        found = draw(case, cuda)
    stream.synchronize()
    assert torch.equal(found.color, expected.color)


def test_harmonics_in_half_precision(cuda: Any) -> None:
    for degree in range(4):
        case = make_case(6, n=1500, width=90, height=70, sh_degree=degree)
        *five, shN = case.six
        found = Workspace(device=cuda).forward(case.raster_camera, *to(cuda, *five, shN.half()))
        expected = Workspace().forward(case.raster_camera, *five, shN.half().float())
        assert_same(found[0], expected[0])


@pytest.mark.parametrize("size", [(1, 1), (61, 45), (300, 17), (160, 144)])
def test_contributions_are_those_of_the_cpu_and_the_same_bits_in_every_run(cuda: Any, size: tuple[int, int]) -> None:
    case = make_case(16, n=4000, width=size[0], height=size[1], sigma_px=5.0)
    here, there = Workspace(), Workspace(device=cuda)
    expected, found, again = (torch.zeros(3, 4000, device=d) for d in ("cpu", cuda, cuda))
    here.forward(case.raster_camera, *case.six)
    here.contributions(*expected)
    for table in (found, again):
        there.forward(case.raster_camera, *to(cuda, *case.six))
        there.contributions(*table)
    assert torch.equal(found, again)
    table = found.cpu()
    assert relative(table[0], expected[0]) < 1e-3  # a pair at the threshold weighs 1/255 of T
    assert relative(table[1], expected[1]) < 1e-3
    assert (table[2] - expected[2]).abs().sum() <= 1e-3 * expected[2].sum() + 1
    there.contributions(*found)  # a second view: combined in place
    assert torch.equal(found[0], again[0])
    assert relative(found[1:].cpu(), 2 * again[1:].cpu()) < 1e-6


def test_more_pairs_than_fit_are_refused(cuda: Any) -> None:
    """45,000 splats over all of 65,536 tiles: 2.9e9 pairs."""
    n, side = 45_000, 4096
    camera = RasterCamera(side, side, 2000.0, 2000.0, side / 2, side / 2, torch.eye(4))
    means = torch.tensor([[0.0, 0, 2]]).expand(n, 3).contiguous().to(cuda)
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(n, 4).contiguous().to(cuda)
    opacities, scales = torch.full((n, 1), 0.5, device=cuda), torch.full((n, 3), 50.0, device=cuda)
    with pytest.raises(ValueError, match=r"meet \d{10} tiles, more than .* draw a smaller image"):
        rasterize_extended(camera, means, opacities, colors=means, scales=scales, quats=quats)


def test_a_graph_draws_what_it_was_captured_for_and_tells_when_it_is_too_much(cuda: Any) -> None:
    """Parameters change in place between replays, and with them the number of tiles."""
    case = make_case(12, n=2000, width=200, height=120)
    six = to(cuda, *case.six)
    workspace = Workspace(device=cuda)
    workspace.forward(case.raster_camera, *six)
    workspace.fix_capacity()
    warm = torch.cuda.Stream(cuda)
    warm.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(warm):  # with the fixed capacity, before the capture
        workspace.forward(case.raster_camera, *six)
    torch.cuda.current_stream(cuda).wait_stream(warm)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        image, transmittance, _ = workspace.forward(case.raster_camera, *six)
    for moved in (0.0, 0.05, -0.1):
        six[0].copy_(case.six[0] + moved)
        graph.replay()
        torch.cuda.synchronize(cuda)
        expected = Workspace(device=cuda).forward(case.raster_camera, *six)
        assert torch.equal(image, expected[0])
        assert torch.equal(transmittance, expected[1])
        assert not workspace.facts["overflow"]
    six[1].add_(2.0)
    graph.replay()
    torch.cuda.synchronize(cuda)
    assert workspace.facts["overflow"]
    assert image.isfinite().all()
    assert (transmittance <= 1).all()
