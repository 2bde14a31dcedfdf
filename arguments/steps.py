"""The pipeline's steps: which script runs each, which settings it takes, which code makes its result.

Order of authority: default < method < configuration file < command line, for a script alone as for run.py.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arguments.evaluation import MetricsParams
from arguments.flags import checked, make, opt, parse_given, read_toml
from arguments.guidance import GuidanceParams
from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.ordering import OrderingParams
from arguments.paper_config import read_paper_config
from arguments.priors import PriorParams
from arguments.render import RenderParams
from arguments.training import OptimizationParams, TrainingParams
from arguments.upsampling import PRIORS, UpsamplingParams
from utils.errors import UserError
from utils.log import set_quiet
from utils.plugins import imported

METHODS: dict[str, dict[str, Any]] = {
    "seqsplat": {"init_points": "lr_model", "lambda_tex_final": 0.05},
    "sequence_matters": {"compat": "sequence_matters", "flow": "learned", "propagation": "path"},
}
# A model of the LR views alone, for its depth and for training to start from: 3DGS's schedule, scaled down to a minute
# or two on a CPU; no opacity reset (a model of 3,000 steps does not recover from one).
LR_MODEL: dict[str, Any] = {
    "frames": "none",
    "sds": "",
    "init_points": "scene",
    "lambda_tex_final": -1.0,
    "iterations": 3000,
    "position_lr_max_steps": 3000,
    "densify_from_iter": 300,
    "densify_until_iter": 1800,
    "opacity_reset_interval": 100_000,
    "sh_interval": 500,
    "max_gaussians": 60_000,
    "random_background": True,
    "test_iterations": (3000,),
    "save_iterations": (3000,),
}
OWN_CODE = ("ordering", "cost", "gate", "upsampler", "neighbour_cost", "tagger")  # settings that may be MODULE:NAME
SHARED_SECTIONS = {"scene": ModelParams, "common": CommonParams}


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
    "lr_model": Step(
        "train.py",
        "Train a small model on the LR views alone, for its depth and for training to start from.",
        (CommonParams, ModelParams, PipelineParams, OptimizationParams, TrainingParams, GuidanceParams),
        ("training", "gaussian_renderer", "submodules"),
    ),
    "geometry": Step(
        "render.py",
        "Write depth and alpha of every LR view.",
        (CommonParams, ModelParams, PipelineParams, RenderParams),
        ("evaluation", "gaussian_renderer", "submodules"),
    ),
    "upsample": Step(
        "vsr_upsample.py",
        "Upsample the ordered LR views with a video or single-image network and write hr/.",
        (CommonParams, ModelParams, UpsamplingParams, PriorParams),
        ("upsampling",),
    ),
    "train": Step(
        "train.py",
        "Train 3D Gaussians on a scene, or on pseudo-HR frames under LR consistency.",
        (CommonParams, ModelParams, PipelineParams, OptimizationParams, TrainingParams, GuidanceParams),
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


def upsample_code(settings: UpsamplingParams) -> tuple[str, ...]:
    """Packages whose code makes the frames."""
    return STEPS["upsample"].code + (("priors",) if settings.upsampler in PRIORS else ())


# Steps for depth: beside the sections that all share, their settings come from their own section alone, since
# --iterations and the like on run.py's command line speak of the model that is wanted, not of this one.
DEPTH_STEPS = ("lr_model", "geometry")


@dataclass(frozen=True)
class RunParams:
    """What is run"""

    method: str = opt(
        "seqsplat",
        "seqsplat, or sequence_matters: the paper's released behaviour, its row S; its row ALS with --ordering als "
        "--cost orb --thres_values 15 30 45 too",
        choices=list(METHODS),
    )
    steps: tuple[str, ...] = opt(
        (), "steps to run, in this order; default: all that the settings need", choices=list(STEPS)
    )


def parse(name: str, argv: Sequence[str] | None = None) -> tuple[Any, ...]:
    """One settings instance for each group of step `name`, from the command line and its --config file.

    Raises
    ------
    UserError : unknown flag, section or key, wrong value.
    """
    step = STEPS[name]
    given = parse_given(step.script, step.description, step.groups, argv)
    config = given.pop("config", "")
    if config:
        top, sections = read_config(config)
        given = file_settings(name, make(RunParams, top).method, sections) | given
    values: tuple[Any, ...] = tuple(make(cls, given) for cls in step.groups)
    set_quiet(values[0].quiet)
    return values


def check_step(name: str, values: Mapping[str, Any]) -> None:
    """Refuse at once what the script of step `name` would refuse of these settings.

    Raises
    ------
    UserError : a value that is not allowed, or MODULE:NAME that cannot be imported.
    """
    for group in STEPS[name].groups:
        make(group, values)
    check_code(values)


def check_code(values: Mapping[str, Any]) -> None:
    """Raise UserError where a setting is MODULE:NAME and cannot be imported."""
    for key in OWN_CODE:
        if ":" in str(values.get(key, "")):
            imported(f"--{key}", values[key])


def own_settings(name: str) -> set[str]:
    """Names of all settings of step `name`."""
    return {f.name for group in STEPS[name].groups for f in fields(group)}


def file_settings(name: str, method: str, sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What method and file say for step `name`: shared sections, its own, then the method's own [METHOD.name]."""
    merged = METHODS[method] | (LR_MODEL if name == "lr_model" else {})
    for section in (*SHARED_SECTIONS, name):
        merged |= sections.get(section, {})
    merged |= sections.get(method, {}).get(name, {})
    return {key: value for key, value in merged.items() if key in own_settings(name)}


def read_config(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(top-level keys, sections by step) of a TOML file, or of one of the paper's YAML files.

    Raises
    ------
    UserError : missing or malformed file, unknown section or key, wrong value.
    """
    if Path(path).suffix in (".yml", ".yaml"):
        flat = read_paper_config(path)
        names = [name for name in STEPS if name not in DEPTH_STEPS]
        by_step = {name: {k: v for k, v in flat.items() if k in own_settings(name)} for name in names}
        return {"method": "sequence_matters"}, by_step
    content = read_toml(path)
    top = {key: value for key, value in content.items() if not isinstance(value, dict)}
    for name in top.keys() & {*SHARED_SECTIONS, *STEPS, *METHODS}:
        raise UserError(f"{path}: {name} = {top[name]!r}: a section [{name}] is expected")
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    steps = {name: table for name, table in sections.items() if name not in METHODS}
    for method in METHODS:
        steps |= {f"{method}.{name}": table for name, table in sections.get(method, {}).items()}
    for section, table in steps.items():
        name = section.rpartition(".")[2]
        if name not in STEPS and section not in SHARED_SECTIONS:
            known = ", ".join([*SHARED_SECTIONS, *STEPS])
            raise UserError(f"{path}: unknown section [{section}]; known: {known}, and [METHOD.STEP] for one method")
        if not isinstance(table, dict):
            raise UserError(f"{path}: {section} = {table!r}: a section [{section}] of a step's settings is expected")
        groups = [SHARED_SECTIONS[name]] if section in SHARED_SECTIONS else list(STEPS[name].groups)
        checked(table, groups, f"{path} [{section}]")
    return checked(top, [RunParams], path), sections
