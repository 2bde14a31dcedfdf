"""Fake studies: tasks whose commands write small files, carried out by real workers, and made-up manifests."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from arguments.flags import parse_groups
from arguments.study import ExecutorParams
from evaluation.protocols import Protocol
from evaluation.study.executors import execute
from evaluation.study.plan import Command, Plan, Run, Task
from evaluation.study.state import MANIFEST, SCHEMA
from evaluation.study.tasks import read_order, write_order
from utils import errors
from utils.provenance import PROJECT

COUNT = "echo x >> {folder}/{name}.txt"  # one line for each time that the command runs
SLOW = COUNT + " && exec sleep {seconds}"


def shell(name: str, text: str) -> Command:
    """A command that runs a line of shell."""
    return Command(name, ("sh", "-c", text))


def fake_task(plan: Plan, name: str, *texts: str, needs: tuple[str, ...] = ()) -> Task:
    """Add a task to a plan; `{folder}` and `{name}` in its lines of shell are its own."""
    folder = plan.folder(name)
    commands = tuple(
        shell("command", t.replace("{folder}", str(folder)).replace("{name}", str(i))) for i, t in enumerate(texts)
    )
    plan.tasks[name] = Task(name, "scene", "toy", None, {"steps": {}, "name": name}, needs, commands)
    return plan.tasks[name]


def ran(plan: Plan, name: str, command: int = 0) -> int:
    """How often a command of a fake task was run."""
    path = plan.folder(name) / f"{command}.txt"
    return len(path.read_text().splitlines()) if path.is_file() else 0


def wait_for(condition, seconds: float = 15.0) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def processes_of(marker: str) -> list[int]:
    """Ids of the living processes whose command line holds `marker`, but for ourselves."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            words = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0] if words else "Z"
        except OSError:
            continue
        if marker.encode() in words and state != "Z" and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


def start_scheduler(plan: Plan, *words: str) -> subprocess.Popen:
    """A local executor in a process of its own that carries out a plan of fake tasks; stderr into OUT/stderr.txt."""
    for task in plan.tasks.values():
        write_order(plan, task)
    command = [sys.executable, __file__, str(plan.out), ",".join(plan.tasks), *words]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(PROJECT), os.environ.get("PYTHONPATH", "")])}
    with open(plan.out / "stderr.txt", "wb") as stderr:
        return subprocess.Popen(command, env=environment, stderr=stderr)


def scheduler() -> None:
    """What `start_scheduler` starts."""
    out, names = Path(sys.argv[1]), sys.argv[2].split(",")
    (params,) = parse_groups("scheduler", "", [ExecutorParams], sys.argv[3:])
    plan = Plan(out, [], {name: read_order(out / name)[0] for name in names})
    sys.exit(0 if execute(plan, list(plan.tasks.values()), params).complete else 1)


def end(process: subprocess.Popen, plan: Plan, signum: int = signal.SIGINT) -> tuple[int, str]:
    """Send a signal; (exit code, stderr)."""
    process.send_signal(signum)
    return process.wait(30), (plan.out / "stderr.txt").read_text()


def write_manifest(plan: Plan, task: Task, results: dict, seconds: float = 10.0, **changes: object) -> None:
    """A finished task with made-up results."""
    command = {"name": "train" if task.kind == "model" else "upsample", "seconds": seconds, "cpu_seconds": seconds}
    content = {"schema": SCHEMA, "task": task.id, "kind": task.kind, "scene": task.scene, "seed": task.seed}
    content |= {"commands": [command | {"peak_bytes": 5_000_000}], "seconds": seconds, "attempts": 1, "code": {}}
    content |= {"needs": {}, "product": "p", "results": results, **changes}
    path = plan.folder(task.id) / MANIFEST
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def fake_results(
    plan: Plan, values: dict, frames: dict | None = None, protocol: Protocol | None = None, fit: dict | None = None
) -> None:
    """Runs with made-up results.

    Parameters
    ----------
    values : {(scene, variant, seed): {view: PSNR}}. frames : {(scene, variant): PSNR of every frame}.
    fit : {(scene, variant, seed): what the model measured}.
    """
    for (scene, variant, seed), views in values.items():
        model, made = f"views-{scene}{variant}{seed}", f"frames-{scene}{variant}"
        shared = (
            Protocol(scene=scene, background="black", views=len(views), truth=scene) if protocol is None else protocol
        )
        measured = {"protocol": shared.to_json(), "splats": 100, "mean": {}}
        measured["views"] = {
            f"{i}.png": {"name": n, "PSNR": v, "SSIM": v / 40} for i, (n, v) in enumerate(views.items())
        }
        with_frames = frames is not None and (scene, variant) in frames
        task = Task(model, "views", scene, seed, {"steps": {}}, (made,) if with_frames else (), ())
        plan.tasks[model] = task
        write_manifest(plan, task, {"black": measured}, needs=dict.fromkeys(task.needs, "p"))
        if with_frames:
            found = {"black": {"per_view": {"f": {"PSNR": frames[scene, variant]}}}}
            plan.tasks[made] = Task(made, "frames", scene, None, {"steps": {}}, (), ())
            write_manifest(plan, plan.tasks[made], found, 5.0)
        trained = f"model-{scene}{variant}{seed}" if fit is not None and (scene, variant, seed) in fit else ""
        if fit is not None and trained:
            plan.tasks[trained] = Task(trained, "model", scene, seed, {"steps": {}}, (), ())
            write_manifest(plan, plan.tasks[trained], {"measured": fit[scene, variant, seed]}, 0.0)
        plan.runs.append(Run(scene, variant, seed, made if with_frames else "", trained, model))


if __name__ == "__main__":
    errors.run(scheduler)
