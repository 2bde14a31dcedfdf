"""Adam, the densification statistics, and the two engines against one another."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.loading import PipelineParams
from benchmarks.training_step import make_trainer
from gaussian_renderer import backends
from scene import load_scene
from scene.gaussians import FIELDS
from tests.training_factory import LR_SIZE, SCALE, VIEWS, random_state, settings, write_scene
from training.adam import BETAS, EPS
from training.engines import choose, instruction_set
from training.fused import NativeObjective
from training.job import Job
from training.objective import Weights, objective
from training.state import update
from training.views import training_views
from utils import errors
from utils.errors import UserError


def test_adam_is_torchs():
    state, shape = random_state(7), (7, 3)
    for moments in (state.exp_avg, state.exp_avg_sq):
        moments["means"].zero_()
    parameter = torch.nn.Parameter(state.gaussians.means.clone())
    optimiser = torch.optim.Adam([parameter], lr=0.01, betas=BETAS, eps=EPS)
    for i in range(5):
        gradient = torch.randn(shape, generator=torch.Generator().manual_seed(i))
        parameter.grad = gradient.clone()
        optimiser.step()
        update(state, "means", gradient, 0.01)
    torch.testing.assert_close(state.gaussians.means, parameter.detach(), rtol=1e-6, atol=1e-7)
    assert state.steps["means"] == 5


@pytest.fixture(scope="module")
def scene_root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def trainer(root, rasterizer, pipeline=None, confidence=None, **optimisation):
    given = settings(root, rasterizer, **optimisation)
    given = replace(given, pipeline=replace(given.pipeline, **pipeline or {}))
    scene = load_scene(root / "lr")
    views = training_views(scene, root / "out" / "hr", given.model, given.optimisation, 0, "cpu", confidence)
    return Job(given, root / "out", scene, views, root / "out" / "hr", "cpu").trainer()


def test_statistics_count_views_and_gradients(scene_root):
    run = trainer(scene_root, "reference", densify_from_iter=1000)
    for _ in range(3):
        run.step()
    seen = run.state.view_count > 0
    assert int(seen.sum()) > 0
    assert run.state.view_count.max() <= 3
    assert (run.state.max_radius[seen] > 0).all()
    assert (run.state.grad_norm_sum[~seen] == 0).all()
    assert run.state.grad_norm_sum.sum() > 0


def test_what_is_replaced_sits_out_adam(scene_root):
    run = trainer(scene_root, "reference", iterations=9, densify_from_iter=1, densification_interval=4)
    run = trainer(
        scene_root, "reference", iterations=9, densify_from_iter=1, densification_interval=4, opacity_reset_interval=6
    )
    while run.iteration < 9:
        run.step()
    # 9 iterations; 4 and 8 densify (nobody steps), 6 resets opacities (they do not step), 9 is the last (nobody)
    assert run.state.steps == {name: 5 if name == "logit_opacities" else 6 for name in FIELDS}


def test_gaussians_that_cannot_be_drawn_are_counted(scene_root):
    run = trainer(scene_root, "native")
    run.step()
    assert run.engine.culled == 0
    run.state.gaussians.quats[7] = 0.0
    run.step()
    assert run.engine.culled == 1


def test_training_learns(scene_root):
    run = trainer(scene_root, "reference", densify_from_iter=1000)
    losses = [run.step().loss for _ in range(40)]
    assert sum(losses[-8:]) < 0.8 * sum(losses[:8])


@pytest.mark.parametrize("tex", [0.0, 0.6, 1.0])
def test_engines_agree(scene_root, tex):
    runs = [trainer(scene_root, name, lambda_tex=tex, densify_from_iter=1000) for name in ("native", "reference")]
    for run in runs:  # round Gaussians have no gradient in their rotation, only rounding noise
        noise = torch.Generator().manual_seed(0)
        run.state.gaussians.log_scales += 0.5 * torch.randn(run.state.gaussians.log_scales.shape, generator=noise)
        run.state.gaussians.quats += 0.5 * torch.randn(run.state.gaussians.quats.shape, generator=noise)
    for _ in range(4):
        a, b = (run.step() for run in runs)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    for name, value in runs[0].state.parameters().items():
        other = runs[1].state.parameters()[name]
        # Adam turns a gradient that is rounding noise into a full step, so a few entries may differ
        assert ((value - other).abs() > 1e-3 * other.abs().clamp(min=0.1)).float().mean() < 0.01, name
    for name in ("view_count", "max_radius"):
        assert torch.equal(getattr(runs[0].state, name), getattr(runs[1].state, name)), name
    torch.testing.assert_close(runs[0].state.grad_norm_sum, runs[1].state.grad_norm_sum, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("pipeline", [PipelineParams(), PipelineParams(convert_SHs_python=True)])
def test_the_kernels_instruction_set_counts_wherever_they_render(pipeline):
    assert instruction_set(pipeline, "cpu") == backends.instruction_set()
    assert instruction_set(PipelineParams(rasterizer="gsplat"), "cpu") == "gsplat cpu"


@pytest.fixture(scope="module")
def maps(scene_root):
    """Weights of the frames' pixels: random ones in maps/, ones in ones/."""
    rng, size = np.random.default_rng(0), SCALE * LR_SIZE
    for i in range(VIEWS):
        for kind, grey in (("maps", rng.integers(0, 256, (size, size))), ("ones", np.full((size, size), 255))):
            (scene_root / kind / "train").mkdir(parents=True, exist_ok=True)
            Image.fromarray(grey.astype(np.uint8)).save(scene_root / kind / f"train/r_{i}.png")
    return scene_root


