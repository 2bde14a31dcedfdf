"""The backward pass on a GPU: every gradient against the float64 reference and against the CPU's kernels."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import rasterize_extended
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from gaussian_renderer.reference import rasterize
from gaussian_renderer.splats import RenderSettings, Splats
from tests.cuda.scenes import GRADIENT_TOLERANCE, VALUE_TOLERANCE, backward, deterministic, map_gradients, moved
from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative
from tests.submodules.test_rasterizer_gradients import SETTINGS, reference_gradients, reference_splats
from tests.submodules.test_rasterizer_maps import random_gradients, reference_maps
from tests.submodules.test_rasterizer_robustness import poisoned

pytestmark = pytest.mark.gpu
NAMES = (*FIELDS, "means2d")
BOTH = pytest.mark.parametrize("ordered", [False, True], ids=["fast", "deterministic"])


@BOTH
@pytest.mark.parametrize("settings", SETTINGS)
def test_values_and_gradients_are_those_of_the_reference(cuda: Any, settings: Any, ordered: bool) -> None:
    case = make_case(5, **settings)
    color, transmittance, depth = maps = map_gradients(case)
    leaves, expected = reference_gradients(case, color, -transmittance, depth)
    with deterministic(ordered):
        image, t, inverse_depth, radii, *grads = backward(case, case.six, maps, cuda)
    assert relative(image, expected.color) < VALUE_TOLERANCE
    assert relative(1 - t, expected.alpha) < VALUE_TOLERANCE
    assert relative(inverse_depth, expected.inverse_depth) < VALUE_TOLERANCE
    assert torch.equal(radii, expected.radii)
    for name, gradient in zip(FIELDS, grads[:6], strict=True):
        wanted = getattr(leaves, name).grad
        assert relative(gradient, torch.zeros_like(gradient) if wanted is None else wanted) < GRADIENT_TOLERANCE, name
    assert relative(grads[6], expected.means2d.grad) < GRADIENT_TOLERANCE
    bands = (case.sh_degree + 1) ** 2 - 1
    assert torch.count_nonzero(grads[5][:, bands:]) == 0


@BOTH
@pytest.mark.parametrize("seed", range(8))
def test_gradients_on_random_scenes_are_those_of_the_reference_and_of_the_cpu(
    cuda: Any, seed: int, ordered: bool
) -> None:
    """Off the thresholds: pixels whose splat flips at one are found and left out."""
    case = make_case(100 + seed, n=120, antialiasing=seed % 2 == 1, sh_degree=seed % 4, sigma_px=1.5 + seed)
    maps = map_gradients(case, seed)
    _, expected = case.reference()
    images = [backward(case, case.six, maps, device)[0] for device in ("cpu", cuda)]
    flipped = torch.stack([((image - expected.color).abs() > 1e-4).any(dim=0) for image in images]).any(dim=0)
    assert flipped.float().mean() <= 1e-3
    maps = [m * ~flipped for m in maps]
    leaves, expected = reference_gradients(case, maps[0], -maps[1], maps[2])
    on_cpu = backward(case, case.six, maps, "cpu")[4:]
    with deterministic(ordered):
        on_gpu = backward(case, case.six, maps, cuda)[4:]
    wanted = [getattr(leaves, name).grad for name in FIELDS] + [expected.means2d.grad]
    for name, gpu, cpu, truth in zip(NAMES, on_gpu, on_cpu, wanted, strict=True):
        if truth is not None:
            assert relative(gpu, truth) < GRADIENT_TOLERANCE, name
        assert relative(gpu, cpu) < GRADIENT_TOLERANCE or torch.count_nonzero(cpu) == 0, name


def close_to_cpu(cuda: Any, case: Case, six: list[Tensor], ordered: bool, tolerance: float = 1e-3) -> list[Tensor]:
    """Where so much is drawn that some pairs of pixel and splat are at a threshold, each off by 1/255 of its pixel."""
    maps = map_gradients(case)
    on_cpu = backward(case, six, maps, "cpu")
    with deterministic(ordered):
        on_gpu = backward(case, six, maps, cuda)
    other_radii = on_gpu[3] != on_cpu[3]  # they are rounded up: next to a whole number the last bit decides
    assert other_radii.float().sum() <= 1 + 1e-3 * len(other_radii)
    for name, gpu, cpu in zip(("image", "t", "inverse depth"), on_gpu[:3], on_cpu[:3], strict=True):
        assert relative(gpu, cpu) < tolerance, name
    for name, gpu, cpu in zip(NAMES, on_gpu[4:], on_cpu[4:], strict=True):
        assert torch.isfinite(gpu).all(), name
        assert relative(gpu, cpu) < tolerance or torch.count_nonzero(cpu) == 0, name
    return on_gpu


@BOTH
@pytest.mark.parametrize("size", [(1, 1), (300, 5), (16, 16), (17, 15), (33, 260), (200, 200)])
def test_lists_of_many_buckets_at_any_size(cuda: Any, size: tuple[int, int], ordered: bool) -> None:
    """Large, faint splats: hundreds of instances a tile, hundreds of tiles a splat, and pixels that end anywhere."""
    width, height = size
    case = make_case(7, n=3000, width=width, height=height, sigma_px=0.2 * max(size), sh_degree=1)
    six = case.six
    six[3] -= 2.0
    six[1][:20] += 2.0
    close_to_cpu(cuda, case, six, ordered)


def stack(n: int, opacity: float) -> tuple[Case, list[Tensor]]:
    """One behind the other, each over all of a tile."""
    case = make_case(0, n=n, width=16, height=16, sh_degree=0)
    six = case.six
    six[0] = torch.tensor([[0.0, 0.0, 0.0]]) + torch.linspace(2, 6, n)[:, None] * torch.tensor([[0.0, 0.0, 1.0]])
    six[1][:] = torch.tensor([1.5, 1.3, 1.1])
    six[3][:] = torch.logit(torch.tensor(opacity))
    return case, six


@BOTH
@pytest.mark.parametrize(("opacity", "most"), [(0.01, 600), (0.1, 200), (0.97, 8)])
def test_stacks_over_a_whole_tile(cuda: Any, opacity: float, most: int, ordered: bool) -> None:
    """600 splats: the pixels end never, in a later bucket, or in the first one."""
    grads = close_to_cpu(cuda, *stack(600, opacity), ordered)[4:]
    assert most / 4 < torch.count_nonzero(grads[3]) <= most


@BOTH
@pytest.mark.parametrize("n", [31, 32, 33, 255, 256, 257, 512, 32 * 1024])
def test_lists_that_just_fill_buckets_and_batches(cuda: Any, n: int, ordered: bool) -> None:
    case, six = stack(n, 0.01)
    close_to_cpu(cuda, case, six, ordered)
    workspace = Workspace(device=cuda)
    workspace.forward(case.raster_camera, *moved(six, cuda))
    assert workspace.facts["instances"] == n


@BOTH
@pytest.mark.parametrize("seed", range(6))
def test_special_values_are_culled_and_change_nobody_else(cuda: Any, seed: int, ordered: bool) -> None:
    sizes = ((61, 45), (1, 1), (300, 5), (33, 260), (64, 64), (200, 200))
    width, height = sizes[seed]
    case = make_case(seed, n=2000, width=width, height=height, antialiasing=seed % 2 == 1, sh_degree=3 - seed % 4)
    close_to_cpu(cuda, case, poisoned(case, seed), ordered, 5e-3)


@BOTH
def test_nothing_to_draw_has_gradients_of_zero(cuda: Any, ordered: bool) -> None:
    case, behind = make_case(0, n=30), torch.tensor([0.0, 0.0, 50.0])
    hidden = case.six
    hidden[0] -= behind
    with deterministic(ordered):
        for six in ([p[:0] for p in case.six], [p[:1] for p in hidden], hidden):
            found = backward(case, six, map_gradients(case), cuda)
            assert all(torch.count_nonzero(g) == 0 for g in found[4:])
        for size in ((0, 0), (0, 7), (7, 0)):
            empty = make_case(0, n=20)
            camera = replace(empty.camera, width=size[0], height=size[1])
            empty = replace(empty, camera=camera)
            found = backward(empty, empty.six, map_gradients(empty), cuda)
            assert found[0].shape == (3, size[1], size[0])
            assert all(torch.count_nonzero(g) == 0 for g in found[4:])


@pytest.mark.parametrize("antialiasing", [False, True])
@pytest.mark.parametrize("kind", ["", "colors", "covariances", "colors covariances"])
def test_activated_and_precomputed_inputs(cuda: Any, kind: str, antialiasing: bool) -> None:
    case = make_case(9, sh_degree=2, antialiasing=antialiasing)
    wanted = reference_splats(case, kind)
    ours = {k: v.detach().float().to(cuda).requires_grad_() for k, v in wanted.items()}
    background = torch.tensor(case.background, dtype=torch.float64)
    expected = rasterize(case.camera, Splats(**wanted), RenderSettings(background, 2, 1.0, antialiasing))
    means2d = torch.zeros_like(ours["means"], requires_grad=True)
    got = rasterize_extended(case.raster_camera, ours.pop("means"), ours.pop("opacities"), means2d, **ours)
    color, alpha, depth = map_gradients(case)
    for output in (expected, got):
        maps = [m.to(output.color.device) for m in (color, alpha, depth)]
        (
            (output.color * maps[0]).sum() + (output.alpha * maps[1]).sum() + (output.inverse_depth * maps[2]).sum()
        ).backward()
    assert relative(got.color.cpu(), expected.color) < VALUE_TOLERANCE
    assert relative(slope(means2d), slope(expected.means2d)) < GRADIENT_TOLERANCE
    for name, value in ours.items():
        assert relative(slope(value), slope(wanted[name])) < GRADIENT_TOLERANCE, name


def slope(leaf: Tensor) -> Tensor:
    assert leaf.grad is not None
    return leaf.grad.cpu()


def through_maps(case: Case, names: tuple[str, ...], device: Any) -> dict[str, Tensor]:
    """Gradients of activated leaves, screen positions and the pose from those of the maps."""
    g = case.gaussians
    sh = torch.cat([g["sh0"], g["shN"]], dim=1)[:, : (case.sh_degree + 1) ** 2]
    values = {"means": g["means"], "opacities": g["logit_opacities"].sigmoid(), "sh": sh, "quats": g["quats"]}
    values |= {"scales": g["log_scales"].exp(), "means2d": torch.zeros_like(g["means"])}
    values["means2d_abs"] = torch.zeros_like(g["means"])
    leaves = {k: v.detach().to(device, copy=True).requires_grad_() for k, v in values.items()}
    pose = torch.as_tensor(case.camera.world_to_camera).clone().requires_grad_()
    camera = replace(case.raster_camera, world_to_camera=pose)
    output = rasterize_extended(camera, **leaves, maps="all" if {"depth", "normal"} & {*names} else "inverse_depth")
    gradient = random_gradients(case, names)
    torch.stack([(output._asdict()[name] * gradient[name].to(device)).sum() for name in names]).sum().backward()
    return {"pose": slope(pose)} | {name: slope(leaf) for name, leaf in leaves.items()}


@BOTH
@pytest.mark.parametrize("names", [("color",), ("depth",), ("normal",), ("color", "alpha", "depth", "normal")])
def test_maps_absolute_gradients_and_the_pose_are_those_of_the_cpu(
    cuda: Any, names: tuple[str, ...], ordered: bool
) -> None:
    case = make_case(14, n=150, width=50, height=37, sh_degree=2, sigma_px=4.0)
    wanted = through_maps(case, names, "cpu")
    with deterministic(ordered):
        got = through_maps(case, names, cuda)
    for name, value in wanted.items():
        assert relative(got[name], value) < 10 * GRADIENT_TOLERANCE or torch.count_nonzero(value) == 0, name


def test_depth_and_normals_have_the_gradients_of_the_reference(cuda: Any) -> None:
    case = make_case(5, sh_degree=2)
    wanted, expected = reference_maps(case)
    leaves = {k: v.detach().float().to(cuda).requires_grad_() for k, v in wanted.items()}
    output = rasterize_extended(case.raster_camera, **leaves, maps="all")
    gradient = {name: g * (expected["alpha"] > 0.05) for name, g in random_gradients(case).items()}
    for maps in (expected, output._asdict()):
        each = [(maps[name] * g.to(maps[name].device)).sum() for name, g in gradient.items()]
        torch.stack(each).sum().backward()
    for name, leaf in leaves.items():
        assert relative(slope(leaf), slope(wanted[name])) < GRADIENT_TOLERANCE, name


def everything(cuda: Any, case: Case) -> list[Tensor]:
    maps = through_maps(case, ("color", "alpha", "depth", "normal"), cuda)
    return [*backward(case, case.six, map_gradients(case), cuda), *maps.values()]


def test_deterministic_runs_have_the_same_bits(cuda: Any) -> None:
    """Splats over hundreds of tiles among them, whose slots are summed by a block of threads."""
    case = make_case(18, n=20_000, width=400, height=333, sigma_px=3.0)
    case.gaussians["log_scales"][:50] += 4.0
    with deterministic(True):
        first = everything(cuda, case)
        for _ in range(4):
            assert all(torch.equal(a, b) for a, b in zip(everything(cuda, case), first, strict=True))


def test_fast_and_deterministic_sums_differ_by_their_rounding_alone(cuda: Any) -> None:
    case = make_case(19, n=5000, width=200, height=150, sigma_px=3.0)
    runs = []
    for ordered in (False, True):
        with deterministic(ordered):
            runs.append(backward(case, case.six, map_gradients(case), cuda))
    for fast, slow in zip(*runs, strict=True):
        assert relative(fast, slow) < 1e-5


def test_two_backward_passes_of_one_image_agree_and_so_do_other_images_in_between(cuda: Any) -> None:
    """Through a graph that is kept; the pool gives another image other memory."""
    case, other = make_case(20), make_case(21, n=500, width=100, height=80)
    with deterministic(True):
        leaves = moved(case.six, cuda)
        workspace = Workspace(device=cuda)
        workspace.forward(case.raster_camera, *leaves)
        gradient = map_gradients(case)[0].to(cuda)
        runs = [[torch.empty_like(p) for p in leaves] for _ in range(2)]
        for grads in runs:
            workspace.backward(gradient, leaves, grads)
        assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
        backward(other, other.six, map_gradients(other), cuda, workspace)
        workspace.forward(case.raster_camera, *leaves)
        again = [torch.empty_like(p) for p in leaves]
        workspace.backward(gradient, leaves, again)
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))
