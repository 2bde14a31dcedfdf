"""Orderings and costs of the user's own, by MODULE:NAME: through the script, recorded, and refused in one line."""

import json
import sys

import pytest

import align_sequence
from arguments.ordering import OrderingParams
from ordering import build
from scene import load_scene
from scene.sequences import read_sequences
from tests.scene_factory import write_blender
from utils import errors
from utils.errors import UserError

MODULE = """
import numpy as np
from ordering.paths import Call, chunks

def backwards(problem):
    return chunks(range(len(problem.order) - 1, -1, -1), problem.longest)

def evens_first(problem):
    found = chunks(list(range(0, len(problem.order), 2)) + list(range(1, len(problem.order), 2)), 0)
    return found if problem.gate is None else found + [problem]

def by_number(scene, names, background):
    places = np.arange(len(names)) * 3
    return np.abs(places[:, None] - places[None, :])

by_number.unit = "places"

def too_few(scene, names, background):
    return np.zeros((2, 2))

def words(scene, names, background):
    return names

def undefined(scene, names, background):
    return np.full((len(names), len(names)), np.nan)

def twice(problem):
    return [Call((0, 0, 1), (0, 2))]

def beyond(problem):
    return [Call((0, 99), (0,))]

def incomplete(problem):
    return [Call((0, 1), (0,))]

number = 3
"""


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    (tmp_path / "my_lab_orders.py").write_text(MODULE)
    (tmp_path / "my_lab_slips.py").write_text("x = 1\ndef y(:\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("my_lab_orders", None)


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["align_sequence.py", *map(str, arguments), "--quiet"])
    align_sequence.main()


def test_ordering_and_cost_of_the_users_own_go_through_the_script(my_lab, monkeypatch, capsys):
    scene = write_blender(my_lab / "scene", views=6)
    flags = ("--ordering", "my_lab_orders:backwards", "--cost", "my_lab_orders:by_number")
    run_script(monkeypatch, "-s", scene, "-m", my_lab / "out", "--eval", *flags)
    found = read_sequences(my_lab / "out/sequences.json", load_scene(scene).train)
    assert found.saved == tuple(reversed(load_scene(scene).train))
    assert (found.method, found.cost, found.unit) == ("my_lab_orders:backwards", "my_lab_orders:by_number", "places")
    assert found.step_costs() == [3.0] * 5
    assert "places" in capsys.readouterr().out


BY_GATE = ("--ordering", "als", "--cost", "pose", "--gate", "my_lab_orders:by_number", "--thres_values", "3")


@pytest.mark.parametrize("own", [("--ordering", "my_lab_orders:backwards"), BY_GATE], ids=["ordering", "gate"])
def test_a_changed_module_makes_the_step_run_again(my_lab, monkeypatch, own):
    scene = write_blender(my_lab / "scene", views=4)
    flags = ("-s", scene, "-m", my_lab / "out", "--eval", "--skip_done", *own)
    run_script(monkeypatch, *flags)
    record = my_lab / "out/run.json"
    first = record.read_bytes()
    run_script(monkeypatch, *flags)
    assert record.read_bytes() == first
    (my_lab / "my_lab_orders.py").write_text(MODULE + "# changed\n")
    run_script(monkeypatch, *flags)
    before, after = (json.loads(text)["steps"]["order"]["inputs"] for text in (first, record.read_bytes()))
    assert {group for group in after if after[group] != before[group]} == {"plugins"}


def test_a_cost_orders_and_limits_by_name(my_lab):
    scene = load_scene(write_blender(my_lab / "scene", views=9))
    own = "my_lab_orders:by_number"
    walk = build(scene, OrderingParams(ordering="greedy", cost=own))
    assert walk.saved == tuple(scene.train)
    settings = OrderingParams("als", cost="pose", gate=own, thres_values=(3.0,), num_images_in_sequence=100)
    chain, *alone = build(scene, settings).subsequences  # 3 places: only the neighbours in the file's order
    assert chain.frames == tuple(scene.train)
    assert len(chain.saved) == 7  # not its ends
    assert [len(s.frames) for s in alone] == [3, 3]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ordering": "no_such_lab:x"}, "--ordering no_such_lab:x: cannot be imported"),
        ({"ordering": "my_lab_orders:x"}, "cannot be imported .*PYTHONPATH"),
        ({"ordering": "my_lab_slips:x"}, "--ordering my_lab_slips:x: .*my_lab_slips.py, line 2: "),
        ({"cost": "my_lab_orders:number"}, "--cost my_lab_orders:number: a callable is expected, not int"),
        ({"cost": "my_lab_orders:too_few"}, r"--cost .*:too_few: returned shape \[2, 2\] for 4 views; \[4, 4\]"),
        ({"cost": "my_lab_orders:words"}, "--cost my_lab_orders:words: returned list; 4 x 4 numbers are expected"),
        ({"cost": "my_lab_orders:undefined"}, "returned NaN; write \\+inf"),
        ({"ordering": "my_lab_orders:twice"}, "call 1: frames are different indices below 4"),
        ({"ordering": "my_lab_orders:beyond"}, "call 1: frames are different indices below 4"),
        ({"ordering": "my_lab_orders:incomplete"}, "3 of 4 views are saved by no subsequence"),
        ({"ordering": "my_lab_orders:evens_first", "gate": "pose"}, "a list of ordering.paths.Call is expected"),
    ],
)
def test_what_cannot_be_used_is_refused_in_one_line(my_lab, settings, message):
    scene = load_scene(write_blender(my_lab / "scene", views=4))
    with pytest.raises(UserError, match=message):
        build(scene, OrderingParams(**settings))


def test_exit_code_of_an_unknown_module_is_2(my_lab, monkeypatch, capsys):
    scene = write_blender(my_lab / "scene", views=4)
    monkeypatch.setattr(
        "sys.argv", ["align_sequence.py", "-s", str(scene), "-m", str(my_lab / "out"), "--cost", "no:x", "--quiet"]
    )
    with pytest.raises(SystemExit) as stop:
        errors.run(align_sequence.main)
    assert stop.value.code == 2
    shown = capsys.readouterr().err
    assert shown.startswith("error: --cost no:x: cannot be imported")
    assert shown.count("\n") == 1
