"""Training: what is learned, that it goes on with the same bits, that it learns at all, and its command line."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from priors import train_sr, train_state
from priors.denoisers.tiny import ProcessSpec, load_prior
from priors.frame_data import Batch, make_batch
from priors.moving_crops import MovingCrops
from priors.objectives import levels_of, targets
from priors.processes import VP, ResShift
from priors.train_config import TrainConfig, make_config, read_config
from priors.train_sr import Stop, train, validate
from priors.validation import evaluate
from tests.priors_factory import small_config, write_pictures
from utils.errors import Interrupted, UserError
from utils.rng import generator
from utils.state import load_state

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs" / "priors"
OBJECTIVES = ("sr3", "resshift", "regression")


def config_of(tmp_path: Path, **changes: object) -> TrainConfig:
    return make_config(small_config(write_pictures(tmp_path / "pictures"), **changes), "test")


def flat_batch(count: int) -> Batch:
    """count views of one value; x0 = 0.6, u = -0.2 in [-1, 1]."""
    lr, hr = torch.full((count, 1, 3, 1, 1), 0.4), torch.full((count, 3, 2, 2), 0.8)
    return make_batch(lr, hr, [""] * count)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_state(train_state.found(folder / "checkpoint")[-1])[0]


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def assert_same_bits(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def test_levels_lie_between_neighbouring_times():
    process = VP.linear(5, 0.1, 0.5)
    drawn = levels_of(process).draw(20_000, generator(0, "levels"))
    a = drawn[:, 0]
    ends = [process.coefficients(t).a for t in range(-1, 5)]
    counts = torch.histogram(a, bins=torch.tensor(ends[::-1], dtype=torch.float64)).hist
    assert float(counts.sum()) == 20_000
    expected = 20_000 / 5  # every interval alike, whatever its width
    assert float((counts - expected).abs().max()) < 4 * math.sqrt(expected)
    torch.testing.assert_close(a**2 + drawn[:, 2] ** 2, torch.ones_like(a))


@pytest.mark.parametrize("kind", ["sr3", "resshift"])
def test_noised_views_have_the_marginals_of_the_process(kind):
    """At one level: mean a x0 + b u and deviation s, within four standard errors."""
    process = VP.cosine(1) if kind == "sr3" else ResShift(1, 2.0, 0.3, 0.2)
    levels = replace(levels_of(process), continuous=False)
    c, scale = process.coefficients(process.last), process.network_scale(process.last)
    count = 5000
    _, seen, level = targets("x0", flat_batch(count), levels, generator(1, "marginals"))
    values = seen.double() / scale
    n = values.numel()
    assert float(values.mean()) == pytest.approx(c.a * 0.6 + c.b * -0.2, abs=4 * c.s / math.sqrt(n))
    assert float(values.std()) == pytest.approx(c.s, abs=4 * c.s / math.sqrt(2 * n))
    assert float(level[0]) == pytest.approx(c.a)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_targets_hold_the_noise_that_was_added(prediction):
    batch, levels = flat_batch(50), levels_of(VP.cosine(100))
    target, seen, a = targets(prediction, batch, levels, generator(2, "targets"))
    a = a.view(-1, 1, 1, 1)
    s = (1 - a * a).sqrt()
    eps = (seen - a * 0.6) / s
    expected = {"x0": torch.full_like(target, 0.8 / 0.25), "eps": eps, "v": a * eps - s * 0.6}[prediction]
    torch.testing.assert_close(target, expected, rtol=1e-4, atol=1e-4)


def test_regression_sees_no_noise():
    target, seen, level = targets("x0", flat_batch(3), None, generator(3, "none"))
    assert seen is None
    assert level.tolist() == [0, 0, 0]
    torch.testing.assert_close(target, torch.full((3, 3, 2, 2), 3.2))


def test_eps_loss_starts_at_the_mean_of_noise(tmp_path):
    """An untrained network says 0, and E |eps| = sqrt(2 / pi) = .80."""
    config = config_of(tmp_path, stem="full", prediction="eps", train__n_iter=1, datasets__train__batch_size=64)
    train(config, tmp_path / "out", CPU)
    assert log_of(tmp_path / "out")[0]["loss"] == pytest.approx(math.sqrt(2 / math.pi), abs=0.01)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_goes_on_with_the_same_bits(tmp_path, objective):
    config = config_of(tmp_path, objective=objective, train__ema=True, train__ema_scheduler__step_start_ema=2)
    train(config, tmp_path / "whole", CPU)
    train(replace(config, iterations=2), tmp_path / "parts", CPU)
    train(config, tmp_path / "parts", CPU)
    assert_same_bits(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts"))
    assert_same_bits(*(load_state(tmp_path / name / "model.safetensors")[0] for name in ("whole", "parts")))


def test_interrupted_training_loses_nothing(tmp_path):
    """A signal at every iteration: each call does one, and the end is that of an unbroken run, its log included."""
    config = config_of(tmp_path, train__save_checkpoint_freq=100)
    train(config, tmp_path / "whole", CPU)
    for done in (1, 2, 3):
        with pytest.raises(Interrupted):
            train(config, tmp_path / "parts", CPU, Stop(signal.SIGTERM))
        assert train_state.found(tmp_path / "parts" / "checkpoint")[-1].name.startswith(f"I{done}_")
    train(config, tmp_path / "parts", CPU, Stop(signal.SIGTERM))
    assert_same_bits(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "parts"))
    whole, parts = (
        [{k: v for k, v in line.items() if k != "seconds"} for line in log_of(tmp_path / d)] for d in ("whole", "parts")
    )
    assert whole == parts


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, capsys):
    config = config_of(tmp_path)
    train(config, tmp_path / "out", CPU)
    whole = tensors_of(tmp_path / "out")
    newest = train_state.found(tmp_path / "out" / "checkpoint")[-1]
    data = newest.read_bytes()
    newest.unlink()  # tensors that were read may still be the file's own pages
    newest.write_bytes(data[:-10])
    train(config, tmp_path / "out", CPU)
    assert "trying the one before" in capsys.readouterr().err
    assert_same_bits(tensors_of(tmp_path / "out"), whole)


def test_last_checkpoints_are_kept_and_named_as_published(tmp_path):
    config = config_of(tmp_path, datasets__train__data_len=4, train__save_checkpoint_freq=1)
    train(config, tmp_path / "out", CPU)
    names = [path.name for path in train_state.found(tmp_path / "out" / "checkpoint")]
    assert names == ["I3_E1.safetensors", "I4_E2.safetensors"]  # 2 of 4 samples a step


def test_resume_state_starts_another_folder_where_the_first_ended(tmp_path):
    config = config_of(tmp_path)
    train(replace(config, iterations=2), tmp_path / "first", CPU)
    state = str(train_state.found(tmp_path / "first" / "checkpoint")[-1].with_suffix(""))
    train(replace(config, resume=state), tmp_path / "second", CPU)
    train(config, tmp_path / "whole", CPU)
    assert_same_bits(tensors_of(tmp_path / "second"), tensors_of(tmp_path / "whole"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"objective": "resshift"}, "objective = 'sr3', now it is 'resshift'"),
        ({"train__optimizer__lr": 0.5}, "learning_rate = 0.001"),
        ({"datasets__train__l_resolution": 4, "datasets__val__l_resolution": 4}, "scale = 2, now it is 4"),
        ({"train__n_iter": 1}, "beyond train.n_iter"),
    ],
)
def test_checkpoint_of_another_configuration_is_refused(tmp_path, changes, message):
    train(config_of(tmp_path, train__n_iter=2), tmp_path / "out", CPU)
    with pytest.raises(UserError, match=message) as caught:
        train(config_of(tmp_path, **changes), tmp_path / "out", CPU)
    assert "\n" not in str(caught.value)


def test_pictures_of_another_folder_are_other_data(tmp_path):
    config = config_of(tmp_path)
    train(replace(config, iterations=1), tmp_path / "out", CPU)
    write_pictures(tmp_path / "pictures", count=3)
    with pytest.raises(UserError, match=r"data\.pictures"):
        train(config, tmp_path / "out", CPU)


@pytest.mark.parametrize("name", ["I5_E0.pth", "I5_E0"])
def test_pickles_and_missing_checkpoints_are_one_line(tmp_path, name):
    (tmp_path / "I5_E0_gen.pth").touch()
    with pytest.raises(UserError, match="pickled checkpoints are not read"):
        train(replace(config_of(tmp_path), resume=str(tmp_path / name)), tmp_path / "out", CPU)
    with pytest.raises(UserError, match="no such checkpoint"):
        train(replace(config_of(tmp_path), resume=str(tmp_path / "I6_E0")), tmp_path / "out", CPU)


def test_loss_that_is_not_finite_stops_before_the_update(tmp_path):
    config = replace(config_of(tmp_path), learning_rate=1e30)
    with pytest.raises(UserError, match=r"the loss is (nan|inf)"):
        train(config, tmp_path / "out", CPU)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_validation_scores_and_writes_images(tmp_path, objective):
    config = config_of(tmp_path, objective=objective, validation__draws=2, validation__project=True)
    train(config, tmp_path / "out", CPU)
    scores = validate(config, tmp_path / "out", CPU)
    walks = ["sample", "mean of 2 samples", "sample projected", "mean of 2 samples projected"]
    assert list(scores) == ["bicubic", "bicubic projected", *walks]
    assert scores["sample projected"].lr_error < scores["sample"].lr_error
    assert json.loads((tmp_path / "out" / "val.json").read_text())["count"] == 3
    assert len(list((tmp_path / "out" / "results").glob("*_sr.png"))) == 3
    assert validate(config, tmp_path / "out", CPU) == scores  # seeded


def test_projection_needs_to_know_how_lr_frames_were_made(tmp_path):
    for kind, side in (("lr_8", 8), ("hr_16", 16)):
        (tmp_path / "set" / kind / "clip").mkdir(parents=True)
        Image.new("RGB", (side, side), (50, 60, 70)).save(tmp_path / "set" / kind / "clip" / "0.png")
    changes = {f"datasets__{part}__{key}": value for part in ("train", "val")
               for key, value in (("datatype", "img"), ("dataroot", str(tmp_path / "set")))}  # fmt: skip
    config = config_of(tmp_path, **changes, model__diffusion__n_frames=1)
    train(config, tmp_path / "out", CPU)
    scores = validate(config, tmp_path / "out", CPU)
    assert list(scores) == ["bicubic", "sample"]
    assert scores["sample"].lr_error is None
    with pytest.raises(UserError, match=r"no lr_kernel\.json"):
        validate(replace(config, validation=replace(config.validation, project=True)), tmp_path / "out", CPU)


def test_validation_of_a_checkpoint_is_that_of_the_model(tmp_path):
    config = config_of(tmp_path)
    model = train(config, tmp_path / "out", CPU)
    scores = validate(config, tmp_path / "out", CPU)
    model.unlink()
    assert validate(config, tmp_path / "out", CPU) == scores


def test_validation_needs_weights_of_its_configuration(tmp_path):
    config = config_of(tmp_path)
    with pytest.raises(UserError, match="nothing is trained yet"):
        validate(config, tmp_path / "out", CPU)
    model = train(config, tmp_path / "out", CPU)
    with pytest.raises(UserError, match="another network"):
        validate(config_of(tmp_path, model__unet__inner_channel=16), tmp_path / "out", CPU)
    for left in ("the model", "a checkpoint"):
        for other in ("resshift", "regression"):  # resshift has the same network
            with pytest.raises(UserError, match=f"was made with objective = 'sr3', the configuration says '{other}'"):
                validate(config_of(tmp_path, objective=other), tmp_path / "out", CPU)
        if left == "the model":
            model.unlink()
    assert not (tmp_path / "out" / "val.json").exists()


def test_model_file_is_a_prior(tmp_path):
    config = config_of(tmp_path)
    prior = load_prior(train(config, tmp_path / "out", CPU))
    assert prior.process == ProcessSpec("vp", 50).make()
    assert prior.net.config == config.network


def test_a_small_prior_learns_one_patch(tmp_path):
    """The quick form of the overfit test below."""
    changes = {
        "train__n_iter": 150,
        "train__optimizer__lr": 5e-3,
        "datasets__train__data_len": 1,
        "validation__steps": 5,
    }
    changes |= {"datasets__train__hflip": False, "model__unet__dropout": 0.0, "train__val_freq": 1000}
    config = config_of(tmp_path, **changes, train__save_checkpoint_freq=1000, datasets__train__batch_size=4)
    prior = load_prior(train(config, tmp_path / "out", CPU))
    data = MovingCrops(config.train.root, "train", 8, 16, 3, limit=1)
    scores = evaluate(prior, data, 1, config.validation, 0)
    assert scores["sample"].psnr > scores["bicubic"].psnr + 3


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "priors.train_sr", *words]


def test_command_line_stops_on_a_signal_and_goes_on(tmp_path):
    def words(name: str, iterations: int) -> list[str]:
        values = small_config(write_pictures(tmp_path / "pictures"), train__n_iter=iterations)
        (tmp_path / f"{name}.json").write_text("// small\n" + json.dumps(values))
        given = ("-c", str(tmp_path / f"{name}.json"), "-p", "train", "--out", str(tmp_path / name))
        return command(*given, "--device", "cpu", "--threads", "1")  # the number of threads changes the last bits

    with subprocess.Popen(words("cut", 100_000), cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        while not train_state.found(tmp_path / "cut" / "checkpoint") and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, signal.SIGTERM)
        _, text = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert text.splitlines()[-1] == "error: interrupted by signal 15"
    done = train_state.load(train_state.found(tmp_path / "cut" / "checkpoint")[-1], CPU)[1]["iteration"]
    subprocess.run(words("whole", done), cwd=ROOT, check=True, capture_output=True)
    assert_same_bits(tensors_of(tmp_path / "whole"), tensors_of(tmp_path / "cut"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train"], "arguments are required: -c/--config"),
        (["-c", "nowhere.json", "train"], "nowhere.json: no such configuration file"),
        (["-c", "x.json"], "train or val is missing"),
        (["-c", "x.json", "train", "-p", "val"], "contradict"),
        (["-c", "x.json", "train", "--devce", "cpu"], "did you mean --device"),
    ],
)
def test_mistakes_on_the_command_line_are_user_errors(monkeypatch, words, message):
    monkeypatch.setattr(sys, "argv", ["train_sr", *words])
    with pytest.raises(UserError, match=message):
        train_sr.main()


def slow_config(name: str, tmp_path: Path, **changes: object) -> TrainConfig:
    pytest.importorskip("skimage")
    config = read_config(CONFIGS / f"{name}.json")
    return replace(config, iterations=600, val_every=10_000, save_every=10_000, **changes)


@pytest.mark.slow
def test_regression_beats_bicubic_on_held_out_pictures(tmp_path):
    config = slow_config("regression_f3", tmp_path)
    train(config, tmp_path / "out", CPU)
    scores = validate(config, tmp_path / "out", CPU)
    assert scores["sample"].psnr >= scores["bicubic"].psnr + 1


@pytest.mark.slow
def test_sr3_that_predicts_x0_learns_eight_patches(tmp_path):
    config = slow_config("sr3_overfit", tmp_path)
    assert config.train.limit == config.val.limit == 8
    assert config.train.part == config.val.part == "train"
    train(config, tmp_path / "out", CPU)
    scores = validate(config, tmp_path / "out", CPU)
    assert scores["sample"].psnr >= 34


@pytest.mark.slow
def test_sr3_that_predicts_noise_learns_and_projection_mends_its_drift(tmp_path):
    """The published parametrisation, 8 -> 32 px, F = 1: the loss falls, and only ProjectLR makes images of it."""
    config = slow_config("sr3_f1", tmp_path)
    network = replace(config.network, stem="full", prediction="eps")
    part = replace(config.train, lr_px=8, hr_px=32, batch=8, limit=8, hflip=False)
    config = replace(config, network=network, train=part, log_every=1)
    prior = load_prior(train(config, tmp_path / "out", CPU))
    losses = [line["loss"] for line in log_of(tmp_path / "out") if "loss" in line]
    assert losses[0] == pytest.approx(0.80, abs=0.02)
    assert sum(losses[-50:]) / 50 < 0.15
    data = MovingCrops("skimage", "train", 8, 32, 1, limit=8)
    scores = evaluate(prior, data, 8, replace(config.validation, steps=50, eta=1.0, draws=1, project=True), 0)
    assert scores["sample projected"].psnr >= scores["bicubic"].psnr + 4
