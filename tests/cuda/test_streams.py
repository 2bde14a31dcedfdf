"""Where and when a GPU works: streams, graphs, waits, memory, stages, and a second GPU."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import fused, ops, rasterize_extended, release_memory, set_memory_limit
from diff_gaussian_rasterization.cameras import view_of
from torch import Tensor

from tests.cuda.scenes import deterministic
from tests.cuda.test_api import loss_and_gradients, there, values_on
from tests.cuda.test_training_step import Trained
from tests.submodules import test_rasterizer_ops as on_cpu
from tests.submodules.rasterizer_scenes import Case, make_case, relative
from tests.submodules.test_rasterizer_train_step import cameras_of, lr_target, target

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def same_bits() -> Iterator[None]:
    """What is compared here is how calls are made, not how sums are rounded."""
    with deterministic(True):
        yield


def stepped(case: Case, cuda: Any, steps: int) -> list[Tensor]:
    """After so many steps, one after the other."""
    trained, workspace = Trained(case, cuda), fused.Workspace(device=cuda)
    losses = [fused.L1SSIM(target().to(cuda))]
    for k in range(steps):
        trained.step(case.raster_camera, k + 1, losses=losses, workspace=workspace)
    return trained.tensors


def test_two_workspaces_on_two_streams(cuda: Any) -> None:
    cases = [make_case(12, n=3000), make_case(13, n=2000)]
    streams = [torch.cuda.Stream(cuda) for _ in cases]
    trained = [Trained(case, cuda) for case in cases]
    workspaces = [fused.Workspace(device=cuda) for _ in cases]
    losses = [fused.L1SSIM(target().to(cuda))]
    torch.cuda.synchronize(cuda)
    for k in range(8):
        for case, mine, workspace, stream in zip(cases, trained, workspaces, streams, strict=True):
            with torch.cuda.stream(stream):
                mine.step(case.raster_camera, k + 1, losses=losses, workspace=workspace)
    torch.cuda.synchronize(cuda)
    for case, mine in zip(cases, trained, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine.tensors, stepped(case, cuda, 8), strict=True))


def test_a_workspace_waits_for_the_stream_that_it_was_used_on(cuda: Any) -> None:
    """Parameters are ordered by the caller; the memory of the workspace by itself."""
    case, other = make_case(14, n=3000), make_case(15, n=5000, width=300, height=200)
    workspace, trained = fused.Workspace(device=cuda), Trained(case, cuda)
    streams = [torch.cuda.Stream(cuda) for _ in range(2)]
    losses, elsewhere = [fused.L1SSIM(target().to(cuda))], Trained(other, cuda)
    torch.cuda.synchronize(cuda)
    for k in range(6):
        with torch.cuda.stream(streams[0]):
            trained.step(case.raster_camera, k + 1, losses=losses, workspace=workspace)
        with torch.cuda.stream(streams[1]):  # grows, then overwrites, what the first stream may still be reading
            fused.render(other.raster_camera, elsewhere.six, workspace=workspace)
    torch.cuda.synchronize(cuda)
    assert all(torch.equal(a, b) for a, b in zip(trained.tensors, stepped(case, cuda, 6), strict=True))


def test_a_captured_training_step_does_what_the_calls_do(cuda: Any) -> None:
    case = make_case(16, n=2000, width=120, height=90)
    losses, steps = [fused.L1SSIM(target(0, 90, 120).to(cuda))], 6
    wanted, found = Trained(case, cuda), Trained(case, cuda)
    for _ in range(steps):
        last = wanted.step(case.raster_camera, 3, losses=losses)
    workspace = fused.Workspace(device=cuda)

    def step() -> fused.StepResult:
        return found.step(case.raster_camera, 3, losses=losses, workspace=workspace)

    step()
    workspace.fix_capacity()
    side = torch.cuda.Stream(cuda)
    side.wait_stream(torch.cuda.current_stream(cuda))
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream(cuda).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = step()
    for _ in range(steps - 2):
        graph.replay()
    torch.cuda.synchronize(cuda)
    assert not workspace.facts["overflow"]
    assert torch.equal(result.image, last.image)
    assert result.losses == last.losses
    assert all(torch.equal(a, b) for a, b in zip(found.tensors, wanted.tensors, strict=True))


@pytest.mark.filterwarnings("ignore:The CUDA Graph is empty")
def test_what_cannot_be_captured_is_refused_before_it_spoils_the_capture(cuda: Any) -> None:
    case = make_case(17, n=100)
    case.gaussians["means"][30:, 2] = -5.0  # not drawn, but a fixed capacity has room for them
    trained, losses = Trained(case, cuda), [fused.L1SSIM(target().to(cuda))]
    workspace = fused.Workspace(device=cuda)
    with pytest.raises(RuntimeError, match="draw an image first"):
        workspace.fix_capacity()
    trained.step(case.raster_camera, losses=losses, workspace=workspace)
    for options, message in (({}, "give a fused.Workspace"), ({"workspace": workspace}, "after its fix_capacity")):
        with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
            trained.step(case.raster_camera, losses=losses, **options)
    workspace.fix_capacity()
    with pytest.raises(RuntimeError, match="have to grow"), torch.cuda.graph(torch.cuda.CUDAGraph()):
        trained.step(case.raster_camera, losses=losses, workspace=workspace)
    trained.step(case.raster_camera, losses=losses, workspace=workspace)  # and usable afterwards
    assert torch.isfinite(torch.cat([t.flatten() for t in trained.tensors])).all()


@contextmanager
def nothing_waits() -> Iterator[None]:
    """Whatever PyTorch waits for the device for is an error; the forward pass waits by itself, once."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("sparse", [False, True])
