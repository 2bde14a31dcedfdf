"""How far maps and gradients on a GPU lie from the CPU's and from the float64 reference.

    python -m tests.cuda.agreement --device cuda --json FILE

Random scenes of the CPU's tests, all degrees, with and without antialiasing; relative L2 distances, the largest over
the scenes. A pixel in which a splat flips at a threshold in one of the three is left out of the gradients of all.
"""

import argparse
import sys
from pathlib import Path

import torch
from diff_gaussian_rasterization import RasterOutput, rasterize_extended
from torch import Tensor

from arguments.flags import Parser
from benchmarks import device, gpu_parts
from tests.submodules.rasterizer_scenes import Case, make_case, relative
from tests.submodules.test_rasterizer_maps import MAPS, leaves_of, loss, random_gradients, reference_maps
from utils import errors

SETTINGS = (
    {"sh_degree": 3},
    {"sh_degree": 2, "antialiasing": True, "width": 64, "height": 48},
    {"sh_degree": 1, "scale_modifier": 1.3, "width": 33, "height": 70},
    {"sh_degree": 0, "antialiasing": True, "scale_modifier": 0.8},
)
SEEDS = (5, 6, 7)
FLIP = 1e-4  # a difference in colour that no rounding makes
SCREEN = ("means2d", "means2d_abs")
Tensors = dict[str, Tensor]
Errors = dict[str, dict[str, float]]  # map or gradient -> pair -> relative L2


def drawn(case: Case, on: torch.device) -> tuple[Tensors, RasterOutput]:
    """Float32 leaves there, those of the screen among them, and the maps of them."""
    leaves = {name: leaf.detach().to(on).requires_grad_() for name, leaf in leaves_of(case, torch.float32).items()}
    screen = {name: torch.zeros_like(leaves["means"], requires_grad=True) for name in SCREEN}
    output = rasterize_extended(case.raster_camera, **leaves, **screen, maps="all")
    return {**leaves, **screen}, output


def gradients(leaves: Tensors, maps: Tensors, wanted: Tensors) -> Tensors:
    """dL/dleaf for L = the sum of maps times `wanted`, on the CPU."""
    total = loss(maps, {name: g.to(maps[name].device) for name, g in wanted.items()})
    return dict(zip(leaves, (g.cpu() for g in torch.autograd.grad(total, list(leaves.values()))), strict=True))


def compare(case: Case, on: torch.device) -> Errors:
    """Distances between `device`, `cpu` and `reference`; the reference has no gradient of the screen's positions."""
    exact, expected = reference_maps(case)
    here, there = drawn(case, torch.device("cpu")), drawn(case, on)
    maps = {"cpu": here[1]._asdict(), "device": there[1]._asdict(), "reference": expected}
    colors = [m["color"].detach().cpu().double() for m in maps.values()]
    flipped = torch.stack([(c - colors[2]).abs().amax(0) > FLIP for c in colors[:2]]).any(0)
    # Where next to nothing is drawn, the rounding of 1 - T is a large share of alpha, by which depth is divided.
    kept = ~flipped & (expected["alpha"] > 0.05)
    wanted = {name: g * kept for name, g in random_gradients(case).items()}
    found = {
        "cpu": {**{n: maps["cpu"][n] * kept for n in MAPS}, **gradients(here[0], maps["cpu"], wanted)},
        "device": {**{n: maps["device"][n].cpu() * kept for n in MAPS}, **gradients(there[0], maps["device"], wanted)},
        "reference": {**{n: expected[n] * kept for n in MAPS}, **gradients(exact, expected, wanted)},
    }
    pairs = (("device", "cpu"), ("device", "reference"), ("cpu", "reference"))
    return {
        name: {f"{a} / {b}": relative(found[a][name], found[b][name]) for a, b in pairs if name in found[b]}
        for name in found["cpu"]
    } | {"flipped pixels": {f"{a} / {b}": float(flipped.float().mean()) for a, b in pairs}}


def largest(all_errors: list[Errors]) -> Errors:
    """Over all scenes."""
    return {
        name: {pair: max(each[name][pair] for each in all_errors) for pair in pairs}
        for name, pairs in all_errors[0].items()
    }


def main() -> None:
    parser = Parser(prog="python -m tests.cuda.agreement", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda")
    parser.add_argument("--json", type=Path, required=True)
    args: argparse.Namespace = parser.parse_args(sys.argv[1:])
    device.required("tests.cuda.agreement")
    on = torch.device(args.device)
    found = largest([compare(make_case(seed, **settings), on) for settings in SETTINGS for seed in SEEDS])
    for name, pairs in found.items():
        print(name, pairs)
    gpu_parts.record({"errors": found}, args.json)


if __name__ == "__main__":
    errors.run(main)
