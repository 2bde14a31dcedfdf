"""One task: its commands one after the other, a log each, and the manifest `study.json` that ends it.

TASK/task.json            what is to be done; a worker needs nothing else
TASK/logs/NN-NAME.txt     output of each command
TASK/logs/progress.json   commands that are done, so that an interrupted task goes on after them
TASK/logs/failed.json     the command that failed, until the task is tried again
TASK/study.json           written last: settings, commands with seconds and memory, versions, code, results
"""

import os
import resource
import shutil
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from evaluation.frame_quality import FILE_NAME as FRAMES_FILE
from evaluation.logs import last_measured
from evaluation.study.plan import Command, Plan, Task, digest
from evaluation.study.sources import content, fingerprint, sources_of
from evaluation.study.state import MANIFEST, SCHEMA, code_of, only_looked, read_manifest
from utils import __version__
from utils.atomic import read_json, write_json
from utils.child import run_child
from utils.errors import UserError
from utils.locks import LOCK_NAME, locked
from utils.log import note
from utils.provenance import PROJECT, package_versions
from utils.record import RECORD_NAME, read_record

ORDER, LOGS = "task.json", "logs"
BUSY, FAILED = 75, 1  # exit codes of a worker; 128 + n: ended by signal n
FREE_WAIT_S = 20.0
ATTEMPT = "== "  # begins a log's line that says what is run
# A task's product is known by these of its files; logs, records and models' cfg_args differ with time and place.
PRODUCT = (".png", ".ply", ".npz", "sequences.json")


@dataclass(frozen=True)
class Machine:
    """What a worker was given: a device and CPU threads (0 = all)."""

    device: str = "auto"
    threads: int = 0


def write_order(plan: Plan, task: Task) -> Path:
    """Write TASK/task.json; return the folder."""
    folder = plan.folder(task.id)
    write_json(folder / ORDER, {"schema": SCHEMA, "cwd": os.getcwd(), **asdict(task)})
    return folder


def read_order(folder: Path) -> tuple[Task, str]:
    """(task, working directory of its commands) of a folder.

    Raises
    ------
    UserError : no task.json there, or another schema.
    """
    content = read_json(folder / ORDER)
    if not isinstance(content, dict) or content.pop("schema", None) != SCHEMA:
        raise UserError(f"{folder / ORDER}: not a task of schema {SCHEMA}; run the study again")
    cwd = content.pop("cwd")
    commands = tuple(Command(c["name"], tuple(c["words"]), tuple(c["record"])) for c in content.pop("commands"))
    needs, measured = tuple(content.pop("needs")), tuple(content.pop("measured"))
    return Task(**content, commands=commands, needs=needs, measured=measured), cwd


def in_use(folder: Path) -> bool:
    """Whether a worker holds the task at this moment."""
    if not (folder / LOGS / LOCK_NAME).is_file():
        return False
    try:
        with locked(folder / LOGS):
            return False
    except UserError:
        return True


def failure(folder: Path) -> dict[str, Any] | None:
    """What failed when the task was last tried: {"command", "code", "log", "error"}, None where nothing did."""
    path = folder / LOGS / "failed.json"
    return read_json(path) if path.is_file() else None


def carry_out(folder: Path, machine: Machine, again: bool = False, keep_checkpoints: bool = False) -> int:
    """Do the task of a folder, or find it done.

    Parameters
    ----------
    again : redo it where it is finished; each step still decides by itself what is up to date.

    Returns
    -------
    Exit code: 0 done, BUSY another process has it, FAILED, or 128 + signal.
    """
    task, cwd = read_order(folder)
    if read_manifest(folder) is not None and not again:
        return 0
    held = False
    try:
        with locked(folder / LOGS):
            held = True
            finished = read_manifest(folder) is not None
            if finished and not again:
                return 0
            if finished:  # else a redoing that was cut short, which goes on
                (folder / LOGS / "progress.json").unlink(missing_ok=True)
            return _work(folder, task, cwd, machine, keep_checkpoints)
    except UserError:
        if not held and os.access(folder / LOGS / LOCK_NAME, os.W_OK):  # in use, though perhaps no longer
            return BUSY
        raise


