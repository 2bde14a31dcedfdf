"""run.json decides what runs: every part of a step's key counts, and an unfinished step never looks finished."""

from dataclasses import dataclass, replace

import pytest

from utils.atomic import read_json, write_text
from utils.errors import UserError
from utils.record import read_record, step


@dataclass(frozen=True)
class Flags:
    seed: int = 0
    skip_done: bool = True
    overwrite: bool = False


@pytest.fixture
def scene(tmp_path):
    write_text(tmp_path / "in.txt", "input")
    return tmp_path


def attempt(scene, *, settings=None, flags=Flags(), fail=False, name="order"):
    """Run a step that copies its input; returns ("skipped" | "ran", resume)."""
    out = scene / "out"
    with step(out, name, settings or {"a": 1, "b": (1, 2)}, {"in": [scene / "in.txt"]}, ("ordering",), flags) as run:
        if run.up_to_date:
            return "skipped", run.resume
        if fail:
            raise RuntimeError("killed")
        write_text(out / "result.txt", (scene / "in.txt").read_text())
        run.outputs.append(out / "result.txt")
        run.notes["weights"] = "none"
        return "ran", run.resume


def test_same_key_and_intact_output_is_skipped(scene, capsys):
    assert attempt(scene) == ("ran", False)
    assert attempt(scene) == ("skipped", False)
    assert "order: up to date" in capsys.readouterr().err
    record = read_record(scene / "out", "order")
    assert record["settings"] == {"a": 1, "b": [1, 2]}
    assert record["notes"] == {"weights": "none"}
    assert record["seconds"] >= 0
    assert record["peak_bytes"] > 1 << 20
    assert set(record["outputs"]) == {"result.txt"}


@pytest.mark.parametrize("what", ["input", "output", "deleted", "seed", "setting"])
def test_any_change_makes_it_run_and_is_named(scene, capsys, what):
    attempt(scene)
    flags, settings = Flags(overwrite=True), None
    if what == "input":
        write_text(scene / "in.txt", "other")
    elif what == "output":
        write_text(scene / "out" / "result.txt", "tampered")
    elif what == "deleted":
        (scene / "out" / "result.txt").unlink()
    elif what == "seed":
        flags = replace(flags, seed=1)
    else:
        settings = {"a": 2, "b": (1, 2)}
    capsys.readouterr()
    assert attempt(scene, flags=flags, settings=settings)[0] == "ran"
    names = {"input": "input in changed", "output": "result.txt is missing or changed", "seed": "seed was 0 and is 1"}
    expected = names.get(what, "result.txt is missing" if what == "deleted" else "setting a was 1 and is 2")
    assert expected in capsys.readouterr().err


def test_other_settings_are_refused_without_overwrite(scene):
    attempt(scene)
    with pytest.raises(UserError, match="--overwrite"):
        attempt(scene, settings={"a": 2, "b": (1, 2)})
    assert (scene / "out" / "result.txt").read_text() == "input"
    assert read_record(scene / "out", "order")["settings"]["a"] == 1


def test_unfinished_is_resumed_by_the_same_key_only(scene):
    with pytest.raises(RuntimeError, match="killed"):
        attempt(scene, fail=True)
    assert read_record(scene / "out", "order") is None
    assert attempt(scene, settings={"a": 2}) == ("ran", False)
    with pytest.raises(RuntimeError, match="killed"):
        attempt(scene, settings={"a": 3}, flags=Flags(overwrite=True), fail=True)
    assert attempt(scene, settings={"a": 3}, flags=Flags(overwrite=True)) == ("ran", True)


def test_a_rerun_that_dies_is_not_taken_for_the_old_result(scene):
    attempt(scene)
    with pytest.raises(RuntimeError, match="killed"):
        attempt(scene, settings={"a": 5}, flags=Flags(overwrite=True), fail=True)
    # Half-overwritten results must not pass as those of the first settings.
    assert attempt(scene)[0] == "ran"


def test_steps_keep_their_own_records(scene):
    attempt(scene)
    attempt(scene, name="train")
    assert set(read_json(scene / "out" / "run.json")["steps"]) == {"order", "train"}
    assert attempt(scene) == ("skipped", False)


def test_a_strange_run_json_is_refused(scene):
    (scene / "out").mkdir()
    write_text(scene / "out" / "run.json", '{"schema": 99, "steps": {}}')
    with pytest.raises(UserError, match="schema"):
        attempt(scene)
