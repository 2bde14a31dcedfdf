"""`python -m evaluation.study STUDY.toml {plan,run,status,table}`: scenes x variants x seeds, compared fairly.

`plan` prints every run with the tasks it is made of; `run` carries them out, and the same command goes on after a stop;
`status` says of each task whether it is done, running, failed, cut short or out of date; `table` shows results,
differences to the baseline and their intervals.
"""

import sys
from pathlib import Path

from arguments.flags import parse_groups
from arguments.steps import check_code
from arguments.study import ExecutorParams, StudyParams, StudyTableParams
from evaluation.formats import Table, aligned
from evaluation.study.executors import Outcome, execute, wanted_tasks
from evaluation.study.plan import Plan
from evaluation.study.planner import make_plan
from evaluation.study.spec import read_study, restrict, with_overrides
from evaluation.study.state import read_manifest, stale
from evaluation.study.tasks import LOGS, failure, in_use
from utils import errors
from utils.command_line import parted
from utils.errors import UserError
from utils.locks import LOCK_NAME
from utils.log import note, say, set_quiet

PROGRAM = "python -m evaluation.study STUDY.toml {plan,run,status,table}"
KINDS = ("scene", "lr", "frames", "model", "views")
ACTIONS = ("plan", "run", "status", "table")


def main() -> None:
    """Parse, plan, and do what is asked for."""
    names, words, own = parted(sys.argv[1:])
    about = (__doc__ or "").partition("\n\n")[2]
    groups = [StudyParams, ExecutorParams, StudyTableParams]
    params, executor, shown = parse_groups(PROGRAM, f"{about} After --: flags of run.py.", groups, words)
    if len(names) != 2 or names[1] not in ACTIONS:
        raise UserError(f"{PROGRAM}: a study file and one of {', '.join(ACTIONS)} are expected, then flags")
    set_quiet(params.quiet)
    path, action = names
    study = read_study(path)
    study = restrict(study, params.scenes, params.variants, params.seeds, path)
    study = with_overrides(study, own, path) if own else study
    if action == "table" and shown.results:  # the file has it all: neither tasks nor data are needed
        plan = Plan(Path(shown.results))
    else:
        plan = make_plan(study, params.out, params.source, params.hr)
    if action in ("plan", "run"):
        for task in plan.tasks.values():
            for values in task.recipe["steps"].values():
                check_code(values)
    if not -1 <= executor.index < len(plan.runs):
        raise UserError(f"--index {executor.index}: the plan has runs 0 to {len(plan.runs) - 1}")
    if action == "plan":
        show_plan(plan)
    elif action == "status":
        show_status(plan)
    elif action == "run":
        missing = sorted(source for source in plan.sources if not Path(source).is_dir())
        if missing:
            raise UserError(f"{path}: {missing[0]}: no such folder; a scene of the study should be there")
        outcome = execute(plan, plan.closure(wanted_tasks(plan, executor.index)), executor)
        sys.exit(conclude(plan, outcome))
    else:
        from evaluation.study.table import show_table

        show_table(study, plan, shown)


def show_plan(plan: Plan) -> None:
    """Print the runs by number, and how many tasks they share."""
    rows = [
        [str(i), r.scene, r.variant, str(r.seed), *(getattr(r, kind) or "-" for kind in KINDS[2:])]
        for i, r in enumerate(plan.runs)
    ]
    say(aligned(Table(["run", "scene", "variant", "seed", "frames", "model", "views"], rows)))
    kinds = {kind: sum(t.kind == kind for t in plan.tasks.values()) for kind in KINDS}
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.items() if count)
    say(f"{len(plan.runs)} runs, {len(plan.tasks)} tasks ({counted}) in {plan.out}")


def show_status(plan: Plan) -> None:
    """Print each task's state."""
    rows, states = [], []
    for task in plan.tasks.values():
        folder = plan.folder(task.id)
        manifest, failed = read_manifest(folder), failure(folder)
        state, why = "cut short" if (folder / LOGS / LOCK_NAME).is_file() else "waiting", ""
        if in_use(folder):
            state = "running"
        elif manifest is not None:
            why = stale(plan, task, manifest)
            state = "stale" if why else "done"
        elif failed is not None:
            state, why = "failed", f"{failed['command']}: {failed['error']} ({failed['log']})"
        variants = sorted({r.variant for r in plan.runs if task.id in r.tasks})
        seconds = f"{manifest['seconds']:.0f}" if manifest else "-"
        rows.append([task.id, task.scene, ", ".join(variants) or "-", state, seconds, why])
        states.append(state)
    say(aligned(Table(["task", "scene", "variants", "state", "seconds", ""], rows)))
    known = ("done", "stale", "running", "failed", "cut short", "waiting")
    say(", ".join(f"{states.count(name)} {name}" for name in known if name in states))


def conclude(plan: Plan, outcome: Outcome) -> int:
    """Say how it ended; 0 = everything is there, 1 = something failed."""
    note(f"{len(outcome.done)} of {len(plan.tasks)} tasks are done, {len(outcome.made)} of them now")
    for name, why in outcome.failed.items():
        say(f"failed: {name} ({plan.tasks[name].scene}): {why}")
    for name, why in outcome.left.items():
        say(f"left out: {name} ({plan.tasks[name].scene}): {why}")
    return 0 if outcome.complete else 1


if __name__ == "__main__":
    errors.run(main)
