"""The operators under PyTorch: opcheck, torch.compile, checkpoints, several cameras, threads, what is refused."""

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from diff_gaussian_rasterization import (
    GaussianRasterizationSettings,
    GaussianRasterizer,
    RasterCamera,
    fused,
    ops,
    rasterize_extended,
    step_ops,
)
from diff_gaussian_rasterization.rasterizer import original_camera
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from gaussian_renderer.reference import render_reference
from scene.gaussians import Gaussians
from tests.submodules.rasterizer_scenes import Case, make_case, posed, relative
from tests.submodules.test_rasterizer_gradients import original_settings

SIZE = {"width": 20, "height": 17}
INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs g++"),
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # PyTorch's own, when it imports its compiler
    ],
)


def activated(
    case: Case, num: int | None = None, *, colors: bool = False, covariances: bool = False
) -> dict[str, Tensor]:
    """Keyword arguments of rasterize_extended, leaves that require grad."""
    g = {k: v[:num] for k, v in case.gaussians.items()}
    values = {"means": g["means"], "opacities": g["logit_opacities"].sigmoid()}
    if colors:
        values["colors"] = g["sh0"][:, 0]
    else:
        values["sh"] = torch.cat([g["sh0"], g["shN"]], dim=1)
    if covariances:
        values["covariances"] = torch.tensor([0.1, 0, 0, 0.1, 0, 0.1]).repeat(len(g["means"]), 1)
    else:
        values |= {"scales": g["log_scales"].exp(), "quats": g["quats"]}
    return {k: v.clone().requires_grad_() for k, v in values.items()}


def several(case: Case, count: int = 2) -> list[RasterCamera]:
    """Cameras side by side."""
    pose = torch.as_tensor(case.camera.world_to_camera)
    shift = torch.zeros(4, 4, dtype=torch.float64)
    shift[0, 3] = 0.2
    return [replace(case.raster_camera, world_to_camera=pose + k * shift) for k in range(count)]


def render_arguments(
    values: dict[str, Tensor], cameras: int | None, *, maps: int, screen: bool, pose: bool = False
) -> tuple[object, ...]:
    """Of ops.render; `cameras` None = one, without the leading axis."""
    case = make_case(1, **SIZE)
    row = case.raster_camera.row
    rows = row if cameras is None else torch.stack([c.row for c in several(case, cameras)])
    num, lead = len(values["means"]), () if cameras is None else (cameras,)
    filter_3d = torch.full((num,), 0.02) if screen and "covariances" not in values else None
    means2d, means2d_abs = (
        torch.zeros(*lead, num, 3, requires_grad=True) if wanted else None for wanted in (screen, pose)
    )
    rows = rows.clone().requires_grad_(pose)
    names = (values.get(name) for name in ops.INPUTS)
    return (rows, *names, filter_3d, means2d, means2d_abs, [20, 17, 3, 0], maps, 0 if pose else None)


KINDS = [(colors, covariances) for colors in (False, True) for covariances in (False, True)]


@pytest.mark.parametrize(
    ("cameras", "num", "colors", "covariances"),
    [
        *((None, num, *kind) for num in (30, 0) for kind in KINDS),
        (1, 30, False, True),
        (3, 30, False, False),
        (3, 0, True, True),
    ],
)
def test_opcheck_of_the_autograd_interface(cameras, num, colors, covariances):
    values = activated(make_case(1, n=30, **SIZE), num, colors=colors, covariances=covariances)
    arguments = render_arguments(values, cameras, maps=1 if covariances else 2, screen=not colors)
    opcheck(ops.render, arguments)
    with torch.no_grad():
        out = ops.render(*arguments)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in arguments[:9]]
    gradients = [torch.ones_like(t) if t.numel() else None for t in out[:5]]
    given = [1, 2, 4 if colors else 3, *([7] if covariances else [5, 6]), 8]
    opcheck(ops.render_backward, (*detached, out[1], out[6], *gradients, *arguments[11:], sum(1 << k for k in given)))


@pytest.mark.parametrize("cameras", [None, 2])
def test_opcheck_of_pose_and_absolute_gradients_of_all_maps(cameras):
    arguments = render_arguments(activated(make_case(1, n=30, **SIZE)), cameras, maps=2, screen=True, pose=True)
    opcheck(ops.render, arguments)
    with torch.no_grad():
        out = ops.render(*arguments)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in arguments[:9]]
    assert all(t.numel() for t in out[:5])
    wanted = sum(1 << k for k, name in enumerate(ops.WANTED) if name not in ("colors", "covariances"))
    gradients = [torch.ones_like(t) for t in out[:5]]
    opcheck(ops.render_backward, (*detached, out[1], out[6], *gradients, *arguments[11:], wanted))


