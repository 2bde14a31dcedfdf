"""The choice of lambda_tex: its pure parts, and train.py --choose_lambda from end to end, cut short and continued."""

import itertools
import json
import math
import signal
import sys
import time
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import train
from arguments.training import OptimizationParams, TrainingParams
from tests.forked import ScriptProcess
from tests.training_factory import command, settings, write_scene
from training import held_out as search_module
from training.choose import (
    Candidate,
    Score,
    decide,
    detail_db,
    from_json,
    held_out,
    lengths,
    predicted,
    scaled,
    score,
    search,
    to_json,
)
from training.session import open_job
from training.signals import SIGNALS
from training.trainer import NonFinite
from utils.errors import UserError

CANDIDATES = ("0.9", "0.2", "0.9:0.1")


@pytest.mark.parametrize(("text", "values"), [("0.6", (0.6, -1)), ("0", (0, -1)), ("1:0.02", (1, 0.02))])
def test_candidates_are_read_and_named_alike(text, values):
    candidate = Candidate.parse(text)
    assert (candidate.tex, candidate.final) == values
    assert str(candidate) == text
    made = candidate.of(OptimizationParams(lambda_tex=0.5, lambda_tex_final=0.7))
    assert (made.lambda_tex, made.lambda_tex_final) == values


@pytest.mark.parametrize("text", ["", "high", "0.5:", "1.2", "-1", "0.5:-0.1", "0.1:0.2:0.3", "nan"])
def test_malformed_candidates_are_refused(text):
    with pytest.raises(UserError, match="--lambda_candidates"):
        Candidate.parse(text)


