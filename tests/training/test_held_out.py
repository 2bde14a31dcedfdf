"""train.py --choose_lambda from end to end, cut short and continued."""

import json
import signal
import time

import pytest

from tests.forked import ScriptProcess
from tests.training_factory import command, settings, write_scene
from training import held_out as search_module
from training.choose import Candidate
from training.session import open_job
from training.trainer import NonFinite
from utils.errors import UserError

CANDIDATES = ("0.9", "0.2", "0.9:0.1")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def words(root, out, **flags):
    given_flags = {"iterations": 30, "held_out_every": 4, "choose_iterations": 90, "choose_lambda": True}
    given_flags |= {"lambda_tex": 0.9} | flags  # three candidates: the first of them is the configured one
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


def test_the_choice_is_recorded_and_used(root, unbroken, run_train):
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
    run_train(fixed)
    assert model(unbroken) == model(root / "fixed"), "trained on all views with the weight that was chosen"


def test_a_second_search_finds_the_same(root, unbroken, run_train):
    said = run_train(words(root, root / "again"))
    assert content(root / "again") == content(unbroken), "bit for bit"
    assert model(root / "again") == model(unbroken)
    assert "up to date" in run_train([*words(root, root / "again"), "--skip_done"]).err
    assert "choosing lambda_tex from 0.9, 0.2, 0.9:0.1: 10 and 20 iterations each, 2 LR views held out" in said.err


@pytest.fixture
def made(monkeypatch):
    """Trainings of the search, in order."""
    found, real = [], search_module.trained
    monkeypatch.setattr(search_module, "trained", lambda *arguments: found.append(arguments) or real(*arguments))
    return found


def test_another_configured_weight_comes_first_with_the_scores_there_are(root, unbroken, run_train, made):
    out = root / "configured"
    run_train(words(root, out))
    made.clear()
    said = run_train([*words(root, out, lambda_tex=0.2), "--overwrite"])
    assert "choosing lambda_tex from 0.2, 0.9, 0.9:0.1: 10 and 20 iterations each" in said.err
    assert not made
    assert content(out)["key"] == content(unbroken)["key"]
    assert list(content(out)["candidates"]) == ["0.2", "0.9", "0.9:0.1"]
    assert content(out)["candidates"] == content(unbroken)["candidates"]
    choice = content(out)["choice"]
    details = choice["predicted_detail_db"]
    best = max(details, key=details.__getitem__)
    assert choice["gain_db"] == pytest.approx(details[best] - details["0.2"])
    chosen = Candidate(choice["lambda_tex"], choice["lambda_tex_final"])
    assert str(chosen) == ("0.2" if choice["kept_because"] else best)


def test_a_longer_list_of_trainings_as_long_trains_only_what_is_new(root, unbroken, run_train, made):
    out = root / "longer"
    run_train(words(root, out))
    made.clear()
    said = run_train([*words(root, out, lambda_tex=0.35, choose_iterations=120), "--overwrite"])
    assert "choosing lambda_tex from 0.35, 0.9, 0.2, 0.9:0.1: 10 and 20 iterations each" in said.err
    assert [(str(arguments[2]), arguments[3]) for arguments in made] == [("0.35", 10), ("0.35", 20)]
    run_train([*words(root, out), "--overwrite"])
    assert content(out) == content(unbroken), "what is no candidate any more has left the file"
    made.clear()
    run_train([*words(root, out, choose_iterations=120), "--overwrite"])
    assert [arguments[3] for arguments in made] == [13, 26] * 3, "other lengths begin anew"


@pytest.mark.parametrize("trainings", [1, 4])
def test_a_search_that_was_killed_ends_alike(root, unbroken, run_train, monkeypatch, trainings):
    out, made, real = root / f"killed_{trainings}", [], search_module.trained

    def counted(*arguments):
        if len(made) == trainings:
            raise KeyboardInterrupt
        made.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(search_module, "trained", counted)
    with pytest.raises(KeyboardInterrupt):
        run_train(words(root, out))
    assert sum(map(len, content(out)["candidates"].values())) == trainings
    monkeypatch.setattr(search_module, "trained", lambda *arguments: made.append(arguments) or real(*arguments))
    run_train(words(root, out))
    assert len(made) == 6
    assert content(out) == content(unbroken)
    assert model(out) == model(unbroken)


def test_another_search_does_not_use_its_scores(root, run_train, made):
    out = root / "changed"
    run_train(words(root, out))
    made.clear()
    run_train([*words(root, out, seed=3), "--overwrite"])
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


def test_a_run_without_a_search_leaves_no_earlier_choice(root, run_train):
    out = root / "plain"
    out.mkdir()
    (out / "lambda.json").write_text("{}")
    run_train(command(root, out, iterations=2))
    assert not (out / "lambda.json").exists()


def test_a_candidate_that_ends_in_nan_is_left_out(root, run_train, monkeypatch):
    real = search_module.Trainer.advance

    def broken(self):
        if self.settings.lambda_tex == 0.2 and self.settings.iterations < 30:
            raise NonFinite(1, "train/r_0", "loss", None)
        real(self)

    monkeypatch.setattr(search_module.Trainer, "advance", broken)
    said = run_train(words(root, root / "nan"))
    assert "lambda_tex 0.2: iteration 1, view train/r_0: loss is not finite; left out of the choice" in said.err
    assert set(content(root / "nan")["choice"]["predicted_detail_db"]) == {"0.9", "0.9:0.1"}


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ({"frames": "none"}, "needs pseudo-HR frames and LR views"),
        ({"held_out_every": 8}, "of 8 training views 1 would be held out"),
    ],
)
def test_what_cannot_be_searched_is_one_line(root, run_train, flags, text):
    with pytest.raises(UserError, match=text):
        run_train(words(root, root / "bad", **flags))
    assert not (root / "bad").exists()


@pytest.mark.parametrize(
    ("texts", "text"), [(["0.90"], "nothing else than the configured weight, 0.9"), (["2"], " 2: ")]
)
def test_candidates_that_cannot_be_compared_are_one_line(root, run_train, texts, text):
    argv = words(root, root / "bad")[: -len(CANDIDATES)]
    with pytest.raises(UserError, match=f"--lambda_candidates.*{text}"):
        run_train([*argv, *texts])
    assert not (root / "bad").exists()


def test_a_dry_run_says_what_would_be_tried(root, run_train):
    said = run_train([*words(root, root / "dry"), "--dry_run"])
    assert "first choosing lambda_tex from 0.9, 0.2, 0.9:0.1: 10 and 20 iterations each" in said.out
    assert not (root / "dry").exists()
