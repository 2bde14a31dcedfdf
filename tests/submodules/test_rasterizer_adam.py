"""Adam within the geometry pass: sparse, on added gradients, with fields that rest; statistics by themselves."""

import math
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from tests.submodules.rasterizer_scenes import FIELDS, make_case, relative
from tests.submodules.rasterizer_view import BETAS, NOTHING, RATES, View, filter_of, map_gradients


def adam_by_torch(
    six: Sequence[Tensor], gradients: Sequence[Sequence[Tensor]], rows: Sequence[Tensor] | None, eps: float
):
    """Parameters and moments in float64 after one step per entry of `gradients`; with `rows`, by SparseAdam."""
    leaves = [p.double().flatten(1).requires_grad_() for p in six]
    groups = [{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, RATES, strict=True)]
    kind = torch.optim.Adam if rows is None else torch.optim.SparseAdam
    optimizer = kind(groups, betas=BETAS, eps=eps)
    for step, grads in enumerate(gradients):
        for leaf, gradient in zip(leaves, grads, strict=True):
            dense = gradient.double().flatten(1)
            if rows is None:
                leaf.grad = dense
            else:
                index = rows[step].nonzero()[:, 0]
                leaf.grad = torch.sparse_coo_tensor(index[None], dense[index], dense.shape, check_invariants=True)
        optimizer.step()
    states = [optimizer.state[leaf] for leaf in leaves]
    return leaves, [s["exp_avg"] for s in states], [s["exp_avg_sq"] for s in states]


def assert_adam(got: Sequence[Sequence[Tensor]], wanted: Sequence[Sequence[Tensor]], start: Sequence[Tensor]) -> None:
    """Moments to float32's accuracy; parameters to that of the update, beyond their own rounding."""
    for ours, theirs, old in zip(got[0], wanted[0], start, strict=True):
        error = (ours.double().flatten(1) - theirs.detach()).norm()
        update = (theirs.detach() - old.double().flatten(1)).norm()
        assert error <= 1e-5 * update + 2.0**-23 * theirs.detach().norm()
    for ours, theirs in zip((*got[1], *got[2]), (*wanted[1], *wanted[2]), strict=True):
        assert relative(ours.flatten(1), theirs) < 1e-6


@pytest.mark.parametrize("n", [300, 16 * 7 + 5])
def test_sparse_adam_is_that_of_torch_and_leaves_the_rest_alone(n):
    """Three steps with changing visibility (runs, single Gaussians, whole groups of 16), eps as torch places it."""
    case, g = make_case(37, n=n), torch.Generator().manual_seed(1)
    six = case.six
    start, mean, square = [p.clone() for p in six], *([torch.zeros_like(p) for p in six] for _ in range(2))
    gradients, rows = [], []
    for step in range(1, 4):
        maps = map_gradients(case, step)
        visible = torch.rand(n, generator=g) < 0.5
        visible[:16], visible[16:40] = step == 1, True
        view = View(case, six)
        gradients.append(view.backward(maps)[0])
        rows.append(visible)
        before = [x.clone() for x in (*six, *mean, *square)]
        view.adam(maps, mean, square, step=step, eps=1e-8, visible=visible.to(torch.uint8))
        for now, old in zip((*six, *mean, *square), before, strict=True):
            assert torch.equal(now[~visible], old[~visible])
    assert_adam((six, mean, square), adam_by_torch(start, gradients, rows, 1e-8), start)


def test_invisible_gaussians_keep_bits_that_no_arithmetic_would():
    case = make_case(38, n=50)
    six, maps = case.six, map_gradients(case)
    mean, square = ([torch.full_like(p, math.nan) for p in six] for _ in range(2))
    visible = torch.zeros(50, dtype=torch.uint8)
    visible[3:50:4] = 1
    before = [x.clone().view(torch.int32) for x in (*six, *mean, *square)]
    View(case, six).adam(maps, mean, square, visible=visible)
    for now, old in zip((*six, *mean, *square), before, strict=True):
        assert torch.equal(now.view(torch.int32)[visible == 0], old[visible == 0])
    assert all(p[visible == 1].isnan().all() for p in six)


def test_adam_with_added_gradients_is_that_of_the_sum():
    case, other = make_case(39), make_case(39, width=90)
    six, maps = case.six, map_gradients(case)
    added = View(other, six).backward(map_gradients(other, 1))[0]
    view = View(case, six)
    total = [a + b for a, b in zip(view.backward(maps)[0], added, strict=True)]
    start, mean, square = [p.clone() for p in six], *([torch.zeros_like(p) for p in six] for _ in range(2))
    view.adam(maps, mean, square, added=added)
    assert_adam((six, mean, square), adam_by_torch(start, [total], None, 1e-15), start)


@pytest.mark.parametrize("resting", range(6))
def test_a_field_without_moments_rests_and_the_others_do_not_notice(resting):
    case = make_case(40, n=100)
    maps, results = map_gradients(case), []
    for rests in (False, True):
        six = case.six
        mean, square = ([torch.full_like(p, 0.1) for p in six] for _ in range(2))
        chosen = [[None if rests and k == resting else x for k, x in enumerate(xs)] for xs in (mean, square)]
        View(case, six).adam(maps, *chosen, step=2)
        results.append([six, mean, square])
    for k, name in enumerate(FIELDS):
        if k == resting:
            assert torch.equal(results[1][0][k], case.gaussians[name])
        else:
            assert all(torch.equal(a[k], b[k]) for a, b in zip(*results, strict=True)), name


def test_statistics_need_neither_gradients_nor_moments():
    case = make_case(41)
    maps, six = map_gradients(case), case.six
    results = [[torch.zeros(len(six[0])) for _ in range(3)] for _ in range(3)]
    View(case, six).adam(maps, NOTHING, NOTHING, statistics=results[0])
    View(case, six).backward(maps, out=NOTHING, statistics=results[1])
    assert all(torch.equal(p, case.gaussians[name]) for name, p in zip(FIELDS, six, strict=True))
    View(case, six).adam(maps, *([torch.zeros_like(p) for p in six] for _ in range(2)), statistics=results[2])
    for alone, without_adam, with_adam in zip(*results, strict=True):
        assert torch.equal(alone, with_adam)
        assert torch.equal(without_adam, with_adam)
        assert torch.count_nonzero(alone) > 0


def everything(threads: int) -> list[Tensor]:
    """Filter, pose, added gradients and a sparse step, on Gaussians enough for several tasks."""
    torch.set_num_threads(threads)
    case, other = make_case(42, n=5000), make_case(42, n=5000, width=70)
    six, maps, filter_3d = case.six, map_gradients(case), filter_of(case)
    mean, square = ([torch.zeros_like(p) for p in six] for _ in range(2))
    added, other_pose = View(other, six, filter_3d).backward(map_gradients(other, 1))
    view = View(case, six, filter_3d)
    grads, pose = view.backward(maps, added=added)
    visible = (view.radii > 0).to(torch.uint8)
    view.adam(maps, mean, square, added=added, visible=visible)
    return [*six, *mean, *square, *grads, pose, other_pose]


def test_any_number_of_threads_gives_the_same_bits():
    before = torch.get_num_threads()
    try:
        runs = [everything(threads) for threads in (1, 2, 3, 7)]
    finally:
        torch.set_num_threads(before)
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], run, strict=True))
