"""sequences.json: written, read, edited by hand, and refused with a message that says what to mend."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scene.sequences import Sequences, Subsequence, check_sequences, read_sequences, write_sequences
from utils.errors import UserError

NAMES = tuple(f"train/r_{i}" for i in range(6))
SEQUENCES = Sequences(
    (
        Subsequence(NAMES[:4], (0, 1, 3), True, (1.5, None, 2.25), (10.0, 20.0, 30.0)),
        Subsequence((NAMES[2], NAMES[4], NAMES[5]), (0, 1, 2)),
    ),
    "als",
    {"seed": 1},
    "orb",
    "bits",
)


@pytest.fixture
def file(tmp_path):
    write_sequences(tmp_path / "sequences.json", SEQUENCES)
    return tmp_path / "sequences.json"


def test_round_trip(file):
    assert read_sequences(file, NAMES) == SEQUENCES


@st.composite
def schedules(draw):
    names = draw(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=8, unique=True))
    saved = draw(st.permutations(names))
    cut = sorted(draw(st.lists(st.integers(1, len(saved)), max_size=3)))
    parts = [saved[a:b] for a, b in zip([0, *cut], [*cut, len(saved)], strict=True) if b > a]
    calls = []
    for part in parts:
        extra = draw(st.lists(st.sampled_from(names), max_size=3, unique=True))
        calls.append((tuple(dict.fromkeys([*part, *extra])), tuple(range(len(part))), draw(st.booleans())))
    return calls, names


@given(schedules())
@settings(max_examples=40, deadline=None)
def test_round_trip_of_any_schedule(tmp_path_factory, made):
    calls, names = made
    schedule = Sequences(tuple(Subsequence(*call) for call in calls))
    path = tmp_path_factory.mktemp("any") / "sequences.json"
    write_sequences(path, schedule)
    assert read_sequences(path, names) == schedule


def test_one_frame_a_line_so_that_moving_a_line_moves_a_frame(file):
    lines = file.read_text().splitlines()
    first, second = (next(i for i, line in enumerate(lines) if f'"{name}"' in line) for name in NAMES[1:3])
    lines[first], lines[second] = lines[second], lines[first]
    file.write_text("\n".join(lines))
    edited = read_sequences(file, NAMES).subsequences[0]
    assert edited.frames == (NAMES[0], NAMES[2], NAMES[1], NAMES[3])
    assert edited.saved == (NAMES[0], NAMES[1], NAMES[3])


def test_a_file_by_hand_needs_only_names_and_save(tmp_path):
    frames = [{"name": name, "save": True} for name in NAMES]
    document = {"format": "seqsplat-sequences", "version": 1, "sequences": [{"frames": frames}]}
    (tmp_path / "s.json").write_text(json.dumps(document))
    read = read_sequences(tmp_path / "s.json", NAMES)
    assert read.saved == NAMES
    assert read.method == "by hand"
    assert not read.subsequences[0].padded


def test_other_known_views_may_take_part(file):
    assert read_sequences(file, NAMES[1:], known=NAMES[:1]).saved[0] == NAMES[0]


def edited(file, change):
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
    return file


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda d: d["sequences"][0]["frames"][0].update(name="train/r_9x"),
            "no view 'train/r_9x'; did you mean 'train/r_",
        ),
        (lambda d: d["sequences"][0]["frames"][0].update(save=False), "1 of 6 views are saved by no .* 'train/r_0'"),
        (lambda d: d["sequences"][0]["frames"][2].update(save=True), "'train/r_2' is saved by subsequences 1 and 2"),
        (lambda d: d["sequences"][0]["frames"][1].update(name="train/r_0"), "'train/r_0' is listed twice"),
        (lambda d: d["sequences"][0]["frames"][1].update(keep=True), "unknown key 'keep'"),
        (lambda d: d["sequences"][0]["frames"][1].update(save=1), "true or false"),
        (lambda d: d["sequences"][0]["frames"][1].update(cost="x"), "cost = 'x'"),
        (lambda d: d["sequences"][0]["frames"][1].update(cost=10**400), "cost is beyond"),
        (lambda d: d["sequences"][0].update(frames=[]), "non-empty list"),
        (lambda d: d["sequences"][0].update(padded=1), "only"),
        (lambda d: d.update(version=2), "version 2"),
        (lambda d: d.update(format="x"), "seqsplat-sequences"),
        (lambda d: d.update(method=3), "must be texts"),
        (lambda d: d.update(sequences={}), "a list"),
    ],
)
def test_refused_with_a_message_that_says_where(file, change, message):
    with pytest.raises(UserError, match=message) as error:
        read_sequences(edited(file, change), NAMES)
    assert str(file) in str(error.value)


def test_a_schedule_of_nothing_is_refused_where_views_are_needed():
    with pytest.raises(UserError, match="saved by no subsequence"):
        check_sequences(Sequences(()), NAMES)


def test_summary_counts_what_the_network_will_see():
    summary = SEQUENCES.summary()
    assert (summary["subsequences"], summary["views"], summary["frames_upsampled"]) == (2, 6, 9)
    assert (summary["mean_step_deg"], summary["worst_step_deg"], summary["worst_step_cost"]) == (20.0, 30.0, 2.25)
    assert "6 views in 2 calls" in SEQUENCES.headline()