def step_arguments(num: int, cameras: int | None, *, update: bool, own: bool) -> tuple[object, ...]:
    case = make_case(1, n=max(num, 1), **SIZE)
    six = [p[:num].clone() for p in case.six]
    moments = [[torch.zeros_like(p) for p in six] if update else [] for _ in range(2)]
    rows = case.raster_camera.row if cameras is None else torch.stack([c.row for c in several(case, cameras)])
    statistics = [torch.zeros(num), torch.zeros(num), torch.zeros(num), torch.empty(0)]
    targets = [torch.rand(3, 17, 20, generator=torch.Generator().manual_seed(k)) for k in range(cameras or 1)]
    taps = [torch.empty(0) for _ in range(4 * len(targets))]
    factors = [v for k in range(len(targets)) for v in (float(k), 1.0, 0.2)]
    schedule = torch.tensor([1e-3] * 6 + [1, 0.9, 0.999, 1e-15] if update else [], dtype=torch.float64)
    workspace = fused.Workspace().handle if own else None
    pixels = [targets[0][:1].clone(), *(torch.empty(0) for _ in targets[1:])]
    more = (targets, taps, factors, pixels, None, None, [], workspace, schedule, False, [20, 17, 3, 0])
    return (rows, six, *moments, statistics, *more)


@pytest.mark.parametrize("num", [30, 0])
@pytest.mark.parametrize("cameras", [None, 2])
@pytest.mark.parametrize(("update", "own"), [(True, False), (False, True)])
def test_opcheck_of_the_training_step(num, cameras, update, own):
    opcheck(step_ops.train_step, step_arguments(num, cameras, update=update, own=own))


def halving(inputs: int) -> list[Tensor]:
    """Taps that average pairs."""
    count = inputs // 2
    return [torch.arange(count, dtype=torch.int32) * 2, torch.full((count, 2), 0.5)]


@pytest.mark.parametrize("cameras", [None, 2])
@pytest.mark.parametrize("rendered", [False, True])
def test_opcheck_of_a_sparse_step_at_low_resolution_with_a_ready_gradient(cameras, rendered):
    given = list(step_arguments(30, cameras, update=True, own=False))
    names = "rows six mean square statistics targets taps factors pixels grad filter rendered"
    at = {name: k for k, name in enumerate(names.split())}
    given[at["targets"]] = [t[:, ::2, ::2][:, :8].contiguous() for t in given[at["targets"]]]
    given[at["taps"]] = [tap for _ in given[at["targets"]] for tap in (*halving(20), *halving(17))]
    given[at["pixels"]] = [torch.empty(0) for _ in given[at["targets"]]]
    given[at["grad"]] = torch.full((*([cameras] if cameras else []), 3, 17, 20), 1e-3)
    given[at["filter"]] = torch.full((30,), 0.01)
    given[at["statistics"]][3] = torch.zeros(30)
    if rendered:
        drawn = step_ops.render_raw(given[0], given[1], given[at["filter"]], None, given[-1])
        given[at["rendered"]] = list(drawn)
    given[-2] = True  # sparse
    before = [p.clone() for p in given[at["six"]]]
    opcheck(step_ops.train_step, tuple(given))
    step_ops.train_step(*given)
    assert not any(torch.equal(a, b) for a, b in zip(before, given[at["six"]], strict=True))


@pytest.mark.parametrize("num", [30, 0])
def test_opcheck_of_the_small_operators(num):
    case = make_case(1, n=30, **SIZE)
    six = [p[:num].clone() for p in case.six]
    rows = torch.stack([c.row for c in several(case)])
    for of in (case.raster_camera.row, rows):
        opcheck(step_ops.render_raw, (of, six, torch.full((num,), 0.01), None, [20, 17, 3, 0]))
    s = original_settings(case)
    matrices = (s.viewmatrix, s.projmatrix, s.campos, s.bg)
    opcheck(original_camera, (*matrices, s.image_width, s.image_height, s.tanfovx, s.tanfovy, 1.0))


def images_loss(camera: RasterCamera | list[RasterCamera], values: dict[str, Tensor], means2d: Tensor | None) -> Tensor:
    out = rasterize_extended(camera, means2d=means2d, **values)
    return out.color.square().mean() + 0.1 * out.inverse_depth.mean() - out.alpha.mean()


