"""Everything that the kernels do, once, on small and hostile scenes: what compute-sanitizer watches.

compute-sanitizer --tool memcheck python -m tests.cuda.exercise --device cuda
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diff_gaussian_rasterization import RasterCamera, rasterize_extended
from diff_gaussian_rasterization.fused import L1SSIM, LowResolution, Statistics, Workspace, train_step
from simple_knn._C import distCUDA2
from torch import Tensor

from scene.lr_kernel import LRKernel
from tests.submodules.rasterizer_scenes import Case, make_case
from tests.submodules.rasterizer_view import RATES, filter_of
from tests.submodules.test_rasterizer_robustness import poisoned

SIZES = ((61, 45), (1, 1), (300, 5), (40, 130), (0, 7))  # tiles are cut off on every side
SPLATS = 1500


def check(what: str, *values: Tensor | None) -> None:
    assert all(bool(torch.isfinite(v).all()) for v in values if v is not None), what


def scene(seed: int, on: torch.device) -> tuple[Case, RasterCamera, list[Tensor]]:
    """Splats with special values, before a picture of one of SIZES."""
    width, height = SIZES[seed]
    case = make_case(seed, n=SPLATS, width=max(width, 1), height=height, antialiasing=seed % 2 == 1, sh_degree=seed % 4)
    return case, replace(case.raster_camera, width=width), [p.to(on) for p in poisoned(case, seed)]


def blend(seed: int, on: torch.device) -> None:
    """Forward and backward pass, contributions."""
    _, camera, six = scene(seed, on)
    there_and_back(camera, six, on)


def wide(on: torch.device) -> None:
    """Hundreds of splats over hundreds of tiles: warps and blocks share their work, lists are longer than a batch."""
    case = make_case(2, n=800, width=330, height=210, sigma_px=80.0)
    case.gaussians["logit_opacities"] -= 4
    there_and_back(case.raster_camera, [p.to(on) for p in case.six], on)


def there_and_back(camera: RasterCamera, six: list[Tensor], on: torch.device) -> None:
    workspace = Workspace(device=on)
    image, transmittance, depth = workspace.forward(camera, *six, aux=True)
    gradient, grads = torch.empty_like(image), [torch.empty_like(p) for p in six]
    workspace.l1_ssim(image, torch.zeros_like(image), gradient)
    ones, means2d = torch.ones_like(transmittance), torch.empty_like(six[0])
    workspace.backward(gradient, six, grads, grad_transmittance=ones, grad_inverse_depth=ones, grad_means2d=means2d)
    sums = [torch.zeros(len(six[0]), device=on) for _ in range(3)]
    workspace.contributions(*sums)
    check("blend", image, transmittance, depth, gradient, means2d, *grads, *sums)


def maps(seed: int, on: torch.device) -> None:
    """All maps and their way back, through autograd."""
    case, camera, six = scene(seed, on)
    means, log_scales, quats, logits, sh0, shN = (p.requires_grad_() for p in six)
    sh = torch.cat([sh0, shN], dim=1)[:, : (case.sh_degree + 1) ** 2]
    screen = {name: torch.zeros_like(means, requires_grad=True) for name in ("means2d", "means2d_abs")}
    shape = {"scales": log_scales.exp(), "quats": quats, "sh": sh}
    out = rasterize_extended(camera, means, logits.sigmoid(), **screen, **shape, maps="all")
    drawn = (out.color, out.alpha, out.inverse_depth, out.depth, out.normal)
    sum(value.sum() for value in drawn).backward()
    check("maps", *drawn, *(value.grad for value in screen.values()))


def train(seed: int, on: torch.device) -> None:
    """Steps with both losses; with several cameras, sparse; then dense with one."""
    _, camera, six = scene(seed, on)
    if not camera.width:
        return
    small = (max(1, camera.width // 4), max(1, camera.height // 3))
    kernel = LRKernel("bicubic", "renormalise", (camera.width, camera.height), small)
    g = torch.Generator().manual_seed(seed)
    target, lr_target = (torch.rand(3, h, w, generator=g).to(on) for w, h in ((camera.width, camera.height), small))
    terms = [L1SSIM(target, weight=0.4), LowResolution(lr_target, kernel.taps("x"), kernel.taps("y"), weight=0.6)]
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    stats = Statistics(*(torch.zeros(SPLATS, device=on) for _ in range(4)))
    views = [camera, replace(camera, fx=2 * camera.fx)]
    common: dict[str, Any] = {"exp_avg": mean, "exp_avg_sq": square, "learning_rates": RATES, "stats": stats}
    both = train_step(views, six, losses=[terms, terms], sparse=True, **common)
    one = train_step(camera, six, losses=terms, workspace=Workspace(device=on), **common)
    check("train", both.image, one.image, *mean, *square, *stats)


def given(on: torch.device) -> None:
    """Colours and covariances instead of harmonics and shapes; the 3D filter."""
    case = make_case(3, n=300, sh_degree=2)
    six = [p.to(on) for p in case.six]
    means, opacities, colors = six[0], six[3].sigmoid(), six[4][:, 0] + 0.5
    covariances = torch.tensor([0.02, 0.01, 0, 0.02, 0, 0.02], device=on).repeat(len(means), 1)
    shapes, sh = {"scales": six[1].exp(), "quats": six[2]}, torch.cat([six[4], six[5][:, :8]], dim=1)
    for kind in (
        {"colors": colors, "covariances": covariances},
        {"colors": colors, **shapes},
        {"sh": sh, "covariances": covariances},
        {"sh": sh, **shapes, "filter_3d": filter_of(case).to(on)},
    ):
        leaves = {k: v.detach().clone().requires_grad_(k != "filter_3d") for k, v in kind.items()}
        out = rasterize_extended(case.raster_camera, means, opacities, **leaves)
        (out.color.sum() + out.alpha.sum()).backward()
        check("given", out.color, *(leaf.grad for leaf in leaves.values()))


def nothing(on: torch.device) -> None:
    """No Gaussians; then none that is drawn."""
    case = make_case(0, n=40)
    for six in ([p[:0] for p in case.six], [p - 50 if i == 0 else p for i, p in enumerate(case.six)]):
        there = [p.contiguous().to(on) for p in six]
        workspace = Workspace(device=on)
        image, transmittance, _ = workspace.forward(case.raster_camera, *there)
        workspace.backward(torch.ones_like(image), there, [torch.empty_like(p) for p in there])
        assert bool((transmittance == 1).all())


def halves(on: torch.device) -> None:
    """Spherical harmonics in half precision, which CUDA alone takes."""
    if on.type == "cuda":
        case = make_case(1, n=200)
        six = [p.to(on) for p in case.six]
        image = Workspace(device=on).forward(case.raster_camera, *six[:5], six[5].half())[0]
        check("halves", image)


def neighbours(on: torch.device) -> None:
    """Of many, few and equal points."""
    for n in (1, 2, 3, 4, 33, 5000):
        points = torch.rand(n, 3, generator=torch.Generator().manual_seed(n)).to(on)
        check("neighbours", distCUDA2(points), distCUDA2(points.round()))


def everything(on: torch.device) -> None:
    """On the fast and on the deterministic path."""
    per_scene: tuple[Callable[[int, torch.device], None], ...] = (blend, maps, train)
    before = torch.are_deterministic_algorithms_enabled()
    try:
        for fixed in (False, True):
            torch.use_deterministic_algorithms(fixed)
            for seed in range(len(SIZES)):
                for part in per_scene:
                    part(seed, on)
            for once in (wide, given, nothing):
                once(on)
    finally:
        torch.use_deterministic_algorithms(before)
    halves(on)
    neighbours(on)
    if on.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.cuda.exercise", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    everything(torch.device(parser.parse_args(sys.argv[1:]).device))
    print("exercised")


if __name__ == "__main__":
    main()