def test_weighted_pixels_train_alike_with_both_rasterizers(maps):
    names = ("native", "reference")
    runs = [trainer(maps, name, confidence=maps / "maps", densify_from_iter=1000) for name in names]
    plain = trainer(maps, "native", densify_from_iter=1000)
    for _ in range(4):
        a, b, unweighted = (run.step() for run in (*runs, plain))
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
        assert a.l1 < 0.9 * unweighted.l1, "the weights have no effect"
        assert a.lr_l1 == pytest.approx(unweighted.lr_l1, rel=0.05), "the LR term has no weights"


def test_weights_of_one_train_like_no_weights(maps):
    runs = [trainer(maps, "native", confidence=folder, densify_from_iter=1000) for folder in (maps / "ones", None)]
    assert [type(run.engine).__name__ for run in runs] == ["FusedEngine"] * 2
    for _ in range(4):
        a, b = (run.step() for run in runs)
        numbers = [{name: value for name, value in vars(terms).items() if value is not None} for terms in (a, b)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-4)


@pytest.mark.parametrize("pipeline", [{"dilation": 1.5}, {"antialiasing": True, "dilation": 0.1}])
def test_engines_agree_on_how_gaussians_are_drawn(scene_root, pipeline):
    runs = [trainer(scene_root, name, pipeline, densify_from_iter=1000) for name in ("native", "reference")]
    losses = [run.step().loss for run in (*runs, trainer(scene_root, "native"))]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert abs(losses[0] - losses[2]) > 1e-3, "the setting has no effect"


@pytest.mark.parametrize("rasterizer", ["native", "reference"])
@pytest.mark.parametrize("kind", ["default", "sparse_adam"])
def test_sparse_adam_leaves_alone_what_a_view_does_not_see(scene_root, rasterizer, kind):
    run = trainer(scene_root, rasterizer, optimizer_type=kind, densify_from_iter=1000)
    run.step()
    run.state.gaussians.means[:5] += 1000.0  # nobody sees them any more, but they have momentum
    before = {name: value.clone() for name, value in run.state.tensors().items()}
    run.step()
    after = run.state.tensors()
    still = {name for name, value in after.items() if torch.equal(value[:5], before[name][:5])}
    assert still == set(after) if kind == "sparse_adam" else not still & {"param.means", "exp_avg.means"}
    assert not torch.equal(after["param.means"][5:], before["param.means"][5:])


