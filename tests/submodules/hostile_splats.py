"""Run by test_rasterizer_sanitizers.py: everything the kernels do, on 100,000 splats with special values."""

import re
from dataclasses import replace

import torch
from diff_gaussian_rasterization import isa
from diff_gaussian_rasterization.fused import L1SSIM, LowResolution, Statistics, Workspace, train_step
from torch import Tensor

from scene.lr_kernel import LRKernel
from tests.submodules.rasterizer_scenes import Case, make_case
from tests.submodules.rasterizer_view import RATES
from tests.submodules.test_rasterizer_geometry import hostile_step
from tests.submodules.test_rasterizer_maps import everything
from tests.submodules.test_rasterizer_robustness import poisoned, render_and_differentiate

SPLATS = 25_000  # of each scene
SIZES = ((61, 45), (1, 1), (300, 5), (200, 330))  # of the images; tiles are cut off on every side


def all_finite(*values: Tensor | None) -> bool:
    return all(bool(torch.isfinite(v).all()) for v in values if v is not None)


def train(case: Case, seed: int, workspace: Workspace, *, cameras: int, sparse: bool) -> list[Tensor]:
    """One step on two loss terms a camera. Returns image, parameters, moments and statistics, all checked."""
    six, camera = poisoned(case, seed), case.raster_camera
    small = (max(1, camera.width // 4), max(1, camera.height // 3))
    operator = LRKernel("bicubic", "renormalise", (camera.width, camera.height), small)
    g = torch.Generator().manual_seed(seed)
    target, lr_target = (torch.rand(3, h, w, generator=g) for w, h in ((camera.width, camera.height), small))
    terms = [L1SSIM(target, weight=0.4), LowResolution(lr_target, operator.taps("x"), operator.taps("y"), weight=0.6)]
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    stats = Statistics(*(torch.zeros(len(six[0])) for _ in range(4)))
    views = [replace(camera, fx=camera.fx * (1 + k)) for k in range(cameras)]
    result = train_step(
        views if cameras > 1 else camera,
        six,
        exp_avg=mean,
        exp_avg_sq=square,
        learning_rates=RATES,
        losses=[terms] * cameras if cameras > 1 else terms,
        sparse=sparse,
        stats=stats,
        workspace=workspace,
    )
    losses = [loss for some in result.losses for loss in some] if cameras > 1 else result.losses
    assert all_finite(torch.tensor(losses), result.image, *mean, *square, *stats)
    assert all((b.isfinite() | ~a.isfinite()).all() for a, b in zip(poisoned(case, seed), six, strict=True))
    assert result.invalid > SPLATS / 4
    assert all(torch.count_nonzero(m) > 0 for m in mean[:5])  # and others are trained
    return [result.image, *six, *mean, *square, *(s for s in stats if s is not None)]


def train_in_bands(case: Case, seed: int) -> tuple[list[Tensor], int]:
    """The same below the smallest memory limit, which the error messages name; also the number of bands."""
    limit = 1
    while True:
        workspace = Workspace(limit)
        try:
            return train(case, seed, workspace, cameras=1, sparse=False), workspace.facts["bands"]
        except MemoryError as e:
            needed = re.search(r"at least (\d+) bytes", str(e))
            assert needed
            assert int(needed[1]) > limit
            limit = int(needed[1])


def main() -> None:
    torch.set_num_threads(2)
    bands, splats = 1, 0
    for seed, (width, height) in enumerate(SIZES):
        case = make_case(seed, n=SPLATS, width=width, height=height, antialiasing=seed % 2 == 1, sh_degree=3 - seed)
        six = poisoned(case, seed)
        splats += len(six[0])
        _, results = render_and_differentiate(case.raster_camera, six)
        assert all_finite(*results, *hostile_step(case, seed), *everything(case, six).values())
        train(case, seed, Workspace(), cameras=2, sparse=True)
        whole = train(case, seed, Workspace(), cameras=1, sparse=False)
        banded, count = train_in_bands(case, seed)
        same = (torch.equal(a.nan_to_num(0.5), b.nan_to_num(0.5)) for a, b in zip(whole, banded, strict=True))
        assert all(same)
        bands = max(bands, count)
    assert bands > 1
    print(f"finished {isa()}: {splats} splats, up to {bands} bands")


if __name__ == "__main__":
    main()
