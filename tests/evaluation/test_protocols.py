"""Protocols: round trip, and which differences forbid a comparison."""

import json
from dataclasses import replace

import pytest

from evaluation.protocols import FIELDS, Protocol, first_difference, from_json, require_equal, view_set_hash
from utils.errors import UserError

BASE = Protocol(
    scene="lego",
    views=2,
    view_set="abc",
    resolution="800x800",
    background="white",
    scale=4.0,
    truth="t1",
    clipiqa="five pairs",
    dists="own size",
    niqe="fitted",
)
OTHER = {
    str: lambda v: f"{v} not",
    int: lambda v: v + 1,
    float: lambda v: v + 1,
    bool: lambda v: not v,
}


def test_round_trip_through_json():
    assert from_json(json.loads(json.dumps(BASE.to_json())), "x") == BASE


@pytest.mark.parametrize("field", FIELDS)
def test_each_field_alone_forbids_mixing(field):
    value = getattr(BASE, field)
    changed = replace(BASE, **{field: OTHER[type(value)](value)})
    if field == "scene":
        changed = replace(changed, truth="t2")
    assert first_difference(BASE, changed) == field


def test_a_shown_column_may_differ():
    black = replace(BASE, background="black", truth="t2")
    assert first_difference(BASE, black) == "background"
    assert first_difference(BASE, black, ["background"]) is None


def test_scenes_as_a_column_bring_their_own_views():
    ship = replace(BASE, scene="ship", view_set="def", views=3, resolution="4x4", truth="t2")
    assert first_difference(BASE, ship, ["scene"]) is None
    assert first_difference(BASE, replace(ship, rasterizer="gsplat"), ["scene"]) == "rasterizer"


def test_same_scene_with_other_views_is_refused_though_the_scene_is_shown():
    assert first_difference(BASE, replace(BASE, view_set="def"), ["scene"]) == "view_set"


def test_one_truth_makes_two_folders_one_scene():
    assert first_difference(BASE, replace(BASE, scene="lego_hr")) is None


def test_the_bound_has_no_lr_kernel():
    bound = replace(BASE, scale=1.0, lr_kernel="none", lr_rounding="none")
    assert first_difference(replace(BASE, lr_kernel="bicubic"), bound) is None
    assert first_difference(BASE, replace(BASE, lr_kernel="area")) == "lr_kernel"


def test_refusal_names_field_values_and_the_column():
    with pytest.raises(UserError, match=r"'background': 'white' in a, 'black' in b; add background to --columns"):
        require_equal([("a", BASE), ("b", replace(BASE, background="black"))])


@pytest.mark.parametrize(
    "bad",
    [[], {"colour": 1}, {"views": "two"}, {"scale": "4"}, {"antialiasing": 1}, {"dilation": "0.3"}],
    ids=["list", "name", "int", "float", "bool", "dilation"],
)
def test_malformed_protocols_are_refused(bad):
    with pytest.raises(UserError, match="protocol"):
        from_json(bad, "run.json")


def test_view_set_depends_on_names_and_order():
    assert len({view_set_hash(v) for v in (["a", "b"], ["b", "a"], ["ab"], ["a"])}) == 4
