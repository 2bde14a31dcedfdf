"""Density control against the released algorithm written as loops: clone, then split, then prune, list by list."""

import math

import pytest
import torch

from arguments.training import OptimizationParams
from gaussian_renderer.splats import rotations
from scene.gaussians import FIELDS
from tests.training_factory import random_state
from training.densify import densification, opacity_reset
from training.state import TrainState, apply

EXTENT = 4.0


def splats_of(state: TrainState) -> list[dict]:
    """One dictionary a Gaussian: parameters, moments, statistics."""
    named = state.tensors()
    return [{name: value[i].clone() for name, value in named.items()} for i in range(state.gaussians.num)]


def without_memory(splat: dict) -> dict:
    zeros = {name: torch.zeros_like(value) for name, value in splat.items() if name.startswith("exp_avg")}
    return {name: value.clone() for name, value in splat.items()} | zeros


def reference(state: TrainState, settings: OptimizationParams, prune_large: bool, noise: torch.Generator) -> list[dict]:
    """Densify and prune as the released code does, one Gaussian after the other."""
    splats = splats_of(state)
    n = len(splats)

    def gradient(s):
        return float(s["stat.grad_norm_sum"] / s["stat.view_count"]) if s["stat.view_count"] > 0 else 0.0

    def size(s):
        return float(s["param.log_scales"].exp().max())

    hot = [gradient(s) >= settings.densify_grad_threshold for s in splats]
    large = [size(s) > settings.percent_dense * EXTENT for s in splats]
    splats += [without_memory(s) for s, h, b in zip(splats, hot, large, strict=True) if h and not b]
    split = [i for i in range(n) if hot[i] and large[i]]
    draws = torch.randn(2 * len(split), 3, generator=noise)
    children = []
    for k in range(2 * len(split)):
        parent = splats[split[k % len(split)]]
        child = without_memory(parent)
        turn = rotations(parent["param.quats"][None].double())[0]
        child["param.means"] = (
            parent["param.means"] + (turn @ (draws[k] * parent["param.log_scales"].exp()).double()).float()
        )
        child["param.log_scales"] = (parent["param.log_scales"].exp() / 1.6).log()
        children.append(child)
    radii = {id(s): float(s["stat.max_radius"]) for s in splats[:n]}
    splats = [s for i, s in enumerate(splats) if i not in split] + children

    def stays(s):
        if float(torch.sigmoid(s["param.logit_opacities"])) < settings.min_opacity:
            return False
        if not prune_large:
            return True
        wide = settings.prune_screen_px > 0 and radii.get(id(s), 0.0) > settings.prune_screen_px
        return size(s) <= 0.1 * EXTENT and not wide

    return [s for s in splats if stays(s)]


