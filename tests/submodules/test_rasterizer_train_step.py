"""fused.train_step against autograd and PyTorch's own optimizers, and what it promises beyond them."""

import math
from dataclasses import replace

import pytest
import torch
from diff_gaussian_rasterization import RasterCamera, fused, rasterize_extended, set_memory_limit
from torch import Tensor

from scene.lr_kernel import LRKernel
from tests.submodules.rasterizer_scenes import FIELDS, Case, make_case, relative
from tests.submodules.test_rasterizer_memory import on_threads
from utils.ssim import ssim_map

RATES = (1.6e-4, 5e-3, 1e-3, 0.05, 2.5e-3, 1.25e-4)
EPS = 1e-15


class Trained:
    """Parameters, moments and statistics that steps change in place."""

    def __init__(self, case: Case) -> None:
        self.six = case.six
        self.mean, self.square = ([torch.zeros_like(p) for p in self.six] for _ in range(2))
        self.stats = fused.Statistics(*(torch.zeros(len(self.six[0])) for _ in range(4)))

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.six, *self.mean, *self.square, *(s for s in self.stats if s is not None)]

    def step(self, camera: RasterCamera | list[RasterCamera], step: int = 1, **changes: object) -> fused.StepResult:
        options = {"exp_avg": self.mean, "exp_avg_sq": self.square, "learning_rates": RATES, "stats": self.stats}
        return fused.train_step(camera, self.six, step=step, **(options | changes))


def same(a: Trained, b: Trained) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.tensors, b.tensors, strict=True))


def target(seed: int = 0, height: int = 45, width: int = 61) -> Tensor:
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def lr_target(case: Case) -> tuple[fused.LowResolution, LRKernel]:
    size = (case.camera.width, case.camera.height)
    operator = LRKernel("bicubic", "renormalise", size, (15, 11))
    image = target(1, 11, 15)
    return fused.LowResolution(image, operator.taps("x"), operator.taps("y"), weight=0.6), operator


def cameras_of(case: Case, count: int) -> list[RasterCamera]:
    pose = torch.as_tensor(case.camera.world_to_camera).clone()
    cameras = []
    for k in range(count):
        pose = pose.clone()
        pose[0, 3] += 0.3 * k
        cameras.append(replace(case.raster_camera, world_to_camera=pose))
    return cameras


def reference_loss(x: Tensor, y: Tensor, weights: Tensor | None = None) -> Tensor:
    c = torch.ones(()) if weights is None else weights
    return (c * (0.8 * (x - y).abs() + 0.2 * (1 - ssim_map(x, y)))).mean()


def leaves_of(six: list[Tensor]) -> dict[str, Tensor]:
    return {name: p.clone().requires_grad_() for name, p in zip(FIELDS, six, strict=True)}


def render_leaves(camera: RasterCamera, leaves: dict[str, Tensor]) -> Tensor:
    return rasterize_extended(
        camera,
        leaves["means"],
        leaves["logit_opacities"].sigmoid(),
        sh=torch.cat([leaves["sh0"], leaves["shN"]], dim=1),
        scales=leaves["log_scales"].exp(),
        quats=leaves["quats"],
    ).color


def updates_agree(ours: list[Tensor], theirs: list[Tensor], before: list[Tensor], tolerance: float = 1e-3) -> None:
    """The change of every field, up to roundings of the parameter itself and of gradients near zero."""
    for name, a, b, start in zip(FIELDS, ours, theirs, before, strict=True):
        rounding = 4 * 1.2e-7 * start.norm()
        assert (a.double() - b.detach().double()).norm() < tolerance * (b.detach() - start).norm() + rounding, name


