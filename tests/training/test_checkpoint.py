"""What a checkpoint holds, which are kept, and which are refused."""

import contextlib
import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.training_factory import random_state
from training.checkpoint import Checkpoints, check_fingerprint, load
from training.trainer import Generators
from utils import rng
from utils.errors import UserError
from utils.state import save_state


def content(iteration=10, n=5):
    state = random_state(n)
    states, info = rng.capture()
    tensors = state.tensors() | {f"rng.{name}": value for name, value in states.items()}
    tensors |= {f"generator.{name}": g.get_state() for name, g in vars(Generators.seeded(0)).items()}
    facts = {"adam_steps": state.steps, "views_left": [3, 1], "smoothed_loss": 0.5, "skipped": [], "rollbacks": 0}
    return tensors, info | facts | {"iteration": iteration, "log_bytes": 12}


def checkpoints(tmp_path, *named):
    return Checkpoints(tmp_path / "checkpoints", frozenset(named), {"seed": 0, "settings": {"lambda_tex": 0.6}})


def test_all_of_it_comes_back(tmp_path):
    tensors, info = content()
    got, got_info = load(checkpoints(tmp_path).write(tensors, info))
    assert all(torch.equal(tensors[name], got[name]) for name in tensors)
    assert {name: got_info[name] for name in info} == json.loads(json.dumps(info))
    assert got_info["fingerprint"]["seed"] == 0


def test_two_rolling_ones_and_the_named_are_kept(tmp_path):
    kept = checkpoints(tmp_path, 20)
    for iteration in (10, 20, 30, 40, 50):
        kept.write(*content(iteration))
    assert [iteration for iteration, _ in kept.found()] == [20, 40, 50]


def test_latest_is_the_newest_that_can_be_read(tmp_path, capsys):
    kept = checkpoints(tmp_path)
    for iteration in (10, 20):
        kept.write(*content(iteration))
    torn = kept.path(20).read_bytes()
    kept.path(20).write_bytes(torn[: len(torn) // 2])
    assert next(kept.newest_first())[1]["iteration"] == 10
    assert "iteration_20" in capsys.readouterr().err
    kept.path(10).write_bytes(b"")
    with pytest.raises(UserError, match="iteration_10"):
        next(kept.newest_first())


def test_none_is_no_error(tmp_path):
    assert list(checkpoints(tmp_path).newest_first()) == []


@pytest.mark.parametrize("name", ["chkpnt7000.pth", "model.pt"])
def test_pickles_are_refused_with_advice(tmp_path, name):
    (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match="--init_ply"):
        load(tmp_path / name)


def test_a_strangers_file_is_refused(tmp_path):
    save_file({"x": torch.zeros(3)}, tmp_path / "a.safetensors")
    with pytest.raises(UserError, match=r"a\.safetensors"):
        load(tmp_path / "a.safetensors")
    save_state(tmp_path / "b.safetensors", {"x": torch.zeros(3)}, {"kind": "weights"})
    with pytest.raises(UserError, match="not a training checkpoint"):
        load(tmp_path / "b.safetensors")


def test_a_changed_byte_is_noticed(tmp_path):
    path = checkpoints(tmp_path).write(*content())
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="changed"):
        load(path)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda t, i: t.pop("exp_avg.quats"), "exp_avg.quats"),
        (lambda t, i: t.update({"param.quats": torch.zeros(4, 4)}), "param.quats"),
        (lambda t, i: t.update({"stat.view_count": torch.zeros(2)}), "view_count"),
        (lambda t, i: t.pop("generator.split"), "generator.split"),
        (lambda t, i: t["exp_avg.sh0"].fill_(float("nan")), "exp_avg.sh0 holds NaN"),
        (lambda t, i: i.update(iteration="10"), "iteration"),
        (lambda t, i: i.pop("views_left"), "views_left"),
        (lambda t, i: i.update(adam_steps={"means": 1}), "adam_steps"),
        (lambda t, i: i.update(views_left=[-1]), "views_left"),
        (lambda t, i: i.update(python=[3, [1, 2], None]), "python"),
        (lambda t, i: t.update({"generator.views": torch.zeros(7, dtype=torch.uint8)}), "generator.views"),
        (lambda t, i: t.update({"param.shN": torch.zeros(5, 4, 3)}), "param.shN"),
        (lambda t, i: t.update({"param.means": torch.zeros(5, 7)}), "param.means"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path, change, named):
    tensors, info = content()
    change(tensors, info)
    path = tmp_path / "c.safetensors"
    kept = {"kind": "seqsplat training checkpoint", "schema": 1, "fingerprint": {}}
    save_state(path, tensors, kept | info)
    with pytest.raises(UserError, match=named):
        load(path)


def test_mutated_files_raise_nothing_but_user_errors(tmp_path):
    whole = checkpoints(tmp_path).write(*content()).read_bytes()
    rng_, refused, path = random.Random(0), 0, tmp_path / "mutated.safetensors"
    header = 8 + int.from_bytes(whole[:8], "little")
    for _ in range(300):
        data = bytearray(whole)
        for _ in range(rng_.randint(1, 4)):  # mostly in the header, where structure is
            data[rng_.randrange(header if rng_.random() < 0.8 else len(data))] = rng_.randrange(256)
        path.write_bytes(data[: rng_.randint(0, len(data))] if rng_.random() < 0.2 else data)
        with contextlib.suppress(UserError):  # anything else fails the test
            load(path)
            refused -= 1
        refused += 1
    assert refused > 150


def test_fingerprints_must_agree(capsys):
    saved = {"seed": 0, "settings": {"lambda_tex": 0.6, "iterations": 100}}
    longer = {"seed": 0, "settings": {"lambda_tex": 0.6, "iterations": 200}}
    check_fingerprint(saved, longer, ["iterations"], allow=False)
    with pytest.raises(UserError, match="iterations = 100"):
        check_fingerprint(saved, longer, [], allow=False)
    check_fingerprint(saved, {**longer, "seed": 1}, ["iterations"], allow=True)
    assert "seed = 0" in capsys.readouterr().err


def test_too_little_space_is_said_before_the_start(tmp_path):
    with pytest.raises(UserError, match="free some space"):
        checkpoints(tmp_path).check_space(10**18)


def test_no_pickle_inside(tmp_path):
    path = checkpoints(tmp_path).write(*content())
    assert set(load_file(path)) == set(content()[0])
