"""All steps of one scene from one command line: which settings go to which step's script.

Order of authority: default < method < configuration file < command line.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arguments.flags import as_flags, make, parse_given
from arguments.loading import CommonParams, ModelParams
from arguments.lr_kernel import DEGRADATION_FILE, KERNEL_FILE, check_flag, compares, projecting, refuse_unknown, unsaid
from arguments.priors import PriorParams
from arguments.steps import DEPTH_STEPS, METHODS, STEPS, RunParams, check_step, file_settings, own_settings, read_config
from arguments.training import OptimizationParams, TrainingParams
from arguments.upsampling import UNALIGNED, UpsamplingParams
from utils.errors import UserError
from utils.plugins import imported

__all__ = ["METHODS", "Command", "RunParams", "plan"]

# Flags that mean something else to a step than on run.py's command line: there --frames is what train.py trains on
# and metrics.py measures, --output_path is where render.py writes, and --geometry what vsr_upsample.py reads.
NOT_SHARED = {"upsample": ("frames", "output_path"), "render": ("geometry",)}


@dataclass(frozen=True)
class Command:
    """One step's script with its arguments. `folder`, `record`: where, and under which name, it is said that it was
    done."""

    step: str
    script: str
    arguments: tuple[str, ...]
    folder: str
    record: str
    dry_run: bool = False


def plan(argv: Sequence[str] | None = None) -> list[Command]:
    """The commands that run.py executes, in order.

    Raises
    ------
    UserError : unknown flag, section or key; no scene or no output folder; what one of the steps would refuse of its
        settings, code of the user's own that cannot be imported among it.
    """
    # UpsamplingParams before RenderParams: here --geometry is the former's.
    groups = [RunParams, UpsamplingParams, *(g for step in STEPS.values() for g in step.groups)]
    given = parse_given(
        "run.py",
        "Run all steps of one scene; skip what is up to date and say why a step runs.",
        list(dict.fromkeys(groups)),
        argv,
    )
    config = given.pop("config", "")
    top, sections = read_config(config) if config else ({}, {})
    run = make(RunParams, top | given)
    out = given.get("model_path")
    if not given.get("source_path") or not out:
        raise UserError("run.py: -s SCENE (the LR views) and -m OUT (the output folder) are needed")
    values = {name: _values(name, run.method, sections, given) for name in STEPS}
    rendered = values["render"].get("output_path") or out
    values["metrics"]["model_paths"] = [rendered]  # it takes several models; here it is this one
    lr_model = str(Path(out) / "lr_model")
    values["lr_model"]["model_path"] = lr_model
    values["geometry"] |= {"model_path": lr_model, "output_path": out, "geometry": True}
    folders = dict.fromkeys(STEPS, out) | {"lr_model": lr_model, "render": rendered, "metrics": rendered}
    wanted = {
        "geometry": needs_geometry(values["upsample"]),
        "lr_model": needs_geometry(values["upsample"]) or needs_lr_model(values["train"]),
    }
    steps = run.steps or [name for name in STEPS if wanted.get(name, True)]
    for name in steps:
        check_step(name, values[name])
    check_lr_kernel(steps, values, out)
    return [
        Command(
            name,
            STEPS[name].script,
            tuple(as_flags(values[name] | {"skip_done": True, "overwrite": True})),
            folders[name],
            "train" if name == "lr_model" else name,
            values[name].get("dry_run", False),
        )
        for name in steps
    ]


def check_lr_kernel(steps: Sequence[str], values: Mapping[str, Mapping[str, Any]], out: str) -> None:
    """Refuse at once what upsampling or training would refuse of a scene that does not say how its views were made.

    Raises
    ------
    UserError : --lr_kernel names nothing that is there, or a step needs to know and neither it nor the scene says.
    """
    for name in steps:
        if name in ("upsample", "train"):
            check_flag(values[name].get("lr_kernel", ""))
    given = Path(values["train"]["source_path"])
    root = given.parent if given.suffix == ".json" else given
    is_scene = any(root.glob("transforms*.json")) or (root / "sparse").is_dir()  # else the first step says so
    if not is_scene or (root / KERNEL_FILE).is_file():
        return
    degraded = (root / DEGRADATION_FILE).is_file()
    if "upsample" in steps and (degraded or not values["upsample"].get("lr_kernel")):
        settings, prior = make(UpsamplingParams, values["upsample"]), make(PriorParams, values["upsample"])
        refuse_unknown(projecting(settings.project, settings.upsampler, prior.project_lr), None, degraded)
    if "train" in steps and not values["train"].get("lr_kernel"):
        training = make(TrainingParams, values["train"])
        frames = bool(training.frames) or "upsample" in steps or (Path(out) / "hr").is_dir()
        if compares(make(OptimizationParams, values["train"]), training, frames and training.frames != "none"):
            raise unsaid(root)


def needs_geometry(upsample: Mapping[str, Any]) -> bool:
    """Whether the upsampling step, with these settings, computes flow from depths that are still to be made.

    Raises
    ------
    UserError : a network of the user's own that cannot be imported.
    """
    settings, compat = make(UpsamplingParams, upsample), upsample.get("compat")
    wanted = settings.flow == "geometry" or (settings.flow == "auto" and not compat)
    return wanted and settings.propagation != "none" and not settings.geometry and not _alone(settings.upsampler)


def _alone(upsampler: str) -> bool:
    """Whether it makes every frame alone, as far as can be known before it is built; so says a MODULE:NAME that has
    `num_neighbours` itself."""
    if ":" in upsampler:
        return getattr(imported("--upsampler", upsampler), "num_neighbours", 1) == 0
    return upsampler in UNALIGNED


def needs_lr_model(train: Mapping[str, Any]) -> bool:
    """Whether training, with these settings, starts from a model of the LR views that is still to be made."""
    settings = make(TrainingParams, train)
    return settings.init_points == "lr_model" and not settings.init_ply


def reached(name: str) -> set[str]:
    """Settings of step `name` that the flags of run.py's command line set."""
    if name in DEPTH_STEPS:
        return {f.name for group in (CommonParams, ModelParams) for f in fields(group)} | {
            "rasterizer",
            "raster_memory",
        }
    return own_settings(name) - set(NOT_SHARED.get(name, ()))


def _values(name: str, method: str, sections: dict[str, dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    own = reached(name)
    return file_settings(name, method, sections) | {key: value for key, value in given.items() if key in own}
