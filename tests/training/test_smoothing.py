"""--filter_3d: the filter in training, in the PLY, and over an interruption."""

import numpy as np
import pytest
import torch
from diff_gaussian_rasterization import fused
from PIL import Image

from arguments.training import OptimizationParams
from gaussian_renderer import render
from scene import load_scene
from scene.ply import read_gaussians
from tests.training_factory import LR_SIZE, SCALE, VIEWS, random_state, settings, write_scene
from training.checkpoint import Checkpoints, load
from training.job import Job
from training.outputs import save_ply
from training.smoothing import INTERVAL, baked, filters
from training.views import training_views
from utils.errors import UserError
from utils.state import load_state, save_state


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return write_scene(tmp_path_factory.mktemp("scene"))


def trainer(root, rasterizer="native", confidence=None, **optimisation):
    given = settings(root, rasterizer, **{"filter_3d": True} | optimisation)
    scene, folder = load_scene(root / "lr"), root / "out/hr"
    views = training_views(scene, folder, given.model, given.optimisation, 0, "cpu", confidence)
    return Job(given, root / "out", load_scene(root / "lr"), views, root / "out/hr", "cpu").trainer()


def test_what_is_baked_is_a_convolution():
    """Covariance plus f^2, peak times the root of the ratio of determinants; in float64 the definition itself."""
    state = random_state(50)
    gaussians = state.gaussians
    for name, value in vars(gaussians).items():
        setattr(gaussians, name, value.double())
    gaussians.logit_opacities[:4, 0] = torch.tensor([-60.0, -30.0, 20.0, 30.0])
    widths = torch.linspace(0, 2, 50, dtype=torch.float64)
    found = baked(gaussians, widths)
    scales = (gaussians.scales**2 + widths[:, None] ** 2).sqrt()
    torch.testing.assert_close(found.scales, scales)
    share = (gaussians.scales / scales).prod(dim=1, keepdim=True)
    torch.testing.assert_close(found.opacities, share * gaussians.opacities)
    torch.testing.assert_close(found.logit_opacities[0], gaussians.logit_opacities[0])  # f = 0 changes nothing
    half = baked(type(gaussians)(**{k: v.float() for k, v in vars(gaussians).items()}), widths.float())
    assert all(torch.isfinite(value).all() for value in vars(half).values())
    torch.testing.assert_close(half.logit_opacities.double(), found.logit_opacities, rtol=1e-4, atol=1e-4)


def test_engines_agree_with_filters(root):
    runs = [trainer(root, name, densify_from_iter=1000) for name in ("native", "reference")]
    plain = trainer(root, densify_from_iter=1000, filter_3d=False)
    for run in (*runs, plain):  # thin Gaussians, so that there is something to filter
        run.state.gaussians.log_scales -= 3.0
    for _ in range(4):
        a, b, other = (run.step().loss for run in (*runs, plain))
        assert a == pytest.approx(b, rel=1e-4)
        assert abs(a - other) > 1e-3, "the filter has no effect"


@pytest.mark.parametrize("drawing", [{}, {"antialiasing": True, "dilation": 0.1}])
def test_the_ply_looks_as_it_was_trained(root, tmp_path, drawing):
    run = trainer(root, densify_from_iter=1000)
    run.state.gaussians.log_scales -= 2.0
    for _ in range(3):
        run.step()
    camera = next(iter(run.views.views.values())).camera
    saved = read_gaussians(save_ply(tmp_path, 3, run.drawn))
    with torch.no_grad():
        image = render(camera, saved, background=(0.0, 0.0, 0.0), sh_degree=0, **drawing).color
        bare = render(camera, run.state.gaussians, background=(0.0, 0.0, 0.0), sh_degree=0, **drawing).color
    c = camera
    pose = (c.width, c.height, c.fx, c.fy, c.cx, c.cy, c.world_to_camera)
    pinhole = fused.RasterCamera(*pose, sh_degree=0, **drawing)
    parameters = list(run.state.parameters().values())
    trained = fused.render(pinhole, parameters, filter_3d=run.state.filter_3d, workspace=run.engine.workspace).image
    torch.testing.assert_close(image, trained, rtol=0, atol=2e-5)
    assert (bare - trained).abs().max() > 0.01


def test_filters_follow_the_rows_and_the_means(root):
    run = trainer(root, iterations=2 * INTERVAL + 10, densify_until_iter=60, max_gaussians=0)
    sizes = set()
    while run.iteration < INTERVAL - 1:
        run.step()
        sizes.add(run.state.gaussians.num)
        assert len(run.state.filter_3d) == run.state.gaussians.num
    assert len(sizes) > 1, "rows must have changed"
    old = run.state.filter_3d
    run.step()
    cameras = [view.camera for view in run.views.views.values()]
    assert torch.equal(run.state.filter_3d, filters(cameras, run.state.gaussians.means))
    assert not torch.equal(run.state.filter_3d, old)


