"""From scene and settings to sequences.json: what "auto" means, what is refused, and the script."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import align_sequence
from arguments.flags import parse_groups
from arguments.ordering import COSTS, ORDERINGS, OrderingParams
from ordering import Plan, build, decide, describe
from scene import load_scene
from scene.sequences import read_sequences
from tests.scene_factory import write_blender, write_colmap
from utils import errors
from utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]


# --- what the settings mean ---


@pytest.mark.parametrize(
    ("settings", "kind", "compat", "expected"),
    [
        ({}, "blender", "", Plan("tour", "pose", "", (), 0)),
        ({"ordering": "greedy"}, "blender", "", Plan("greedy", "orb", "", (), 0)),
        ({"ordering": "greedy"}, "colmap", "", Plan("greedy", "pose", "", (), 0)),
        ({"als": True}, "blender", "", Plan("als", "orb", "pose", (15.0, 30.0, 45.0), 100)),
        ({"als": True}, "colmap", "", Plan("als", "pose", "orb", (30.0, 50.0), 8)),
        ({"als": True, "thres_values": (45.0,)}, "blender", "", Plan("als", "orb", "pose", (45.0,), 100)),
        (
            {"ordering": "als", "cost": "covisibility"},
            "colmap",
            "",
            Plan("als", "covisibility", "pose", (15.0, 30.0, 45.0), 8),
        ),
        ({"als": True, "gate": "pose"}, "colmap", "", Plan("als", "pose", "pose", (15.0, 30.0, 45.0), 8)),
        ({"als": True, "cost": "orb", "gate": "orb"}, "blender", "", Plan("als", "orb", "orb", (30.0, 50.0), 100)),
        (
            {"als": True, "cost": "pose", "gate": "covisibility", "thres_values": (0.8,)},
            "colmap",
            "",
            Plan("als", "pose", "covisibility", (0.8,), 8),
        ),
        ({"ordering": "tour", "gate": "orb"}, "colmap", "", Plan("tour", "pose", "", (), 0)),
        ({"ordering": "a.b:c", "gate": "pose"}, "colmap", "", Plan("a.b:c", "pose", "pose", (15.0, 30.0, 45.0), 0)),
        # blender.yml and mip360.yml of the release
        (
            {"similarity": "feature", "thres_values": (45.0,), "num_images_in_sequence": 100},
            "blender",
            "sequence_matters",
            Plan("greedy", "orb", "", (45.0,), 100),
        ),
        (
            {"als": True, "similarity": "pose", "thres_values": (30.0, 50.0), "num_images_in_sequence": 8},
            "colmap",
            "sequence_matters",
            Plan("als", "pose", "orb", (30.0, 50.0), 8),
        ),
        ({}, "colmap", "sequence_matters", Plan("greedy", "pose", "", (), 8)),
    ],
)
def test_auto_is_decided_as_documented(settings, kind, compat, expected):
    assert decide(OrderingParams(**settings), kind, compat) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"als": True, "ordering": "tour"}, "--als contradicts"),
        ({"similarity": "pose", "cost": "orb"}, "--similarity and --cost"),
        ({"thres_values": (15.0, -1.0)}, "positive"),
        ({"num_images_in_sequence": -1}, "0 or more"),
        ({"ordering": "toor"}, "--ordering toor: unknown; did you mean tour"),
        ({"cost": "x"}, "--cost x: unknown; there are auto, pose, distance, orb, covisibility, or MODULE:NAME"),
        ({"gate": ":x"}, "--gate :x: unknown"),
    ],
)
def test_contradictions_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        OrderingParams(**settings)


@pytest.mark.parametrize("settings", [{"ordering": "tour"}, {"cost": "distance"}])
def test_compat_has_only_what_the_release_has(settings):
    with pytest.raises(UserError, match="knows the orderings greedy and als"):
        decide(OrderingParams(**settings), "blender", "sequence_matters")


@pytest.mark.parametrize(
    ("settings", "compat", "message"),
    [
        ({"als": True, "gate": "covisibility"}, "", "--gate covisibility: say with --thres_values"),
        ({"als": True, "gate": "orb"}, "sequence_matters", "ordered by orb, the release limits pose, not orb"),
    ],
)
def test_gates_without_meaning_are_refused(settings, compat, message):
    with pytest.raises(UserError, match=message):
        decide(OrderingParams(**settings), "blender", compat)


def test_flags_of_the_papers_yaml_are_parsed():
    (settings,) = parse_groups(
        "x", "", [OrderingParams], ["--als", "--similarity", "pose", "--thres_values", "30", "50"]
    )
    assert settings == OrderingParams(als=True, similarity="pose", thres_values=(30.0, 50.0))


# --- building ---


@pytest.mark.parametrize("ordering", ORDERINGS)
def test_every_ordering_saves_every_training_view_once(tmp_path, ordering):
    scene = load_scene(write_blender(tmp_path, views=9, size=96))
    sequences = build(scene, OrderingParams(ordering=ordering, cost="pose", thres_values=(3.0,)))
    assert sorted(sequences.saved) == sorted(scene.train)
    assert (sequences.method, sequences.cost, sequences.unit) == (ordering, "pose", "deg")
    for s in sequences.subsequences:
        assert len(s.costs) == len(s.angles_deg) == len(s.frames) - 1
        np.testing.assert_allclose(s.costs, s.angles_deg)  # the cost is the angle here


@pytest.mark.parametrize("cost", COSTS)
def test_every_cost_orders_a_colmap_scene(tmp_path, cost):
    scene = load_scene(write_colmap(tmp_path, size=(96, 64)))
    sequences = build(scene, OrderingParams(cost=cost))
    assert sorted(sequences.saved) == sorted(scene.train)


def test_neighbours_on_a_ring_follow_each_other(tmp_path):
    """The test scene's cameras stand on a ring in file order: a tour finds it whatever the file order is."""
    scene = load_scene(write_blender(tmp_path, views=12))
    scene.train = [scene.train[i] for i in np.random.default_rng(0).permutation(12)]
    numbers = [int(name.split("_")[1]) for name in build(scene, OrderingParams()).saved]
    assert set(np.diff(numbers) % 12) <= {1, 11}


