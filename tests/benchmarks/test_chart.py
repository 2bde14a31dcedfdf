"""The chart: from a fixed report, one bar a scene, numbers beside colours."""

import json
import sys
from xml.etree import ElementTree

import pytest

from benchmarks import chart
from utils.errors import UserError

SVG = "{http://www.w3.org/2000/svg}"


def report():
    def case(kind, n, factor):
        stages = {name: factor * (k + 1) for k, name in enumerate(chart.STAGES)}
        return {"kind": kind, "n": n, "size": 800, "ms": {"ours": {"min": {**stages, "whole": factor * 21.5}}}}

    return {
        "machine": {"isa": "avx512", "cpu": "A <fast> & quiet CPU"},
        "settings": {"threads": [1, 2]},
        "cases": [case("random", 100_000, 2.0), case("skewed", 50_000, 1.0)],
    }


def test_bars_are_drawn_to_scale_and_numbered():
    root = ElementTree.fromstring(chart.chart(report()))
    boxes = [r for r in root.iter(f"{SVG}rect") if r.find(f"{SVG}title") is not None]
    assert len(boxes) == 2 * len(chart.STAGES)
    widths = [float(r.attrib["width"]) for r in boxes]
    assert widths[5] == pytest.approx(6 * widths[0], rel=0.01)
    assert widths[0] == pytest.approx(2 * widths[6], rel=0.01)
    texts = [t.text for t in root.iter(f"{SVG}text")]
    assert {"43.0 ms", "21.5 ms", "random 100k/800", "skewed 50k/800", *map(str, range(1, 7))} <= set(texts)
    assert boxes[4].find(f"{SVG}title").text == "5 blend backward: 10.00 ms"
    assert "A <fast> & quiet CPU" in root.attrib["aria-label"]


def test_a_narrow_segment_goes_without_its_number():
    narrow = report()
    narrow["cases"][0]["ms"]["ours"]["min"]["preprocess"] = 0.01
    root = ElementTree.fromstring(chart.chart(narrow))
    numbers = [t.text for t in root.iter(f"{SVG}text") if t.text == "1"]
    assert len(numbers) == 2  # the other bar's, and the legend's


def test_the_command_writes_it(monkeypatch, tmp_path):
    (tmp_path / "bench.json").write_text(json.dumps(report()))
    monkeypatch.setattr(sys, "argv", ["chart", str(tmp_path / "bench.json"), str(tmp_path / "out.svg")])
    chart.main()
    assert (tmp_path / "out.svg").read_text() == chart.chart(report())


@pytest.mark.parametrize("broken", [{}, {"cases": []}, {"cases": [{"ms": {"prototype": {}}}]}])
def test_a_report_without_the_runner_is_refused(broken):
    with pytest.raises(UserError, match="no cases with the runner 'ours'"):
        chart.chart(broken)
