"""What a device changes, seen without a GPU: fakes, refusals, the CUDA class and its memory, the guard, the report."""

import math
import re
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import RasterCamera, _native, devices, fused, ops, step_ops
from diff_gaussian_rasterization.checks import address, device_of
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.submodules.rasterizer_scenes import make_case
from tests.submodules.rasterizer_view import View, map_gradients
from tests.submodules.test_rasterizer_train_step import Trained, cameras_of, lr_target, same, target

GPU = torch.device("cuda", 0)
needs_kernels = pytest.mark.skipif(
    not devices.has_cuda_kernels(), reason=f"this build has no CUDA kernels ({_native.cuda_build})"
)
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, and these calls would reach it")


def on_gpu(num: int = 5, rest: int = 15) -> dict[str, Tensor]:
    """Activated Gaussians; to be called with fake tensors."""
    shapes = {"means": (num, 3), "opacities": (num, 1), "sh": (num, 1 + rest, 3), "scales": (num, 3), "quats": (num, 4)}
    return {name: torch.empty(shape, device=GPU) for name, shape in shapes.items()}


def camera_row() -> Tensor:
    return torch.empty(28, dtype=torch.float64)


def rendered(values: dict[str, Any], keep: bool = True, maps: int = 2) -> tuple[Tensor, ...]:
    names = (values.get(name) for name in ops.INPUTS)
    return ops.render(camera_row(), *names, None, None, None, [20, 17, 3, 0], maps, None, keep)


def test_fakes_of_rendering_put_images_on_the_gpu_and_handles_on_the_cpu():
    with FakeTensorMode():
        values = on_gpu()
        out = rendered(values)
        shapes = [(3, 17, 20), (17, 20), (17, 20), (17, 20), (3, 17, 20), (5,), (1,)]
        assert [tuple(t.shape) for t in out] == shapes
        assert [t.device for t in out] == [GPU] * 6 + [torch.device("cpu")]
        inputs = [values.get(name) for name in ops.INPUTS]
        gradients = ops.render_backward(
            camera_row(), *inputs, None, out[1], out[6], *out[:5], [20, 17, 3, 0], 2, None, 0b101100111
        )
    assert [tuple(g.shape) for g in gradients] == [(28,), (5, 3), (5, 1), (5, 3), (5, 4), (5, 3)]
    assert [g.device.type for g in gradients] == ["cpu"] + ["cuda"] * 5


@pytest.mark.parametrize("cameras", [None, 2])
def test_fakes_of_a_training_step_put_the_report_on_the_gpu(cameras):
    lead = () if cameras is None else (cameras,)
    with FakeTensorMode():
        six = [torch.empty(5, *shape, device=GPU) for shape in ((3,), (3,), (4,), (1,), (1, 3), (15, 3))]
        rows = torch.empty(*lead, 28, dtype=torch.float64)
        image, light, radii, state = step_ops.render_raw(rows, six, None, None, [20, 17, 3, 0])
        targets = [torch.empty(3, 17, 20, device=GPU)] * (cameras or 1)
        nothing = torch.empty(0)
        schedule = torch.empty(10, dtype=torch.float64)
        factors = [v for k in range(len(targets)) for v in (float(k), 1.0, 0.2)]
        none = [nothing] * len(targets)
        more = (six, six, [nothing] * 4, targets, none * 4, factors, none, None, None)
        found = step_ops.train_step(rows, six, *more, [], None, schedule, False, [20, 17, 3, 0])
        again = step_ops.train_step(
            rows, six, *more, [image, light, radii, state], None, schedule, False, [20, 17, 3, 0]
        )
    assert [tuple(t.shape) for t in found] == [(*lead, 3, 17, 20), (*lead, 5), (3 * len(targets) + 1,)]
    assert [t.dtype for t in found] == [torch.float32, torch.int32, torch.float64]
    assert [t.device for t in (image, light, radii, *found, *again)] == [GPU] * 9
    assert state.device.type == "cpu"


def test_tensors_of_two_devices_are_named_with_what_to_do():
    with FakeTensorMode():
        values = on_gpu()
        for name in ("opacities", "sh", "scales", "quats"):
            mixed = values | {name: torch.empty_like(values[name], device="cpu")}
            with pytest.raises(
                ValueError, match=rf"{name}: expected on cuda:0, .* on cpu; move it with .to\('cuda:0'\)"
            ):
                rendered(mixed)
        with pytest.raises(ValueError, match="rows: expected on cpu"):
            ops.render(camera_row().to(GPU), *[None] * 0, *(values.get(n) for n in ops.INPUTS), *[None] * 3,
                       [20, 17, 3, 0], 0, None)  # fmt: skip
    with pytest.raises(ValueError, match="there are kernels for cpu and cuda, not for meta"):
        device_of("means", torch.empty(3, device="meta"))
    with pytest.raises(ValueError, match="device: expected cpu or cuda, got meta"):
        fused.Workspace(device="meta")