@given(st.integers(4, 300), st.integers(2, 12))
def test_held_out_views_are_spread_and_leave_most(count, every):
    names = [f"v{i}" for i in range(count)]
    if len(names[every // 2 :: every]) < 2:
        with pytest.raises(UserError, match=f"--held_out_every {every}"):
            held_out(names, every)
        return
    places = [names.index(name) for name in held_out(names, every)]
    assert {b - a for a, b in itertools.pairwise(places)} == {every}
    assert places[0] < every
    assert len(places) <= count / every + 1


@given(st.integers(1, 12), st.integers(1, 40_000), st.integers(2, 30_000))
def test_all_lengths_together_stay_within_the_budget(candidates, budget, iterations):
    short, long = lengths(OptimizationParams(iterations=iterations), candidates, budget)
    assert 1 <= short < long <= iterations
    assert candidates * (short + long) <= budget or long == 2


def test_a_scaled_run_keeps_the_shares_of_its_schedules():
    full = OptimizationParams()
    tenth = scaled(full, 3000)
    assert (tenth.iterations, tenth.position_lr_max_steps) == (3000, 3000)
    assert (tenth.densify_from_iter, tenth.densify_until_iter) == (50, 1500)
    assert (tenth.opacity_reset_interval, tenth.sh_interval, tenth.densification_interval) == (300, 100, 20)
    assert scaled(full, 30_000) == full
    assert tenth.exposure_lr_delay_steps == 0
    assert scaled(replace(full, exposure_lr_delay_steps=500), 3000).exposure_lr_delay_steps == 50
    assert scaled(replace(full, densification_interval=7), 3000).densification_interval == 7


def test_detail_is_the_laplacian_of_the_difference():
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.rand(3, 6, 5, generator=generator) for _ in range(2))
    total, d = 0.0, (a - b).double()
    for c in range(3):
        for y in range(1, 5):
            for x in range(1, 4):
                sides = d[c, y - 1, x] + d[c, y + 1, x] + d[c, y, x - 1] + d[c, y, x + 1]
                total += float(4 * d[c, y, x] - sides) ** 2
    assert detail_db(a, b) == pytest.approx(-10 * math.log10(total / (3 * 4 * 3)), abs=1e-9)
    assert detail_db(a, a) == 100


def test_detail_does_not_see_what_is_smooth_and_psnr_does():
    flat, ramp = torch.full((3, 8, 8), 0.5), torch.linspace(0, 0.4, 8).expand(3, 8, 8)
    found = score(5, [("v", flat + ramp, flat)])
    assert found.detail["v"] > 90
    assert found.psnr["v"] == pytest.approx(float(-10 * ramp.double().square().mean().log10()), rel=1e-5)


def measured(iterations, slope=3.0, start=20.0, spread=4.0):
    """Two views whose detail lies on a line in log2 of the iterations."""
    rise = slope * math.log2(iterations)
    return Score(iterations, {"a": start + rise, "b": start + spread + rise}, {"a": 30.0, "b": 30.0})


def test_the_prediction_lies_on_the_line_in_log_iterations():
    found = predicted(measured(100), measured(200), 3000)
    assert found == pytest.approx(measured(3000).detail)
    assert predicted(measured(100), measured(200), 200) == pytest.approx(measured(200).detail)


def pair(text, **line):
    return Candidate.parse(text), measured(10, **line), measured(20, **line)


def test_what_gains_faster_wins():
    made = decide([pair("0.6", start=22.0), pair("0.1", slope=4.0), pair("0.9:0.1", slope=3.5)], 100)
    assert str(made.chosen) == "0.1"
    assert made.predicted == pytest.approx(
        {
            "0.6": 24 + 3 * math.log2(100),
            "0.1": 22 + 4 * math.log2(100),
            "0.9:0.1": 22 + 3.5 * math.log2(100),
        }
    )
    assert made.gain_db == pytest.approx(math.log2(100) - 2)
    assert made.error_db == pytest.approx(0, abs=1e-9)
    assert not made.kept_because


def test_a_gain_within_its_error_changes_nothing():
    """The views gain 0.5 + 2 and 0.5 - 2 dB: 0.5 on average, standard error 2."""
    scores = [pair("0.6"), pair("0.1", start=22.5, spread=0.0)]
    made = decide(scores, 100)
    assert (str(made.chosen), made.gain_db, made.error_db) == ("0.6", pytest.approx(0.5), pytest.approx(2))
    assert "0.1 is predicted to gain 0.50 dB, within a standard error of 2.00" in made.kept_because
    assert str(decide([pair("0.6"), pair("0.1", start=22.5, spread=3.9)], 100).chosen) == "0.1"


def test_trainings_that_get_worse_tell_nothing():
    made = decide([pair("0.6", slope=-2.0), pair("0.1", slope=-1.0)], 100)
    assert str(made.chosen) == "0.6"
    assert "tell nothing" in made.kept_because


def test_growth_within_its_error_tells_nothing():
    """From 10 to 20 iterations the views of the best one grow by 5 and by -1 dB: 2 on average, standard error 3."""
    short, long = Score(10, {"a": 30.0, "b": 40.0}, {}), Score(20, {"a": 35.0, "b": 39.0}, {})
    noisy = Candidate.parse("0.1")
    made = decide([pair("0.6", slope=0.1), (noisy, short, long)], 20)
    assert made.gain_db > made.error_db
    assert str(made.chosen) == "0.6"
    assert "tell nothing" in made.kept_because
    steady = replace(long, detail={"a": 32.0, "b": 42.0})
    assert decide([pair("0.6", slope=0.1), (noisy, short, steady)], 20).chosen == noisy


def test_noise_alone_changes_the_choice_at_most_every_second_time():
    generator = torch.Generator().manual_seed(0)
    changed, times = 0, 300
    for _ in range(times):
        scores = []
        for tex, row in enumerate(torch.randn(6, 6, generator=generator).tolist()):
            views = {str(view): 20 + value for view, value in enumerate(row)}
            scores.append((Candidate(tex / 10), Score(10, dict.fromkeys(views, 0.0), {}), Score(20, views, {})))
        changed += decide(scores, 20).chosen != scores[0][0]
    assert 0.35 < changed / times < 0.55


def scores_of(slopes):
    """A training that gives detail 20 + slope log2(length); those of slope NaN break off."""
    calls = []

    def train_one(candidate, length):
        calls.append((str(candidate), length))
        slope = slopes[str(candidate)]
        return None if math.isnan(slope) else measured(length, slope=slope)

    return calls, train_one


def test_what_ends_in_nan_is_left_out():
    candidates = [Candidate.parse(text) for text in CANDIDATES]
    calls, train_one = scores_of({"0.9": math.nan, "0.2": 2.0, "0.9:0.1": 1.0})
    known: dict = {}
    made = search(candidates, (10, 20), 100, known, train_one, lambda _: None)
    assert str(made.chosen) == "0.2"
    assert set(made.predicted) == {"0.2", "0.9:0.1"}
    assert calls == [("0.9", 10), ("0.2", 10), ("0.2", 20), ("0.9:0.1", 10), ("0.9:0.1", 20)]
    assert from_json(json.loads(json.dumps(to_json(known)))) == known


def test_a_search_goes_on_where_it_was_cut_short_and_ties_go_to_the_first():
    candidates = [Candidate.parse(text) for text in CANDIDATES]
    calls, train_one = scores_of(dict.fromkeys(CANDIDATES, 1.0))
    known = {"0.9": [train_one(candidates[0], 10)], "0.2": [train_one(candidates[1], n) for n in (10, 20)]}
    calls.clear()
    kept = []
    made = search(candidates, (10, 20), 100, known, train_one, lambda scores: kept.append(len(to_json(scores))))
    assert calls == [("0.9", 20), ("0.9:0.1", 10), ("0.9:0.1", 20)]
    assert len(kept) == 3
    assert made.chosen is candidates[0]
    assert not made.kept_because


def test_nothing_is_chosen_from_nothing():
    _, train_one = scores_of(dict.fromkeys(CANDIDATES, math.nan))
    with pytest.raises(UserError, match="NaN"):
        search([Candidate.parse(text) for text in CANDIDATES], (1, 2), 9, {}, train_one, lambda _: None)


@pytest.mark.parametrize("given_flags", [{"lambda_candidates": ("0.5",)}, {"lambda_candidates": ("0.5", "0.5")}])
def test_one_candidate_is_no_choice(given_flags):
    with pytest.raises(UserError, match="--lambda_candidates"):
        TrainingParams(choose_lambda=True, **given_flags)
    TrainingParams(**given_flags)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture
def run(monkeypatch, capsys):
    handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}

    def run(argv):
        monkeypatch.setattr(sys, "argv", ["train.py", *argv])
        train.main()
        return capsys.readouterr()

    yield run
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


