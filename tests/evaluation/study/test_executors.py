"""Tasks, locks and the local executor: nothing is lost, nothing is done twice, nothing is left running."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from arguments.study import ExecutorParams
from evaluation.study import state
from evaluation.study.executors import execute, worker_environment
from evaluation.study.plan import MEASURE_FRAMES, OWN_COMMAND, Command, Plan
from evaluation.study.progress import StudyProgress
from evaluation.study.state import only_looked, read_manifest, stale
from evaluation.study.tasks import (
    BUSY,
    Machine,
    carry_out,
    failure,
    in_use,
    read_order,
    write_order,
)
from tests.study_factory import (
    COUNT,
    SLOW,
    end,
    fake_task,
    processes_of,
    ran,
    start_scheduler,
    wait_for,
    write_manifest,
)
from utils.errors import UserError
from utils.locks import locked
from utils.record import SCHEMA


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    return Plan(tmp_path / "out")


def run(plan: Plan, **settings: object):
    return execute(plan, list(plan.tasks.values()), ExecutorParams(**settings))


def test_each_task_after_what_it_needs_and_only_once(plan):
    fake_task(plan, "a", COUNT)
    fake_task(plan, "b", COUNT, "test -f {folder}/../a/study.json", needs=("a",))
    fake_task(plan, "c", "test -f {folder}/../b/study.json", COUNT, needs=("a", "b"))
    assert run(plan, slots=2).made == {"a", "b", "c"}
    assert run(plan).made == set()
    assert [ran(plan, "a"), ran(plan, "b"), ran(plan, "c", 1)] == [1, 1, 1]
    manifest = read_manifest(plan.folder("c"))
    assert manifest["attempts"] == 1
    assert manifest["needs"].keys() == {"a", "b"}
    assert [c["name"] for c in manifest["commands"]] == ["command", "command"]


def test_order_files_say_all_that_a_worker_needs(plan):
    task = fake_task(plan, "a", COUNT)
    assert read_order(write_order(plan, task)) == (task, os.getcwd())


def test_a_failing_task_keeps_back_only_what_needs_it(plan, capsys):
    fake_task(plan, "bad", COUNT, "echo 'error: no such thing' && exit 3", "echo never > {folder}/never")
    fake_task(plan, "after", COUNT, needs=("bad",))
    fake_task(plan, "other", COUNT)
    outcome = run(plan)
    assert outcome.made == {"other"}
    assert outcome.failed["bad"].startswith("command ended with exit code 3: error: no such thing (log: ")
    log = Path(outcome.failed["bad"].partition("(log: ")[2].rstrip(")"))
    assert "error: no such thing" in log.read_text()
    assert outcome.left == {"after": "needs bad"}
    assert not (plan.folder("bad") / "never").exists()
    assert not outcome.complete
    fake_task(plan, "bad", COUNT, "true")  # mended: it goes on after the command that was done
    assert run(plan).made == {"bad", "after"}
    assert ran(plan, "bad") == 1
    assert failure(plan.folder("bad")) is None
    assert read_manifest(plan.folder("bad"))["attempts"] == 2


def test_threads_device_and_environment_reach_the_commands(plan):
    fake_task(plan, "a", "echo {device} {threads} $OMP_NUM_THREADS > {folder}/given")
    run(plan, devices=("cpu",), threads=3)
    assert (plan.folder("a") / "given").read_text().split() == ["cpu", "3", "3"]


def test_one_process_a_task(plan):
    folder = write_order(plan, fake_task(plan, "a", COUNT))
    with locked(folder / "logs"):
        assert in_use(folder)
        assert carry_out(folder, Machine()) == BUSY
    assert not in_use(folder)
    assert carry_out(folder, Machine()) == 0


def test_a_lock_that_is_free_again_a_moment_later_is_no_failure(plan):
    """`status` looks whether a task is in use by taking its lock for a moment."""
    folder, over = write_order(plan, fake_task(plan, "a", "true")), threading.Event()

    def hold_and_let_go() -> None:
        while not over.is_set():
            with contextlib.suppress(UserError), locked(folder / "logs"):
                time.sleep(0.0001)

    others = [threading.Thread(target=hold_and_let_go) for _ in range(2)]
    for thread in others:
        thread.start()
    try:
        codes = {carry_out(folder, Machine(), again=True) for _ in range(200)}
    finally:
        over.set()
        for thread in others:
            thread.join()
    assert BUSY in codes <= {0, BUSY}


def test_the_user_s_own_code_is_part_of_a_task_s_state(plan, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    module = tmp_path / "my_lab_order.py"
    module.write_text("order = sorted\n")
    task = fake_task(plan, "a", COUNT)
    task = replace(task, recipe=task.recipe | {"steps": {"order": {"ordering": "my_lab_order:order"}}})
    plan.tasks["a"] = task
    run(plan)
    assert stale(plan, task, read_manifest(plan.folder("a"))) == ""
    module.write_text("order = reversed\n")
    assert "other code of my_lab_order:order" in stale(plan, task, read_manifest(plan.folder("a")))


@pytest.mark.parametrize(
    ("words", "name", "file"),
    [
        ("python -m scene.subset -s {source}", "scene.subset", "scene/subset.py"),
        ("-m examples.make_demo_scene", "examples.make_demo_scene", "examples/new.py"),
        ("python -m training.views", "training.views", "gaussian_renderer/sh.py"),  # what a step's code stands on
        ("python render.py -m {first}", "render.py", "render.py"),
        ("render.py", "render.py", "evaluation/rendering.py"),
    ],
)
def test_our_code_behind_the_study_s_own_commands_is_part_of_a_task_s_state(
    plan, words, name, file, monkeypatch, tmp_path
):
    for path in ("scene/subset.py", "examples/a.py", "training/a.py", "gaussian_renderer/a.py", "render.py"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text("before = True\n")
    monkeypatch.setattr(state, "PROJECT", tmp_path)
    monkeypatch.setattr(state, "packages_code", state.packages_code.__wrapped__)  # reads anew
    task = replace(fake_task(plan, "a"), commands=(Command(OWN_COMMAND, tuple(words.split())),))
    manifest = {"code": state.code_of(task), "needs": {}}
    assert list(manifest["code"]) == [name]
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("before = False\n")
    assert stale(plan, task, manifest) == f"made by other code of {name}"


@pytest.mark.parametrize("file", ["frames.py", "order_quality.py", "frame_quality.py"])
def test_what_measures_frames_is_part_of_their_task_s_state(plan, file, monkeypatch, tmp_path):
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation" / file).write_text("before = True\n")
    monkeypatch.setattr(state, "PROJECT", tmp_path)
    monkeypatch.setattr(state, "packages_code", state.packages_code.__wrapped__)  # reads anew
    task = replace(fake_task(plan, "a"), commands=(Command(MEASURE_FRAMES, ("-m", "evaluation.frame_quality")),))
    manifest = {"code": state.code_of(task), "needs": {}}
    assert stale(plan, task, manifest) == ""
    (tmp_path / "evaluation" / file).write_text("before = False\n")
    assert stale(plan, task, manifest) == "made by other code of frames"


@pytest.mark.parametrize(
    "words", ["python", "python -m", "python -m my_lab.tool", "python my_tool.py", "sh -c 'exit 3'"]
)
def test_commands_of_others_have_no_code_of_ours(words):
    assert state.command_code(Command(OWN_COMMAND, tuple(words.split()))) == {}


def test_an_earlier_attempt_s_error_is_not_the_last_one_s(plan):
    fake_task(plan, "a", "echo 'error: disk full' && exit 3")
    run(plan)
    fake_task(plan, "a", "echo 'KeyError: 3 == 4' && exit 1")
    assert "KeyError: 3 == 4 (log" in run(plan).failed["a"]


def test_a_redoing_that_is_cut_short_goes_on(plan):
    folder = write_order(plan, fake_task(plan, "a", COUNT, "test -f {folder}/fine || kill -9 $$"))
    (folder / "fine").touch()
    assert carry_out(folder, Machine()) == 0
    (folder / "fine").unlink()
    assert carry_out(folder, Machine(), again=True) == 128 + signal.SIGKILL
    (folder / "fine").touch()
    assert carry_out(folder, Machine(), again=True) == 0
    assert ran(plan, "a") == 2  # once at first, once anew
    assert read_manifest(folder)["attempts"] == 2  # its times lack a part


def test_a_redoing_that_finds_its_step_up_to_date_keeps_the_times_of_its_making(plan):
    step = {"seconds": 0.25, "peak_bytes": 7, "settings": {}, "outputs": {}, "notes": {}}
    record = json.dumps({"schema": SCHEMA, "steps": {"train": step}})
    folder = plan.folder("a")
    task = fake_task(plan, "a", COUNT, f"test -f {folder}/run.json || (sleep 0.3; echo '{record}' > {folder}/run.json)")
    commands = (task.commands[0], replace(task.commands[1], name="train", record=("", "train")))
    task = plan.tasks["a"] = replace(task, commands=commands, recipe={"steps": {"train": {}}})

    def train_facts() -> dict:
        assert carry_out(write_order(plan, task), Machine(), again=True) == 0
        return read_manifest(folder)["commands"][1]

    made = train_facts()
    assert made["seconds"] >= 0.3
    assert made["step_seconds"] == 0.25
    assert train_facts() == made
    assert not only_looked(made)
    (folder / "study.json").unlink()  # nobody knows any more
    (folder / "logs" / "progress.json").unlink()
    assert only_looked(train_facts())


def test_two_executors_share_the_work(plan):
    for name in "abcdef":
        fake_task(plan, name, SLOW.replace("{seconds}", "0.3"))
    both = [start_scheduler(plan, "--slots=2") for _ in range(2)]
    assert [p.wait(60) for p in both] == [0, 0]
    assert [ran(plan, name) for name in "abcdef"] == [1] * 6


def test_interrupted_executors_leave_nothing_running(plan):
    fake_task(plan, "first", COUNT)
    fake_task(plan, "slow", COUNT, SLOW.replace("{seconds}", "61"), needs=("first",))
    scheduler = start_scheduler(plan)
    wait_for(lambda: ran(plan, "slow", 1) == 1)
    code, text = end(scheduler, plan)
    assert code == 130
    assert "Traceback" not in text
    assert processes_of(str(plan.out)) == []
    assert read_manifest(plan.folder("first"))
    assert read_manifest(plan.folder("slow")) is None
    fake_task(plan, "slow", COUNT, "true", needs=("first",))
    assert run(plan).made == {"slow"}
    assert ran(plan, "slow") == ran(plan, "first") == 1


def test_a_killed_executor_leaves_nothing_running(plan):
    fake_task(plan, "slow", SLOW.replace("{seconds}", "62"))
    scheduler = start_scheduler(plan)
    wait_for(lambda: ran(plan, "slow") == 1)
    end(scheduler, plan, signal.SIGKILL)
    wait_for(lambda: processes_of(str(plan.out)) == [] and processes_of("sleep\0" + "62") == [])
    assert not in_use(plan.folder("slow"))


def test_a_killed_worker_is_started_again_and_its_command_ends(plan):
    fake_task(plan, "a", COUNT, COUNT + " && test -f {folder}/go || exec sleep 63")
    scheduler = start_scheduler(plan)
    wait_for(lambda: ran(plan, "a", 1) == 1)
    (plan.folder("a") / "go").touch()
    worker = next(pid for pid in processes_of("evaluation.study.tasks") if pid in processes_of(str(plan.out)))
    os.kill(worker, signal.SIGKILL)
    assert scheduler.wait(30) == 0
    assert processes_of("sleep\0" + "63") == []
    assert (ran(plan, "a"), ran(plan, "a", 1)) == (1, 2)
    assert read_manifest(plan.folder("a"))["attempts"] == 2


def test_a_worker_that_is_always_killed_fails_in_the_end(plan):
    fake_task(plan, "a", COUNT, "kill -9 $PPID; sleep 5")
    outcome = run(plan, retries=1)
    assert "ended by a signal 2 times" in outcome.failed["a"]


def test_stale_tasks_are_told_and_redone_on_request(plan):
    fake_task(plan, "a", COUNT)
    fake_task(plan, "b", COUNT, needs=("a",))
    run(plan)
    path = plan.folder("a") / "study.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps(content | {"product": "another"}))
    manifest = read_manifest(plan.folder("b"))
    assert stale(plan, plan.tasks["b"], manifest) == "made from an earlier a"
    assert run(plan).made == set()
    assert run(plan, stale=True).made == {"b"}
    assert (ran(plan, "a"), ran(plan, "b")) == (1, 2)
    assert stale(plan, plan.tasks["b"], read_manifest(plan.folder("b"))) == ""


def test_the_time_that_is_left(plan):
    a, b, c = (fake_task(plan, name, COUNT) for name in "abc")
    progress = StudyProgress(plan, [a, b, c], [], slots=2)
    assert progress.eta([], []) == "?"
    write_manifest(plan, a, {}, seconds=100.0)
    progress.finished("a")
    assert progress.eta([], ["a"]) == "1:40"  # two of 100 s on two slots
    progress.since = {"b": time.monotonic() - 40}
    assert progress.eta(["b"], ["a"]) == "1:20"
    progress.tasks.append(replace(c, id="d", kind="model"))
    assert progress.eta(["b"], ["a"]) == "> 1:20"


def test_what_was_begun_from_other_results_begins_anew(plan):
    fake_task(plan, "a", COUNT)
    fake_task(plan, "b", COUNT, "exit 3", needs=("a",))
    run(plan)
    path = plan.folder("a") / "study.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"product": "another"}))
    fake_task(plan, "b", COUNT, "true", needs=("a",))
    assert run(plan).made == {"b"}
    assert ran(plan, "b") == 2


def test_a_worker_by_hand(plan):
    folder = write_order(plan, fake_task(plan, "a", COUNT))
    command = [sys.executable, "-m", "evaluation.study.tasks", str(folder), "--device", "cpu"]
    assert subprocess.run(command, env=worker_environment(), check=False).returncode == 0
    assert read_manifest(folder)["seconds"] < 5