def test_half_precision_is_for_rendering_on_a_gpu_without_gradients():
    with FakeTensorMode():
        values = on_gpu()
        values["sh"] = values["sh"].half()
        assert rendered(values, keep=False)[0].dtype == torch.float32
        with pytest.raises(TypeError, match=r"sh: expected torch\.float32, got torch\.float16"):
            rendered(values)
    case = make_case(1, n=24)
    six = case.six
    six[5] = six[5].half()
    for call in (fused.render, lambda camera, six: fused.Workspace().forward(camera, *six)):
        with pytest.raises(TypeError, match=r"shN: expected torch\.float32, got torch\.float16"):
            call(case.raster_camera, six)


@pytest.mark.parametrize("why", ["no: SPLAT_CUDA=OFF", "no: the CUDA sources did not compile"])
def test_a_build_without_kernels_says_why_there_are_none(monkeypatch, why):
    """As a build without them is: the attribute is missing, and the reason is there."""
    monkeypatch.delattr(_native, "CudaRasterization", raising=False)
    monkeypatch.setattr(_native, "cuda_build", why)

    def enter() -> None:
        with devices.on(GPU):
            raise AssertionError("there is nothing to run")

    for call in (enter, lambda: fused.Workspace(device="cuda")):
        with pytest.raises(RuntimeError, match="no CUDA kernels") as error:
            call()
        assert f"({why})" in str(error.value)
        assert "\n" not in str(error.value)


@needs_kernels
@needs_no_gpu
def test_a_machine_without_a_gpu_is_named():
    for name in ("cuda", "cuda:1"):
        with pytest.raises(RuntimeError, match=rf"device: {name} was asked for, but PyTorch .* finds no CUDA device"):
            fused.Workspace(device=name)


