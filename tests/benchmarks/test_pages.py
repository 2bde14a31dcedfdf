"""Numbers in pages come from the committed files, never from a hand."""

import pytest

from benchmarks import pages
from benchmarks.goals import GOALS
from utils.errors import UserError

STUDIES = ("study_", "carry_over", "no_gain")  # read all committed studies, which the last test does once
NUMBERS = [name for name in pages.BLOCKS if not name.startswith(STUDIES)]
NATIVE = ("preprocess", "sort_bin", "forward", "loss", "blend_backward", "geometry", "whole")


def reports():
    machine = {
        **{"cpu": "A CPU", "cores": 2, "isa": "avx512", "load": [0.1, 0.2, 0.3]},
        **{"commit": "0123456789abcdef", "dirty": False, "versions": {"torch": "2.13.0"}},
    }
    head = {"machine": machine, "settings": {"threads": [1, 2]}}
    goals = [{"goal": name, "ratio": 1.1, "detail": "a 1.10, b 1.00"} for name in GOALS]
    case = {
        **{"kind": "random", "n": 1000, "size": 64, "facts": {"ours": {"instances": 30, "drawn": 12}}},
        "ms": {"ours": {"min": dict.fromkeys(NATIVE, 2.0)}, "ours, 1 thr.": {"min": dict.fromkeys(NATIVE, 3.0)}},
    }
    row = {"kind": "random", "n": 1000, "size": 64, "ms": {"1": 3.0, "2": 2.0}}
    row |= {"us_per_1000": {"1": 3000.0, "2": 2000.0}, "speed_up": {"1": 1.0, "2": 1.5}}
    stages = {"command": "python -m benchmarks.rasterizer --n 1000", "cases": [case], "scaling": [row]}
    step = {"min_ms": 90.0, "median_ms": 100.0, "kernels": 0.95}
    profile = {"kind": "random", "n": 1000, "size": 64, "threads": 2, "two_term": True, "step": step}
    profile |= {"torch": {"aten::copy_": 0.01}, "python": {"loop.py:iterate": 0.02}}
    profile |= {"now_and_then": {"densification": {"ms": 5.0, "every": 100, "share": 0.005}}}
    alignment = {"depths": {}, "flow": [], "frames": [], "pair_ms": 4.0}
    frame = {"pipeline": "SR3", "width": 6, "height": 4, "median_ms": 2.0, "min_ms": 1.5}
    return {
        "goals": {**head, "command": "python -m benchmarks.rasterizer --goals", "goals": goals},
        "stages": {**head, **stages},
        "training_step": {**head, "command": "python -m benchmarks.training_step --two_term", "cases": [profile]},
        "alignment": {**head, "command": "python -m benchmarks.alignment", **alignment},
        "priors": {**head, "command": "python -m benchmarks.priors", "rows": [frame]},
        "gpu": {},
    }


def test_blocks_are_renewed_and_the_rest_is_left():
    page = "before\n<!-- numbers: goals -->\nold\n<!-- end of numbers -->\nbetween\n"
    page += "".join(f"<!-- numbers: {name} -->\n<!-- end of numbers -->\n" for name in NUMBERS) + "after\n"
    text = pages.filled(page, reports())
    assert text.startswith("before\n<!-- numbers: goals -->\nA CPU, 2 cores, avx512,")
    assert text.endswith("<!-- end of numbers -->\nafter\n")
    assert "old" not in text
    assert "<!-- measured: python -m benchmarks.rasterizer --goals -->\n| measured | goal |" in text
    assert "| random 1k/64 | 2.5 | 3.0 / 2.0 |" in text
    assert "| random 1k/64 | 3.00 | 2.00 | 3000.0 | 2000.0 | 1.50x |" in text
    assert "![Whole training steps: random 1000/64 2.0 ms](" in text
    assert "| random 1k/64 | 2 | 2 | 90.0 / 100.0 | 95.0 % | `aten::copy_` 1.00 % |" in text
    assert "| SR3 | 6x4 | 2.0 | 1.5 |" in text
    assert "is that of `loop.py:iterate`: 2.00 % of an iteration." in text
    assert pages.filled(text, reports()) == text


def test_an_unknown_block_is_refused():
    with pytest.raises(UserError, match="numbers: other: one of goals, stages"):
        pages.filled("<!-- numbers: other -->\n<!-- end of numbers -->\n", reports())


def test_every_page_has_a_block():
    for page in pages.PAGES:
        assert pages.BLOCK.search((pages.PROJECT / page).read_text()), page


def test_pages_say_what_the_committed_files_say():
    missing = [name for name in pages.FILES if not (pages.RESULTS / f"{name}.json").is_file()]
    assert not missing, f"{pages.RESULTS}: no measurements of {missing}; benchmarks/pages.py says how they are made"
    for path, text in pages.outputs(pages.RESULTS).items():
        assert path.read_text() == text, f"{path}: run python -m benchmarks.pages"
    assert pages.CHART.stat().st_size < 100_000
    assert all(path.stat().st_size < 100_000 for path in pages.RESULTS.rglob("*.json"))
