"""SplatSuRe's weights against what can be worked out by hand, Gaussian by Gaussian."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.loading import ModelParams, PipelineParams
from evaluation.rendering import Job
from evaluation.sampling import contributes, fidelity, measure_sampling, screen_radii, weight_map
from scene import load_scene
from scene.cameras import Camera, intrinsics
from scene.gaussians import Gaussians
from tests.evaluation_factory import HR_PX, LR_PX, render, write_model, write_scenes

FOCAL, SIZE = 40.0, 32
NEAR, OFF, BEHIND = 0, 1, 2  # Gaussians: on the axis; beside it; hidden behind the first


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_scenes(tmp_path_factory.mktemp("scenes"))


def camera(distance: float, yaw_deg: float = 0.0) -> Camera:
    """Looks along +z from `distance` before the origin, turned about its own y axis."""
    angle, pose = math.radians(yaw_deg), np.eye(4)
    pose[:3, :3] = [[math.cos(angle), 0, math.sin(angle)], [0, 1, 0], [-math.sin(angle), 0, math.cos(angle)]]
    pose[:3, 3] = pose[:3, :3] @ [0, 0, distance]
    return Camera("v", SIZE, SIZE, intrinsics(FOCAL, FOCAL, SIZE / 2, SIZE / 2), pose)


@pytest.fixture(params=["native", "reference"])
def job(request, scenes):
    means = torch.tensor([[0.0, 0.0, 0.0], [0.9, 0.0, 0.0], [0.0, 0.0, 0.5]])
    log_scales = torch.tensor([0.2, 0.1, 0.05]).log()[:, None].expand(3, 3).contiguous()
    quats = torch.tensor([[1.0, 0, 0, 0]]).expand(3, 4).contiguous()
    logits = torch.tensor([[20.0], [20.0], [20.0]])
    gaussians = Gaussians(means, log_scales, quats, logits, torch.zeros(3, 1, 3), torch.zeros(3, 0, 3))
    pipeline = PipelineParams(rasterizer=request.param)
    return Job(load_scene(scenes[0]), gaussians, 1, "white", pipeline, ModelParams())


def radius_px(scale: float, distance: float) -> float:
    """On the axis a ball's covariance is a circle's; the paper keeps 0.1 under the root of its eigenvalues."""
    variance = (FOCAL * scale / distance) ** 2
    return 3 * math.sqrt(variance + math.sqrt(0.1))


@pytest.mark.parametrize("distance", [1.5, 2.0, 5.0])
def test_radii_are_not_dilated_nor_rounded(job, distance):
    radii = screen_radii(camera(distance), job.gaussians)
    assert float(radii[NEAR]) == pytest.approx(radius_px(0.2, distance), rel=1e-5)
    assert float(radii[BEHIND]) == pytest.approx(radius_px(0.05, distance + 0.5), rel=1e-5)


def test_hidden_and_outside_gaussians_do_not_contribute(job):
    """Four opaque balls end every pixel before the small one behind them."""
    rows = torch.tensor([NEAR] * 4 + [OFF, BEHIND])
    for name, value in vars(job.gaussians).items():
        setattr(job.gaussians, name, value[rows].clone())
    job.gaussians.log_scales[-1] = math.log(0.005)
    found = contributes(job, camera(2.0)).tolist()
    assert (found[0], found[-2], found[-1]) == (True, True, False)
    assert contributes(job, camera(2.0, yaw_deg=180)).tolist() == [False] * 6


def test_ratio_and_closest_view_are_those_of_the_views_that_see_it(job):
    cameras = [camera(4.0), camera(2.0), camera(1.5, yaw_deg=180), camera(4.0)]
    sampling = measure_sampling(job, cameras)
    assert sampling.count[NEAR] == 3, "the third looks away"
    assert float(sampling.ratio[NEAR]) == pytest.approx(radius_px(0.2, 2.0) / radius_px(0.2, 4.0), rel=1e-5)
    assert sampling.closest[NEAR] == 1
    alone = measure_sampling(job, cameras[2:3])
    assert alone.closest.tolist() == [-1, -1, -1]
    assert alone.ratio.tolist() == [1, 1, 1]


def test_fidelity_is_the_papers_sigmoid_where_three_views_see_it(job):
    same = measure_sampling(job, [camera(3.0)] * 3)
    assert float(fidelity(same, 1.1)[NEAR]) == pytest.approx(1 / (1 + math.exp(2)), rel=1e-4)
    twice = measure_sampling(job, [camera(2.0), camera(4.0)])
    assert fidelity(twice, 1.1).tolist() == [0, 0, 0], "two views say nothing"
    assert float(fidelity(measure_sampling(job, [camera(2.0), camera(4.0), camera(4.0)]), 1.1)[NEAR]) > 0.999


def test_a_map_is_one_less_the_fidelity_but_in_the_closest_view(job):
    """Pixel by pixel: one Gaussian, so the images are its alpha times its value."""
    job.gaussians.log_scales[OFF:] = math.log(1e-6)  # the two others are only dots, elsewhere or hidden
    job.gaussians.logit_opacities[OFF:] = -20.0
    job.gaussians.logit_opacities[NEAR] = math.log(0.7 / 0.3)
    known = torch.tensor([0.8, 0.0, 0.0])
    view = camera(2.0)
    column, row = np.meshgrid(np.arange(SIZE) + 0.5 - SIZE / 2, np.arange(SIZE) + 0.5 - SIZE / 2)
    alpha = 0.7 * np.exp(-(column**2 + row**2) / (2 * ((FOCAL * 0.2 / 2.0) ** 2 + 0.3)))
    alpha[alpha < 1 / 255] = 0
    for closest in (False, True):
        found = weight_map(job, view, known, torch.tensor([closest, False, False]))
        np.testing.assert_allclose(found.numpy(), np.clip(1 - 0.8 * alpha + closest * alpha, 0, 1), atol=1e-5)


def test_maps_of_all_training_views_are_written(tmp_path, scenes):
    model = write_model(tmp_path / "model", scenes[0])
    render(model, scenes[0], sampling_weights=4)
    files = sorted(str(p.relative_to(model)) for p in (model / "sampling").rglob("*") if p.is_file())
    assert files == [f"sampling/train/r_{i}.png" for i in range(4)]
    for file in files:
        with Image.open(model / file) as image:
            assert (image.mode, image.size) == ("L", (HR_PX, HR_PX))
    record = json.loads((model / "run.json").read_text())["steps"]["sampling"]
    assert record["settings"]["sampling_ratio"] == 1.1
    found = np.mean([np.asarray(Image.open(model / file)).mean() for file in files]) / 255
    assert record["notes"]["sampling"]["mean_weight"] == pytest.approx(found, abs=0.5 / 255)
    assert 0 < record["notes"]["sampling"]["mean_fidelity"] < 1
    render(model, scenes[0], sampling_weights=2, overwrite=True)
    assert np.asarray(Image.open(model / files[0])).shape == (2 * LR_PX, 2 * LR_PX)