def _work(folder: Path, task: Task, cwd: str, machine: Machine, keep_checkpoints: bool) -> int:
    last = read_manifest(folder)
    (folder / MANIFEST).unlink(missing_ok=True)
    (folder / LOGS / "failed.json").unlink(missing_ok=True)
    needed = {name: made["product"] for name in task.needs if (made := read_manifest(folder.parent / name))}
    sources = {name: fingerprint(path) for name, path in sources_of(task, folder.parent).items()}
    path, made_from = folder / LOGS / "progress.json", {"code": code_of(task), "needs": needed, "sources": sources}
    earlier = read_json(path) if path.is_file() else {}
    if _without_times(earlier) != _without_times(made_from):
        earlier = {"attempts": 0, "commands": {}}
    before = last["commands"] if last else earlier.get("before", [])
    progress = earlier | made_from | {"attempts": earlier["attempts"] + 1, "before": before}
    write_json(path, progress)
    for number, command in enumerate(task.commands):
        if str(number) in progress["commands"]:
            continue
        log = folder / LOGS / f"{number:02}-{command.name}.txt"
        facts, exit_code = _run(command, folder, log, cwd, machine)
        if exit_code:
            if exit_code < 128:
                error = {"command": command.name, "code": exit_code, "log": str(log), "error": last_error(log)}
                write_json(folder / LOGS / "failed.json", error)
                return FAILED
            return exit_code
        progress["commands"][str(number)] = _with_full_cost(facts, before)
        write_json(path, progress)
    write_json(folder / MANIFEST, _manifest(folder, task, progress))
    if not keep_checkpoints and (folder / "checkpoints").is_dir():
        shutil.rmtree(folder / "checkpoints")
    return 0


def _without_times(progress: Mapping[str, Any]) -> dict[str, Any]:
    """What a task is made from: code, products, contents of sources, not their files' times."""
    contents = {name: found["content"] for name, found in progress.get("sources", {}).items()}
    return {key: progress.get(key) for key in ("code", "needs")} | {"sources": contents}


def _run(command: Command, folder: Path, log: Path, cwd: str, machine: Machine) -> tuple[dict[str, Any], int]:
    """Run one command with its output in a log: (facts, exit code)."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    environment |= {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}
    if machine.threads:
        environment["OMP_NUM_THREADS"] = str(machine.threads)
    words = [w.replace("{device}", machine.device).replace("{threads}", str(machine.threads)) for w in command.words]
    if command.record:
        _wait_until_free(folder / command.record[0])
    begin, before = time.monotonic(), _children_seconds()
    with open(log, "ab") as output:
        output.write(f"{ATTEMPT}{' '.join(words)}\n".encode())
        output.flush()
        code = run_child(_program(words), environment, output=output, cwd=cwd, bound=True)
    seconds, cpu = time.monotonic() - begin, _children_seconds() - before
    facts: dict[str, Any] = {"name": command.name, "seconds": seconds, "cpu_seconds": cpu, "peak_bytes": None}
    record = read_record(folder / command.record[0], command.record[1]) if command.record and not code else None
    if record is not None:
        facts |= {"peak_bytes": record["peak_bytes"], "step_seconds": record["seconds"]}
    shown = [w.replace(str(folder.parent), "OUT").replace(str(Path.home()), "~") for w in words]
    return {k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()} | {"words": shown}, code


def _with_full_cost(facts: dict[str, Any], before: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """Facts of a command; where its step found its result up to date, those of the time when it was made, if known."""
    if not only_looked(facts):
        return facts
    same = [b for b in before if (b["name"], b.get("step_seconds")) == (facts["name"], facts["step_seconds"])]
    return next((b for b in same if not only_looked(b)), facts)


def _program(words: list[str]) -> list[str]:
    """Command line of words that begin with one of our scripts, `-m MODULE`, python, or any program."""
    if words[0] == "python":
        words = words[1:]
    elif words[0] != "-m" and not words[0].endswith(".py"):
        return words
    script = PROJECT / words[0]
    return [sys.executable, str(script) if words[0].endswith(".py") and script.is_file() else words[0], *words[1:]]


def _wait_until_free(folder: Path) -> None:
    """Wait for a command of a killed worker, which the kernel ends a moment later, to let go of its folder."""
    end = time.monotonic() + FREE_WAIT_S
    while (folder / LOCK_NAME).is_file() and time.monotonic() < end:
        try:
            with locked(folder):
                return
        except UserError:
            time.sleep(0.2)


def _children_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def last_error(log: Path) -> str:
    """The line of a log's last attempt that says what went wrong: the last `error: ...`, else its last line."""
    text = log.read_text(errors="replace")
    lines = [line for line in text[max(text.rfind(f"\n{ATTEMPT}"), 0) :].splitlines() if line.strip()]
    return next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1] if lines else "")