def test_a_training_step_reads_nothing_back_but_sizes(cuda: Any, views: int, sparse: bool) -> None:
    case = make_case(18)
    low, _ = lr_target(case)
    taps = [fused.Taps.of(f"taps_{a}", t, *n) for a, t, n in (("x", low.taps_x, (15, 61)), ("y", low.taps_y, (11, 45)))]
    terms = [fused.L1SSIM(target().to(cuda)), fused.LowResolution(low.lr_target.to(cuda), *taps, weight=0.6)]
    cameras = cameras_of(case, views) if views > 1 else case.raster_camera
    losses = [terms] * views if views > 1 else terms
    shape = (*([views] if views > 1 else []), 3, 45, 61)
    trained, workspace = Trained(case, cuda), fused.Workspace(device=cuda)
    options = {"losses": losses, "sparse": sparse, "grad_image": torch.full(shape, 1e-4, device=cuda)}
    trained.step(cameras, 1, **options, workspace=workspace)  # the taps go to the GPU, memory is taken
    with nothing_waits():
        results = [trained.step(cameras, k, **options, workspace=workspace) for k in (2, 3)]
    for result in results:
        assert result.report.device == cuda
        assert torch.isfinite(result.report).all()
        assert result.invalid == 0
    assert results[0].losses != results[1].losses


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_autograd_reads_nothing_back_but_sizes(cuda: Any) -> None:
    case = make_case(19)
    loss_and_gradients(on_cpu.images_loss, case.raster_camera, cuda, case)
    values = values_on(cuda, case)
    with nothing_waits():
        on_cpu.images_loss(case.raster_camera, values, None).backward()
    assert values["means"].grad is not None


def needed_bytes(call: Callable[[int], object]) -> int:
    """Follow the messages from 1 byte on to the first limit that is enough."""
    limit = 1
    for _ in range(80):
        try:
            call(limit)
            return limit
        except MemoryError as error:
            found = re.search(r"limit of \d+ bytes is too small: at least (\d+) bytes", str(error))
            assert found is not None, str(error)  # noqa: PT017
            assert int(found[1]) > limit
            limit = int(found[1])
    raise AssertionError("the messages lead nowhere")


def test_a_memory_limit_is_kept_or_refused_with_what_is_needed(cuda: Any) -> None:
    case = make_case(21, n=5000, width=300, height=200)
    losses = [fused.L1SSIM(target(0, 200, 300).to(cuda))]
    wanted = Trained(case, cuda)
    wanted.step(case.raster_camera, losses=losses)

    def step(limit: int) -> None:
        workspace, trained = fused.Workspace(limit, device=cuda), Trained(case, cuda)
        trained.step(case.raster_camera, losses=losses, workspace=workspace)
        assert workspace.facts["bytes"] <= limit
        assert all(torch.equal(a, b) for a, b in zip(trained.tensors, wanted.tensors, strict=True))

    limit = needed_bytes(step)
    workspace = fused.Workspace(limit, device=cuda)
    big = make_case(22, n=50_000, width=600, height=500)
    with pytest.raises(MemoryError, match=f"limit of {limit} bytes"):
        fused.render(big.raster_camera, there(big.six, cuda), workspace=workspace)
    trained = Trained(case, cuda)
    trained.step(case.raster_camera, losses=losses, workspace=workspace)  # what the larger one left makes room
    assert all(torch.equal(a, b) for a, b in zip(trained.tensors, wanted.tensors, strict=True))
    try:
        set_memory_limit(1000)
        with pytest.raises(MemoryError, match="limit of 1000 bytes"):
            rasterize_extended(case.raster_camera, **values_on(cuda, case))
    finally:
        set_memory_limit(0)


