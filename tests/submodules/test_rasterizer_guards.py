"""What the interfaces refuse or leave alone: other threads, values that are not finite, another scene's image."""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import _native, fused, leases, rasterize_extended, set_memory_limit, step_ops
from diff_gaussian_rasterization.checks import address
from diff_gaussian_rasterization.rasterizer import original_camera
from torch import Tensor

from tests.submodules.rasterizer_scenes import make_case
from tests.submodules.test_rasterizer_gradients import original_settings
from tests.submodules.test_rasterizer_train_step import Trained, cameras_of, lr_target, same, target

BUSY = "at work in another thread"


def test_a_second_thread_is_refused_from_the_forward_to_the_end_of_the_backward_pass(monkeypatch):
    """It comes right after the first one's forward pass, where its own would replace what is gone back through."""
    case, other = make_case(1), make_case(2, n=2000)
    workspace, trained, wanted = fused.Workspace(), Trained(case), Trained(case)
    losses = [fused.L1SSIM(target())]
    wanted.step(case.raster_camera, losses=losses)
    forward, drawn, go = step_ops.draw, threading.Event(), threading.Event()

    def draw(*arguments):
        forward(*arguments)
        drawn.set()
        assert go.wait(60)

    monkeypatch.setattr(step_ops, "draw", draw)
    with ThreadPoolExecutor(1) as pool:
        step = pool.submit(trained.step, case.raster_camera, losses=losses, workspace=workspace)
        try:
            assert drawn.wait(60)
            grad = torch.zeros(3, 45, 61)
            for call in (
                lambda: Trained(other).step(other.raster_camera, losses=losses, workspace=workspace),
                lambda: Trained(other).step(cameras_of(other, 2), losses=[losses] * 2, workspace=workspace),
                lambda: fused.render(other.raster_camera, other.six, workspace=workspace),
                lambda: workspace.forward(other.raster_camera, *other.six),
                lambda: workspace.l1_ssim(grad, grad, grad.clone()),
                lambda: workspace.backward(grad, case.six, case.six),
                lambda: workspace.contributions(),
            ):
                with pytest.raises(RuntimeError, match=BUSY) as error:
                    call()
                assert "\n" not in str(error.value)
        finally:
            go.set()
        step.result()
    assert same(trained, wanted)
    monkeypatch.undo()
    Trained(other).step(cameras_of(other, 2), losses=[losses] * 2, workspace=workspace)  # free again


def test_many_threads_on_one_workspace_step_right_or_are_refused():
    case = make_case(3, n=600)
    workspace, losses = fused.Workspace(), [fused.L1SSIM(target())]
    wanted = Trained(case)
    wanted.step(case.raster_camera, losses=losses)

    def step(_: int) -> bool:
        trained = Trained(case)
        try:
            trained.step(case.raster_camera, losses=losses, workspace=workspace)
        except RuntimeError as error:
            assert BUSY in str(error)  # noqa: PT017
            return same(trained, Trained(case))
        return same(trained, wanted)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(step, range(40)))
    assert step(0)


def test_a_step_that_fails_frees_the_workspace():
    case = make_case(4, n=24)
    workspace, rendering = fused.Workspace(), fused.Workspace(memory_limit=1000)
    for _ in range(2):
        with pytest.raises(ValueError, match="target: expected shape"):
            Trained(case).step(case.raster_camera, losses=[fused.L1SSIM(target(0, 4, 4))], workspace=workspace)
        for call in (fused.render, lambda *a, **k: Trained(case).step(a[0], losses=[fused.L1SSIM(target())], **k)):
            with pytest.raises(MemoryError, match="memory limit"):
                call(case.raster_camera, case.six, workspace=rendering)


def test_the_kernels_refuse_to_move_memory_that_is_in_use_and_to_go_back_through_nothing():
    case = make_case(5, n=20_000, width=1000, height=1000)
    native, six, row = _native.Rasterization(), case.six, case.raster_camera.row
    image, light = torch.empty(3, 1000, 1000), torch.empty(1000, 1000)
    radii = torch.empty(len(six[0]), dtype=torch.int32)
    sources, nothing = [*map(address, six), 0, 0], (0, 0, 0, [0] * 4, [0, 0], 1)
    with pytest.raises(RuntimeError, match="no forward pass"):
        native.backward(sources, 0, address(light), [address(image), 0, 0, 0, 0], [0] * 8, [0] * 8, *nothing)
    with pytest.raises(RuntimeError, match="no forward pass"):
        native.contributions([0, 0, 0], 1)
    drawing = (row.data_ptr(), 1000, 1000, 3, 0, sources, 0, len(six[0]), 3, 45, 15, False, False)
    images = [address(image), address(light), 0, 0, 0]
    refused = 0
    with ThreadPoolExecutor(1) as pool:
        for _ in range(10):
            running = pool.submit(native.forward, *drawing, images, radii.data_ptr(), True, 1)
            while not running.done() and not refused:
                try:
                    native.reserve([0, 0, 0], False)
                except RuntimeError as error:
                    assert BUSY in str(error)  # noqa: PT017
                    refused += 1
            try:
                running.result()
            except RuntimeError as error:  # it met the other call
                assert BUSY in str(error)  # noqa: PT017
            if refused:
                break
    assert refused


