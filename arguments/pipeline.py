"""All steps of one scene from one command line: which settings go to which step's script.

Order of authority: default < method < configuration file < command line.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from arguments.flags import as_flags, checked, make, opt, parse_given, read_toml
from arguments.loading import CommonParams, ModelParams
from arguments.paper_config import read_paper_config
from arguments.steps import STEPS
from utils.errors import UserError

METHODS: dict[str, dict[str, Any]] = {"seqsplat": {}, "sequence_matters": {"compat": "sequence_matters"}}
SHARED_SECTIONS = {"scene": ModelParams, "common": CommonParams}


@dataclass(frozen=True)
class RunParams:
    """What is run"""

    method: str = opt(
        "seqsplat", "seqsplat, or sequence_matters: the paper's released behaviour", choices=list(METHODS)
    )
    steps: tuple[str, ...] = opt(tuple(STEPS), "steps to run, in this order", choices=list(STEPS))


@dataclass(frozen=True)
class Command:
    """One step's script with its arguments."""

    step: str
    script: str
    arguments: tuple[str, ...]


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
    top, sections = _read_config(config) if config else ({}, {})
    run = make(RunParams, top | given)
    if not given.get("source_path") or not given.get("model_path"):
        raise UserError("run.py: -s SCENE (the LR views) and -m OUT (the output folder) are needed")
    return [_command(name, METHODS[run.method], sections, given) for name in run.steps]


def _from_file(sections: dict[str, dict[str, Any]], name: str) -> dict[str, Any]:
    """What a configuration file says for step `name`: its shared sections, then its own."""
    return {key: value for part in (*SHARED_SECTIONS, name) for key, value in sections.get(part, {}).items()}


def _command(name: str, method: dict[str, Any], sections: dict[str, dict[str, Any]], given: dict[str, Any]) -> Command:
    step = STEPS[name]
    merged = method | _from_file(sections, name) | given
    own = {f.name for group in step.groups for f in fields(group)}
    values = {key: value for key, value in merged.items() if key in own}
    if name == "metrics":  # it takes several models; here it is this one
        values["model_paths"] = [given["model_path"]]
    return Command(name, step.script, tuple(as_flags(values | {"skip_done": True, "overwrite": True})))


def _read_config(path: str) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(top-level keys, sections by step) of a TOML file, or of one of the paper's YAML files."""
    if Path(path).suffix in (".yml", ".yaml"):
        flat = read_paper_config(path)
        sections: dict[str, dict[str, Any]] = {}
        for name, step in STEPS.items():
            own = {f.name for group in step.groups for f in fields(group)}
            sections[name] = {key: value for key, value in flat.items() if key in own}
        return {"method": "sequence_matters"}, sections
    content = read_toml(path)
    top = {key: value for key, value in content.items() if not isinstance(value, dict)}
    sections = {key: value for key, value in content.items() if isinstance(value, dict)}
    unknown = set(sections) - set(STEPS) - set(SHARED_SECTIONS)
    if unknown:
        raise UserError(f"{path}: unknown section [{min(unknown)}]; known: {', '.join([*SHARED_SECTIONS, *STEPS])}")
    for name, table in sections.items():
        groups = [SHARED_SECTIONS[name]] if name in SHARED_SECTIONS else list(STEPS[name].groups)
        checked(table, groups, f"{path} [{name}]")
    return checked(top, [RunParams], path), sections