class MainMemory:
    """What the kernels' memory comes from, without a GPU."""

    def __init__(self) -> None:
        self.held: dict[int, Tensor] = {}
        self.pinned = torch.empty(_native.CudaRasterization.PINNED_BYTES, dtype=torch.uint8)

    def allocate(self, count: int) -> int:
        tensor = torch.empty(count, dtype=torch.uint8)
        self.held[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def release(self, address: int) -> None:
        del self.held[address]

    @property
    def sizes(self) -> list[int]:
        return sorted(t.numel() for t in self.held.values())


@pytest.fixture
def memory() -> MainMemory:
    return MainMemory()


@pytest.fixture
def native(memory: MainMemory) -> Any:
    return _native.CudaRasterization(0, memory, memory.pinned.data_ptr())


def arguments(of: type, name: str) -> list[str]:
    """Their types, from the signature that nanobind writes."""
    signature = str(getattr(of, name).__doc__).split(" -> ")[0]
    return re.findall(r"arg\d*: ([A-Za-z.]+(?:\[[^\]]*\])?)", signature)


RUNNING = ("forward", "backward", "backward_adam", "contributions", "l1_ssim", "lr_l1_ssim", "add_invalid", "facts")


@needs_kernels
@pytest.mark.parametrize("name", [*RUNNING, "reserve", "set_memory_limit"])
def test_both_classes_take_the_same_arguments(name):
    ours, theirs = (arguments(of, name) for of in (_native.Rasterization, _native.CudaRasterization))
    if name in RUNNING:  # the last one is threads; or stream and whether the bits must be the same
        assert (ours.pop(), theirs.pop()) == ("int", "collections.abc.Sequence[int]")
    assert ours == theirs


@needs_kernels
@needs_no_gpu
def test_calls_get_as_far_as_the_driver(native):
    """Arguments as Python gives them are taken; then there is no driver, which one line says."""
    run, row = [0, 0], camera_row()
    with pytest.raises(RuntimeError, match="CUDA: cannot use the device") as error:
        native.forward(
            address(row), 0, 0, 3, 0, [0] * 8, 0, 0, 3, 45, 15, False, False, [0] * 5, 0, True, run
        )  # fmt: skip
    assert "\n" not in str(error.value)
    with pytest.raises(RuntimeError, match="CUDA: cannot use the device"):
        native.l1_ssim(0, 0, 0, 0, 0, 0, 1.0, 0.2, False, 0, run)
    with pytest.raises(RuntimeError, match="CUDA: cannot use the device"):
        native.lr_l1_ssim(0, 0, 0, [0, 0], [0, 0, 0], [0, 0], [0, 0, 0], 1.0, 0.2, False, 0, run)
    six = [0] * 6
    for call in (
        lambda: native.backward([0] * 8, 0, 0, [0] * 5, [0] * 8, [0] * 8, 0, 0, 0, [0] * 4, [0, 0], run),
        lambda: native.backward_adam(
            six, 0, 0, [0] * 5, six, six, six, [0.0] * 6, 1, [0.9, 0.999], 1e-15, 0, 0, [0] * 4, [0, 0], run
        ),
        lambda: native.contributions([0, 0, 0], run),
        lambda: native.add_invalid(0, run),
    ):
        with pytest.raises(RuntimeError, match="no forward pass"):
            call()
    assert native.serial == 1


@needs_kernels
def test_scratch_memory_is_kept_within_a_limit_and_given_back(native, memory):
    assert native.reserve([100, 300, 0], False)[2] == 0
    assert memory.sizes == [500, 1500]  # a quarter more than asked for
    assert native.reserve([90, 310, 10], False)[0] in memory.held
    assert memory.sizes == [48, 500, 1500]
    assert native.facts([0, 0])["bytes"] == 2048
    native.set_memory_limit(1600)
    assert memory.sizes == []
    native.reserve([100, 300, 0], False)
    assert memory.sizes == [400, 1200]  # with a limit, no more than asked for
    for keep in (True, False):
        with pytest.raises(
            MemoryError, match=r"limit of 1600 bytes is too small: at least 1604 bytes are needed; raise"
        ):
            native.reserve([100, 300, 1], keep)
    native.reserve([50, 300, 50], False)
    assert memory.sizes == [200, 200, 1200]
    native.set_memory_limit(0)
    with pytest.raises(RuntimeError, match="draw an image first"):
        native.fix_capacity(True)
    assert not native.fixed_capacity
    assert native.memory is memory
    native.reserve([1, 1, 1], False)
    del native


@needs_kernels
def test_memory_goes_back_with_the_workspace(memory):
    native = _native.CudaRasterization(0, memory, memory.pinned.data_ptr())
    native.reserve([8, 8, 8], False)
    assert len(memory.held) == 3
    del native
    assert not memory.held


@needs_kernels
def test_what_python_raises_for_want_of_memory_arrives():
    class Full(MainMemory):
        def allocate(self, count: int) -> int:
            raise MemoryError(f"no room for {count} bytes")

    full = Full()
    native = _native.CudaRasterization(0, full, full.pinned.data_ptr())
    for _ in range(2):
        with pytest.raises(MemoryError, match="no room for 20 bytes"):
            native.reserve([4, 0, 0], False)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_guard_that_is_not_finite_keeps_a_backward_pass_from_writing(bad):
    case = make_case(2, n=60)
    view = View(case, case.six)
    maps, pose = map_gradients(case), torch.full((15,), 7.0, dtype=torch.float64)
    for values, written in ((torch.tensor([0.0, 1.0], dtype=torch.float64), True), ([0.0, bad], False)):
        guard = torch.as_tensor(values, dtype=torch.float64)
        grads = [torch.full_like(p, 7.0) for p in view.six]
        stats = [torch.full((60,), 7.0) for _ in range(4)]
        view.native.backward(
            [*map(address, view.six), 0, 0],
            0,
            address(view.transmittance),
            [*map(address, maps), 0, 0],
            [*map(address, grads), 0, 0],
            [0] * 8,
            0,
            0,
            address(pose),
            [*map(address, stats)],
            [address(guard), 2],
            1,
        )
        for tensor in (*grads, pose, *stats):
            assert bool((tensor == 7).all()) != written
        pose.fill_(7)


def test_the_report_is_what_the_losses_are_read_from():
    case = make_case(3)
    trained = Trained(case)
    trained.six[0][3] = math.nan
    low, _ = lr_target(case)
    result = trained.step(case.raster_camera, losses=[fused.L1SSIM(target()), low])
    assert result.report.dtype == torch.float64
    assert result.report.shape == (7,)
    assert [v for loss in result.losses for v in loss] == result.report[:6].tolist()
    assert isinstance(result.losses[0].loss, float)
    assert result.invalid == result.report[6] == 1
    assert isinstance(result.invalid, int)
    cameras = cameras_of(case, 2)
    result = trained.step(cameras, losses=[[fused.L1SSIM(target())], [low, fused.L1SSIM(target())]])
    assert [len(some) for some in result.losses] == [1, 2]
    assert [v for some in result.losses for loss in some for v in loss] == result.report[:9].tolist()
    assert result.invalid == 2  # once for each camera
    assert torch.isfinite(result.report).all()


def test_another_default_device_changes_nothing():
    """A user of GPUs sets it; cameras, schedules and handles stay where the kernels read them."""
    case = make_case(4)
    wanted, found = Trained(case), Trained(case)
    low, _ = lr_target(case)
    losses = [fused.L1SSIM(target()), low]
    wanted.step(case.raster_camera, losses=losses)
    with torch.device("meta"):
        camera: RasterCamera = case.raster_camera
        result = found.step(camera, losses=losses)
    assert camera.row.is_cpu
    assert torch.isfinite(result.report).all()
    assert same(found, wanted)


def test_a_workspace_of_the_cpu_needs_no_fixing_and_has_its_times():
    case = make_case(5, n=100)
    workspace = fused.Workspace(device="cpu")
    workspace.fix_capacity()
    assert workspace.timing
    workspace.forward(case.raster_camera, *case.six)
    assert workspace.facts["stage_ms"]["preprocess"] > 0
    assert workspace.facts["overflow"] is False


def test_taps_keep_their_copy_on_another_device():
    low, _ = lr_target(make_case(6))
    taps = fused.Taps.of("taps_x", low.taps_x, 15, 61)
    there = taps.on(torch.device("meta"))
    assert there is taps.on(torch.device("meta"))
    assert taps.on(torch.device("cpu")) is taps
    assert there.start.device.type == there.weight.device.type == "meta"
    assert there.reach == taps.reach