@pytest.mark.parametrize(
    "changes",
    [
        {"dilation": math.nan},
        {"dilation": -0.1},
        {"dilation": math.inf},
        {"cx": math.nan},
        {"cy": math.inf},
        {"scale_modifier": math.nan},
        {"background": (0, 0)},
        {"background": (0, 0, 0, 0)},
        {"background": (0, math.nan, 0)},
        {"background": torch.tensor([0, math.inf, 0])},
    ],
)
def test_a_camera_that_cannot_be_drawn_with_is_refused(changes):
    (name,) = changes
    with pytest.raises(ValueError, match=f"{name}: expected"):
        replace(make_case(0, n=24).raster_camera, **changes)


def test_a_row_of_another_length_never_reaches_the_kernels():
    case = make_case(0, n=24)
    camera = case.raster_camera
    object.__setattr__(camera, "_row", camera.row[:27])
    with pytest.raises(ValueError, match="row of the camera: expected shape"):
        fused.Workspace().forward(camera, *case.six)
    s = original_settings(case)
    matrices = (s.viewmatrix, s.projmatrix, s.campos, s.bg)
    with pytest.raises(ValueError, match="scale_modifier: expected"):
        original_camera(*matrices, s.image_width, s.image_height, s.tanfovx, s.tanfovy, math.nan)


@pytest.mark.parametrize("weight", [math.nan, math.inf, -math.inf, 1e39])
def test_a_weight_that_is_not_finite_is_refused(weight):
    case = make_case(6)
    low, _ = lr_target(case)
    for term in (fused.L1SSIM(target(), weight=weight), replace(low, weight=weight)):
        trained = Trained(case)
        with pytest.raises(ValueError, match="weight: expected"):
            trained.step(case.raster_camera, losses=[fused.L1SSIM(target()), term])
        assert same(trained, Trained(case))
    workspace, image = fused.Workspace(), target(1)
    with pytest.raises(ValueError, match="weight: expected"):
        workspace.l1_ssim(image, target(), torch.empty_like(image), weight=weight)
    with pytest.raises(ValueError, match="weight: expected"):
        workspace.lr_l1_ssim(image, low.lr_target, torch.empty_like(image), low.taps_x, low.taps_y, weight=weight)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("losses", [[], [fused.L1SSIM(target())]])
def test_a_ready_gradient_that_is_not_finite_leaves_everything_as_it_was(value, losses):
    case = make_case(7)
    gradient = torch.full((3, 45, 61), 1e-3)
    gradient[2, 44, 60] = value
    for learning_rates in ({}, {"learning_rates": None}):
        trained = Trained(case)
        result = trained.step(case.raster_camera, losses=losses, grad_image=gradient, **learning_rates)
        assert same(trained, Trained(case))
        assert torch.isfinite(result.image).all()
    gradient[2, 44, 60] = 0
    trained.step(case.raster_camera, losses=losses, grad_image=gradient)
    assert not same(trained, Trained(case))


