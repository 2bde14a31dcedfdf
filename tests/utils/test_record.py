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


def partial(scene, number, *, stop_after=2, **changes):
    """A step of two files that keeps what is there when it may; returns what it kept."""
    out, flags = scene / "out", Flags(skip_done=False, overwrite=True)
    files = [out / "0.txt", out / "1.txt"]

    def clear():
        assert read_record(out, "order") is None, "the old record goes before its files do"
        assert not (out / ".order.started.json").exists(), "the new mark comes after"
        for path in files:
            path.unlink(missing_ok=True)

    inputs = {"in": [scene / "in.txt"]}
    kept = []
    with step(out, "order", {"number": number}, inputs, (), flags, clear=clear, **changes) as run:
        for i, path in enumerate(files):
            if i == stop_after:
                raise RuntimeError("killed")
            if run.edited or (run.resume and path.exists()):
                kept.append(path.name)
            else:
                write_text(path, str(number))
        run.outputs += files
    return kept


def test_an_attempt_with_other_settings_keeps_no_file_of_the_one_before(scene):
    partial(scene, 1)
    with pytest.raises(RuntimeError, match="killed"):
        partial(scene, 2, stop_after=1)
    assert partial(scene, 2) == ["0.txt"], "its own first file, not the second of the other settings"
    assert [(scene / "out" / f"{i}.txt").read_text() for i in range(2)] == ["2", "2"]


def test_nothing_is_lost_where_an_attempt_is_refused(scene):
    def refuse():
        raise UserError("no such network")

    partial(scene, 1)
    before = {path: path.read_bytes() for path in (scene / "out").iterdir() if path.name != ".lock"}
    with pytest.raises(UserError, match="no such network"):
        partial(scene, 2, ready=refuse)
    assert {path: path.read_bytes() for path in (scene / "out").iterdir() if path.name != ".lock"} == before
    partial(scene, 1, ready=lambda: (scene / "loaded").touch())
    assert (scene / "loaded").exists()


def test_a_changed_output_is_made_again(scene):
    partial(scene, 1)
    write_text(scene / "out" / "1.txt", "tampered")
    assert partial(scene, 1) == ["0.txt"]
    assert (scene / "out" / "1.txt").read_text() == "1"


def test_a_record_that_names_files_elsewhere_removes_none(scene):
    partial(scene, 1)
    path = scene / "out" / "run.json"
    write_text(path, path.read_text().replace('"1.txt"', '"../in.txt"'))
    partial(scene, 1)
    assert (scene / "in.txt").read_text() == "input"


def test_an_edited_output_is_used_and_recorded(scene, capsys):
    partial(scene, 1)
    write_text(scene / "out" / "1.txt", "by hand")
    before = (scene / "out" / "run.json").read_text()
    with pytest.raises(RuntimeError, match="killed"):
        partial(scene, 1, stop_after=1, editable=True)  # found unfit: nothing is lost, and nothing forgotten
    assert (scene / "out" / "run.json").read_text() == before
    capsys.readouterr()
    assert partial(scene, 1, editable=True) == ["0.txt", "1.txt"]
    assert "1.txt was edited by hand and is used; remove it to order anew" in capsys.readouterr().err
    assert (scene / "out" / "1.txt").read_text() == "by hand"
    assert (scene / "out" / "run.json").read_text() != before