def words(root, out, **flags):
    given_flags = {"iterations": 30, "held_out_every": 4, "choose_iterations": 90, "choose_lambda": True} | flags
    return [*command(root, out, **given_flags), "--lambda_candidates", *CANDIDATES]


def model(out):
    return (out / "point_cloud/iteration_30/point_cloud.ply").read_bytes()


def content(out):
    return json.loads((out / "lambda.json").read_text())


@pytest.fixture(scope="module")
def unbroken(root):
    out = root / "unbroken"
    process = ScriptProcess(words(root, out), root / "unbroken.txt")
    assert process.wait() == 0, process.text()
    return out


def test_the_choice_is_recorded_and_used(root, unbroken, run):
    found = content(unbroken)
    assert found["held_out"] == ["train/r_2", "train/r_6"]
    assert set(found["candidates"]) == set(CANDIDATES)
    for scores in found["candidates"].values():
        assert [one["iterations"] for one in scores] == [10, 20]
        assert all(set(one["detail"]) == set(one["psnr"]) == set(found["held_out"]) for one in scores)
    details = found["choice"]["predicted_detail_db"]
    assert set(details) == set(CANDIDATES)
    best = Candidate(found["choice"]["lambda_tex"], found["choice"]["lambda_tex_final"])
    assert str(best) == ("0.9" if found["choice"]["kept_because"] else max(details, key=details.__getitem__))
    record = json.loads((unbroken / "run.json").read_text())["steps"]["train"]
    assert record["notes"]["lambda"] == found["choice"]
    assert "lambda.json" in record["outputs"]
    fixed = command(root, root / "fixed", iterations=30, lambda_tex=best.tex, lambda_tex_final=best.final)
    run(fixed)
    assert model(unbroken) == model(root / "fixed"), "trained on all views with the weight that was chosen"


def test_a_second_search_finds_the_same(root, unbroken, run):
    said = run(words(root, root / "again", lambda_tex=0.123))
    assert content(root / "again") == content(unbroken), "bit for bit, whatever --lambda_tex says"
    assert model(root / "again") == model(unbroken)
    assert "up to date" in run([*words(root, root / "again", lambda_tex=0.123), "--skip_done"]).err
    assert "choosing lambda_tex from 0.9, 0.2, 0.9:0.1: 10 and 20 iterations each, 2 LR views held out" in said.err