@pytest.mark.parametrize("views", [1, 3])
def test_steps_on_two_losses_are_autograd_and_torch_adam(views):
    case = make_case(1, sh_degree=2)
    cameras, trained = cameras_of(case, views), Trained(case)
    low, operator = lr_target(case)
    weights = [None if k % 2 else target(7 + k)[:1] for k in range(views)]
    high = [fused.L1SSIM(target(k), weight=0.4, pixel_weights=weights[k]) for k in range(views)]
    leaves = leaves_of(case.six)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(leaves.values(), RATES, strict=True)]
    optimizer = torch.optim.Adam(groups, eps=EPS, foreach=False)
    for step in (1, 2):
        results = trained.step(
            cameras if views > 1 else cameras[0],
            step,
            losses=[[h, low] for h in high] if views > 1 else [high[0], low],
        )
        optimizer.zero_grad()
        total = torch.zeros(())
        for k, camera in enumerate(cameras):
            image = render_leaves(camera, leaves)
            hr = reference_loss(image, high[k].target, weights[k])
            lr = reference_loss(operator.down(image), low.lr_target)
            found = results.losses[k] if views > 1 else results.losses
            assert [t.loss for t in found] == pytest.approx([hr.item(), lr.item()], rel=1e-4)
            total = total + 0.4 * hr + 0.6 * lr
        total.backward()
        optimizer.step()
    updates_agree(trained.six, list(leaves.values()), case.six)


def test_several_views_gather_the_statistics_of_each():
    case = make_case(2)
    cameras, together, one_by_one = cameras_of(case, 3), Trained(case), Trained(case)
    result = together.step(cameras, learning_rates=None, losses=[[fused.L1SSIM(target(k))] for k in range(3)])
    for k, camera in enumerate(cameras):
        alone = one_by_one.step(camera, learning_rates=None, losses=[fused.L1SSIM(target(k))])
        assert torch.equal(alone.image, result.image[k])
        assert torch.equal(alone.radii, result.radii[k])
        assert alone.losses == result.losses[k]
    assert same(together, one_by_one)
    assert together.stats.count.min() == 0
    assert together.stats.count.max() == 3
    assert all(torch.equal(a, b) for a, b in zip(together.six, case.six, strict=True))


def test_resting_fields_keep_their_bits_and_the_others_do_not_notice():
    case = make_case(3)
    whole, resting = Trained(case), Trained(case)
    rates = [None, RATES[1], None, RATES[3], RATES[4], None]
    losses = [fused.L1SSIM(target())]
    whole.step(case.raster_camera, losses=losses)
    moments = {"exp_avg": resting.mean, "exp_avg_sq": resting.square}
    moments = {k: [None if r is None else m for m, r in zip(v, rates, strict=True)] for k, v in moments.items()}
    resting.step(case.raster_camera, losses=losses, learning_rates=rates, **moments)
    for k, rate in enumerate(rates):
        wanted = case.six[k] if rate is None else whole.six[k]
        assert torch.equal(resting.six[k], wanted), FIELDS[k]
        assert (rate is None) == (torch.count_nonzero(resting.mean[k]) == 0), FIELDS[k]


@pytest.mark.parametrize("views", [1, 2])
def test_sparse_steps_are_torch_sparse_adam(views):
    """A Gaussian that no camera sees keeps parameters and moments; the others get SparseAdam's arithmetic."""
    case = make_case(4)
    cameras, trained = cameras_of(case, views), Trained(case)
    cameras = [replace(camera, width=30) for camera in cameras]
    # SparseAdam's gradients must be sparse: rows of the Gaussians that some camera sees.
    theirs = leaves_of(case.six)
    groups = [{"params": [p], "lr": lr} for p, lr in zip(theirs.values(), RATES, strict=True)]
    optimizer = torch.optim.SparseAdam(groups, eps=EPS)
    for step in (1, 2):
        leaves = leaves_of([p.detach() for p in theirs.values()])
        images = [render_leaves(camera, leaves) for camera in cameras]
        sum(reference_loss(image, target(k, 45, 30)) for k, image in enumerate(images)).backward()
        losses = [[fused.L1SSIM(target(k, 45, 30))] for k in range(views)]
        result = trained.step(cameras, step, losses=losses, sparse=True)
        rows = (result.radii > 0).any(0).nonzero()[:, 0]
        assert 0 < len(rows) < len(case.six[0])
        for name, p in theirs.items():
            dense = leaves[name].grad
            p.grad = torch.sparse_coo_tensor(rows[None], dense[rows], p.shape, check_invariants=False).coalesce()
        optimizer.step()
    updates_agree(trained.six, list(theirs.values()), case.six)
    unseen = torch.ones(len(case.six[0]), dtype=torch.bool)
    unseen[rows] = False
    for ours, start, moment in zip(trained.six, case.six, trained.mean, strict=True):
        assert torch.equal(ours[unseen], start[unseen])
        assert torch.count_nonzero(moment[unseen]) == 0