def _manifest(folder: Path, task: Task, progress: Mapping[str, Any]) -> dict[str, Any]:
    records = {}
    for command in task.commands:
        if command.record:
            records["/".join(command.record)] = read_record(folder / command.record[0], command.record[1])
    outputs = {name: record["outputs"] for name, record in records.items() if record and not name.endswith("metrics")}
    product = {n: {p: f["sha256"] for p, f in files.items() if p.endswith(PRODUCT)} for n, files in outputs.items()}
    commands = [progress["commands"][str(number)] for number in range(len(task.commands))]
    return {
        "schema": SCHEMA,
        "task": task.id,
        "kind": task.kind,
        "scene": task.scene,
        "seed": task.seed,
        "recipe": task.recipe,
        "settings": {name: record["settings"] for name, record in records.items() if record},
        "commands": commands,
        "seconds": round(sum(c["seconds"] for c in commands), 3),
        "cpu_seconds": round(sum(c["cpu_seconds"] for c in commands), 3),
        "peak_bytes": max((c["peak_bytes"] or 0 for c in commands), default=0),
        "attempts": progress["attempts"],
        "code": progress["code"],
        "product": digest(product if outputs else _written(folder)),
        "needs": progress["needs"],
        "sources": progress["sources"],
        "versions": {"seqsplat": __version__, **package_versions()},
        "machine": _machine(records.values()),
        "finished": time.strftime("%FT%T%z"),
        "results": _results(folder, task),
    }


def _written(folder: Path) -> dict[str, str]:
    """What a task made whose commands leave no record, by file or folder."""
    ours = {LOGS, ORDER, MANIFEST, RECORD_NAME}
    made = [path for path in sorted(folder.iterdir()) if path.name not in ours and not path.name.startswith(".")]
    return {path.name: content(path) for path in made}


def _machine(records: Iterable[Mapping[str, Any] | None]) -> dict[str, list[str]]:
    """{"device": "cpu", or "cuda" and the GPU's name, "precision": of networks, as "auto" came out}, of all records."""
    there = [record for record in records if record]
    notes = [record["notes"] for record in there if "device" in record["notes"]]
    devices = {" ".join([n["device"].partition(":")[0], *([n["gpu"]] if "gpu" in n else [])]) for n in notes}
    precisions = {str(r["settings"]["precision"]).removeprefix("torch.") for r in there if "precision" in r["settings"]}
    return {"device": sorted(devices), "precision": sorted(precisions)}


def _results(folder: Path, task: Task) -> dict[str, Any]:
    """What was measured: by background, of a model by group of views."""
    if task.kind == "frames":
        return dict(read_json(folder / FRAMES_FILE))
    if task.kind == "model":
        return {"measured": last_measured(folder / "log.jsonl")}
    found: dict[str, Any] = {}
    for background in task.measured:
        methods = read_json(folder / background / "metrics.json")["methods"]
        name = max(methods, key=lambda key: int(key.rpartition("_")[2]))
        render = read_record(folder / background, "render") or {}
        splats = render.get("notes", {}).get("methods", {}).get(name, {}).get("splats")
        found[background] = {**methods[name], "splats": splats}
    return found


def main() -> None:
    """Be a worker: `python -m evaluation.study.tasks FOLDER`, started by an executor."""
    from arguments.flags import parse_groups
    from arguments.study import WorkerParams
    from utils.child import end_with_parent

    folder, words = sys.argv[1], sys.argv[2:]
    (params,) = parse_groups("evaluation.study.tasks", "One task of a study.", [WorkerParams], words)
    if params.parent:
        end_with_parent(params.parent)
    machine = Machine(params.device, params.threads)
    code = carry_out(Path(folder), machine, params.again, params.keep_checkpoints)
    if code not in (0, BUSY):
        note(f"{folder}: ended with exit code {code}")
    sys.exit(code)


if __name__ == "__main__":
    from utils import errors

    errors.run(main)
