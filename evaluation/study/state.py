"""What a finished task was made from, as its manifest says, and whether the present tree would make it so again."""

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from arguments.steps import OWN_CODE, STEPS
from arguments.upsampling import PRIORS
from evaluation.study.plan import MEASURE_FRAMES, OWN_COMMAND, Command, Plan, Task
from evaluation.study.sources import changed, sources_of
from utils.atomic import read_json
from utils.errors import UserError
from utils.keys import GROUND, NO_RESULT
from utils.plugins import source_files
from utils.provenance import PROJECT, code_files, hash_files

MANIFEST = "study.json"
SCHEMA = 1
FRAMES_CODE = frozenset({"evaluation", "upsampling"})  # packages behind evaluation.frame_quality
PRIORS_CODE = ("priors",)


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished task, None where it is not finished.

    Raises
    ------
    UserError : a manifest of another schema.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    content = read_json(path)
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise UserError(f"{path}: not a manifest of schema {SCHEMA}; use another folder for this study")
    return content


def only_looked(facts: Mapping[str, Any]) -> bool:
    """Whether a command took less time than its step's record says: the record is from an earlier one."""
    return facts["seconds"] < facts.get("step_seconds", 0)


def code_of(task: Task) -> dict[str, str]:
    """Hash of the code of each step of a task, of our scripts and modules that the study's own commands name, of what
    measures frames, and of the user's modules that its settings name (MODULE:NAME)."""
    steps = task.recipe["steps"]
    found = {
        name: step_code(name, PRIORS_CODE if uses_prior(steps.get(name, {})) else ())
        for name in dict.fromkeys(c.name for c in task.commands)
        if name in STEPS
    }
    found |= {name: code for c in task.commands if c.name == OWN_COMMAND for name, code in command_code(c).items()}
    named = [str(v) for values in task.recipe["steps"].values() for k, v in values.items() if k in OWN_CODE]
    files = {name: source_files(name) for name in named if ":" in name}
    if any(c.name == MEASURE_FRAMES for c in task.commands):
        found[MEASURE_FRAMES] = packages_code(FRAMES_CODE)
    return found | {name: hash_files(paths)["sha256"][:16] for name, paths in files.items() if paths}


def command_code(command: Command) -> dict[str, str]:
    """Hash of the code behind `python SCRIPT.py` of a step, or `python -m PACKAGE.MODULE`; {} where it is not ours."""
    word, *rest = command.words[command.words[0] == "python" :] or ("",)
    if word == "-m" and rest and (PROJECT / (package := rest[0].partition(".")[0])).is_dir():
        beside = [step.code for step in STEPS.values() if package in step.code]
        if rest[0] == "upsampling.renew":
            beside.append(PRIORS_CODE)
        return {rest[0]: packages_code(frozenset({package}.union(*beside)))}
    named = [name for name, step in STEPS.items() if step.script == word]
    return {word: step_code(named[0])} if named else {}


def uses_prior(values: Mapping[str, Any]) -> bool:
    """Whether a diffusion prior takes part in a step with these settings."""
    return values.get("upsampler") in PRIORS or bool(values.get("sds"))


def step_code(name: str, beside: tuple[str, ...] = ()) -> str:
    """Hash of a step's code: its packages and those `beside` them, what they stand on, its script."""
    return packages_code(frozenset({*STEPS[name].code, *beside}), STEPS[name].script)


@cache
def packages_code(packages: frozenset[str], *scripts: str) -> str:
    """Hash of packages, of what they stand on, and of scripts; read once."""
    files = code_files({*packages, *GROUND}, NO_RESULT, PROJECT)
    return hash_files([*files, *(PROJECT / script for script in scripts)])["sha256"][:16]


def stale(plan: Plan, task: Task, manifest: Mapping[str, Any]) -> str:
    """Why a finished task is not what would be made now, "" where it is."""
    code = code_of(task)
    other = [step for step in code if manifest["code"].get(step) != code[step]]
    if other:
        return f"made by other code of {', '.join(other)}"
    for need in task.needs:
        made = read_manifest(plan.folder(need))
        if made is not None and manifest["needs"].get(need) != made["product"]:
            return f"made from an earlier {need}"
    before = manifest.get("sources", {})
    for name, path in sources_of(task, plan.out).items():
        if name in before and changed(path, before[name]):
            return f"made from other content of {path}"
    return ""


def task_states(plan: Plan, wanted: Iterable[str]) -> dict[str, str]:
    """{task: what `stale` says} of tasks, and of all that they need, as far as they are finished."""
    made = [(task, read_manifest(plan.folder(task.id))) for task in plan.closure(wanted)]
    return {task.id: stale(plan, task, manifest) for task, manifest in made if manifest is not None}
