"""The warm start: contributions by brute force, exact numbers, and pictures that stay what they were."""

import math

import numpy as np
import pytest
import torch

from arguments.training import TrainingParams
from gaussian_renderer import render
from gaussian_renderer.splats import covariances
from scene import load_scene
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.ply import read_gaussians
from tests.training_factory import command, write_scene
from training.warm_start import contributions, split, warm_start
from utils.errors import UserError
from utils.psnr import psnr

SIZE = 40


def cameras(count: int = 4) -> list[Camera]:
    """Around the origin, at distance 4."""
    made = []
    for i in range(count):
        turn = 2 * math.pi * i / count
        pose = np.eye(4)
        pose[:3, :3] = [[math.cos(turn), 0, math.sin(turn)], [0, 1, 0], [-math.sin(turn), 0, math.cos(turn)]]
        pose[2, 3] = 4.0
        made.append(Camera(f"c{i}", SIZE, SIZE, np.array([[50.0, 0, 20], [0, 50, 20], [0, 0, 1]]), pose))
    return made


def model(n: int = 300, seed: int = 0) -> Gaussians:
    """A ball's surface of flat opaque splats, and a few that nobody sees."""
    g = torch.Generator().manual_seed(seed)
    means = torch.randn(n, 3, generator=g)
    means = means / means.norm(dim=1, keepdim=True)
    log_scales = torch.log(torch.tensor([0.16, 0.1, 0.05])) + 0.3 * torch.randn(n, 3, generator=g)
    logits = 1 + 2 * torch.randn(n, 1, generator=g)
    logits[:20], means[20:30] = -12.0, means[20:30] * 0.05
    return Gaussians(
        means,
        log_scales,
        torch.randn(n, 4, generator=g),
        logits,
        torch.randn(n, 1, 3, generator=g),
        torch.zeros(n, 0, 3),
    )


def test_contributions_are_sums_of_blending_weights():
    gaussians = model(40)
    double = Gaussians(**{name: value.double() for name, value in vars(gaussians).items()})
    expected = torch.zeros(40, dtype=torch.float64)
    for camera in cameras(2):
        for k in range(40):  # white where this one is, black elsewhere: the sum of the picture is what it contributes
            colours = torch.zeros(40, 3, dtype=torch.float64)
            colours[k] = 1.0
            with torch.no_grad():
                image = render(camera, double, background=(0.0,) * 3, override_color=colours, rasterizer="reference")
            expected[k] += image.color[0].sum()
    for rasterizer in ("native", "reference"):
        found = contributions(gaussians, cameras(2), {"rasterizer": rasterizer})
        torch.testing.assert_close(found.double(), expected, rtol=2e-3, atol=2e-3)
    assert (expected > 1).sum() > 10


def test_children_have_their_parents_mean_covariance_and_light():
    one = Gaussians(**{name: value[30:31].double() for name, value in vars(model()).items()})
    for opacity in (0.05, 0.5, 0.95, 0.999):
        one.logit_opacities = torch.logit(torch.tensor([[opacity]], dtype=torch.float64))
        two = split(one, torch.tensor([0]))
        assert two.num == 2
        torch.testing.assert_close(two.means.mean(dim=0), one.means[0])
        sigma = covariances(one.scales, one.quats)[0]
        apart = (two.means - one.means)[:, (0, 0, 0, 1, 1, 2)] * (two.means - one.means)[:, (0, 1, 2, 1, 2, 2)]
        mixture = covariances(two.scales, two.quats).mean(dim=0) + apart.mean(dim=0)
        torch.testing.assert_close(mixture, sigma)
        widest = float(one.scales.max())
        at = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
        a, b = (two.opacities[0] * torch.exp(-(((at - side) / 0.75**0.5) ** 2) / 2) for side in (0.5, -0.5))
        assert float((two.means[0] - one.means[0]).norm()) == pytest.approx(0.5 * widest)
        light = float((1 - (1 - a) * (1 - b)).sum())
        assert light == pytest.approx(opacity * float(torch.exp(-(at**2) / 2).sum()), rel=1e-6)


