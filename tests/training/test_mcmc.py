"""3DGS-MCMC: relocation, growth, noise and regularisers against the paper's text, and runs with all of them."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from arguments.training import OptimizationParams
from gaussian_renderer import render
from gaussian_renderer.splats import rotations
from scene import load_scene
from scene.cameras import Camera
from scene.gaussians import FIELDS, Gaussians
from scene.ply import write_gaussians
from tests.training_factory import random_state, settings, write_scene
from training import mcmc, schedules
from training.checkpoint import Checkpoints, load
from training.job import Job
from training.mcmc import MOST_SHARING, Regularisers, diffuse, growth, relocation, shared
from training.state import TrainState, apply
from training.views import training_views
from utils.errors import UserError

MCMC = {"densification": "mcmc", "max_gaussians": 140, "min_opacity": 0.09}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def trainer(root, rasterizer="native", pipeline=None, **optimisation):
    given = settings(root, rasterizer, **MCMC | optimisation)
    given = replace(given, pipeline=replace(given.pipeline, **pipeline or {}))
    views = training_views(load_scene(root / "lr"), root / "out/hr", given.model, given.optimisation, 0, "cpu")
    return Job(given, root / "out", load_scene(root / "lr"), views, root / "out/hr", "cpu").trainer()


def equation_9(opacity: float, k: int) -> tuple[float, float]:
    """New opacity and factor on the scales, term by term as it is printed."""
    new = 1 - (1 - opacity) ** (1 / k)
    total = 0.0
    for i in range(1, k + 1):
        for j in range(i):
            total += math.comb(i - 1, j) * (-1) ** j / math.sqrt(j + 1) * new ** (j + 1)
    return new, opacity / total


@pytest.mark.parametrize("opacity", [0.006, 0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("k", [1, 2, 3, 10, 51])
def test_sharing_is_equation_9(opacity, k):
    new, factor = equation_9(opacity, k)
    logits = torch.logit(torch.tensor([[opacity]], dtype=torch.float64))
    got, scales = shared(logits, torch.zeros(1, 3, dtype=torch.float64), torch.tensor([k]), lowest=0.0)
    assert float(torch.sigmoid(got)) == pytest.approx(new, rel=1e-9)
    assert scales.exp().tolist()[0] == pytest.approx([factor] * 3, rel=1e-9)


def test_more_than_can_be_counted_share_as_many_as_can():
    logits, log_scales = torch.tensor([[2.0], [2.0]]), torch.zeros(2, 3)
    a, b = shared(logits, log_scales, torch.tensor([MOST_SHARING, 1000]), lowest=0.005)
    assert torch.equal(a[0], a[1])
    assert torch.equal(b[0], b[1])


def alone(opacity: float) -> Gaussians:
    """One tilted Gaussian before the camera, float64."""
    d = torch.float64
    return Gaussians(
        torch.zeros(1, 3, dtype=d),
        torch.tensor([[-1.0, -1.6, -2.0]], dtype=d),
        torch.tensor([[0.9, 0.3, 0.2, 0.1]], dtype=d),
        torch.logit(torch.tensor([[opacity]], dtype=d)),
        torch.ones(1, 1, 3, dtype=d),
        torch.zeros(1, 0, 3, dtype=d),
    )


def seen(gaussians: Gaussians) -> torch.Tensor:
    pose = torch.eye(4, dtype=torch.float64)
    pose[2, 3] = 4.0
    camera = Camera("c", 48, 48, np.array([[60.0, 0, 24], [0, 60, 24], [0, 0, 1]]), pose.numpy())
    return render(camera, gaussians, background=(0.0, 0.0, 0.0), rasterizer="reference").alpha.detach()


@pytest.mark.parametrize(("opacity", "k"), [(0.1, 2), (0.5, 2), (0.5, 8), (0.9, 2), (0.9, 5)])
def test_a_place_looks_the_same_however_many_share_it(opacity, k):
    """Equal light on any line through the middle (what equation 9 is made from), and no pixel far off."""
    x = torch.linspace(-12, 12, 20_001, dtype=torch.float64)
    new, factor = equation_9(opacity, k)
    together = 1 - (1 - new * torch.exp(-((x / factor) ** 2) / 2)) ** k
    assert float(together.sum()) == pytest.approx(float(opacity * torch.exp(-(x**2) / 2).sum()), rel=1e-6)
    one = alone(opacity)
    copies = Gaussians(**{name: value.repeat(k, *[1] * (value.ndim - 1)) for name, value in vars(one).items()})
    plain = seen(copies)
    copies.logit_opacities, copies.log_scales = shared(
        copies.logit_opacities, copies.log_scales, torch.full((k,), k), lowest=0.0
    )
    before, after = seen(one), seen(copies)
    worst, of_plain = float((after - before).abs().max()), float((plain - before).abs().max())
    assert worst < 0.08
    assert worst < 0.35 * of_plain, "plain copies are another picture"
    assert float(after.sum()) == pytest.approx(float(before.sum()), rel=0.08)  # of the plane a little is lost


def dying_state(n: int = 400) -> TrainState:
    state = random_state(n)
    state.gaussians.logit_opacities[::5] = -9.0
    return state


def test_relocation_moves_the_dead_to_the_living():
    state, given = dying_state(), OptimizationParams(densification="mcmc", max_gaussians=1000)
    before = {name: value.clone() for name, value in state.tensors().items()}
    dead = state.gaussians.opacities[:, 0] <= given.min_opacity
    change = relocation(state, given, torch.Generator().manual_seed(0))
    apply(state, change)
    after = state.tensors()
    assert state.gaussians.num == 400
    assert (state.gaussians.opacities >= given.min_opacity * 0.999).all()
    sharing = torch.bincount(change.source, minlength=400)
    assert (sharing[dead] == 0).all()
    assert sharing.sum() == 400
    assert (sharing[~dead] >= 1).all()
    for i, parent in enumerate(change.source.tolist()):
        k = int(sharing[parent])
        new, factor = equation_9(float(torch.sigmoid(before["param.logit_opacities"][parent].double())), k)
        if k > 1:
            assert float(state.gaussians.opacities[i]) == pytest.approx(max(new, given.min_opacity), rel=1e-4)
            grown = (before["param.log_scales"][parent].double().exp() * factor).tolist()
            assert state.gaussians.scales[i].tolist() == pytest.approx(grown, rel=1e-4)
            assert not any(after[f"{kind}.{name}"][i].any() for kind in ("exp_avg", "exp_avg_sq") for name in FIELDS)
        else:
            assert all(torch.equal(after[name][i], before[name][i]) for name in after)
        for name in ("means", "quats", "sh0", "shN"):
            assert torch.equal(after[f"param.{name}"][i], before[f"param.{name}"][parent])


def test_places_are_drawn_by_opacity():
    state = random_state(4)
    state.gaussians.logit_opacities = torch.logit(torch.tensor([[0.1], [0.2], [0.3], [0.6]]))
    drawn = mcmc._drawn(state, torch.arange(4), 40_000, torch.Generator().manual_seed(1))
    share = torch.bincount(drawn, minlength=4) / 40_000
    torch.testing.assert_close(share, torch.tensor([0.1, 0.2, 0.3, 0.6]) / 1.2, rtol=0, atol=0.01)  # 4 sigma


def test_points_start_small_and_half_opaque(root, tmp_path):
    run, plain = trainer(root), trainer(root, densification="adc")
    gaussians, usual = run.state.gaussians, plain.state.gaussians
    torch.testing.assert_close(gaussians.scales, usual.scales / 10)
    assert (gaussians.opacities == 0.5).all()
    ply = tmp_path / "start.ply"
    write_gaussians(ply, usual)
    given = settings(root, **MCMC)
    given = replace(given, training=replace(given.training, init_ply=str(ply)))
    views = training_views(load_scene(root / "lr"), root / "out/hr", given.model, given.optimisation, 0, "cpu")
    start = Job(given, root / "out", load_scene(root / "lr"), views, root / "out/hr", "cpu").gaussians()
    torch.testing.assert_close(start.scales, usual.scales)  # a model's Gaussians stay as they are


def test_nothing_dead_or_all_dead_moves_nothing():
    given, draws = OptimizationParams(densification="mcmc", max_gaussians=9), torch.Generator()
    state = random_state(20)
    for logit in (3.0, -9.0):
        state.gaussians.logit_opacities[:] = logit
        assert relocation(state, given, draws) is None


@pytest.mark.parametrize(("cap", "expected"), [(1000, 420), (410, 410), (400, 400), (100, 400)])
def test_growth_is_five_percent_up_to_the_cap(cap, expected):
    state, given = random_state(400), OptimizationParams(densification="mcmc", max_gaussians=cap)
    change = growth(state, given, torch.Generator().manual_seed(0))
    assert (change is None) == (expected == 400)
    if change:
        apply(state, change)
    assert state.gaussians.num == expected


def test_noise_has_the_covariance_of_its_gaussian():
    n, rate = 40_000, 0.37
    state = TrainState.start(
        Gaussians(
            torch.zeros(n, 3),
            torch.tensor([[0.2, -0.5, -1.5]]).repeat(n, 1),
            torch.tensor([[1.3, -0.4, 0.8, 0.2]]).repeat(n, 1),
            torch.logit(torch.tensor(0.01)).repeat(n, 1),
            torch.zeros(n, 1, 3),
            torch.zeros(n, 0, 3),
        )
    )
    diffuse(state, rate, torch.Generator().manual_seed(0))
    moved = state.gaussians.means.double()
    turn = rotations(state.gaussians.quats[:1].double())[0]
    sigma = turn @ torch.diag((2 * state.gaussians.log_scales[0].double()).exp()) @ turn.T
    gate = 1 / (1 + math.exp(-100 * ((1 - 0.01) - 0.995)))
    expected = (rate * gate) ** 2 * sigma @ sigma.T
    assert moved.mean(dim=0).abs().max() < 4 * expected.diagonal().sqrt().max() / math.sqrt(n)
    torch.testing.assert_close(moved.T @ moved / n, expected, rtol=0.05, atol=float(0.02 * expected.max()))


def test_noise_leaves_alone_what_is_opaque():
    state = random_state(50)
    state.gaussians.logit_opacities[:] = 2.0
    before = state.gaussians.means.clone()
    diffuse(state, 1.0, torch.Generator().manual_seed(0))
    assert torch.equal(state.gaussians.means, before)


@pytest.mark.parametrize("name", mcmc.REGULARISED)
def test_gradients_of_the_regularisers_are_autograds(name):
    values = 4 * torch.randn(30, 3 if name == "log_scales" else 1, dtype=torch.float64)
    values.requires_grad_()
    term = 0.7 * values.exp().mean() if name == "log_scales" else 0.3 * values.sigmoid().mean()
    term.backward()
    found = Regularisers(opacity=0.3, scale=0.7).gradient(name, values.detach())
    torch.testing.assert_close(found, values.grad)


@pytest.mark.parametrize("optimizer", ["default", "sparse_adam"])
def test_engines_agree_on_regularisers(root, optimizer):
    flags = {"opacity_reg": 0.5, "scale_reg": 0.5, "densify_from_iter": 1000, "optimizer_type": optimizer}
    runs = [trainer(root, name, **flags) for name in ("native", "reference")]
    plain = trainer(root, **flags | {"opacity_reg": 0.0, "scale_reg": 0.0})
    for run in (*runs, plain):
        run.settings = replace(run.settings, noise_lr=0.0)
        noise = torch.Generator().manual_seed(0)  # round Gaussians have no gradient in their rotation, only rounding
        run.state.gaussians.log_scales += 0.5 * torch.randn(run.state.gaussians.log_scales.shape, generator=noise)
        run.state.gaussians.quats += 0.5 * torch.randn(run.state.gaussians.quats.shape, generator=noise)
        run.state.gaussians.means[:10] += 100.0  # unseen
        for _ in range(4):
            run.step()
        assert run.state.steps == dict.fromkeys(FIELDS, 4)
    for name, value in runs[0].state.parameters().items():
        other = runs[1].state.parameters()[name]
        # Adam turns a gradient that is rounding noise into a full step, so a few entries may differ
        assert ((value - other).abs() > 1e-3 * other.abs().clamp(min=0.1)).float().mean() < 0.02, name
    unseen, before = runs[0].state.gaussians.log_scales[:10], plain.state.gaussians.log_scales[:10]
    assert torch.equal(unseen, before) == (optimizer == "sparse_adam")
    assert (runs[0].state.gaussians.opacities[10:] < plain.state.gaussians.opacities[10:]).float().mean() > 0.6


def test_without_weights_the_kernels_and_the_way_around_them_agree(root):
    """What is held back from the kernels' Adam is updated as they would have."""
    flags = {"opacity_reg": 0.0, "scale_reg": 0.0, "noise_lr": 0.0, "densify_from_iter": 1000}
    around, straight = trainer(root, **flags), trainer(root, **flags)
    straight._regularisers = lambda: None
    for _ in range(3):
        assert around.step().loss == pytest.approx(straight.step().loss, rel=1e-6)
    for name in mcmc.REGULARISED:
        a, b = (run.state.parameters()[name] for run in (around, straight))
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_run_grows_to_its_cap_moves_the_dead_and_learns(root):
    run = trainer(root)
    losses, numbers = [], []
    while run.iteration < 60:
        losses.append(run.step().loss)
        numbers.append(run.state.gaussians.num)
    assert numbers[-1] == 140
    assert numbers == sorted(numbers)
    assert not run.state.grad_norm_sum.any(), "nobody asks for statistics"
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])
    assert not any(schedules.resets_opacity(run.settings, i, True) for i in range(100))