def known_loss(settings: GaussianRasterizationSettings, values: dict[str, Tensor], means2d: Tensor) -> Tensor:
    rasterizer = GaussianRasterizer(settings)
    names = {"means": "means3D", "sh": "shs", "quats": "rotations"}
    color, _ = rasterizer(means2D=means2d, **{names.get(k, k): v for k, v in values.items()})
    return color.square().mean()


def loss_and_gradients(loss: Callable[..., Tensor], view: object, case: Case) -> list[Tensor]:
    values = activated(case)
    means2d = torch.zeros_like(values["means"], requires_grad=True)
    total = loss(view, values, means2d)
    total.backward()
    gradients = [v.grad for v in (*values.values(), means2d)]
    assert all(g is not None for g in gradients)
    return [total.detach(), *(g for g in gradients if g is not None)]


@pytest.fixture
def fresh_compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_rendering_gives_the_eager_results_without_compiling_again_for_another_camera(backend):
    case = make_case(2, n=200)
    compiled = torch.compile(images_loss, fullgraph=True, backend=backend)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    for camera in (*several(case), replace(case.raster_camera, fx=70.0, cx=28.0, background=(1, 1, 1))):
        eager, ours = (loss_and_gradients(f, camera, case) for f in (images_loss, compiled))
        for a, b in zip(eager, ours, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)  # inductor fuses the loss around the operators
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_known_interface_gives_the_eager_results(backend):
    case = make_case(3, n=200)
    compiled = torch.compile(known_loss, fullgraph=True, backend=backend)
    eager, ours = (loss_and_gradients(f, original_settings(case), case) for f in (known_loss, compiled))
    for a, b in zip(eager, ours, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-5, atol=1e-7)


def steps(step: Callable[..., object], case: Case) -> list[Tensor]:
    six = case.six
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    target = torch.rand(3, 45, 61, generator=torch.Generator().manual_seed(0))
    losses = []
    for k, camera in enumerate((*several(case), case.raster_camera), start=1):
        rates = torch.full((6,), 1e-3 / k, dtype=torch.float64)
        losses.append(step(camera, six, mean, square, rates, torch.tensor(float(k)), target))
    return [*six, *mean, *square, torch.tensor([float(v) for v in losses])]


def one_step(camera, six, mean, square, rates, step, target):
    more = {"exp_avg": mean, "exp_avg_sq": square, "learning_rates": rates, "step": step}
    return fused.train_step(camera, six, losses=[fused.L1SSIM(target)], **more).losses[0].loss


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_compiled_training_step_gives_the_eager_bits_and_is_compiled_once(backend):
    case = make_case(4, n=200)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    ours = steps(torch.compile(one_step, fullgraph=True, backend=backend), case)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs + 1
    assert all(torch.equal(a, b) for a, b in zip(steps(one_step, case), ours, strict=True))


