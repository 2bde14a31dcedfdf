"""The LR operator, its pseudo-inverse and the projection of a frame: bands against dense and sparse matrices.

    python -m benchmarks.lr_projection [--size 800 400] [--scale 4] [--threads 1] [--repeats 30]

Frames [3, side, side], float32, bicubic. Dense: one matrix product for each axis. CSR: torch's sparse matrices, without
the entries of the pseudo-inverse that change no float32 sum. The forms take turns; times in milliseconds.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from arguments.flags import Parser, underscored
from benchmarks import report
from benchmarks.cases import Runner, Times, measure, ratio
from scene.lr_kernel import LRKernel
from utils import errors

Apply = Callable[[Tensor], Tensor]
DENSE, CSR, BANDS = "dense", "CSR", "bands"
STAGES = ("down", "pinv", "project")


@dataclass(frozen=True)
class Form:
    """One stage with A and its pseudo-inverse in one form, on one frame and its LR view."""

    stage: str
    down: Apply
    pinv: Apply
    frame: Tensor
    view: Tensor

    def image(self) -> Tensor:
        if self.stage == "project":
            return self.frame + self.pinv(self.view - self.down(self.frame))
        return self.down(self.frame) if self.stage == "down" else self.pinv(self.view)

    def step(self) -> Times:
        start = time.perf_counter()
        self.image()
        return {"whole": (time.perf_counter() - start) * 1e3}


def forms(stage: str, side: int, scale: int) -> dict[str, Form]:
    """A stage in all forms."""
    generator = torch.Generator().manual_seed(0)
    frame, view = (torch.rand(3, n, n, generator=generator) for n in (side, side // scale))
    kernel = LRKernel("bicubic", "renormalise", (side, side), (side // scale, side // scale))
    inverse = np.linalg.pinv(kernel.matrix("x"))
    inverse[np.abs(inverse) < 1e-9 * np.abs(inverse).max()] = 0.0
    a, p = (torch.tensor(matrix, dtype=torch.float32) for matrix in (kernel.matrix("x"), inverse))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that CSR is in beta
        a_csr, p_csr = a.to_sparse_csr(), p.to_sparse_csr()
    return {
        DENSE: Form(stage, lambda x: a @ x @ a.T, lambda y: p @ y @ p.T, frame, view),
        CSR: Form(stage, lambda x: _csr(a_csr, x), lambda y: _csr(p_csr, y), frame, view),
        BANDS: Form(stage, kernel.down, kernel.pinv, frame, view),
    }


def _csr(matrix: Tensor, image: Tensor) -> Tensor:
    """Along one axis, then along the other; torch multiplies sparse matrices from the left alone."""
    for _ in range(2):
        image = torch.stack([matrix @ plane for plane in image]).mT.contiguous()
    return image


def table(side: int, scale: int, repeats: int) -> str:
    """Markdown: minimum of each stage and form, and over that of the dense one."""
    lines = [f"### {side}x{side} px, x{scale}, load {report.load()}", ""]
    lines += [f"| ms (/ {DENSE}) | {DENSE} | {CSR} | {BANDS} |", "|---|---|---|---|"]
    for stage in STAGES:
        runners: dict[str, Runner] = {**forms(stage, side, scale)}
        found = measure(runners, repeats)
        cells = (f"{found[name]['min']['whole']:.2f} ({ratio(found, name, DENSE):.2f})" for name in runners)
        lines.append(f"| {stage} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def parse() -> argparse.Namespace:
    parser = Parser(prog="python -m benchmarks.lr_projection", description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--size", type=int, nargs="+", default=[800, 400], help="sides in px (default: 800 400)")
    parser.add_argument("--scale", type=int, nargs="+", default=[4], help="(default: 4)")
    parser.add_argument("--threads", type=int, default=1, help="(default: 1)")
    parser.add_argument("--repeats", type=int, default=30, help="counted rounds (default: 30)")
    args = parser.parse_args(underscored(sys.argv[1:]))
    if min(*args.scale, args.repeats, args.threads) < 1 or min(args.size) < max(args.scale):
        raise errors.UserError("--size, --scale, --repeats, --threads: 1 or more, sizes no smaller than scales")
    return args


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    print(report.machine_line(report.machine()))
    for side in args.size:
        for scale in args.scale:
            print(table(side, scale, args.repeats))


if __name__ == "__main__":
    errors.run(main)
