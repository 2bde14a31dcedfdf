"""The pipeline on a GPU against the same on the CPU: training, resuming, rendering, measuring, who waits for whom."""

import json
import signal
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

import metrics
import render
import train
from gaussian_renderer import render as draw
from scene import load_scene
from scene.image_files import read_image
from scene.ply import read_gaussians
from scene.trained_model import find_model
from tests.training.test_guard import Poisoned
from tests.training.test_guard import run as run_loop
from tests.training_factory import SHORT, command, settings, write_scene
from training.checkpoint import load
from training.job import Job
from training.signals import SIGNALS
from training.views import training_views
from utils.compute import use_device, use_fixed_order

pytestmark = pytest.mark.gpu
STEPS = 50


@pytest.fixture(autouse=True)
def used(cuda, monkeypatch):
    """The GPU as scripts use it."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", torch.backends.cudnn.allow_tf32)
    use_device(cuda)


@pytest.fixture
def root(tmp_path):
    return write_scene(tmp_path)


@pytest.fixture
def fixed_order(monkeypatch):
    """What --deterministic switches on, until the end of the test."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    filled = torch.utils.deterministic.fill_uninitialized_memory
    use_fixed_order()
    yield
    torch.use_deterministic_algorithms(False)
    torch.utils.deterministic.fill_uninitialized_memory = filled


@pytest.fixture
def script(monkeypatch, capsys):
    """Run one of the scripts in this process; what it said."""
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def run(main, argv):
        monkeypatch.setattr(sys, "argv", ["script", *map(str, argv)])
        main()
        return capsys.readouterr()

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def trainer(root, device, rasterizer="native", pipeline=None, **optimisation):
    given = settings(root, rasterizer, **optimisation)
    given = replace(given, pipeline=replace(given.pipeline, **pipeline or {}))
    scene = load_scene(root / "lr")
    views = training_views(scene, root / "out/hr", given.model, given.optimisation, 0, str(device))
    return Job(given, root / "out", scene, views, root / "out/hr", str(device)).trainer()


def losses(run, steps):
    return [run.step().loss for _ in range(steps)]


def test_losses_are_those_of_the_cpu(root, cuda):
    here, there = (losses(trainer(root, d, iterations=STEPS, densify_from_iter=1000), STEPS) for d in ("cpu", cuda))
    assert there[0] == pytest.approx(here[0], rel=1e-5)
    assert there[:5] == pytest.approx(here[:5], rel=1e-3)
    # Adam makes a full step of a gradient that is rounding noise, so the runs part slowly
    assert there == pytest.approx(here, rel=3e-2)


def test_density_control_is_that_of_the_cpu(root, cuda):
    runs = [trainer(root, d, iterations=STEPS) for d in ("cpu", cuda)]
    ends = [np.mean(losses(run, STEPS)[-8:]) for run in runs]
    counts = [run.state.gaussians.num for run in runs]
    assert counts[0] != 120, "density control must have taken part"
    assert counts[1] == pytest.approx(counts[0], rel=0.1)
    assert ends[1] == pytest.approx(ends[0], rel=0.1)


