"""Tables of levers: pairs of variants from the committed results."""

from dataclasses import replace

import pytest

from benchmarks.levers import OF_FRAMES, WITHOUT_GAIN, carry_over, no_gain
from evaluation.study.results import read_results
from utils.errors import UserError
from utils.provenance import PROJECT

STUDIES = PROJECT / "studies"


def test_a_lever_s_numbers_are_those_of_its_views():
    lever = next(lever for lever in OF_FRAMES if (lever.variant, lever.study) == ("single", "finalists"))
    results = read_results(STUDIES / "results" / "finalists.json")

    def mean(variant, kind):
        tables = [getattr(r, kind)["black"] for r in results if (r.scene, r.variant) == ("demo", variant)]
        values = [[view["PSNR"] for view in views.values()] for views in tables]
        return sum(map(sum, values)) / sum(map(len, values))

    frames, model = (mean("single", kind) - mean("bicubic", kind) for kind in ("frames", "views"))
    row = carry_over(STUDIES, [lever]).splitlines()[-1]
    assert f"| {frames:+.2f} -> {model:+.2f} ({model / frames:.2f}) |" in row


def test_pairs_that_are_trained_differently_are_refused():
    with pytest.raises(UserError, match="seqsplat: seqsplat and sm-als differ in more than their frames"):
        carry_over(STUDIES, [replace(OF_FRAMES[0], study="seqsplat", variant="seqsplat", reference="sm-als")])


def test_what_did_not_help_is_compared_with_its_own_reference():
    lever = next(lever for lever in WITHOUT_GAIN if lever.variant == "exposure")
    results = read_results(STUDIES / "results" / "backend.json")

    def mean(variant, metric):
        views = next(r.views["black"] for r in results if (r.scene, r.variant) == ("demo", variant)).values()
        return sum(view[metric] for view in views) / len(views)

    psnr = mean("exposure", "PSNR") - mean("seqsplat", "PSNR")
    lpips = 100 * (mean("exposure", "LPIPS_alex") / mean("seqsplat", "LPIPS_alex") - 1)
    assert f"| {psnr:+.2f}*, {lpips:+.0f} % |" in no_gain(STUDIES, [lever])
    with pytest.raises(UserError, match="backend: no results of nothing"):
        no_gain(STUDIES, [replace(lever, variant="nothing")])