@pytest.mark.parametrize("trainings", [1, 4])
def test_a_search_that_was_killed_ends_alike(root, unbroken, run, monkeypatch, trainings):
    out, made, real = root / f"killed_{trainings}", [], search_module.trained

    def counted(*arguments):
        if len(made) == trainings:
            raise KeyboardInterrupt
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(search_module, "trained", counted)
    with pytest.raises(KeyboardInterrupt):
        run(words(root, out))
    assert sum(map(len, content(out)["candidates"].values())) == trainings
    monkeypatch.setattr(search_module, "trained", lambda *arguments: made.append(arguments) or real(*arguments))
    run(words(root, out))
    assert len(made) == 6
    assert content(out) == content(unbroken)
    assert model(out) == model(unbroken)


def test_another_search_does_not_use_its_scores(root, unbroken, run, monkeypatch):
    out, made, real = root / "changed", [], search_module.trained
    run(words(root, out))
    monkeypatch.setattr(search_module, "trained", lambda *arguments: made.append(arguments) or real(*arguments))
    run([*words(root, out, seed=3), "--overwrite"])
    assert len(made) == 6


def wait_for(process, happens):
    while not happens():
        assert process.process.is_alive(), process.text()
        time.sleep(0.02)


def test_training_cut_short_goes_on_with_its_choice(root, unbroken):
    out = root / "stopped"
    argv = words(root, out, iterations=100_000, choose_iterations=18, checkpoint_interval=5)
    process = ScriptProcess(argv, root / "stopped.txt")
    wait_for(process, lambda: list(out.glob("checkpoints/*.safetensors")))
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    before = content(out)
    process = ScriptProcess(argv, root / "continued.txt")
    wait_for(process, lambda: process.stderr.is_file() and "continuing after iteration" in process.text())
    process.signal(signal.SIGTERM)
    assert process.wait() == 143
    assert content(out) == before


def test_candidates_are_compared_as_a_run_would_write_them(root):
    """A run of 40 iterations cuts opacities back in its last one, after its model was written."""
    given_settings = settings(root, iterations=40, opacity_reset_interval=40, densify_until_iter=60)
    job = open_job(given_settings, root / "out")
    trainer = search_module.trained(job, ["train/r_2", "train/r_6"], Candidate(0.6), 20)
    assert trainer is not None
    assert float(trainer.drawn.opacities.max()) > 0.02


def test_a_run_without_a_search_leaves_no_earlier_choice(root, run):
    out = root / "plain"
    out.mkdir()
    (out / "lambda.json").write_text("{}")
    run(command(root, out, iterations=2))
    assert not (out / "lambda.json").exists()


def test_a_candidate_that_ends_in_nan_is_left_out(root, run, monkeypatch):
    real = search_module.Trainer.advance

    def broken(self):
        if self.settings.lambda_tex == 0.2 and self.settings.iterations < 30:
            raise NonFinite(1, "train/r_0", "loss", None)
        real(self)

    monkeypatch.setattr(search_module.Trainer, "advance", broken)
    said = run(words(root, root / "nan"))
    assert "lambda_tex 0.2: iteration 1, view train/r_0: loss is not finite; left out of the choice" in said.err
    assert set(content(root / "nan")["choice"]["predicted_detail_db"]) == {"0.9", "0.9:0.1"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"frames": "none"}, "needs pseudo-HR frames and LR views"),
        ({"held_out_every": 8}, "of 8 training views 1 would be held out"),
    ],
)
def test_what_cannot_be_searched_is_one_line(root, run, flags, text):
    with pytest.raises(UserError, match=text):
        run(words(root, root / "bad", **flags))
    assert not (root / "bad").exists()


def test_a_dry_run_says_what_would_be_tried(root, run):
    said = run([*words(root, root / "dry"), "--dry_run"])
    assert "first choosing lambda_tex from 0.9, 0.2, 0.9:0.1: 10 and 20 iterations each" in said.out
    assert not (root / "dry").exists()