def test_a_loss_that_is_not_finite_leaves_everything_as_it_was():
    case = make_case(5)
    bad = target()
    bad[1, 20, 20] = math.nan
    low, _ = lr_target(case)
    cameras = cameras_of(case, 2)
    for camera, losses in (
        (cameras[0], [low, fused.L1SSIM(bad)]),
        (cameras, [[fused.L1SSIM(target())], [fused.L1SSIM(bad)]]),
    ):
        trained = Trained(case)
        result = trained.step(camera, losses=losses)
        assert same(trained, Trained(case))
        last = result.losses[-1][0] if isinstance(camera, list) else result.losses[-1]
        assert math.isnan(last.loss)
        assert torch.isfinite(result.image).all()


def test_a_ready_gradient_replaces_the_losses_or_is_added_to_theirs():
    case = make_case(6)
    ready, native, both, twice = (Trained(case) for _ in range(4))
    camera = case.raster_camera
    image = fused.render(camera, ready.six).image.requires_grad_()
    reference_loss(image, target()).backward()
    ready.step(camera, grad_image=image.grad)
    native.step(camera, losses=[fused.L1SSIM(target())])
    updates_agree(ready.six, native.six, case.six)
    given = image.grad.clone()
    both.step(camera, grad_image=image.grad, losses=[fused.L1SSIM(target(), weight=0.5)])
    assert torch.equal(image.grad, given)
    twice.step(camera, losses=[fused.L1SSIM(target(), weight=1.5)])
    updates_agree(both.six, twice.six, case.six)
    strided = image.grad.transpose(1, 2).contiguous().transpose(1, 2)
    again = Trained(case)
    again.step(camera, grad_image=strided)
    assert same(again, ready)


@pytest.mark.parametrize("views", [1, 2])
def test_a_rendered_image_is_not_rendered_again(views):
    case = make_case(7)
    cameras = cameras_of(case, views) if views > 1 else case.raster_camera
    gradient = torch.randn((*([views] if views > 1 else []), 3, 45, 61), generator=torch.Generator().manual_seed(0))
    wanted = Trained(case)
    result = wanted.step(cameras, grad_image=gradient)
    workspace = fused.Workspace()
    for disturb in (False, True):
        trained = Trained(case)
        rendered = fused.render(cameras, trained.six, workspace=workspace)
        assert torch.equal(rendered.image, result.image)
        if disturb:  # the workspace draws something else in between: the step notices and draws once more
            fused.render(make_case(8).raster_camera, make_case(8).six, workspace=workspace)
        before = workspace.facts["stage_ms"]["preprocess"]
        found = trained.step(cameras, grad_image=gradient, rendered=rendered)
        assert (workspace.facts["stage_ms"]["preprocess"] == before) or disturb
        assert torch.equal(found.radii, rendered.radii)
        assert found.image is rendered.image
        assert same(trained, wanted)


def test_pooled_and_owned_memory_give_the_same_bits_also_below_a_limit():
    case = make_case(9, n=2000, width=200, height=150)
    losses = [fused.L1SSIM(target(0, 150, 200))]
    runs = []
    try:
        for limit in (0, 2_500_000):
            set_memory_limit(limit)
            own = fused.Workspace(memory_limit=limit)
            for workspace in (None, own):
                runs.append(Trained(case))
                with on_threads(1):  # each thread takes memory
                    result = runs[-1].step(case.raster_camera, losses=losses, workspace=workspace)
                assert result.invalid == 0
            assert (own.facts["bands"] > 1) == (limit > 0)
    finally:
        set_memory_limit(0)
    assert all(same(runs[0], run) for run in runs[1:])
    with pytest.raises(ValueError, match="0 or more"):
        set_memory_limit(-1)


