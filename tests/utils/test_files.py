"""Atomic files, strict JSON, states, locks: old or new and nothing between, whatever fails."""

import errno
import json
import os
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.atomic import parse_json, read_json, write_json, write_text, writing
from utils.errors import UserError
from utils.locks import locked
from utils.state import load_state, save_state

ROOT = Path(__file__).resolve().parents[2]


def leftovers(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.endswith(".tmp")]


def test_write_replaces_and_keeps_the_umask_mode(tmp_path):
    path = tmp_path / "a" / "x.txt"
    for text in ("old", "new"):
        write_text(path, text)
    umask = os.umask(0)
    os.umask(umask)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert not leftovers(path.parent)


def test_a_body_that_raises_leaves_the_old_file(tmp_path):
    path = tmp_path / "x"
    write_text(path, "old")

    def torn() -> None:
        with writing(path) as tmp:
            tmp.write_text("half")
            raise ValueError("in the middle")

    with pytest.raises(ValueError, match="in the middle"):
        torn()
    assert path.read_text() == "old"
    assert not leftovers(tmp_path)


@pytest.mark.parametrize("broken", ["fsync", "replace"])
@pytest.mark.parametrize("nth", [1, 2])
def test_every_failing_system_call_leaves_old_or_new(tmp_path, monkeypatch, broken, nth):
    path, calls, real = tmp_path / "x", [], getattr(os, broken)
    write_text(path, "old")

    def failing(*args):
        calls.append(args)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args)

    monkeypatch.setattr(os, broken, failing)
    if broken == "replace" and nth == 2:  # only one rename is made, so the write passes
        write_text(path, "new")
    else:
        with pytest.raises(UserError, match=r"cannot write .*x: No space left"):
            write_text(path, "new")
    assert path.read_text() in ("old", "new")
    assert not leftovers(tmp_path)


def test_a_symlink_is_never_written_through(tmp_path):
    target = tmp_path / "precious"
    target.write_text("keep")
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(UserError, match="symbolic link"):
        write_text(tmp_path / "link", "gone")
    assert target.read_text() == "keep"


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON_VALUES)
@settings(derandomize=True, max_examples=100)
def test_json_round_trip(value):
    assert parse_json(json.dumps(value), "test") == value


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        '{"a": Infinity}',
        '{"a": 1, "a": 2}',
        "[" * 100_000,
        '{"a":' * 65 + "1" + "}" * 65,
        "9" * 5000,
        "{",
        "\xff",
    ],
)
def test_json_that_is_refused(tmp_path, text):
    path = tmp_path / "x.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"x\.json"):
        read_json(path)


def test_brackets_inside_strings_are_no_nesting():
    assert parse_json(json.dumps(["[" * 100, '\\"[[[']), "test") == ["[" * 100, '\\"[[[']


def test_state_round_trip_and_tampering(tmp_path):
    path = tmp_path / "s.safetensors"
    tensors = {
        "a": torch.arange(6.0).view(2, 3),
        "empty": torch.zeros(0, 3),
        "bits": torch.tensor([1], dtype=torch.uint8),
    }
    info = {"step": 3, "names": ["x", "ü"]}
    save_state(path, tensors, info)
    loaded, back = load_state(path)
    assert back == info
    assert all(torch.equal(loaded[k], tensors[k]) and loaded[k].dtype == tensors[k].dtype for k in tensors)
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(UserError, match="changed since"):
        load_state(path)
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(UserError, match="not a readable"):
        load_state(path)
    with pytest.raises(UserError, match="no such file"):
        load_state(tmp_path / "absent")


def test_a_second_process_is_refused_and_a_dead_one_holds_nothing(tmp_path):
    hold = """
import sys, time
from utils.locks import locked
with locked(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""
    holder = subprocess.Popen([sys.executable, "-c", hold, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    start = time.monotonic()
    with pytest.raises(UserError, match=f"in use by pid {holder.pid} "), locked(tmp_path):
        pass
    assert time.monotonic() - start < 1
    holder.kill()
    holder.communicate()
    with locked(tmp_path):
        pass


def test_write_json_refuses_nan(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"a": float("nan")})
    assert not (tmp_path / "x.json").exists()
