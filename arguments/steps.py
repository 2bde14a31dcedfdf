"""The pipeline's steps: which script runs each, which settings it takes, which code makes its result."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arguments.evaluation import MetricsParams
from arguments.flags import parse_groups
from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.ordering import OrderingParams
from arguments.render import RenderParams
from arguments.training import OptimizationParams, TrainingParams
from arguments.upsampling import UpsamplingParams
from utils.log import set_quiet


@dataclass(frozen=True)
class Step:
    """One step. `code`: packages whose sources are part of its key, beside the layers below them."""

    script: str
    description: str
    groups: tuple[type, ...]
    code: tuple[str, ...]


STEPS = {
    "order": Step(
        "align_sequence.py",
        "Order the LR views into smooth subsequences and write sequences.json.",
        (CommonParams, ModelParams, OrderingParams),
        ("ordering",),
    ),
    "upsample": Step(
        "vsr_upsample.py",
        "Upsample the ordered LR views with a video or single-image network and write hr/.",
        (CommonParams, ModelParams, UpsamplingParams),
        ("upsampling",),
    ),
    "train": Step(
        "train.py",
        "Train 3D Gaussians on a scene, or on pseudo-HR frames under LR consistency.",
        (CommonParams, ModelParams, PipelineParams, OptimizationParams, TrainingParams),
        ("training", "gaussian_renderer", "submodules"),
    ),
    "render": Step(
        "render.py",
        "Render test and train views, depth, or a flight from a trained model.",
        (CommonParams, ModelParams, PipelineParams, RenderParams),
        ("evaluation", "gaussian_renderer", "submodules"),
    ),
    "metrics": Step(
        "metrics.py",
        "Measure PSNR, SSIM and LPIPS of rendered views and write the report.",
        (CommonParams, MetricsParams),
        ("evaluation",),
    ),
}


def parse(name: str, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One settings instance for each group of step `name`, from the command line.

    Raises
    ------
    UserError : unknown flag, wrong value.
    """
    step = STEPS[name]
    values = parse_groups(step.script, step.description, step.groups, argv, section=name)
    set_quiet(values[0].quiet)
    return values
