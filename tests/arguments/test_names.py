"""Names of networks, orderings and costs, and the user's own code, are found wrong before anything runs."""

import sys

import pytest

import ordering.paths
from arguments.ordering import COSTS, ORDERINGS
from arguments.pipeline import plan
from arguments.upsampling import NEIGHBOUR_COSTS, PRIORS, UPSAMPLERS, UpsamplingParams
from evaluation.study import __main__ as study
from ordering import costs
from priors.samplers import SAMPLERS
from upsampling import neighbours, registry
from utils.errors import UserError

MODULE = """
class Alone:
    num_neighbours = 0
def load(settings, device):
    ...
"""
STUDY = """
[scenes.a]
source = "nowhere"
[variants.own]
upsample = {{upsampler = "{}"}}
"""


@pytest.fixture
def my_lab(tmp_path, monkeypatch):
    (tmp_path / "my_lab_names.py").write_text(MODULE)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    sys.modules.pop("my_lab_names", None)


def steps(*words: str) -> list[str]:
    return [command.step for command in plan(["-s", "scene", "-m", "out", *words])]


def test_settings_and_registries_have_the_same_names():
    assert set(UPSAMPLERS) == {*registry.NETWORKS, *SAMPLERS}
    assert set(PRIORS) == set(SAMPLERS)
    assert set(NEIGHBOUR_COSTS) <= set(neighbours.NEIGHBOUR_COSTS)  # tests may have registered one of theirs
    assert set(ORDERINGS) == set(ordering.paths.ORDERINGS)
    assert set(COSTS) == set(costs.COSTS)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upsampler", "basicvs"], "did you mean basicvsr"),
        (["--upsampler", "nowhere_x:load"], "--upsampler nowhere_x:load: cannot be imported"),
        (["--upsampler", "my_lab_names:lod"], "--upsampler my_lab_names:lod: cannot be imported"),
        (["--ordering", "nowhere_x:order"], "--ordering nowhere_x:order: cannot be imported"),
        (["--neighbour_cost", "nowhere_x:c", "--propagation", "path"], "--neighbour_cost nowhere_x:c: cannot"),
        (["--neighbour_cost", "angel", "--propagation", "path"], "did you mean angle"),
        (["--propagation", "graph", "--upsampler", "bicubic"], "bicubic makes every frame alone; leave it out"),
        (["--lambda_tex", "2"], "--lambda_tex"),
    ],
)
def test_run_finds_wrong_names_and_values_before_the_first_step(my_lab, words, message):
    with pytest.raises(UserError, match=message):
        steps(*words)
    assert "order" in steps("--steps", "order", "--ordering", "tour")


def test_a_network_of_the_users_own_says_whether_it_looks_at_other_views(my_lab):
    assert "geometry" in steps("--upsampler", "my_lab_names:load")
    assert "geometry" not in steps("--upsampler", "my_lab_names:Alone")
    assert "geometry" not in steps("--upsampler", "my_lab_names:load", "--flow", "learned")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("basicvs", "variant own, scene a, step upsample: --upsampler basicvs: unknown; did you mean basicvsr"),
        ("nowhere_x:load", "--upsampler nowhere_x:load: cannot be imported"),
    ],
)
@pytest.mark.parametrize("action", ["plan", "run"])
def test_a_study_finds_them_before_anything_runs(tmp_path, monkeypatch, action, name, message):
    (tmp_path / "s.toml").write_text(STUDY.format(name))
    monkeypatch.setattr(sys, "argv", ["study", str(tmp_path / "s.toml"), action, "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match=message):
        study.main()
    assert not (tmp_path / "out").exists()


def test_one_image_networks_take_no_graph():
    with pytest.raises(UserError, match="rlfn makes every frame alone"):
        UpsamplingParams(upsampler="rlfn", propagation="graph")
    assert UpsamplingParams(upsampler="rlfn", propagation="path")  # method sequence_matters gives it to all
