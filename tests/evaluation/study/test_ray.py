"""The Ray executor gives what the local one gives, and a killed process loses nothing (skipped without Ray)."""

import os
import signal
import subprocess

import pytest

from arguments.study import ExecutorParams
from evaluation.study.executors import execute
from evaluation.study.plan import Plan
from evaluation.study.state import read_manifest
from tests.study_factory import COUNT, end, fake_task, processes_of, ran, start_scheduler, wait_for
from utils.errors import UserError

try:
    import ray
except ImportError:
    ray = None

needs_ray = pytest.mark.skipif(ray is None, reason="ray is not installed (requirements-study.txt)")
ON_RAY = ("--executor=ray", "--slots=2", "--threads=1", "--devices=cpu")


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
    worker = next(pid for pid in processes_of("evaluation.study.tasks") if pid in processes_of(str(plan.folder("a"))))
    parent = subprocess.run(["ps", "-o", "ppid=", "-p", str(worker)], capture_output=True, text=True, check=True)
    os.kill(int(parent.stdout), signal.SIGKILL)  # Ray's own process, in which the task runs
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
