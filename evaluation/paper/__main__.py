"""`python -m evaluation.paper DATA {T2,T3,T4,T6-8,T9-11}`: check, run what is missing, show the table.

The study file is written to OUT, so that `python -m evaluation.study` can carry it out elsewhere, run by run.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from arguments.flags import as_flags, make, parse_groups
from arguments.paper import PaperParams
from arguments.steps import check_code
from arguments.study import ExecutorParams
from arguments.upsampling import UpsamplingParams
from evaluation.formats import FORMATS
from evaluation.paper.study import DataSet, row_name, study_text
from evaluation.paper.tables import TABLES, Cells, PaperTable, jump_table, quality_tables
from utils import errors
from utils.atomic import write_text
from utils.command_line import parted
from utils.errors import UserError
from utils.log import note, say, set_quiet

PROGRAM = "scripts/reproduce_tables.sh"
USAGE = f"{PROGRAM} DATA {{{','.join(TABLES)}}}"


def main() -> None:
    """Parse, check, run, show."""
    names, words, own = parted(sys.argv[1:])
    about = "Make a table of the paper on full data, published cells beside. After --: flags of run.py for all rows."
    params, executor = parse_groups(USAGE, about, [PaperParams, ExecutorParams], words)
    if len(names) != 2 or names[1] not in TABLES:
        raise UserError(f"{USAGE}: a folder of scenes and one table are expected, then flags")
    set_quiet(params.quiet)
    table = TABLES[names[1]]
    folders, differing = scene_folders(Path(names[0]), table.data, params)
    path = write_study(table.data, folders, params)
    from evaluation.study.spec import read_study, restrict, with_overrides

    study = restrict(read_study(path), (), list(table.variants(params.networks)), (), str(path))
    study = with_overrides(study, own, PROGRAM) if own else study
    if not carry_out(study, table, params, executor, differing):
        sys.exit(1)


def scene_folders(root: Path, data: DataSet, params: PaperParams) -> tuple[dict[str, Path], dict[str, str]]:
    """The HR scenes of a data set, checked as `python -m scene.check` does, and (--unchecked) how some differ from it.

    Raises
    ------
    UserError : a scene that is not one of the data set, or one that is missing or not complete.
    """
    from scene.check import check_scene

    wanted = params.scenes or data.scenes
    wrong = [name for name in wanted if name not in data.scenes]
    if wrong:
        raise UserError(f"--scenes {wrong[0]}: the scenes of {data.name} are {', '.join(data.scenes)}")
    inside = (root / data.name).is_dir()
    folders = {name: root / data.name / name if inside else root / name for name in data.scenes if name in wanted}
    problems = {name: check_scene(folder, data.name).problems for name, folder in folders.items()}
    absent = [name for name, folder in folders.items() if not folder.is_dir()]
    if not inside and len(absent) == len(folders):
        raise UserError(f"{root / data.name} is not there, and {root} holds no {' or '.join(absent)} either")
    bad = absent or ([] if params.unchecked else [name for name in folders if problems[name]])
    if bad:
        place = root / data.name if inside else root
        raise UserError(
            f"{place}: {len(bad)} of {len(folders)} scenes are missing or incomplete, {bad[0]}: {problems[bad[0]][0]}; "
            f"python -m scene.check {place} says more, --scenes NAME... takes only some"
        )
    return folders, {name: found[0] for name, found in problems.items() if found}


def write_study(data: DataSet, folders: Mapping[str, Path], params: PaperParams) -> Path:
    """Write the study file of a data set into the output folder.

    Raises
    ------
    UserError : two networks whose rows would have one name.
    """
    if len({row_name("s", network) for network in params.networks}) < len(params.networks):
        raise UserError("--networks: two names differ only in characters that names of rows cannot have")
    path = Path(params.out).resolve() / f"{data.name}{'-corrected' if params.corrected else ''}.toml"
    write_text(path, study_text(data, folders, params.networks, params.seeds, params.corrected))
    return path


def check_weights(networks: Mapping[str, UpsamplingParams], lpips: bool) -> None:
    """Raise UserError where the weights of a row's network, or those of LPIPS, are not there; says how to get them."""
    from evaluation.lpips import Lpips
    from upsampling import resolve_weights

    for variant, settings in networks.items():
        try:
            check_code({"upsampler": settings.upsampler})
            resolve_weights(settings)
        except UserError as error:
            raise UserError(f"{variant}: {error}") from error
    if lpips:
        try:
            Lpips(("LPIPS",))
        except UserError as error:
            raise UserError(f"{error}; or leave LPIPS out: -- --no_lpips") from error