def test_culled_gaussians_are_counted_and_no_gaussians_are_fine():
    case = make_case(10, n=40)
    trained = Trained(case)
    trained.six[0][3] = math.nan
    assert trained.step(case.raster_camera, losses=[fused.L1SSIM(target())]).invalid == 1
    none = make_case(10, n=24)
    trained = Trained(none)
    empty = [p[:0] for p in trained.six]
    result = fused.train_step(
        none.raster_camera,
        empty,
        exp_avg=[p.clone() for p in empty],
        exp_avg_sq=[p.clone() for p in empty],
        learning_rates=RATES,
        losses=[fused.L1SSIM(target())],
        stats=fused.Statistics(torch.empty(0)),
        sparse=True,
    )
    assert result.radii.shape == (0,)
    assert torch.isfinite(result.image).all()


def test_arguments_that_do_not_fit_are_named():
    case = make_case(11, n=24)
    trained, camera = Trained(case), case.raster_camera
    fine = {"losses": [fused.L1SSIM(target())]}
    wrong = {
        "shN: degree 3": {"camera": camera, "six": [*case.six[:5], case.six[5][:, :8].contiguous()]},
        "exp_avg of quats": {"exp_avg": [*trained.mean[:2], trained.mean[2][1:], *trained.mean[3:]]},
        "learning_rates: expected six": {"learning_rates": RATES[:5]},
        "step: expected": {"step": 0},
        "count: expected shape": {"stats": fused.Statistics(count=torch.zeros(3))},
        "target: expected shape": {"losses": [fused.L1SSIM(target(0, 45, 60))]},
        "pixel_weights: expected shape": {"losses": [fused.L1SSIM(target(), pixel_weights=target())]},
        "neither a loss nor grad_image": {"losses": []},
        "grad_image: expected shape": {"grad_image": torch.zeros(3, 2, 2)},
        "filter_3d: expected shape": {"filter_3d": torch.zeros(3)},
        "a list for each of 2 cameras": {"camera": [camera, camera], "losses": [[]]},
    }
    for message, changes in wrong.items():
        options = fine | {k: v for k, v in changes.items() if k not in ("camera", "six")}
        broken = Trained(case)
        broken.six = changes.get("six", broken.six)
        with pytest.raises(ValueError, match=message):
            broken.step(changes.get("camera", camera), **options)
    with pytest.raises(ValueError, match="lambda_dssim"):
        fused.L1SSIM(target(), lambda_dssim=1.5)
    low, _ = lr_target(case)
    beyond = fused.LowResolution(low.lr_target, (low.taps_x[0] + 40, low.taps_x[1]), low.taps_y)
    with pytest.raises(ValueError, match="taps_x: taps reach beyond"):
        trained.step(camera, losses=[beyond])
    assert same(trained, Trained(case))


def test_the_3d_filter_is_its_definition():
    case = make_case(12)
    cameras = [replace(c, fx=c.fx * (1 + k)) for k, c in enumerate(cameras_of(case, 3))]
    means = case.six[0]
    found = fused.filter_3d(cameras, means)
    wanted = []
    for mean in means.double():
        rate = 0.0
        for c in cameras:
            pose = torch.as_tensor(c.world_to_camera)
            x, y, z = (pose[:3, :3] @ mean + pose[:3, 3]).tolist()
            if z <= 0.2:
                continue
            across, down = (c.fx * x / z + c.cx) / c.width, (c.fy * y / z + c.cy) / c.height
            if -0.15 <= across <= 1.15 and -0.15 <= down <= 1.15:
                rate = max(rate, max(c.fx, c.fy) / z)
        wanted.append(math.sqrt(0.2) / rate if rate else math.inf)
    wanted = torch.tensor(wanted)
    seen = torch.isfinite(wanted)
    assert 0 < seen.sum() < len(seen)
    assert relative(found[seen], wanted[seen]) < 1e-6
    assert (found[~seen] == found[seen].max()).all()
    assert torch.equal(fused.filter_3d(cameras, torch.tensor([[0.0, 0, -9]])), torch.zeros(1))
    assert fused.filter_3d(cameras, means[:0]).shape == (0,)
