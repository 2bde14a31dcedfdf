"""The memory limit: bands of tile rows, the bits of the image in one piece, and what a process really takes."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diff_gaussian_rasterization import RasterCamera, leases, release_memory
from diff_gaussian_rasterization.fused import L1SSIM, LowResolution, Workspace, render, train_step
from torch import Tensor

from tests.submodules.rasterizer_scenes import Case, make_case

RATES = [1e-3] * 6


@contextmanager
def on_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def step(case: Case, workspace: Workspace, threads: int = 1) -> dict[str, Tensor]:
    """Every result of a forward pass, a plain backward pass, and one with Adam and statistics."""
    with on_threads(threads):
        six = case.six
        image, transmittance, inverse_depth = workspace.forward(case.raster_camera, *six, aux=True)
        generator = torch.Generator().manual_seed(3)
        grad = [torch.randn(x.shape, generator=generator) for x in (image, transmittance, inverse_depth)]
        kinds: dict[str, Any] = {"grad_transmittance": grad[1], "grad_inverse_depth": grad[2]}
        grads, means2d = [torch.full_like(p, 7.0) for p in six], torch.full((len(six[0]), 3), 7.0)
        workspace.backward(grad[0], six, grads, grad_means2d=means2d, **kinds)
        results = {"image": image, "transmittance": transmittance, "inverse_depth": inverse_depth, "means2d": means2d}
        results |= {f"grad{k}": g for k, g in enumerate(grads)}
        moments = [[torch.full_like(p, 0.01) for p in six] for _ in range(2)]
        stats = tuple(torch.zeros(len(six[0])) for _ in range(3))
        settings: dict[str, Any] = {"learning_rates": RATES, "step": 3, "stats": stats}
        workspace.backward_adam(grad[0], six, exp_avg=moments[0], exp_avg_sq=moments[1], **settings, **kinds)
        named = {"parameter": six, "mean": moments[0], "square": moments[1], "stat": stats}
        return results | {f"{name}{k}": t for name, all_of in named.items() for k, t in enumerate(all_of)}


def smallest_limit(case: Case, threads: int = 1) -> int:
    """Follow the error messages from 1 byte on to the first limit that is kept."""
    limit = 1
    for _ in range(40):
        try:
            step(case, Workspace(limit), threads)
            return limit
        except MemoryError as e:
            needed = int(re.search(r"at least (\d+) bytes", str(e)).group(1))  # type: ignore[union-attr]
            assert needed > limit, str(e)  # noqa: PT017
            limit = needed
    raise AssertionError("the messages lead nowhere")


def banded_case() -> Case:
    """Some 16,000 instances over 11 tile rows."""
    return make_case(5, n=2000, width=200, height=330, sigma_px=8.0)


@pytest.fixture(scope="module")
def unlimited() -> dict[str, Tensor]:
    return step(banded_case(), Workspace())


@pytest.mark.parametrize("threads", [1, 2, 3, 7])
def test_bands_give_the_bits_of_the_image_in_one_piece(unlimited: dict[str, Tensor], threads: int) -> None:
    case = banded_case()
    smallest = smallest_limit(case, threads)
    seen = set()
    for limit in (smallest, smallest + 100_000, smallest + 300_000, smallest + 10_000_000):
        workspace = Workspace(limit)
        results = step(case, workspace, threads)
        seen.add(workspace.facts["bands"])
        assert workspace.facts["bytes"] <= limit
        for name, expected in unlimited.items():
            assert torch.equal(results[name], expected), (name, limit)
    assert {1, max(seen)} < seen
    assert max(seen) >= 7


def test_the_number_of_threads_may_change_between_the_passes(unlimited: dict[str, Tensor]) -> None:
    case = banded_case()
    workspace = Workspace(smallest_limit(case) + 50_000)
    with on_threads(1):
        image, _, _ = workspace.forward(case.raster_camera, *case.six)
    assert workspace.facts["bands"] > 1
    generator = torch.Generator().manual_seed(3)
    grad = torch.randn(image.shape, generator=generator)
    results = []
    for threads in (1, 3):
        grads = [torch.empty_like(p) for p in case.six]
        with on_threads(threads):
            workspace.backward(grad, case.six, grads)
        results.append(grads)
    assert torch.equal(image, unlimited["image"])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_one_workspace_through_scenes_sizes_and_limits() -> None:
    workspace = Workspace()
    cases = [make_case(seed, n=n, width=w, height=h, sigma_px=6.0) for seed, n, w, h in SHAPES]
    for limit in (0, 3_000_000, 6_000_000, 0, 2_500_000):
        workspace._native.set_memory_limit(limit)
        for case in cases:
            expected = step(case, Workspace())
            results = step(case, workspace)
            assert all(torch.equal(results[name], value) for name, value in expected.items())
            assert limit == 0 or workspace.facts["bytes"] <= limit


SHAPES = [(0, 900, 130, 100), (1, 0, 64, 64), (2, 300, 1, 1), (3, 1500, 100, 131), (4, 1, 33, 65), (5, 20, 1, 70)]


@pytest.mark.parametrize(("n", "width", "height"), [(0, 40, 40), (0, 1, 1), (50, 1, 1), (50, 1, 100), (50, 100, 1)])
def test_small_images_and_no_gaussians(n: int, width: int, height: int) -> None:
    case = make_case(1, n=n, width=width, height=height)
    workspace = Workspace(smallest_limit(case))
    results, expected = step(case, workspace), step(case, Workspace())
    assert all(torch.equal(results[name], value) for name, value in expected.items())


def test_a_limit_too_small_says_what_to_do_and_leaves_the_workspace_usable() -> None:
    case = banded_case()
    workspace = Workspace(smallest_limit(case) - 1000)
    with (
        on_threads(1),
        pytest.raises(MemoryError, match=r"limit of \d+ bytes is too small.*raise it, or use fewer") as error,
    ):
        step(case, workspace)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="call forward first"):
        workspace.backward(torch.zeros(3, 330, 200), case.six, case.six)
    workspace._native.set_memory_limit(0)
    assert torch.equal(step(case, workspace)["image"], step(case, Workspace())["image"])


def screen_filling(n: int, width: int, height: int) -> tuple[RasterCamera, list[Tensor]]:
    """Opaque splats that cover every tile."""
    camera = RasterCamera(width, height, 100.0, 100.0, width / 2, height / 2, torch.eye(4), sh_degree=0)
    means = torch.zeros(n, 3)
    means[:, 2] = torch.linspace(1, 2, n)
    colours = torch.rand(n, 1, 3, generator=torch.Generator().manual_seed(0))
    quats = torch.tensor([1.0, 0, 0, 0]).repeat(n, 1)
    return camera, [means, torch.full((n, 3), 6.0), quats, torch.full((n, 1), 4.0), colours, torch.zeros(n, 15, 3)]


def test_a_tile_row_beyond_all_bounds_is_refused() -> None:
    camera, six = screen_filling(270_000, 8192, 32)  # 256 tiles each, 2^26 pairs are the bound
    with pytest.raises(MemoryError, match=r"cover 69120000 tiles in one row.*use fewer or smaller ones"):
        Workspace(10**13).forward(camera, *six)


@pytest.mark.slow
def test_more_pairs_than_one_list_holds_run_in_bands() -> None:
    camera, six = screen_filling(33_000, 1024, 2048)  # 2,048 tiles each
    workspace, bound = Workspace(), Workspace(500_000_000)
    image, _, _ = workspace.forward(camera, *six)
    assert workspace.facts["instances"] == 33_000 * 2048
    assert workspace.facts["bands"] == 2
    expected, _, _ = bound.forward(camera, *six)
    assert bound.facts["bands"] > 2
    assert torch.equal(image, expected)


def test_the_losses_live_within_the_limit_too() -> None:
    case = banded_case()
    limit = smallest_limit(case)
    workspace = Workspace(limit)
    with on_threads(1):
        image, _, _ = workspace.forward(case.raster_camera, *case.six)
        grad = torch.empty_like(image)
        workspace.l1_ssim(image, torch.zeros_like(image), grad)
        workspace.backward(grad, case.six, [torch.empty_like(p) for p in case.six])
    assert workspace.facts["bytes"] <= limit


def steps_of(case: Case, workspace: Workspace | None, views: tuple[int, ...]) -> list[Tensor]:
    """Training steps, each on some cameras, with a loss at full and one at half size."""
    six, (height, width) = case.six, (case.camera.height, case.camera.width)
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    pose = torch.as_tensor(case.camera.world_to_camera)
    cameras = [replace(case.raster_camera, world_to_camera=pose + 0.01 * k) for k in range(max(views))]
    taps = [(torch.arange(n // 2, dtype=torch.int32) * 2, torch.full((n // 2, 2), 0.5)) for n in (width, height)]
    target = torch.full((3, height, width), 0.5)
    losses = [L1SSIM(target), LowResolution(target[:, ::2, ::2].contiguous(), *taps)]
    images = []
    for k, count in enumerate(views, start=1):
        several = count > 1
        result = train_step(
            cameras[:count] if several else cameras[0],
            six,
            exp_avg=mean,
            exp_avg_sq=square,
            learning_rates=RATES,
            step=k,
            losses=[losses] * count if several else losses,
            workspace=workspace,
        )
        images.append(result.image)
    return [*images, *six, *mean, *square]


@pytest.mark.parametrize("slack", [0, 400_000])
def test_steps_on_several_cameras_live_within_the_limit(slack: int) -> None:
    """The sums of gradients, 236 bytes a Gaussian, are within the limit: there are more bands beside them."""
    case = make_case(5, n=4000, width=200, height=330, sigma_px=8.0)
    sums = 236 * len(case.six[0])
    with on_threads(1):
        views = (1, 3, 2, 1, 2)
        expected = steps_of(case, None, views)
        limit = smallest_limit(case) + sums + slack
        workspace = Workspace(limit)
        steps_of(case, workspace, (1,))
        alone = workspace.facts["bands"]
        results = steps_of(case, workspace, views)
        facts = workspace.facts
        assert all(torch.equal(a, b) for a, b in zip(results, expected, strict=True))
        assert len(workspace._lease.natives) == 3
        assert facts["bytes"] <= limit
        assert facts["bands"] > alone
        with pytest.raises(MemoryError, match=r"limit of \d+ bytes is too small"):
            steps_of(case, Workspace(limit - slack - sums), (2,))
        # On images that are there already: what does not fit beside them is drawn once more.
        six = case.six
        cameras = [case.raster_camera] * 2
        rendered = render(cameras, six, workspace=Workspace(limit))
        moments = [[torch.zeros_like(p) for p in six] for _ in range(2)]
        gradient = torch.full_like(rendered.image, 1e-3)
        more = {"exp_avg": moments[0], "exp_avg_sq": moments[1], "learning_rates": RATES, "grad_image": gradient}
        train_step(cameras, six, rendered=rendered, **more)
        wanted = case.six
        moments = [[torch.zeros_like(p) for p in six] for _ in range(2)]
        train_step(cameras, wanted, **(more | {"exp_avg": moments[0], "exp_avg_sq": moments[1]}))
        assert all(torch.equal(a, b) for a, b in zip(six, wanted, strict=True))


def test_a_lower_limit_releases_what_was_taken_with_room_in_advance() -> None:
    case = banded_case()
    with on_threads(1):
        limit = smallest_limit(case) + 236 * len(case.six[0]) + 400_000
        workspace = Workspace()
        big = make_case(5, n=6000, width=420, height=400, sigma_px=8.0)
        steps_of(big, workspace, (2, 1))
        workspace.forward(case.raster_camera, *case.six)
        assert workspace.facts["bytes"] > 2 * limit
        for native in workspace._lease.natives:
            native.set_memory_limit(limit)
        with pytest.raises(ValueError, match="call forward first"):
            workspace.backward(torch.zeros(3, 330, 200), case.six, case.six)
        results = steps_of(case, workspace, (2, 1))
        assert workspace.facts["bytes"] <= limit
        assert all(torch.equal(a, b) for a, b in zip(results, steps_of(case, None, (2, 1)), strict=True))


def probe(scene: str, limit: int) -> dict[str, int]:
    """See memory_probe.py."""
    command = [sys.executable, "-m", "tests.submodules.memory_probe", scene, str(limit)]
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
def test_a_process_stays_under_the_limit() -> None:
    limit = 65_000_000
    free, bound = probe("random", 0), probe("random", limit)
    assert free["bands"] == 1
    assert bound["bands"] > 1
    assert free["instances"] == bound["instances"]
    assert free["extra"] > 1.3 * limit  # or the test says nothing
    assert bound["bytes"] <= limit
    assert bound["extra"] <= limit


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize(("limit_mb", "in_bands"), [(120, True), (400, False)])
def test_a_real_capture_stays_under_the_limit(data_dir: Path, limit_mb: int, in_bands: bool) -> None:
    bound = probe(str(data_dir / "bonsai_59"), limit_mb * 1_000_000)
    assert bound["count"] > 300_000
    assert (bound["bands"] > 1) == in_bands
    assert bound["bytes"] <= limit_mb * 1_000_000
    assert bound["extra"] <= limit_mb * 1_000_000


def test_memory_that_nobody_uses_can_be_given_up() -> None:
    case = banded_case()
    image = render(case.raster_camera, case.six).image
    assert leases._POOL.free[None]
    release_memory()
    assert not leases._POOL.free
    assert torch.equal(render(case.raster_camera, case.six).image, image)