def test_a_way_back_that_found_no_room_does_not_believe_in_what_it_lacked(cuda: Any) -> None:
    """Twice the same refusal: what the blending would have kept for it is not there the second time either."""
    case = make_case(27, n=5000, width=300, height=200)
    rows, view = view_of(case.raster_camera)
    v = {name: value.detach() for name, value in values_on(cuda, case).items()}
    splats = (v["means"], v["opacities"], v["sh"], None, v["scales"], v["quats"], None, None)

    def draw(limit: int) -> tuple[Tensor, ...]:
        return ops.render(rows, *splats, None, None, view, 0, limit, False)

    def go_back(drawn: tuple[Tensor, ...], limit: int) -> list[Tensor]:
        slopes = (torch.ones_like(drawn[0]), None, None, None, None)
        return ops.render_backward(rows, *splats, drawn[1], drawn[6], *slopes, view, 0, limit, 2)

    (wanted,) = go_back(draw(0), 0)
    first, last = needed_bytes(draw), needed_bytes(lambda limit: go_back(draw(limit), limit))
    assert first < last
    for limit in range(first, last, (last - first) // 10):
        drawn = draw(limit)
        for _ in range(2):
            with pytest.raises(MemoryError, match=f"limit of {limit} bytes"):
                go_back(drawn, limit)
    (found,) = go_back(draw(last), last)
    assert torch.equal(found, wanted)


def test_a_workspace_that_outgrows_a_graph_leaves_it_its_memory(cuda: Any) -> None:
    case, big = make_case(28, n=2000, width=120, height=90), make_case(29, n=20_000, width=400, height=300)
    six, many = there(case.six, cuda), there(big.six, cuda)
    workspace = fused.Workspace(device=cuda)
    workspace.forward(case.raster_camera, *six)
    workspace.fix_capacity()
    workspace.forward(case.raster_camera, *six)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        image, transmittance, _ = workspace.forward(case.raster_camera, *six)
    graph.replay()
    wanted = [image.clone(), transmittance.clone()]
    workspace.fix_capacity(False)
    large = [t.clone() for t in workspace.forward(big.raster_camera, *many)[:2]]
    others = [torch.zeros(1 << 20, device=cuda) for _ in range(64)]  # to whom such memory would go
    graph.replay()
    assert torch.equal(image, wanted[0])
    assert torch.equal(transmittance, wanted[1])
    assert not any(t.any() for t in others)
    again = workspace.forward(big.raster_camera, *many)
    assert all(torch.equal(a, b) for a, b in zip(again[:2], large, strict=True))


def test_memory_goes_back_to_pytorch(cuda: Any) -> None:
    case = make_case(23, n=20_000, width=400, height=300)
    six = there(case.six, cuda)
    release_memory()
    torch.cuda.synchronize(cuda)
    before = torch.cuda.memory_allocated(cuda)
    workspace = fused.Workspace(device=cuda)
    workspace.forward(case.raster_camera, *six)
    held = workspace.facts["bytes"]
    assert torch.cuda.memory_allocated(cuda) - before >= held > 0
    del workspace
    assert torch.cuda.memory_allocated(cuda) <= before + 4096
    fused.render(case.raster_camera, six)
    assert torch.cuda.memory_allocated(cuda) > before + held / 2  # in the pool
    release_memory()
    assert torch.cuda.memory_allocated(cuda) <= before + 4096


def test_the_stages_are_timed_where_it_is_asked_for(cuda: Any) -> None:
    case = make_case(24, n=5000, width=300, height=200)
    workspace, trained = fused.Workspace(device=cuda), Trained(case, cuda)
    losses = [fused.L1SSIM(target(0, 200, 300).to(cuda))]
    trained.step(case.raster_camera, losses=losses, workspace=workspace)
    facts = workspace.facts
    assert facts["stage_ms"] == {}
    workspace.timing = True
    trained.step(case.raster_camera, losses=losses, workspace=workspace)
    times = workspace.facts["stage_ms"]
    assert [*times] == ["preprocess", "sort_bin", "forward", "loss", "blend_backward", "geometry"]
    assert all(0 < ms < 1000 for ms in times.values())
    assert (facts["bands"], facts["overflow"], facts["invalid"]) == (1, False, 0)
    assert 0 < facts["drawn"] <= 5000
    assert facts["instances"] > 0


def test_a_second_gpu(cuda: Any) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("there is one GPU")
    case, second = make_case(26), torch.device("cuda", 1)
    losses, found = [fused.L1SSIM(target().to(second))], Trained(case, second)
    for k in range(3):
        found.step(case.raster_camera, k + 1, losses=losses)
    assert torch.cuda.current_device() == cuda.index
    assert found.six[0].device == second
    for a, b in zip(found.tensors, stepped(case, cuda, 3), strict=True):
        assert relative(a, b) < 1e-4