def test_the_layer_below_counts_the_versions_of_what_it_writes():
    case = make_case(8, n=60)
    workspace, trained = fused.Workspace(), Trained(case)
    image, _, _ = workspace.forward(case.raster_camera, *trained.six)
    grad, means2d = torch.empty_like(image), torch.empty(60, 3)
    low, _ = lr_target(case)
    grads = [torch.empty_like(p) for p in trained.six]
    contributions = [torch.zeros(60) for _ in range(3)]
    moments = {"exp_avg": trained.mean, "exp_avg_sq": trained.square}
    stats = tuple(trained.stats)

    def written(call, tensors: list[Tensor]) -> None:
        before = [t._version for t in tensors]
        call()
        assert all(t._version > v for t, v in zip(tensors, before, strict=True))

    written(lambda: workspace.l1_ssim(image, target(), grad), [grad])
    written(lambda: workspace.lr_l1_ssim(image, low.lr_target, grad, low.taps_x, low.taps_y), [grad])
    written(lambda: workspace.backward(grad, trained.six, grads, grad_means2d=means2d), [*grads, means2d])
    written(lambda: workspace.contributions(*contributions), contributions)
    written(
        lambda: workspace.backward_adam(
            grad, trained.six, **moments, learning_rates=[1e-3] * 6, step=1, stats=stats, grad_means2d=means2d
        ),
        [*trained.six, *trained.mean, *trained.square, *stats, means2d],
    )


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_statistics_of_another_number_are_refused(count):
    case = make_case(9, n=24)
    workspace, trained = fused.Workspace(), Trained(case)
    image, _, _ = workspace.forward(case.raster_camera, *trained.six)
    moments = {"exp_avg": trained.mean, "exp_avg_sq": trained.square}
    with pytest.raises(ValueError, match=f"stats: expected three or the four .* got {count}"):
        workspace.backward_adam(image, trained.six, **moments, learning_rates=[0] * 6, step=1, stats=(None,) * count)
    for fine in (3, 4):
        workspace.backward_adam(image, trained.six, **moments, learning_rates=[0] * 6, step=1, stats=(None,) * fine)


def test_going_back_after_a_step_drew_something_else_is_refused():
    case, other = make_case(10), make_case(11, n=100)
    workspace = fused.Workspace()
    image, _, _ = workspace.forward(case.raster_camera, *case.six)
    fused.render(other.raster_camera, other.six, workspace=workspace)
    with pytest.raises(ValueError, match="call forward first"):
        workspace.backward(torch.zeros_like(image), case.six, case.six)
    with pytest.raises(ValueError, match="call forward first"):
        workspace.contributions(torch.zeros(300))


def test_checked_taps_are_the_kernels_own():
    low, _ = lr_target(make_case(12))
    start, weight = (np.array(a) for a in low.taps_x)
    checked = fused.Taps.of("taps_x", (start, weight), 15, 61)
    before = checked.start.clone(), checked.weight.clone()
    start[:], weight[:] = -1_000_000, math.nan
    assert torch.equal(checked.start, before[0])
    assert torch.equal(checked.weight, before[1])


@pytest.mark.parametrize("name", ["filter", "no filter", "fewer coefficients", "degree", "antialiasing"])
def test_an_image_of_another_scene_is_drawn_again(name):
    """Whatever `rendered` was made of, the step goes back through its own arguments."""
    case = make_case(13, sh_degree=1)
    camera, six, width = case.raster_camera, case.six, torch.full((300,), 0.05)
    drawn = {
        "filter": (camera, six, width),
        "no filter": (camera, six, None),
        "fewer coefficients": (camera, [*six[:5], six[5][:, :3].contiguous()], None),
        "degree": (replace(camera, sh_degree=0), six, None),
        "antialiasing": (replace(camera, antialiasing=True), six, None),
    }[name]
    rendered = fused.render(drawn[0], drawn[1], filter_3d=drawn[2])
    options = {"grad_image": torch.full((3, 45, 61), 1e-3), "filter_3d": width if name == "no filter" else None}
    found, wanted = Trained(case), Trained(case)
    found.step(camera, rendered=rendered, **options)
    wanted.step(camera, **options)
    assert same(found, wanted)


def test_losses_that_do_not_fit_the_cameras_are_named():
    case = make_case(14, n=24)
    term, camera = fused.L1SSIM(target()), case.raster_camera
    with pytest.raises(ValueError, match="losses: expected a list for each of 2 cameras"):
        Trained(case).step([camera, camera], losses=[term, term])
    with pytest.raises(ValueError, match="losses: expected L1SSIM and LowResolution terms for a single camera"):
        Trained(case).step(camera, losses=[[term]])


def test_a_limit_of_one_call_is_nobody_elses():
    case = make_case(15)
    scene = {"means": case.six[0], "opacities": case.six[3].sigmoid(), "sh": torch.cat(case.six[4:], dim=1)}
    scene |= {"scales": case.six[1].exp(), "quats": case.six[2]}
    wanted = rasterize_extended(case.raster_camera, **scene).color
    with pytest.raises(MemoryError, match="limit of 1000 bytes"):
        rasterize_extended(case.raster_camera, **scene, memory_limit=1000)
    assert torch.equal(rasterize_extended(case.raster_camera, **scene).color, wanted)
    try:
        set_memory_limit(1000)
        assert torch.equal(rasterize_extended(case.raster_camera, **scene, memory_limit=0).color, wanted)
        with pytest.raises(MemoryError, match="limit of 1000 bytes"):
            rasterize_extended(case.raster_camera, **scene)
        assert leases._POOL.memory_limit == 1000
    finally:
        set_memory_limit(0)