def test_unmeasured_steps_are_null_in_the_file(tmp_path):
    """A view without features costs +inf, which JSON has no word for."""
    scene = load_scene(write_blender(tmp_path, views=4, size=32))  # too small for ORB: its border is 31 px
    sequences = build(scene, OrderingParams(ordering="greedy", cost="orb"))
    assert sequences.subsequences[0].costs == (None, None, None)
    assert all(angle is not None for angle in sequences.subsequences[0].angles_deg)


def test_release_on_a_colmap_scene_orders_test_views_too(tmp_path):
    root = write_colmap(tmp_path, views=9, size=(96, 64))
    data = bytearray((root / "sparse/0/images.bin").read_bytes())
    scene = load_scene(root)
    with pytest.raises(UserError, match="image_id 1"):  # the factory's ids have gaps: the release stops
        build(scene, OrderingParams(), compat="sequence_matters")
    number_from_one(data)
    (root / "sparse/0/images.bin").write_bytes(bytes(data))
    sequences = build(load_scene(root), OrderingParams(als=True), compat="sequence_matters")
    assert sorted(sequences.saved) == sorted([*scene.train, *scene.test])


def number_from_one(data):
    """Image ids 1 .. N in place of the factory's 3, 6, 9, ..."""
    at = 8
    for image_id in range(1, int.from_bytes(data[:8], "little") + 1):
        data[at : at + 4] = image_id.to_bytes(4, "little")
        at = data.index(b"\0", at + 64) + 1
        at += 8 + 24 * int.from_bytes(data[at : at + 8], "little")


def test_dry_run_says_what_would_be_done(tmp_path):
    scene = load_scene(write_blender(tmp_path))
    text = describe(scene, OrderingParams(als=True))
    assert "order 8 views by als on orb, limits 15 30 45 of pose, at most 100 frames a call" in text


def test_who_waits_for_orb_ranks_is_told_what_needs_none(tmp_path, monkeypatch, capsys):
    scene = load_scene(write_colmap(tmp_path, size=(96, 64)))
    settings = OrderingParams(ordering="als", cost="pose")
    build(scene, settings)
    assert "--gate pose" not in capsys.readouterr().err
    monkeypatch.setattr("ordering.ORB_PAIR_S", 10.0)
    build(scene, settings)
    assert "with --gate pose it needs no images" in capsys.readouterr().err
    build(scene, OrderingParams(ordering="als", cost="pose", gate="pose"))
    assert "ORB" not in capsys.readouterr().err


# --- the script ---


def run_script(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["align_sequence.py", *map(str, arguments), "--quiet"])
    align_sequence.main()


def test_script_writes_a_schedule_and_says_what_is_next(tmp_path, monkeypatch, capsys):
    write_blender(tmp_path / "scene", views=6)
    run_script(monkeypatch, "-s", tmp_path / "scene", "-m", tmp_path / "out", "--eval")
    shown = capsys.readouterr().out
    scene = load_scene(tmp_path / "scene")
    sequences = read_sequences(tmp_path / "out/sequences.json", scene.train)
    assert "6 views in 1 call, 8 frames in all; step mean" in shown
    assert f"next: python vsr_upsample.py -s {tmp_path}/scene -m {tmp_path}/out" in shown
    record = json.loads((tmp_path / "out/run.json").read_text())["steps"]["order"]
    assert record["settings"]["ordering"] == "auto"
    assert record["notes"] == pytest.approx(sequences.summary(), abs=1e-3)  # the file rounds steps to 3 digits
    assert list(record["outputs"]) == ["sequences.json"]


def test_script_skips_what_is_up_to_date_and_keeps_an_edited_schedule(tmp_path, monkeypatch, capsys):
    write_blender(tmp_path / "scene", views=4)
    arguments = ("-s", tmp_path / "scene", "-m", tmp_path / "out", "--eval", "--skip_done")
    run_script(monkeypatch, *arguments)
    first = (tmp_path / "out/sequences.json").stat().st_mtime_ns
    run_script(monkeypatch, *arguments)
    assert (tmp_path / "out/sequences.json").stat().st_mtime_ns == first


def test_script_dry_run_writes_nothing(tmp_path, monkeypatch, capsys):
    write_blender(tmp_path / "scene", views=4)
    run_script(monkeypatch, "-s", tmp_path / "scene", "-m", tmp_path / "out", "--dry_run")
    assert "order" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "-s SCENE"),
        (["-s", "nowhere", "-m", "out"], "nowhere"),
        (["-s", "a", "-m", "b", "--orderings", "tour"], "did you mean --ordering"),
        (["-s", "a", "-m", "b", "--ordering", "tsp"], "--ordering tsp: unknown; there are auto, file"),
    ],
)
def test_script_refuses_in_one_line_with_exit_code_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["align_sequence.py", *arguments])
    with pytest.raises(SystemExit) as stop:
        errors.run(align_sequence.main)
    shown = capsys.readouterr().err
    assert stop.value.code == 2
    assert shown.count("\n") == 1
    assert message in shown


def test_help_is_there_without_heavy_imports():
    code = "import sys, align_sequence; assert not {'torch', 'cv2', 'numpy'} & set(sys.modules), 'heavy import'"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