def test_an_interrupted_run_ends_as_one_that_was_not_whatever_the_threads(root, tmp_path):
    whole, first, second = (trainer(root) for _ in range(3))
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        while whole.iteration < 40:
            whole.step()
        torch.set_num_threads(1)
        while first.iteration < 23:
            first.step()
        tensors, info = first.capture()
        path = Checkpoints(tmp_path, frozenset(), {}).write(tensors, info | {"log_bytes": 0, "rollbacks": 0})
        second.restore(*load(path))
        while second.iteration < 40:
            second.step()
    finally:
        torch.set_num_threads(threads)
    expected = whole.state.tensors()
    assert all(torch.equal(value, expected[name]) for name, value in second.state.tensors().items())


def test_threads_change_no_bit_of_what_is_done_between_steps():
    results, threads = [], torch.get_num_threads()
    given = OptimizationParams(densification="mcmc", max_gaussians=110_000)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            state = random_state(100_000, sh_degree=0)
            state.gaussians.logit_opacities -= 6.0
            for kind in (relocation, growth):
                apply(state, kind(state, given, torch.Generator().manual_seed(1)))
            diffuse(state, 0.1, torch.Generator().manual_seed(2))
            gradients = [Regularisers(0.1, 0.1).gradient(n, getattr(state.gaussians, n)) for n in mcmc.REGULARISED]
            results.append([*state.tensors().values(), *gradients])
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"densification": "mcmc"}, "needs --max_gaussians"),
        ({"densification": "mcmc", "max_gaussians": 9, "abs_grad": True}, "--abs_grad: only --densification adc"),
        ({"densification": "mcmc", "max_gaussians": 9, "prune_screen_px": 20.0}, "--prune_screen_px: only"),
        ({"noise_lr": 1.0}, "--noise_lr: only --densification mcmc"),
        ({"opacity_reg": 0.0}, "--opacity_reg: only --densification mcmc"),
        ({"densification": "mcmc", "max_gaussians": 9, "scale_reg": -1.0}, "--scale_reg -1.0: 0 or more"),
    ],
)
def test_combinations_without_sense_are_refused(given, words):
    with pytest.raises(UserError, match=words) as error:
        OptimizationParams(**given)
    assert "\n" not in str(error.value)