@pytest.mark.parametrize("wanted", [40, 250, 701, 1500])
def test_the_number_is_exact_and_the_useless_are_gone(wanted):
    gaussians = model()
    shares = contributions(gaussians, cameras(), {})
    assert (shares[:20] < 2).all()
    found = warm_start(gaussians, cameras(), wanted, {})
    assert found.num == wanted
    assert all(value.is_contiguous() and torch.isfinite(value).all() for value in vars(found).values())
    dead = {tuple(mean.tolist()) for mean in gaussians.means[shares < 2]}
    assert not dead & {tuple(mean.tolist()) for mean in found.means}
    if wanted == 40:
        best = torch.sort(shares, descending=True).indices[:40].sort().values
        assert torch.equal(found.means, gaussians.means[best])


def test_without_a_number_there_are_four_times_as_many_as_are_of_use():
    gaussians = model()
    useful = int((contributions(gaussians, cameras(), {}) >= 2).sum())
    assert warm_start(gaussians, cameras(), -1, {}).num == 4 * useful
    for most, number in {9 * useful: 4 * useful, 3 * useful: 3 * useful // 2, useful + 3: useful, 50: 50}.items():
        assert warm_start(gaussians, cameras(), -1, {}, most=most).num == number


def test_the_picture_stays():
    """LR renders of all views before and after; a split that kept opacities, or scales, would be far off."""
    gaussians = model()
    wanted = 3 * gaussians.num
    after, crude = warm_start(gaussians, cameras(), wanted, {}), warm_start(gaussians, cameras(), wanted, {})
    crude.logit_opacities += 1.0
    found = []
    for some in (after, crude):
        with torch.no_grad():
            pairs = [
                [render(c, g, background=(0.0,) * 3).color.clamp(0, 1) for g in (gaussians, some)] for c in cameras(6)
            ]
        found.append(min(float(psnr(a, b)) for a, b in pairs))
    assert found[0] > 27
    assert found[0] > found[1] + 3


def test_light_in_all_is_nearly_kept():
    gaussians = model()
    after = warm_start(gaussians, cameras(), 900, {})
    before, now = (float(contributions(g, cameras(), {}).sum()) for g in (gaussians, after))
    assert now == pytest.approx(before, rel=0.05)


def test_the_largest_are_split():
    gaussians = model()
    shares = contributions(gaussians, cameras(), {})
    useful = int((shares >= 2).sum())
    after = warm_start(gaussians, cameras(), useful + 10, {})
    kept = {tuple(mean.tolist()) for mean in after.means}
    gone = [i for i in (shares >= 2).nonzero()[:, 0].tolist() if tuple(gaussians.means[i].tolist()) not in kept]
    assert sorted(gone) == sorted(torch.sort(shares, descending=True).indices[:10].tolist())


def test_a_model_of_another_scene_is_refused():
    gaussians = model()
    gaussians.means += 1000.0
    with pytest.raises(UserError, match="no model of this scene"):
        warm_start(gaussians, cameras(), 100, {})


def test_training_starts_from_it(tmp_path, run_train):
    root = write_scene(tmp_path)
    run_train(command(root, root / "first", iterations=20))
    ply = root / "first/point_cloud/iteration_20/point_cloud.ply"
    flags = {"init_ply": ply, "init_gaussians": 222, "densify_from_iter": 1000}
    run_train(command(root, root / "next", iterations=1, **flags))
    made = read_gaussians(root / "next/point_cloud/iteration_1/point_cloud.ply")
    assert made.num == 222
    again = warm_start(
        read_gaussians(ply), [load_scene(root / "lr").cameras[f"train/r_{i}"] for i in range(8)], 222, {}
    )
    assert torch.equal(made.means, again.means)
    with pytest.raises(UserError, match="more than --max_gaussians"):
        run_train(command(root, root / "more", **flags | {"init_gaussians": 301}))
    assert not (root / "more").exists(), "refused before anything is written"
    said = run_train([*command(root, root / "dry", **flags), "--dry_run"])
    assert "222 Gaussians to start with" in said.out
    run_train(command(root, root / "whole", iterations=30, **flags))
    run_train(command(root, root / "cut", iterations=30, checkpoint_iterations=15, **flags))
    start = {"start_checkpoint": root / "cut/checkpoints/iteration_15.safetensors"}
    run_train(command(root, root / "on", iterations=30, **flags, **start))
    plies = [(root / f"{name}/point_cloud/iteration_30/point_cloud.ply").read_bytes() for name in ("whole", "on")]
    assert plies[0] == plies[1]


def test_it_needs_a_ply():
    with pytest.raises(UserError, match="--init_ply"):
        TrainingParams(init_gaussians=100)