def test_engines_agree_on_sparse_adam(scene_root):
    flags = {"optimizer_type": "sparse_adam", "densify_from_iter": 1000}
    runs = [trainer(scene_root, name, **flags) for name in ("native", "reference")]
    for run in runs:
        run.state.gaussians.means[::3] += 1000.0
    for _ in range(4):
        a, b = (run.step() for run in runs)
        assert a.loss == pytest.approx(b.loss, rel=1e-4)
    for name, value in runs[0].state.parameters().items():
        assert torch.equal(value[::3], runs[1].state.parameters()[name][::3]), name


def test_absolute_gradients_are_larger_and_only_the_kernels_have_them(scene_root):
    runs = [trainer(scene_root, "native", abs_grad=flag, densify_from_iter=1000) for flag in (False, True)]
    losses = [[run.step().loss for _ in range(3)] for run in runs]
    assert losses[0] == losses[1], "only the statistic differs"
    signed, absolute = (run.state.grad_norm_sum for run in runs)
    assert (absolute >= signed * 0.999).all()
    assert absolute.sum() > 1.2 * signed.sum()
    for name, pipeline in (("reference", {}), ("native", {"convert_SHs_python": True})):
        with pytest.raises(UserError, match="--abs_grad"):
            trainer(scene_root, name, pipeline, abs_grad=True)


def test_a_bound_on_memory_changes_no_bit(tmp_path):
    runs = [make_trainer(tmp_path, 3000, 256, "random") for _ in range(2)]
    for run, megabytes in zip(runs, (0, 5), strict=True):
        run.engine = choose(PipelineParams(raster_memory=megabytes), "cpu")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # each thread has some memory of its own
    losses = [[run.step().loss for _ in range(3)] for run in runs]
    torch.set_num_threads(threads)
    assert runs[1].engine.workspace.facts["bands"] > 1
    assert losses[0] == losses[1]
    states = [run.state.tensors() for run in runs]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())


def test_too_small_a_bound_names_its_flag(tmp_path, capsys):
    run = make_trainer(tmp_path, 6000, 128, "random")
    run.engine = choose(PipelineParams(raster_memory=1), "cpu")
    with pytest.raises(SystemExit) as stopped:
        errors.run(lambda: run.step())
    assert stopped.value.code == 2
    assert "--raster_memory: the rasterizer's memory limit of 1000000 bytes is too small" in capsys.readouterr().err


@pytest.mark.parametrize("given", [{"dilation": -0.1}, {"dilation": float("nan")}, {"raster_memory": -1}])
def test_impossible_pipelines_are_refused(given):
    with pytest.raises(UserError, match=next(iter(given))):
        PipelineParams(**given)


@pytest.mark.parametrize("tex", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_kernels_objective_is_pytorchs(scene_root, tex, weighted):
    """Terms and gradient, for an image that autograd knows."""
    run = trainer(scene_root, "native", lambda_tex=tex)
    name, view = next(iter(run.views.views.items()))
    targets, weights = run.views.targets(name, (0.2, 0.4, 0.6)), Weights(tex, 0.2)
    generator = torch.Generator().manual_seed(0)
    start = torch.rand(3, 32, 32, generator=generator)
    if weighted:
        targets = replace(targets, weight=torch.rand(1, 32, 32, generator=generator))
    found = []
    for evaluate in (objective, NativeObjective("cpu")):
        image = start.clone().requires_grad_()
        loss, terms = evaluate(image, view, targets, weights)
        loss.backward()
        numbers = {name: value for name, value in vars(terms).items() if value is not None}
        found.append((numbers, image.grad))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-3, atol=1e-8)
