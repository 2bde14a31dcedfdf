"""The table of levers pairs variants that differ in their frames alone."""

from dataclasses import replace

import pytest

from benchmarks.carry_over import LEVERS, table
from evaluation.study.results import read_results
from utils.errors import UserError
from utils.provenance import PROJECT

STUDIES = PROJECT / "studies"


def test_a_lever_s_numbers_are_those_of_its_views():
    lever = next(lever for lever in LEVERS if (lever.variant, lever.study) == ("single", "finalists"))
    results = read_results(STUDIES / "results" / "finalists.json")

    def mean(variant, kind):
        tables = [getattr(r, kind)["black"] for r in results if (r.scene, r.variant) == ("demo", variant)]
        values = [[view["PSNR"] for view in views.values()] for views in tables]
        return sum(map(sum, values)) / sum(map(len, values))

    frames, model = (mean("single", kind) - mean("bicubic", kind) for kind in ("frames", "views"))
    row = table(STUDIES, [lever]).splitlines()[-1]
    assert f"| {frames:+.2f} -> {model:+.2f} ({model / frames:.2f}) |" in row


def test_pairs_that_are_trained_differently_are_refused():
    with pytest.raises(UserError, match="seqsplat: seqsplat and sm-als differ in more than their frames"):
        table(STUDIES, [replace(LEVERS[0], study="seqsplat", variant="seqsplat", reference="sm-als")])
