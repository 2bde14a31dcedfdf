"""NaN while training: reported, rolled back, that view left out; the fourth time training stops with code 3."""

import json

import pytest
import torch

from scene import load_scene
from tests.training_factory import settings, write_scene
from training import loop
from training.checkpoint import Checkpoints
from training.guard import Guard
from training.job import Job
from training.objective import Terms
from training.outputs import Log
from training.signals import StopRequest
from training.views import training_views

ITERATIONS = 30


class Poisoned:
    """An engine that breaks at some iterations: a NaN loss, or a NaN in one Gaussian's parameter or moment."""

    def __init__(self, engine, trainer_of, kind, iterations):
        self.engine, self.trainer_of, self.kind, self.iterations = engine, trainer_of, kind, iterations

    culled = 0

    def step(self, state, view, targets, step):
        if self.trainer_of().iteration + 1 not in self.iterations:
            return self.engine.step(state, view, targets, step)
        if self.kind == "loss":  # the kernels update nothing then
            return lambda: Terms(float("nan"), l1=float("nan"))
        outcome = self.engine.step(state, view, targets, step)
        state.parameters()[self.kind][4] = float("nan")
        return outcome


@pytest.fixture
def root(tmp_path):
    return write_scene(tmp_path)


def trainer(root):
    given = settings(root, iterations=ITERATIONS)
    scene = load_scene(root / "lr")
    views = training_views(scene, root / "out" / "hr", given.model, given.optimisation, 0, "cpu")
    return Job(given, root / "out", scene, views, root / "out" / "hr", "cpu").trainer()


class NoSignals(StopRequest):
    """Leaves the test runner's own handlers alone."""

    def __init__(self):
        self.signum, self.deferred = 0, False


def run(trainer, out):
    stop = NoSignals()
    checkpoints = Checkpoints(out / "checkpoints", frozenset(), {})
    plan = loop.Plan(out, ITERATIONS, frozenset({ITERATIONS}), frozenset(), checkpoints, 10, None, "train")
    log = Log(out / "log.jsonl", 0, 1)
    loop.run(trainer, plan, log, Guard(out / "nan_report.json"), stop)
    log.close()
    return trainer.state.tensors(), [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("lag", [0, 1, 5])  # 0 is the CPU's, 1 that of a GPU, whose numbers come one iteration later
@pytest.mark.parametrize("kind", ["loss", "means", "shN"])
def test_the_result_is_that_of_leaving_the_view_out(root, kind, lag):
    clean = trainer(root)
    clean.skipped = {17}
    expected, expected_log = run(clean, root / "clean")
    poisoned = trainer(root)
    poisoned.lag = lag
    poisoned.engine = Poisoned(poisoned.engine, lambda: poisoned, kind, {17})
    got, got_log = run(poisoned, root / "poisoned")
    assert all(torch.equal(expected[name], got[name]) for name in expected)
    assert expected_log == got_log
    report = json.loads((root / "poisoned" / "nan_report.json").read_text())
    assert (report["iteration"], report["what"], report["action"]) == (17, kind, "rolled back")
    if kind != "loss":
        assert report["tensors"][f"param.{kind}"] == {"rows": 1, "first": [4]}


def test_numbers_that_come_later_change_nothing(root):
    results = []
    for lag in (0, 1, 4):
        late = trainer(root)
        late.lag = lag
        results.append(run(late, root / f"lag{lag}"))
        assert not late.pending
    for tensors, lines in results[1:]:
        assert all(torch.equal(value, tensors[name]) for name, value in results[0][0].items())
        assert lines == results[0][1]


def test_numbers_are_left_under_way_no_longer_than_the_lag(root):
    late = trainer(root)
    late.lag = 3
    for _ in range(5):
        late.advance()
    assert [of.number for of in late.pending] == [3, 4, 5]
    assert [of.number for of in late.finished] == [1, 2]
    late.settle()
    assert [of.number for of in late.finished] == [1, 2, 3, 4, 5]
    assert late.finished[-1].smoothed_loss == late.smoothed_loss > 0


def test_nan_in_the_last_iteration_is_found_before_the_end(root):
    poisoned = trainer(root)
    poisoned.lag = 1
    poisoned.engine = Poisoned(poisoned.engine, lambda: poisoned, "means", {ITERATIONS})
    tensors, _ = run(poisoned, root / "last")
    assert poisoned.skipped == {ITERATIONS}
    assert torch.isfinite(tensors["param.means"]).all()


def test_the_fourth_time_stops(root, capsys):
    poisoned = trainer(root)
    poisoned.engine = Poisoned(poisoned.engine, lambda: poisoned, "loss", {5, 7, 9, 11})
    with pytest.raises(SystemExit) as stopped:
        run(poisoned, root / "stopped")
    assert stopped.value.code == 3
    assert json.loads((root / "stopped" / "nan_report.json").read_text())["action"] == "stopped"
    assert capsys.readouterr().err.count("is not finite") == 4


def test_three_times_go_on(root):
    poisoned = trainer(root)
    poisoned.engine = Poisoned(poisoned.engine, lambda: poisoned, "loss", {5, 7, 9})
    run(poisoned, root / "three")
    assert poisoned.iteration == ITERATIONS
    assert poisoned.skipped == {5, 7, 9}


def test_a_skipped_view_is_not_logged(root):
    quiet = trainer(root)
    quiet.skipped = {3}
    _, lines = run(quiet, root / "quiet")
    assert [line["iteration"] for line in lines] == [1, 2, *range(4, ITERATIONS + 1)]
