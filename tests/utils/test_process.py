"""How a process ends, what it shows, and how its randomness is kept."""

import io
import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from utils import child, log, rng
from utils.errors import Interrupted, UserError, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (UserError("bad\nthing"), 2, "error: bad thing\n"),
        (MemoryError(), 2, "--max_gaussians"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 10 bytes"), 2, "out of memory"),
        (Interrupted(15), 143, "signal 15"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_errors_become_one_line_and_a_code(capsys, monkeypatch, error, code, text):
    monkeypatch.delenv("SPLAT_TRACEBACK", raising=False)

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as stop:
        run(main)
    err = capsys.readouterr().err
    assert stop.value.code == code
    assert text in err
    assert err.count("\n") == 1


def test_bugs_keep_their_traceback(monkeypatch):
    def main() -> None:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        run(main)
    monkeypatch.setenv("SPLAT_TRACEBACK", "1")
    with pytest.raises(UserError):
        run(lambda: (_ for _ in ()).throw(UserError("x")))  # type: ignore[arg-type]


@pytest.mark.parametrize(("seconds", "text"), [(0.2, "0 s"), (59.4, "59 s"), (60, "1:00"), (7387, "2:03:07")])
def test_durations(seconds, text):
    assert log.duration(seconds) == text


def test_progress_in_a_file_is_a_plain_line_every_ten_seconds(monkeypatch):
    now, out = [100.0], io.StringIO()
    monkeypatch.setattr(log.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(log.sys, "stderr", out)
    bar = log.Progress("train lego", 100)
    for done in range(1, 101):
        now[0] += 0.5
        bar.update(done, loss="0.1")
    bar.close()
    lines = out.getvalue().splitlines()
    assert lines[0] == "train lego  20/100  20%  2.0 it/s  ETA 40 s  loss 0.1"
    assert lines[-1] == "train lego  100/100  100%  2.0 it/s  ETA 0 s  loss 0.1"
    assert len(lines) == 5


def test_quiet_silences_progress_but_not_results(capsys):
    log.set_quiet(True)
    try:
        log.Progress("x", 1).update(1)
        log.note("notice")
        log.say("result")
    finally:
        log.set_quiet(False)
    shown = capsys.readouterr()
    assert shown.out == "result\n"
    assert shown.err == ""


def test_a_resumed_log_loses_its_torn_end_and_nothing_else(tmp_path):
    path = tmp_path / "log.jsonl"
    first = log.JsonLines(path)
    first.write(step=1)
    kept = first.size()
    first.write(step=2)
    first.close()
    with open(path, "ab") as file:
        file.write(b'{"step": 3, "lo')
    second = log.JsonLines(path, keep_bytes=kept)
    second.write(step=2)
    second.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]


def test_randomness_continues_exactly():
    rng.seed_all(7)
    random.random()
    tensors, info = rng.capture()
    info = json.loads(json.dumps(info))
    expected = [random.random(), torch.rand(3).tolist()]
    rng.seed_all(8)
    rng.restore(tensors, info)
    assert [random.random(), torch.rand(3).tolist()] == expected


def test_streams_are_apart_and_repeatable():
    draws = {
        names: torch.rand(4, generator=rng.generator(0, *names)).tolist()
        for names in [("views",), ("split",), ("a", 1)]
    }
    assert len({tuple(d) for d in draws.values()}) == 3
    assert torch.rand(4, generator=rng.generator(0, "views")).tolist() == draws[("views",)]
    a, b = (rng.numpy_generator(3, "x").random(4) for _ in range(2))
    assert np.array_equal(a, b)


@pytest.mark.parametrize("script", ["run", "train", "render", "align_sequence", "vsr_upsample", "metrics"])
def test_help_needs_neither_torch_nor_a_second(script):
    code = f"""
import sys
sys.argv = ["{script}.py", "--help"]
import {script}
from utils import errors
try:
    errors.run({script}.main)
finally:
    assert not {{"torch", "cv2"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "--model_path" in done.stdout
    assert "-h, --help" in done.stdout


@pytest.mark.parametrize("module", ["examples.demo", "evaluation.tables", "utils.weights"])
def test_help_of_modules_needs_no_torch(module):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", module, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "-h, --help" in done.stdout
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "utils.errors" in imported
    assert not {"torch", "cv2"} & imported


@pytest.mark.parametrize(
    ("module", "wrong", "right"),
    [
        ("examples.demo", "--output_paht", "--output_path"),
        ("evaluation.tables", "--formt", "--format"),
        ("utils.weights", "--downlod", "--download"),
        ("scene.check", "--hr_rot", "--hr_root"),
        ("scene.downscale", "--scal", "--scale"),
        ("benchmarks.rasterizer", "--repeat", "--repeats"),
    ],
)
def test_a_wrong_flag_of_a_module_names_the_nearest(module, wrong, right):
    command = [sys.executable, "-m", module, wrong, "1"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"unknown flag {wrong}; did you mean {right}?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_reader_that_leaves_early_is_no_error():
    code = "from utils.errors import run; from utils.log import say; run(lambda: [say('x' * 100) for _ in range(9999)])"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline().startswith("x")
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(60) == 141


CHILD = """
import signal, sys, time
def stop(signum, frame):
    time.sleep(0.3)
    open(sys.argv[1] + ".ended", "w").close()
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
open(sys.argv[1] + ".began", "w").close()
time.sleep(60)
"""


def test_sigterm_reaches_the_child_and_its_exit_code_comes_back(tmp_path):
    code = "import sys; from utils.child import run_child; sys.exit(run_child([sys.executable, *sys.argv[1:]]))"
    mark = tmp_path / "child"
    with subprocess.Popen([sys.executable, "-c", code, "-c", CHILD, str(mark)], cwd=ROOT) as parent:
        while not mark.with_suffix(".began").exists():
            assert parent.poll() is None
            time.sleep(0.02)
        parent.send_signal(signal.SIGTERM)
        assert parent.wait(30) == 7
        assert mark.with_suffix(".ended").exists(), "the parent did not wait for its child"


def test_exit_codes_of_children():
    before = signal.getsignal(signal.SIGTERM)
    assert child.run_child([sys.executable, "-c", "raise SystemExit(3)"]) == 3
    killed = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert child.run_child([sys.executable, "-c", killed]) == 137
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize("script", ["run", "train", "render", "align_sequence", "vsr_upsample", "metrics"])
def test_a_wrong_flag_names_the_nearest(script):
    done = subprocess.run(
        [sys.executable, f"{script}.py", "--sead", "1"], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 2
    assert "did you mean --seed?" in done.stderr
    assert done.stderr.count("\n") == 1


def test_peak_memory_is_the_processs_own():
    ballast = bytearray(600 << 20)
    ballast[::4096] = b"1" * len(ballast[::4096])
    code = "from utils.provenance import peak_bytes; print(peak_bytes())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert 1 << 20 < int(done.stdout) < 300 << 20 < len(ballast)
