"""A run killed, stopped or starved at any moment and started again ends with the bits of one that never stopped."""

import hashlib
import json
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from tests.forked import ScriptProcess
from tests.training_factory import LR_SIZE, VIEWS, command, write_scene
from training.checkpoint import Checkpoints, load

ITERATIONS = 60


def ply(out: Path) -> bytes:
    return (out / "point_cloud" / f"iteration_{ITERATIONS}" / "point_cloud.ply").read_bytes()


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def digest(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    return write_scene(tmp_path_factory.mktemp("scene"))


@pytest.fixture(scope="module")
def unbroken(root) -> tuple[Path, float]:
    """The run that nobody disturbed, and how long it took."""
    out = root / "unbroken"
    process = ScriptProcess(command(root, out), root / "unbroken.txt")
    assert process.wait() == 0, process.text()
    again = ScriptProcess(
        command(root, root / "timed"), root / "timed.txt"
    )  # the first one pays for the server's start
    assert again.wait() == 0
    return out, time.monotonic() - again.begin


def checkpoints_load(out: Path) -> None:
    for _, path in Checkpoints(out / "checkpoints", frozenset(), {}).found():
        load(path)


def survives(
    root: Path, out: Path, unbroken: tuple[Path, float], signum: int, seed: int, kills: int, **flags: object
) -> list[int]:
    """Disturb one run `kills` times at random moments, let it finish, compare; returns the exit codes."""
    rng = random.Random(seed)
    codes = []
    for _ in range(kills):
        process = ScriptProcess(command(root, out, **flags), root / f"{out.name}.txt")
        time.sleep(rng.uniform(0, unbroken[1]))
        sent = time.monotonic()
        process.signal(signum)
        codes.append(process.wait())
        assert time.monotonic() - sent < 10, "a stopped run must end within 10 s"
        checkpoints_load(out)
    process = ScriptProcess(command(root, out, **flags), root / f"{out.name}.txt")
    assert process.wait() == 0, process.text()
    assert ply(out) == ply(unbroken[0])
    assert log(out) == log(unbroken[0])
    assert not list(out.rglob("*.tmp")), "what killed writers left is removed"
    return codes


@pytest.mark.parametrize("seed", range(5))
def test_two_kills_change_no_bit(root, unbroken, seed):
    codes = survives(root, root / f"killed_{seed}", unbroken, signal.SIGKILL, seed, kills=2)
    assert set(codes) <= {-signal.SIGKILL, 0}


def test_kills_change_no_bit_with_every_switch_on(root, unbroken):
    """3DGS-MCMC, exposures, depths, trusted filters and a warm start, all at once."""
    depths = root / "geometry"
    (depths / "train").mkdir(parents=True)
    for i in range(VIEWS):
        np.savez(depths / f"train/r_{i}.npz", z=np.full((LR_SIZE, LR_SIZE), 3.0), alpha=np.ones((LR_SIZE, LR_SIZE)))
    start = unbroken[0] / "point_cloud" / f"iteration_{ITERATIONS}" / "point_cloud.ply"
    flags = {"densification": "mcmc", "exposure_lr_init": 0.01, "depths": depths, "init_ply": start}
    flags |= {"filter_3d": True, "filter_3d_rate": "lr", "init_gaussians": 200}
    whole, begin = root / "switches", time.monotonic()
    process = ScriptProcess(command(root, whole, **flags), root / "switches.txt")
    assert process.wait() == 0, process.text()
    took = time.monotonic() - begin
    survives(root, root / "switches_killed", (whole, took), signal.SIGKILL, seed=1, kills=2, **flags)
    exposures = [(out / "exposure.json").read_bytes() for out in (whole, root / "switches_killed")]
    assert exposures[0] == exposures[1]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 140))
def test_five_kills_change_no_bit(root, unbroken, seed):
    survives(root, root / f"killed_{seed}", unbroken, signal.SIGKILL, seed, kills=5)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("seed", range(5))
