"""All steps of one scene from one command line: which settings go to which step's script.

Order of authority: default < method < configuration file < command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from arguments.flags import as_flags, make, parse_given
from arguments.steps import METHODS, STEPS, RunParams, file_settings, own_settings, read_config
from utils.errors import UserError

__all__ = ["METHODS", "Command", "RunParams", "plan"]

# Flags that mean something else to a step than on run.py's command line: there --frames is what train.py trains on
# and metrics.py measures, and --output_path is where render.py writes.
NOT_SHARED = {"upsample": ("frames", "output_path")}


@dataclass(frozen=True)
class Command:
    """One step's script with its arguments. `folder`: where its record says that it was done."""

    step: str
    script: str
    arguments: tuple[str, ...]
    folder: str
    dry_run: bool = False


def plan(argv: Sequence[str] | None = None) -> list[Command]:
    """The commands that run.py executes, in order.

    Raises
    ------
    UserError : unknown flag, section or key; no scene or no output folder.
    """
    groups = [RunParams, *dict.fromkeys(g for step in STEPS.values() for g in step.groups)]
    given = parse_given(
        "run.py", "Run all steps of one scene; skip what is up to date and say why a step runs.", groups, argv
    )
    config = given.pop("config", "")
    top, sections = read_config(config) if config else ({}, {})
    run = make(RunParams, top | given)
    if not given.get("source_path") or not given.get("model_path"):
        raise UserError("run.py: -s SCENE (the LR views) and -m OUT (the output folder) are needed")
    values = {name: _values(name, run.method, sections, given) for name in STEPS}
    rendered = values["render"].get("output_path") or given["model_path"]
    values["metrics"]["model_paths"] = [rendered]  # it takes several models; here it is this one
    folders = dict.fromkeys(STEPS, given["model_path"]) | {"render": rendered, "metrics": rendered}
    return [
        Command(
            name,
            STEPS[name].script,
            tuple(as_flags(values[name] | {"skip_done": True, "overwrite": True})),
            folders[name],
            values[name].get("dry_run", False),
        )
        for name in run.steps
    ]


def _values(name: str, method: str, sections: dict[str, dict[str, Any]], given: dict[str, Any]) -> dict[str, Any]:
    own = own_settings(name) - set(NOT_SHARED.get(name, ()))
    return file_settings(name, method, sections) | {key: value for key, value in given.items() if key in own}