@pytest.mark.parametrize("tex", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(
    ("rasterizer", "pipeline"),
    [("native", {}), ("native", {"convert_SHs_python": True}), ("reference", {}), ("gsplat", {})],
)
def test_every_rasterizer_trains_on_the_gpu(root, cuda, rasterizer, pipeline, tex):
    if rasterizer == "gsplat":
        pytest.importorskip("gsplat")
    expected = losses(trainer(root, "cpu", lambda_tex=tex, densify_from_iter=1000), 4)
    run = trainer(root, cuda, rasterizer, pipeline, lambda_tex=tex, densify_from_iter=1000)
    assert losses(run, 4) == pytest.approx(expected, rel=2e-2 if rasterizer == "gsplat" else 1e-3)
    assert all(value.is_cuda for value in run.state.tensors().values())
    assert run.state.view_count.sum() > 0


def test_a_fixed_order_gives_the_same_bits_twice(root, cuda, fixed_order):
    flags = {"iterations": STEPS, "random_background": True, "densify_grad_threshold": 1e-5}
    runs = [trainer(root, cuda, **flags) for _ in range(2)]
    found = [losses(run, STEPS) for run in runs]
    assert runs[0].state.gaussians.num > 120
    assert found[0] == found[1]
    states = [run.state.tensors() for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


@pytest.mark.filterwarnings("ignore:Synchronization debug mode")
def test_nothing_waits_for_the_gpu_but_the_read_of_a_size(root, cuda):
    run = trainer(root, cuda, iterations=1000, densify_from_iter=900, opacity_reset_interval=900)
    for _ in range(16):  # every image is there, every buffer has grown
        run.advance()
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(8):
            run.advance()
    finally:
        torch.cuda.set_sync_debug_mode(before)
    assert len(run.pending) == 1
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:  # else torch 2.11 warns
        for _ in range(8):
            run.advance()
    calls = {event.key: event.count for event in profiler.key_averages()}
    assert calls.get("cudaStreamSynchronize", 0) <= 8
    assert calls.get("cudaDeviceSynchronize", 0) <= 2, "those of the profiler itself"
    run.settle()
    assert run.finished[-1].number == 32


@pytest.mark.parametrize("kind", ["loss", "means", "shN"])
def test_nan_is_found_and_left_out(root, cuda, kind, fixed_order):
    clean = trainer(root, cuda, iterations=30)
    clean.skipped = {17}
    expected, expected_log = run_loop(clean, root / "clean")
    poisoned = trainer(root, cuda, iterations=30)
    poisoned.engine = Poisoned(poisoned.engine, lambda: poisoned, kind, {17})
    found, found_log = run_loop(poisoned, root / "poisoned")
    assert all(torch.equal(value, found[name]) for name, value in expected.items())
    assert found_log == expected_log
    report = json.loads((root / "poisoned/nan_report.json").read_text())
    assert (report["iteration"], report["what"]) == (17, kind)


@pytest.mark.parametrize(("first", "second"), [("cuda", "cpu"), ("cpu", "cuda")])
def test_a_run_is_continued_on_the_other_device(root, cuda, script, first, second):
    out = root / "moved"
    script(train.main, command(root, out, iterations=30, checkpoint_iterations=25, device=first))
    path = out / "checkpoints/iteration_25.safetensors"
    tensors, info = load(path)  # now, as the continued run keeps its own last ones
    continued = [*command(root, out, start_checkpoint=str(path), device=second), "--overwrite"]
    said = script(train.main, continued)
    assert f"made on {first}, the run goes on on {second}" in said.err
    record = json.loads((out / "run.json").read_text())["steps"]["train"]
    assert record["notes"]["device"].startswith(second)
    assert (out / "point_cloud/iteration_60/point_cloud.ply").is_file()
    restored = trainer(root, "cuda:0" if second == "cuda" else "cpu")
    restored.restore(tensors, info)
    for name, value in restored.state.tensors().items():
        assert value.device.type == second
        assert torch.equal(value.cpu(), tensors[name]), name


def test_a_record_says_on_which_gpu(root, cuda, script):
    script(train.main, command(root, root / "fixed", iterations=8, device="auto", deterministic=True))
    torch.use_deterministic_algorithms(False)
    notes = json.loads((root / "fixed/run.json").read_text())["steps"]["train"]["notes"]
    assert notes["device"] == "cuda:0"
    assert notes["gpu"] == torch.cuda.get_device_name(0)
    assert notes["deterministic"] is True
    assert notes["cuda"]
    assert notes["driver"]
    assert notes["gpu_peak_bytes"] > 0


def test_renders_and_metrics_are_those_of_the_cpu(root, cuda, script):
    out = root / "model"
    script(train.main, command(root, out, device="cpu"))
    found = {}
    for device in ("cpu", "cuda"):
        where = root / device
        flags = ["--output_path", where, "--eval", "--skip_test", "--device", device, "--depth"]
        script(render.main, ["-m", out, *flags])
        script(metrics.main, ["-m", where, "--train", "--no_lpips", "--no_frames", "--no_report", "--device", device])
        found[device] = json.loads((where / "metrics.json").read_text())["methods"]["train/ours_60"]["mean"]
    pictures = sorted((root / "cpu/train/ours_60/renders").iterdir())
    assert pictures
    for path in pictures:
        other = root / "cuda/train/ours_60/renders" / path.name
        difference = np.abs(read_image(path).astype(int) - read_image(other).astype(int))
        assert difference.max() <= 2
        assert (difference > 0).mean() < 0.02  # where a value lies between two levels
    assert found["cuda"]["PSNR"] == pytest.approx(found["cpu"]["PSNR"], abs=5e-3)
    assert found["cuda"]["SSIM"] == pytest.approx(found["cpu"]["SSIM"], abs=5e-4)


def test_half_precision_colours_are_close(root, cuda, script):
    out = root / "model"
    script(train.main, command(root, out, device="cpu", **SHORT))
    ply, _ = find_model(out, -1)
    gaussians = read_gaussians(ply)
    for name, value in vars(gaussians).items():
        setattr(gaussians, name, value.to(cuda))
    camera = next(iter(load_scene(root / "lr").cameras.values()))
    with torch.no_grad():
        full = draw(camera, gaussians, background=(1.0, 1.0, 1.0)).color
        gaussians.shN = gaussians.shN.half()
        half = draw(camera, gaussians, background=(1.0, 1.0, 1.0)).color
    assert not torch.equal(full, half), "half precision has no effect"
    torch.testing.assert_close(half, full, rtol=0, atol=1 / 255)
    script(render.main, ["-m", out, "--eval", "--skip_test", "--device", "cuda", "--half_sh"])
    record = json.loads((out / "run.json").read_text())["steps"]["render"]
    assert record["settings"]["half_sh"] is True
    assert record["notes"]["methods"]["train/ours_60"]["protocol"]["rasterizer"] == "native, half-precision colours"
