"""The studies that are here can be planned, and compare what their names say under every configuration."""

import pytest

from evaluation.study.planner import make_plan
from evaluation.study.spec import read_study, with_overrides
from utils.provenance import PROJECT

STUDIES = sorted((PROJECT / "studies").glob("*.toml"))
CONFIGS = sorted((PROJECT / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
def test_studies_that_are_here_can_be_planned(path, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_DATA", "/data")
    monkeypatch.setenv("SEQSPLAT_PRIORS", "/priors")
    if "[variants" in path.read_text():
        assert make_plan(read_study(path)).runs
        assert make_plan(read_study(path), source="given").runs


@pytest.mark.parametrize("path", STUDIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_no_configuration_makes_two_variants_the_same(path, config, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_DATA", "/data")
    monkeypatch.setenv("SEQSPLAT_PRIORS", "/priors")
    if "[variants" not in path.read_text():
        return
    flags = ["--config", str(config), "--max_gaussians", "1000"]
    p = make_plan(with_overrides(read_study(path), flags, "x"), source="given", hr="given_hr")
    names: dict[str, set[str]] = {}
    for run in p.runs:
        names.setdefault(run.model or run.frames, set()).add(run.variant)
    assert [found for found in names.values() if len(found) > 1] == []


def test_lego_has_no_bound(monkeypatch):
    monkeypatch.setenv("SEQSPLAT_DATA", "/data")
    monkeypatch.setenv("SEQSPLAT_PRIORS", "/priors")  # 9 of its 53 training views have a truth
    peers = make_plan(read_study(PROJECT / "studies" / "peers.toml"))
    assert {r.scene for r in peers.runs if r.variant == "bound"} == {"demo", "bonsai"}