def test_an_interrupted_run_ends_as_one_that_was_not(root, tmp_path):
    whole = trainer(root)
    first, second = trainer(root), trainer(root)
    while whole.iteration < 40:
        whole.step()
    while first.iteration < 23:
        first.step()
    kept = Checkpoints(tmp_path, frozenset(), {})
    tensors, info = first.capture()
    path = kept.write(tensors, info | {"log_bytes": 0, "rollbacks": 0})
    second.restore(*load(path))
    while second.iteration < 40:
        second.step()
    expected = whole.state.tensors()
    assert "filter_3d" in expected
    assert all(torch.equal(value, expected[name]) for name, value in second.state.tensors().items())
    tensors, info = load_state(path)
    save_state(path, tensors | {"filter_3d": torch.zeros(3)}, info)
    with pytest.raises(UserError, match="filter_3d has the wrong shape"):
        load(path)


def test_a_checkpoint_without_filters_gets_them_and_one_with_them_loses_them(root):
    with_filters, without = trainer(root), trainer(root, filter_3d=False)
    for run in (with_filters, without):
        run.step()
    states = [run.capture() for run in (with_filters, without)]
    with_filters.restore(*states[1])
    without.restore(*states[0])
    assert len(with_filters.state.filter_3d) == with_filters.state.gaussians.num
    assert without.state.filter_3d is None
    assert without.drawn is without.state.gaussians


def weights_of(folder, maps):
    """8-bit weight maps of all views; [VIEWS, H, W] in 0-255."""
    (folder / "train").mkdir(parents=True)
    for i, values in enumerate(maps):
        Image.fromarray(values).save(folder / f"train/r_{i}.png")
    return folder


def by_hand(run, rate, maps=None):
    """Width of each Gaussian's filter: Mip-Splatting's formula, one Gaussian and one view after the other."""
    widths = []
    for mean in run.state.gaussians.means.double().numpy():
        best = 0.0
        for i, view in enumerate(run.views.views.values()):
            c = view.camera
            x, y, z = (c.world_to_camera @ np.append(mean, 1))[:3]
            column, row = c.fx * x / z + c.cx, c.fy * y / z + c.cy
            w, h = c.width, c.height
            if z > 0.2 and -0.15 * w <= column <= 1.15 * w and -0.15 * h <= row <= 1.15 * h:
                share = 1.0 if rate == "frames" else 1 / SCALE
                if rate == "confidence":
                    at = maps[i][int(min(max(row, 0), h - 1)), int(min(max(column, 0), w - 1))] / 255
                    share = 1 / SCALE + (1 - 1 / SCALE) * at
                best = max(best, share * max(c.fx, c.fy) / z)
        widths.append(np.sqrt(0.2) / best if best else np.inf)
    found = torch.tensor(widths)
    return torch.where(found.isinf(), found[~found.isinf()].max(), found).float()


@pytest.mark.parametrize("rate", ["frames", "lr", "confidence"])
def test_the_rate_is_the_one_that_is_trusted(root, tmp_path, rate):
    """Per view and pixel; brute force. Some Gaussians stand outside the images, some are seen by nobody."""
    maps = np.random.default_rng(0).integers(0, 256, (VIEWS, SCALE * LR_SIZE, SCALE * LR_SIZE), np.uint8)
    folder = weights_of(tmp_path / "weights", maps) if rate == "confidence" else None
    run = trainer(root, confidence=folder, filter_3d_rate=rate)
    run.state.gaussians.means *= torch.linspace(0.5, 4, run.state.gaussians.num)[:, None]
    run._smooth()
    torch.testing.assert_close(run.state.filter_3d, by_hand(run, rate, maps), rtol=1e-4, atol=0)


def test_trust_runs_from_the_lr_views_to_the_frames(root, tmp_path):
    size = (VIEWS, SCALE * LR_SIZE, SCALE * LR_SIZE)
    black, white = (weights_of(tmp_path / str(v), np.full(size, v, np.uint8)) for v in (0, 255))
    found = [
        trainer(root, confidence=folder, filter_3d_rate=rate).state.filter_3d
        for folder, rate in ((None, "frames"), (white, "confidence"), (None, "lr"), (black, "confidence"))
    ]
    torch.testing.assert_close(found[0], found[1])
    torch.testing.assert_close(found[2], found[3])
    torch.testing.assert_close(found[2], SCALE * found[0])


def test_an_interrupted_run_with_trust_ends_as_one_that_was_not(root, tmp_path):
    maps = np.random.default_rng(0).integers(0, 256, (VIEWS, SCALE * LR_SIZE, SCALE * LR_SIZE), np.uint8)
    flags = {"confidence": weights_of(tmp_path / "weights", maps), "filter_3d_rate": "confidence"}
    whole, first, second = (trainer(root, **flags) for _ in range(3))
    while whole.iteration < 20:
        whole.step()
    while first.iteration < 9:
        first.step()
    second.restore(*first.capture())
    while second.iteration < 20:
        second.step()
    assert all(torch.equal(v, whole.state.tensors()[name]) for name, v in second.state.tensors().items())


def test_trust_without_sense_is_refused(root):
    with pytest.raises(UserError, match="no filter without --filter_3d"):
        OptimizationParams(filter_3d_rate="lr")
    with pytest.raises(UserError, match="--confidence"):
        trainer(root, filter_3d_rate="confidence")
    given = settings(root, filter_3d=True, filter_3d_rate="lr", lambda_tex=0.0)
    with pytest.raises(UserError, match="their own size"):
        training_views(load_scene(root / "lr"), None, given.model, given.optimisation, 0, "cpu")