def carry_out(
    study: Any, table: PaperTable, params: PaperParams, executor: ExecutorParams, differing: Mapping[str, str]
) -> bool:
    """Run what a table needs and is not finished, then show it; whether all of it is there."""
    from evaluation.study.__main__ import conclude, show_plan
    from evaluation.study.executors import execute
    from evaluation.study.planner import make_plan

    plan = make_plan(study, params.out)
    frames_only = table.layout == "jumps"
    wanted = [task for run in plan.runs for task in ((run.frames,) if frames_only else run.tasks)]
    tasks = plan.closure(wanted)
    plan.tasks = {task.id: task for task in tasks}
    complete = True
    if not params.only_table:
        used = dict.fromkeys(run.variant for run in plan.runs if run.frames)
        settings = {v: study.settings(study.scenes[0], study.variant(v), "upsample") for v in used}
        networks = {variant: make(UpsamplingParams, values) for variant, values in settings.items()}
        check_weights(networks, lpips=not (frames_only or study.overrides.get("no_lpips")))
        if params.dry_run:
            show_plan(plan)
            return True
        complete = conclude(plan, execute(plan, tasks, executor)) == 0
    show(plan, study, table, params, differing)
    return complete


def show(plan: Any, study: Any, table: PaperTable, params: PaperParams, differing: Mapping[str, str]) -> None:
    """Print the tables, and write them where --output says. differing : how scenes differ from the data set's."""
    from evaluation.study.results import check_protocols, finished, remark, states_of
    from evaluation.study.state import read_manifest, task_states

    scenes = [scene.name for scene in study.scenes]
    if table.layout == "jumps":
        frames, states = {}, task_states(plan, [run.frames for run in plan.runs])
        for run in plan.runs:
            manifest = read_manifest(plan.folder(run.frames))
            if manifest is not None:
                frames[run.variant, run.scene] = manifest["results"]["black"]
        tables = [jump_table(table, params.networks, scenes, frames)]
    else:
        results = list(finished(plan))
        states = states_of(results)
        if len(results) < len(plan.runs):
            note(f"{len(plan.runs) - len(results)} of {len(plan.runs)} runs are not finished: their cells are empty")
        check_protocols(results)
        tables = quality_tables(table, params.networks, scenes, Cells(results, params.seeds))
    for made in tables:
        made.caption = " ".join(filter(None, [made.caption, *remarks(study, params, differing), remark(states)]))
    text = "\n\n".join(FORMATS[params.format](t) for t in tables)
    if params.output:
        write_text(params.output, text + "\n")
    say(text)


def remarks(study: Any, params: PaperParams, differing: Mapping[str, str]) -> list[str]:
    """What makes our rows other than the paper's, one sentence each."""
    others = [network for network in params.networks if network != "psrt"]
    found = (
        [f"The paper reports no {', no '.join(others)}: compare rows of one network with each other."] if others else []
    )
    found += ["Ours without the release's quirks."] if params.corrected else []
    found += [f"NOT COMPARABLE with published cells: {scene}: {why}." for scene, why in differing.items()]
    if study.overrides:
        flags = " ".join(as_flags({k: list(v) if isinstance(v, tuple) else v for k, v in study.overrides.items()}))
        found.append(f"NOT COMPARABLE with published cells: all rows of ours with {flags}.")
    return found


if __name__ == "__main__":
    errors.run(main)