def test_a_checkpoint_and_a_copied_handle_render_again():
    """The handle is only a cache: without its workspace the backward pass finds the same gradients."""
    case = make_case(5)
    wanted = loss_and_gradients(images_loss, case.raster_camera, case)

    def checkpointed(camera: RasterCamera, values: dict[str, Tensor], means2d: Tensor) -> Tensor:
        return checkpoint(images_loss, camera, values, means2d, use_reentrant=False)

    def copied(camera: RasterCamera, values: dict[str, Tensor], means2d: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            return images_loss(camera, values, means2d)

    for loss in (checkpointed, copied):
        found = loss_and_gradients(loss, case.raster_camera, case)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_going_back_twice_gives_the_same_bits():
    case = make_case(6)
    values = activated(case)
    loss = images_loss(case.raster_camera, values, None)
    first = torch.autograd.grad(loss, list(values.values()), retain_graph=True)
    images_loss(make_case(7).raster_camera, values, None).backward()  # other work in between
    second = torch.autograd.grad(loss, list(values.values()))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_many_python_threads_render_at_once():
    case = make_case(8, n=1000)
    wanted = loss_and_gradients(images_loss, case.raster_camera, case)
    with ThreadPoolExecutor(8) as pool:
        runs = list(pool.map(lambda _: loss_and_gradients(images_loss, case.raster_camera, case), range(24)))
    for found in runs:
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_several_cameras_are_the_single_ones_stacked():
    case = make_case(9)
    cameras, values = several(case, 3), activated(case)
    means2d = torch.zeros(3, *values["means"].shape, requires_grad=True)
    together = rasterize_extended(cameras, means2d=means2d, **values)
    assert together.color.shape == (3, 3, 45, 61)
    assert together.radii.shape == (3, len(values["means"]))
    images_loss(cameras, values, means2d).backward()
    found = {k: v.grad for k, v in values.items()}
    alone = activated(case)
    for k, camera in enumerate(cameras):
        screen = torch.zeros_like(alone["means"], requires_grad=True)
        out = rasterize_extended(camera, means2d=screen, **alone)
        for name in ("color", "alpha", "inverse_depth", "radii"):
            assert torch.equal(getattr(out, name), getattr(together, name)[k]), name
        (images_loss(camera, alone, screen) / 3).backward()
        torch.testing.assert_close(means2d.grad[k], screen.grad, rtol=1e-5, atol=1e-9)
    for name, value in alone.items():
        torch.testing.assert_close(found[name], value.grad, rtol=1e-4, atol=1e-7)  # the sum's order differs


@pytest.mark.parametrize("settings", [{"sh_degree": 3}, {"sh_degree": 1, "antialiasing": True}])
def test_the_gradient_of_a_pose_is_that_of_the_reference(settings):
    """Through rotation, translation and the camera's centre; for one camera and for two that share the pose."""
    case = make_case(11, **settings)
    pose = torch.as_tensor(case.camera.world_to_camera).clone().requires_grad_()

    leaves = Gaussians(**{k: v.double() for k, v in case.gaussians.items()})
    background = torch.tensor(case.background, dtype=torch.float64)
    weights = torch.randn(3, 45, 61, generator=torch.Generator().manual_seed(0))
    view = posed(case.camera, pose)
    out = render_reference(view, leaves, background, sh_degree=case.sh_degree, antialiasing=case.antialiasing)
    (wanted,) = torch.autograd.grad((out.color * weights).sum() + out.inverse_depth.sum(), pose)

    values = {k: v.detach() for k, v in activated(case).items()}
    camera = replace(case.raster_camera, world_to_camera=pose)
    for view, factor in ((camera, 1), ([camera, camera], 2)):
        got = rasterize_extended(view, **values)
        (found,) = torch.autograd.grad((got.color * weights).sum() + got.inverse_depth.sum(), pose)
        assert relative(found, factor * wanted) < 1e-5
    assert torch.count_nonzero(found[3]) == 0


def test_what_is_not_there_is_refused_clearly():
    case = make_case(10, n=24)
    camera, values = case.raster_camera, activated(case)
    (first,) = torch.autograd.grad(images_loss(camera, values, None), values["means"], create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        first.sum().backward()
    plain = {k: v.detach() for k, v in values.items()}
    with pytest.raises(NotImplementedError, match="vmap is not supported"):
        torch.vmap(lambda means: rasterize_extended(camera, **(plain | {"means": means})).color)(plain["means"][None])
    with pytest.raises(ValueError, match="one width, height, sh_degree and antialiasing"):
        rasterize_extended([camera, replace(camera, width=12)], **plain)
    with pytest.raises(ValueError, match="at least one"):
        rasterize_extended([], **plain)
    with pytest.raises(ValueError, match="rows: expected at least one camera"):
        ops.render(torch.empty(0, 28, dtype=torch.float64), *render_arguments(plain, None, maps=1, screen=False)[1:])
    with pytest.raises(ValueError, match="memory_limit"):
        rasterize_extended(camera, **plain, memory_limit=-1)
    with pytest.raises(ValueError, match="maps: expected one of"):
        rasterize_extended(camera, **plain, maps="depth")
    shapes = {"scales": None, "quats": None, "covariances": torch.ones(24, 6)}
    with pytest.raises(ValueError, match="normals need scales and rotations"):
        rasterize_extended(camera, **(plain | shapes), maps="all")
    with pytest.raises(ValueError, match="filter_3d: needs scales and rotations"):
        rasterize_extended(camera, **(plain | shapes), filter_3d=torch.ones(24))
    with pytest.raises(ValueError, match="means2D: expected shape"):
        rasterize_extended(camera, means2d=plain["means"][:3], **plain)
    with pytest.raises(ValueError, match="sh_degree"):
        replace(camera, sh_degree=4)
    with pytest.raises(ValueError, match="world_to_camera: expected a finite"):
        replace(camera, world_to_camera=torch.full((4, 4), torch.nan))