@pytest.mark.parametrize("prune_large", [False, True])
@pytest.mark.parametrize("screen_px", [0.0, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_densification_is_the_released_algorithm(seed, prune_large, screen_px):
    settings = OptimizationParams(
        densify_grad_threshold=0.4, percent_dense=0.08, min_opacity=0.1, prune_screen_px=screen_px
    )
    state = random_state(60, seed)
    state.gaussians.log_scales -= 1.0  # about half of them small
    expected = reference(state, settings, prune_large, torch.Generator().manual_seed(9))
    apply(state, densification(state, settings, EXTENT, prune_large, torch.Generator().manual_seed(9)))
    got = splats_of(state)
    assert len(got) == len(expected) != 60
    for a, b in zip(got, expected, strict=True):
        for name in a:
            if name.startswith("stat."):
                assert a[name] == 0, "statistics start anew"
            else:  # children are computed in another order of operations
                torch.testing.assert_close(a[name], b[name], rtol=1e-5, atol=1e-6, msg=name)


def test_nothing_hot_changes_nothing_but_the_statistics():
    state = random_state(20)
    state.gaussians.logit_opacities[:] = 1.0
    before = state.tensors()
    apply(state, densification(state, OptimizationParams(densify_grad_threshold=1e9), EXTENT, False, torch.Generator()))
    after = state.tensors()
    assert all(torch.equal(after[n], before[n]) for n in before if not n.startswith("stat."))


def test_the_cap_keeps_those_with_the_largest_gradient():
    state = random_state(50)
    state.gaussians.logit_opacities[:] = 1.0
    state.gaussians.log_scales[:] = -9.0  # all are cloned
    state.view_count[:] = 1.0
    best = torch.sort(state.grad_norm_sum, descending=True).indices[:5]
    means = state.gaussians.means[best.sort().values].clone()
    settings = OptimizationParams(densify_grad_threshold=0.0, max_gaussians=55)
    apply(state, densification(state, settings, EXTENT, False, torch.Generator()))
    assert torch.equal(state.gaussians.means[50:], means)


@pytest.mark.parametrize("small", [True, False])
def test_dropout_passes_over_its_share_of_the_candidates_and_touches_nothing_else(small):
    state = random_state(4000)
    state.gaussians.logit_opacities[:] = 1.0
    state.gaussians.log_scales[:] = -9.0 if small else 0.0  # all are cloned, or all split
    state.view_count[:] = 1.0
    settings = OptimizationParams(densify_grad_threshold=0.7, densify_dropout=0.7)
    hot = state.grad_norm_sum >= 0.7
    before, n = state.tensors(), int(hot.sum())
    before = {name: value.clone() for name, value in before.items()}
    change = densification(state, settings, EXTENT, False, torch.Generator().manual_seed(3))
    apply(state, change)
    chosen = state.gaussians.num - 4000  # n + k: each clone or split adds one
    assert 500 < n < 3500
    assert abs(chosen - 0.3 * n) < 4 * math.sqrt(n * 0.3 * 0.7)
    kept = 4000 if small else 4000 - chosen
    rows = change.source[:kept]
    assert hot[torch.tensor(sorted({*range(4000)} - {*rows.tolist()}), dtype=torch.long)].all()  # split ones were hot
    for name, value in state.tensors().items():
        if not name.startswith("stat."):
            assert torch.equal(value[:kept], before[name][rows]), name
    assert hot[change.source[kept:]].all()


def test_no_dropout_is_what_it_was():
    states, draws = [random_state(300), random_state(300)], [torch.Generator().manual_seed(1) for _ in range(2)]
    for state, draw, more in zip(states, draws, ({}, {"densify_dropout": 0.0}), strict=True):
        apply(state, densification(state, OptimizationParams(densify_grad_threshold=0.5, **more), EXTENT, True, draw))
    assert all(torch.equal(value, states[1].tensors()[name]) for name, value in states[0].tensors().items())
    assert torch.equal(draws[0].get_state(), draws[1].get_state())
    nothing = OptimizationParams(densify_grad_threshold=0.5, densify_dropout=1.0)
    count = states[0].gaussians.num
    apply(states[0], densification(states[0], nothing, EXTENT, False, draws[0]))
    assert states[0].gaussians.num <= count


def test_opacity_reset_lowers_and_forgets():
    state = random_state(30)
    before = state.gaussians.opacities.clone()
    kept = {n: state.exp_avg[n].clone() for n in FIELDS}
    apply(state, opacity_reset(state))
    torch.testing.assert_close(state.gaussians.opacities, before.clamp(max=0.01))
    assert not state.exp_avg["logit_opacities"].any()
    assert not state.exp_avg_sq["logit_opacities"].any()
    assert all(torch.equal(state.exp_avg[n], kept[n]) for n in FIELDS if n != "logit_opacities")


def test_decisions_do_not_depend_on_the_number_of_threads():
    results = []
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 7):
            torch.set_num_threads(count)
            state = random_state(100_000, sh_degree=0)
            settings = OptimizationParams(densify_grad_threshold=0.5, percent_dense=0.2)
            apply(state, densification(state, settings, EXTENT, True, torch.Generator().manual_seed(1)))
            results.append(state.tensors())
    finally:
        torch.set_num_threads(threads)
    for other in results[1:]:
        assert all(torch.equal(results[0][name], other[name]) for name in other)
    assert math.isfinite(float(results[0]["param.means"].sum()))
