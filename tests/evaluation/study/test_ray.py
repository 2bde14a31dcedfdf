"""The Ray executor gives what the local one gives, and a killed process loses nothing (skipped without Ray)."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from arguments.study import ExecutorParams
from evaluation.study.executors import execute, worker_environment
from evaluation.study.plan import Plan
from evaluation.study.state import read_manifest
from tests.evaluation.study.test_study import CONFIG, TOML, study
from tests.evaluation_factory import write_scenes
from tests.study_factory import COUNT, end, fake_task, processes_of, ran, start_scheduler, wait_for
from utils.errors import UserError

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="ray is not installed (requirements-study.txt)")
TWO_SLOTS = ("--slots=2", "--threads=1", "--devices=cpu")
ON_RAY = ("--executor=ray", *TWO_SLOTS)
TWO_MODELS = ("--variants", "bicubic", "mip-lr", "--", "--iterations=500", "--save_iterations", "500")
TIMES = ("seconds", "cpu_seconds", "peak_MB", "cost", "interrupted")  # what may differ between two executors


def worker_of(folder: Path) -> int:
    """The process that does the task of a folder; Ray's own process, in which the task runs, is its parent."""
    return next(pid for pid in processes_of("evaluation.study.tasks") if pid in processes_of(str(folder)))


def parent_of(pid: int) -> int:
    found = subprocess.run(["ps", "-o", "ppid=", "-p", str(pid)], capture_output=True, text=True, check=True)
    return int(found.stdout)


@pytest.mark.skipif(ray is not None, reason="ray is installed")
def test_without_ray_one_line_says_what_to_install(tmp_path):
    plan = Plan(tmp_path / "out")
    fake_task(plan, "a", COUNT)
    with pytest.raises(UserError, match=r"pip install -r requirements-study.txt, or take --executor local"):
        execute(plan, list(plan.tasks.values()), ExecutorParams(executor="ray"))


def test_several_devices_are_refused_and_one_is_not():
    with pytest.raises(UserError, match=r"--devices cuda:0 cuda:1: with --executor ray one device alone.* --gpus 1"):
        ExecutorParams(executor="ray", devices=("cuda:0", "cuda:1"))
    assert ExecutorParams(executor="ray", devices=("cpu",)).devices == ("cpu",)
    assert len(ExecutorParams(devices=("cuda:0", "cuda:1")).devices) == 2


@needs_ray
@pytest.mark.slow
def test_two_tasks_of_which_one_is_killed(tmp_path):
    plan = Plan(tmp_path / "out")
    fake_task(plan, "a", COUNT, COUNT + " && test -f {folder}/go || exec sleep 64")
    fake_task(plan, "b", COUNT)
    fake_task(plan, "bad", COUNT, "echo 'error: wrong' && exit 2")
    fake_task(plan, "after", COUNT, needs=("a", "b"))
    fake_task(plan, "lost", COUNT, needs=("bad",))
    scheduler = start_scheduler(plan, *ON_RAY)
    wait_for(lambda: ran(plan, "a", 1) == 1, 60)
    (plan.folder("a") / "go").touch()
    os.kill(parent_of(worker_of(plan.folder("a"))), signal.SIGKILL)
    assert scheduler.wait(90) == 1
    assert [read_manifest(plan.folder(n)) is not None for n in ("a", "b", "after", "bad", "lost")] == [True] * 3 + [
        False
    ] * 2
    assert [ran(plan, n) for n in ("a", "b", "after", "bad", "lost")] == [1, 1, 1, 1, 0]
    assert ran(plan, "a", 1) == 2
    assert "bad: failed: command ended with exit code 2: error: wrong" in (plan.out / "stderr.txt").read_text()
    assert processes_of("sleep\0" + "64") == []


@needs_ray
@pytest.mark.slow
def test_interrupted_it_leaves_nothing_running(tmp_path):
    plan = Plan(tmp_path / "out")
    fake_task(plan, "slow", COUNT + " && exec sleep 65")
    scheduler = start_scheduler(plan, *ON_RAY)
    wait_for(lambda: ran(plan, "slow") == 1, 60)
    code, text = end(scheduler, plan)
    assert code == 130, text
    wait_for(lambda: processes_of(str(plan.out)) == [] and processes_of("sleep\0" + "65") == [])


def without_times(value):
    """A JSON value without what depends on when and how often something ran."""
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


@needs_ray
@pytest.mark.slow
def test_a_study_whose_processes_are_killed_has_the_table_of_the_local_executor(tmp_path):
    lr, hr = write_scenes(tmp_path)
    path, local, on_ray = tmp_path / "study.toml", tmp_path / "local", tmp_path / "ray"
    (tmp_path / "config.toml").write_text(CONFIG)
    path.write_text(TOML.format(out=local, lr=lr, hr=hr))
    part = (*TWO_MODELS, "--checkpoint_interval=50")
    first = study(path, "run", *TWO_SLOTS, *part)
    assert first.returncode == 0, first.stdout + first.stderr
    made = {folder.name: read_manifest(folder) for folder in local.iterdir() if read_manifest(folder)}
    models = sorted((name for name in made if name.startswith("model-")), key=lambda name: len(made[name]["needs"]))
    assert len(models) == 2  # that of the LR views, which begins at once, and that of the bicubic frames

    command = [sys.executable, "-m", "evaluation.study", str(path), "run", f"--out={on_ray}", *ON_RAY, *part]
    with open(tmp_path / "stderr.txt", "wb") as stderr:
        executor = subprocess.Popen(command, env=worker_environment(), stderr=stderr)
    try:
        for name, victim in zip(models, (parent_of, int), strict=True):  # one of Ray's processes, then a worker of ours
            wait_for(lambda name=name: list((on_ray / name / "checkpoints").glob("*.safetensors")), 120)
            os.kill(victim(worker_of(on_ray / name)), signal.SIGKILL)
        assert executor.wait(240) == 0, (tmp_path / "stderr.txt").read_text()
    finally:
        executor.terminate()
    for name in models:
        assert "continuing after iteration" in (on_ray / name / "logs/00-train.txt").read_text()
    wait_for(lambda: processes_of(str(on_ray)) == [])

    again = {name: read_manifest(on_ray / name) for name in made}
    assert {name: manifest["attempts"] for name, manifest in again.items()} == {n: 1 + (n in models) for n in made}
    assert {n: m["product"] for n, m in again.items()} == {n: m["product"] for n, m in made.items()}
    tables = []
    for out in (local, on_ray):
        written = out / "table.json"
        shown = study(path, "table", f"--out={out}", "--metrics", "PSNR", "SSIM", f"--json={written}", *part)
        assert shown.returncode == 0, shown.stderr
        tables.append(json.loads(written.read_text()))
    assert {(row["variant"], row["seeds"][0]) for row in tables[0]["rows"]} == {("bicubic", 0), ("mip-lr", 0)}
    assert without_times(tables[0]) == without_times(tables[1])
