"""The interfaces on a GPU: operators under PyTorch, the known interface, poses, threads, halves, what is refused."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import (
    GaussianRasterizer,
    RasterCamera,
    fused,
    ops,
    rasterize_extended,
    release_memory,
    step_ops,
)
from torch import Tensor
from torch.library import opcheck
from torch.utils.checkpoint import checkpoint

from tests.cuda.scenes import deterministic
from tests.cuda.test_training_step import Trained
from tests.submodules import test_rasterizer_ops as on_cpu
from tests.submodules.rasterizer_scenes import Case, make_case, relative
from tests.submodules.test_rasterizer_gradients import original_settings
from tests.submodules.test_rasterizer_train_step import target

pytestmark = pytest.mark.gpu
# It recommends TF32 on any GPU that has it.
INDUCTOR = pytest.param(
    "inductor", marks=[pytest.mark.slow, pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores")]
)


@pytest.fixture(autouse=True)
def same_bits() -> Iterator[None]:
    """What is compared here is how calls are made, not how sums are rounded."""
    with deterministic(True):
        yield


def there(value: Any, cuda: Any) -> Any:
    """Tensors on the GPU, leaves again where they were leaves that require grad; lists of them too."""
    if isinstance(value, list):
        return [there(v, cuda) for v in value]
    if not isinstance(value, Tensor):
        return value
    return value.detach().to(cuda).requires_grad_(value.requires_grad)


def values_on(cuda: Any, case: Case, num: int | None = None, **kind: bool) -> dict[str, Tensor]:
    return {k: there(v, cuda) for k, v in on_cpu.activated(case, num, **kind).items()}


@pytest.mark.parametrize("num", [30, 0])
@pytest.mark.parametrize("cameras", [None, 2])
@pytest.mark.parametrize("precomputed", [False, True])
def test_opcheck_of_the_autograd_interface(cuda: Any, num: int, cameras: int | None, precomputed: bool) -> None:
    kind = {"colors": precomputed, "covariances": precomputed}
    values = on_cpu.activated(make_case(1, n=30, **on_cpu.SIZE), num, **kind)
    given = on_cpu.render_arguments(values, cameras, maps=1 if precomputed else 2, screen=not precomputed)
    arguments = (given[0], *(there(a, cuda) for a in given[1:]))
    opcheck(ops.render, arguments)
    with torch.no_grad():
        out = ops.render(*arguments)
    detached = [t.detach() if isinstance(t, Tensor) else t for t in arguments[:9]]
    gradients = [torch.ones_like(t) if t.numel() else None for t in out[:5]]
    wanted = [0, 1, 2, *([4, 7] if precomputed else [3, 5, 6]), 8]
    more = (*detached, out[1], out[6], *gradients, *arguments[11:], sum(1 << k for k in wanted))
    opcheck(ops.render_backward, more)


@pytest.mark.parametrize("num", [30, 0])
@pytest.mark.parametrize("cameras", [None, 2])
@pytest.mark.parametrize("rendered", [False, True])
def test_opcheck_of_the_training_step(cuda: Any, num: int, cameras: int | None, rendered: bool) -> None:
    given = list(on_cpu.step_arguments(num, cameras, update=True, own=False))
    given[1:7] = [there(a, cuda) for a in given[1:7]]
    given[8] = there(given[8], cuda)
    opcheck(step_ops.render_raw, (given[0], given[1], None, None, given[-1]))
    if rendered:
        given[11] = list(step_ops.render_raw(given[0], given[1], None, None, given[-1]))
    opcheck(step_ops.train_step, tuple(given))


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def loss_and_gradients(loss: Callable[..., Tensor], view: Any, cuda: Any, case: Case) -> list[Tensor]:
    values = values_on(cuda, case)
    means2d = torch.zeros_like(values["means"], requires_grad=True)
    total = loss(view, values, means2d)
    total.backward()
    return [total.detach(), *(v.grad for v in (*values.values(), means2d))]  # type: ignore[misc]


def assert_all_close(found: list[Tensor], wanted: list[Tensor]) -> None:
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)  # a compiler may fuse the loss around the operators


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_compiled_rendering_gives_the_eager_results(cuda: Any, backend: str) -> None:
    case = make_case(2, n=200)
    compiled = torch.compile(on_cpu.images_loss, fullgraph=True, backend=backend)
    for camera in on_cpu.several(case):
        wanted = loss_and_gradients(on_cpu.images_loss, camera, cuda, case)
        assert_all_close(loss_and_gradients(compiled, camera, cuda, case), wanted)


@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_a_compiled_training_step_gives_the_eager_bits(cuda: Any, backend: str) -> None:
    case, found = make_case(4, n=200), []
    for step in (on_cpu.one_step, torch.compile(on_cpu.one_step, fullgraph=True, backend=backend)):
        trained, losses = Trained(case, cuda), []
        for k, camera in enumerate(on_cpu.several(case), start=1):
            rates = torch.full((6,), 1e-3 / k, dtype=torch.float64)
            moments = (trained.mean, trained.square, rates, torch.tensor(float(k)))
            losses.append(float(step(camera, trained.six, *moments, target().to(cuda))))
        found.append([*trained.tensors, torch.tensor(losses)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_checkpoint_and_a_copied_handle_render_again(cuda: Any) -> None:
    case = make_case(5)
    wanted = loss_and_gradients(on_cpu.images_loss, case.raster_camera, cuda, case)

    def checkpointed(camera: RasterCamera, values: dict[str, Tensor], means2d: Tensor) -> Any:
        return checkpoint(on_cpu.images_loss, camera, values, means2d, use_reentrant=False)

    def copied(camera: RasterCamera, values: dict[str, Tensor], means2d: Tensor) -> Tensor:
        with torch.autograd.graph.saved_tensors_hooks(lambda t: t.detach().clone(), lambda t: t):
            return on_cpu.images_loss(camera, values, means2d)

    for loss in (checkpointed, copied):
        found = loss_and_gradients(loss, case.raster_camera, cuda, case)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_the_known_interface_takes_its_matrices_from_the_gpu(cuda: Any) -> None:
    case = make_case(3, n=200)
    settings = original_settings(case)
    found = []
    for device in ("cpu", cuda):
        moved = settings._replace(**{k: v.to(device) for k, v in settings._asdict().items() if isinstance(v, Tensor)})
        values = {k: v.detach().to(device).requires_grad_() for k, v in on_cpu.activated(case).items()}
        means2d = torch.zeros_like(values["means"], requires_grad=True)
        rasterizer = GaussianRasterizer(moved)
        names = {"means": "means3D", "sh": "shs", "quats": "rotations"}
        color, radii = rasterizer(means2D=means2d, **{names.get(k, k): v for k, v in values.items()})
        color.square().mean().backward()
        assert rasterizer.markVisible(values["means"]).device.type == torch.device(device).type
        found.append([color, radii.float(), *(v.grad for v in (*values.values(), means2d))])
    for ours, wanted in zip(found[1], found[0], strict=True):
        assert relative(ours.cpu(), wanted) < 1e-3  # pairs at a threshold: 1/255 of their pixel


def test_the_pose_may_be_on_the_gpu(cuda: Any) -> None:
    case = make_case(11)
    values = {k: v.detach() for k, v in values_on(cuda, case).items()}
    gradients = []
    for device in ("cpu", cuda):
        pose = torch.as_tensor(case.camera.world_to_camera).to(device).requires_grad_()
        camera = replace(case.raster_camera, world_to_camera=pose)
        rasterize_extended(camera, **values).color.square().sum().backward()
        assert pose.grad is not None
        gradients.append(pose.grad)
    assert gradients[1].device == cuda
    assert torch.equal(gradients[0], gradients[1].cpu())


def test_another_default_device_changes_nothing(cuda: Any) -> None:
    """Users of GPUs set it: what the kernels read in main memory stays there, on both devices."""
    case, found = make_case(9), []
    losses = {device: [fused.L1SSIM(target().to(device))] for device in ("cpu", cuda)}
    release_memory()  # so that workspaces are made anew
    for default in ("cpu", cuda):
        mine = [Trained(case, device) for device in ("cpu", cuda)]
        with torch.device(default):
            for trained, of in zip(mine, losses.values(), strict=True):
                trained.step(case.raster_camera, losses=of)
                trained.step(case.raster_camera, 2, losses=of, workspace=fused.Workspace(device=trained.six[0].device))
        found.append([t for trained in mine for t in trained.tensors])
        release_memory()
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_many_python_threads_render_at_once(cuda: Any) -> None:
    case = make_case(8, n=1000)
    wanted = loss_and_gradients(on_cpu.images_loss, case.raster_camera, cuda, case)

    def work(_: int) -> list[Tensor]:
        with torch.cuda.stream(torch.cuda.Stream(cuda)):
            found = loss_and_gradients(on_cpu.images_loss, case.raster_camera, cuda, case)
            torch.cuda.current_stream(cuda).synchronize()
            return found

    torch.cuda.synchronize(cuda)
    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(work, range(12)):
            assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


def test_half_precision_is_for_rendering(cuda: Any) -> None:
    case = make_case(20)
    plain = {k: v.detach() for k, v in values_on(cuda, case).items()}
    rounded = plain | {"sh": plain["sh"].half()}
    wanted = rasterize_extended(case.raster_camera, **(plain | {"sh": rounded["sh"].float()}))
    found = rasterize_extended(case.raster_camera, **rounded)
    assert torch.equal(found.color, wanted.color)
    with pytest.raises(TypeError, match=r"sh: expected torch\.float32, got torch\.float16"):
        rasterize_extended(case.raster_camera, **(rounded | {"means": plain["means"].clone().requires_grad_()}))
    six = there(case.six, cuda)
    halved = [*six[:5], six[5].half()]
    drawn = fused.render(case.raster_camera, halved)
    assert torch.equal(drawn.image, fused.render(case.raster_camera, [*six[:5], halved[5].float()]).image)
    image, _, _ = fused.Workspace(device=cuda).forward(case.raster_camera, *halved)
    assert torch.equal(image, drawn.image)
    trained, again = Trained(case, cuda), Trained(case, cuda)
    gradient = torch.full((3, 45, 61), 1e-3, device=cuda)
    trained.step(case.raster_camera, grad_image=gradient, rendered=drawn)  # another scene: it is drawn once more
    again.step(case.raster_camera, grad_image=gradient)
    assert all(torch.equal(a, b) for a, b in zip(trained.tensors, again.tensors, strict=True))
    with pytest.raises(TypeError, match=r"shN: expected torch\.float32"):
        fused.train_step(case.raster_camera, halved, learning_rates=None, losses=[fused.L1SSIM(target().to(cuda))])


def test_tensors_and_workspaces_of_two_devices_are_refused(cuda: Any) -> None:
    case = make_case(25, n=24)
    values = {k: v.detach() for k, v in values_on(cuda, case).items()}
    for name in ("opacities", "sh", "scales", "quats"):
        with pytest.raises(ValueError, match=f"{name}: expected on cuda:0"):
            rasterize_extended(case.raster_camera, **(values | {name: values[name].cpu()}))
    trained = Trained(case, cuda)
    with pytest.raises(ValueError, match=r"workspace: is on cpu, .* make it with Workspace\(device='cuda:0'\)"):
        trained.step(case.raster_camera, losses=[fused.L1SSIM(target().to(cuda))], workspace=fused.Workspace())
    with pytest.raises(ValueError, match="target: expected on cuda:0"):
        trained.step(case.raster_camera, losses=[fused.L1SSIM(target())])
    with pytest.raises(ValueError, match="means: expected on cuda:0"):
        fused.Workspace(device=cuda).forward(case.raster_camera, *case.six)
