"""What held-out LR views tell of lambda_tex, beside the HR truth that --choose_lambda never sees.

    python -m benchmarks.choose_lambda [--lengths 150 300 3000] [--json FILE] FLAGS OF train.py

The configured weight and each of --lambda_candidates are trained for each length without the held-out views, as
`train.py --choose_lambda` does.
One row a training: detail and PSNR of the held-out LR views, PSNR of the same views and of the test views at HR.
"""

import sys
import time
from argparse import SUPPRESS
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from arguments.flags import add_flags, make, opt
from arguments.steps import parse
from gaussian_renderer import render
from scene.images import composite
from training import choose
from training.engines import render_options
from training.held_out import candidates, reduced_views, trained
from training.job import Job, Settings
from training.session import open_job
from training.trainer import Trainer
from utils import errors
from utils.atomic import write_json
from utils.command_line import Parser
from utils.log import say
from utils.psnr import psnr


@dataclass(frozen=True)
class Lengths:
    """What is compared"""

    lengths: tuple[int, ...] = opt((300, 600), "iterations of the trainings")
    json: str = opt("", "file for the numbers")


@torch.no_grad()
def hr_psnr(job: Job, names: list[str], trainer: Trainer) -> float | None:
    """Mean PSNR [dB] of renders against the HR truth of views that have one; None where no view has."""
    found, degree = [], trainer.degree(trainer.iteration)
    for name in names:
        size, truth = job.scene.hr_size(name), job.scene.hr_image(name)
        if size is None or truth is None:
            continue
        camera, options = job.scene.cameras[name].resized(*size), render_options(job.settings.pipeline)
        image = render(camera, trainer.drawn, background=job.background, sh_degree=degree, **options).color.clamp(0, 1)
        target = np.ascontiguousarray(composite(truth, job.background).transpose(2, 0, 1))
        found.append(float(psnr(image, torch.from_numpy(target).to(image))))
    return sum(found) / len(found) if found else None


def rows(job: Job, lengths: tuple[int, ...]) -> list[dict[str, Any]]:
    """Train and measure every candidate at every length."""
    names = choose.held_out(list(job.views.views), job.settings.training.held_out_every)
    found: list[dict[str, Any]] = []
    for length in lengths:
        for candidate in candidates(job):
            begin = time.monotonic()
            trainer = trained(job, names, candidate, length)
            if trainer is None:
                continue
            seconds = time.monotonic() - begin
            score = choose.score(length, reduced_views(job, names, trainer))
            row = {"iterations": length, "lambda_tex": str(candidate), "detail": score.mean}
            row["lr_psnr"] = sum(score.psnr.values()) / len(names)
            row |= {"hr_psnr": hr_psnr(job, names, trainer), "test_psnr": hr_psnr(job, job.scene.test, trainer)}
            found.append(row | {"seconds": seconds})
            say("\t".join(f"{v:.3f}" if isinstance(v, float) else str(v) for v in found[-1].values()))
    return found


def main() -> None:
    """Parse, measure, print."""
    parser = Parser(prog="benchmarks.choose_lambda", add_help=False, allow_abbrev=False, argument_default=SUPPRESS)
    add_flags(parser, Lengths)
    own, rest = parser.parse_known_args(sys.argv[1:])
    if {"-h", "--help"} & set(rest):
        say(parser.format_help() + "\nand the flags of train.py:\n")
    chosen = make(Lengths, vars(own))
    settings = Settings(*parse("train", rest))
    settings = replace(settings, training=replace(settings.training, choose_lambda=True))
    say("\t".join(["iterations", "lambda_tex", "detail", "lr_psnr", "hr_psnr", "test_psnr", "seconds"]))
    made = rows(open_job(settings, Path(settings.model.model_path or "output/choose_lambda")), chosen.lengths)
    if chosen.json:
        write_json(chosen.json, made)


if __name__ == "__main__":
    errors.run(main)