def test_signals_end_with_their_code_and_change_no_bit(root, unbroken, signum, seed):
    codes = survives(root, root / f"signal_{signum}_{seed}", unbroken, signum, 7 * seed + signum, kills=2)
    # before train.py has set its handlers (imports are done already) Python's own end SIGINT with 1, SIGTERM with -15
    assert set(codes) <= {128 + signum, 0, 1, -signal.SIGTERM}
    assert 128 + signum in codes or 0 in codes


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_training_ends_in_good_order(root, signum):
    """Ten random moments each: the code says which signal, within 10 s, and the last checkpoint loads."""
    moments = np.random.default_rng(signum).uniform(0.0, 0.3, 10)
    for i, moment in enumerate(moments):
        out = root / f"moment_{signum}_{i}"
        process = ScriptProcess(command(root, out, iterations=100_000), root / f"moment_{signum}_{i}.txt")
        wait_for(out / "checkpoints" / "iteration_10.safetensors")
        time.sleep(moment)
        process.signal(signum)
        begin = time.monotonic()
        assert process.wait(10) == 128 + signum
        assert time.monotonic() - begin < 10
        checkpoints_load(out)


def test_a_second_signal_ends_at_once(root):
    out = root / "twice"
    process = ScriptProcess(command(root, out, iterations=100_000), root / "twice.txt")
    wait_for(out / "checkpoints" / "iteration_10.safetensors")
    process.signal(signal.SIGTERM)
    process.signal(signal.SIGTERM)
    assert process.wait(10) == 143
    checkpoints_load(out)


def test_a_folder_in_use_is_refused_then_accepted(root):
    out = root / "shared_out"
    first = ScriptProcess(command(root, out, iterations=100_000), root / "first.txt")
    wait_for(out / "checkpoints" / "iteration_10.safetensors")
    second = ScriptProcess(command(root, out), root / "second.txt")
    assert second.wait() == 2
    assert time.monotonic() - second.begin < 1.5  # the start of the process counted
    assert f"pid {first.process.pid}" in second.text()
    first.signal(signal.SIGKILL)
    first.wait()
    third = ScriptProcess(command(root, out, iterations=100_000), root / "third.txt")
    wait_for(root / "third.txt", "continuing after iteration")
    third.signal(signal.SIGTERM)
    assert third.wait() == 143, third.text()


def test_training_leaves_its_scene_alone(root, unbroken):
    before = digest(root / "lr") | digest(root / "out" / "hr")
    process = ScriptProcess(command(root, root / "untouched"), root / "untouched.txt")
    assert process.wait() == 0
    assert digest(root / "lr") | digest(root / "out" / "hr") == before


def wait_for(path: Path, words: str = "", timeout_s: float = 30.0) -> None:
    """Until `path` is there and, where given, says `words`."""
    limit = time.monotonic() + timeout_s
    while not (path.exists() and (not words or words in path.read_text())):
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.01)


@pytest.mark.parametrize("flag", [{"lambda_tex": 0.5}, {"seed": 3}])
def test_other_settings_do_not_continue_an_unfinished_run(root, flag):
    out = root / f"other_{next(iter(flag))}"
    first = ScriptProcess(command(root, out, iterations=100_000), root / "a.txt")
    wait_for(out / "checkpoints" / "iteration_10.safetensors")
    first.signal(signal.SIGTERM)
    assert first.wait() == 143
    second = ScriptProcess(command(root, out, iterations=100_000, **flag), root / f"{out.name}.txt")
    assert second.wait() == 2
    assert "--allow_mismatch" in second.text()


def test_changed_frames_do_not_continue(root, tmp_path):
    write_scene(tmp_path)
    out = tmp_path / "run"
    first = ScriptProcess(command(tmp_path, out, iterations=100_000), tmp_path / "a.txt")
    wait_for(out / "checkpoints" / "iteration_10.safetensors")
    first.signal(signal.SIGTERM)
    assert first.wait() == 143
    frame = tmp_path / "out/hr/train/r_0.png"
    frame.write_bytes((tmp_path / "out/hr/train/r_1.png").read_bytes())
    second = ScriptProcess(command(tmp_path, out, iterations=100_000), tmp_path / "b.txt")
    assert second.wait() == 2
    assert "frames files" in second.text()
