"""NIQE_fit: fits that find their parameters, scores that grow with noise and blur, and what is refused."""

import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation.niqe import BLOCK_PX, aggd, fit, fit_files, image_features, mscn, pristine_files
from evaluation.run_metrics import measure_models
from scene.image_files import write_png
from tests.evaluation.test_results import write_foreign
from utils.errors import UserError


def leaves(seed, size=288):
    """Dead leaves: discs of power-law radii over one another, with fine texture: the statistics of photographs."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 3), 128.0)
    for _ in range(600):
        radius = 3 / np.sqrt(rng.uniform(0.002, 1))
        cx, cy = rng.uniform(0, size, 2)
        inside = (x - cx) ** 2 + (y - cy) ** 2 < radius**2
        image[inside] = rng.uniform(20, 235, 3)
    texture = gaussian_filter(rng.standard_normal((size, size)), 0.7)
    return np.rint((image + 12 * texture[..., None]).clip(0, 255)).astype(np.uint8)


@pytest.fixture(scope="module")
def model():
    return fit(leaves(seed) for seed in range(12))


def noisy(image, sigma):
    noise = np.random.default_rng(99).standard_normal(image.shape)
    return np.rint((image + sigma * noise).clip(0, 255)).astype(np.uint8)


def blurred(image, sigma):
    return np.rint(gaussian_filter(image.astype(float), (sigma, sigma, 0))).astype(np.uint8)


@pytest.mark.parametrize(("damage", "amounts"), [(noisy, (8, 16, 32)), (blurred, (0.4, 0.8, 1.6))])
def test_noise_and_blur_raise_the_score_step_by_step(model, damage, amounts):
    for seed in (100, 101):
        image = leaves(seed)
        scores = [model.score(image), *(model.score(damage(image, amount)) for amount in amounts)]
        assert scores == sorted(scores), scores
        assert scores[1] > 1.1 * scores[0]


def test_pristine_images_score_near_what_they_were_fitted_to(model):
    others = [model.score(leaves(seed)) for seed in range(200, 203)]
    assert max(others) < 0.5 * model.score(noisy(leaves(200), 32))


@pytest.mark.parametrize(("alpha", "left", "right"), [(2.0, 1.0, 1.0), (1.0, 0.5, 1.5), (0.6, 2.0, 1.0)])
def test_the_fit_finds_the_distribution(alpha, left, right):
    """|x / scale|^alpha of either side is Gamma(1 / alpha); sides are chosen in proportion to their widths."""
    rng = np.random.default_rng(0)
    n = 200_000
    size = rng.gamma(1 / alpha, size=n) ** (1 / alpha)
    on_the_left = rng.random(n) < left / (left + right)
    x = np.where(on_the_left, -left * size, right * size)
    np.testing.assert_allclose(aggd(x), (alpha, left, right), rtol=0.04)


def test_mscn_of_a_contrast_change_and_a_ramp():
    """Local normalisation: an offset changes nothing, a doubled contrast little where sigma is well above 1."""
    image = 30 * np.random.default_rng(0).standard_normal((64, 64)) + 128
    first, sigma = mscn(image)
    np.testing.assert_allclose(mscn(image + 7)[0], first, atol=1e-9)
    assert np.abs(mscn(2 * image)[0] - first).max() < 0.15
    assert abs(sigma.mean() - 30) < 3


def test_sides_are_cropped_to_whole_blocks():
    image = leaves(0, 200)
    features, sharpness = image_features(image)
    assert features.shape == (4, 36)
    np.testing.assert_array_equal(features, image_features(image[: 2 * BLOCK_PX, : 2 * BLOCK_PX])[0])
    assert len(sharpness) == 4


def test_flat_surroundings_do_not_count(model):
    """A rendered object on a background: only the blocks that have texture are described."""
    image = np.full((288, 288, 3), 255, np.uint8)
    image[:192, :192] = leaves(5, 192)
    assert len(image_features(image)[0]) == 4
    assert model.score(image) < model.score(noisy(leaves(5), 32))
    assert model.score(np.full((96, 96, 3), 255, np.uint8)) is None


@pytest.mark.parametrize(
    ("flat", "told"), [((1,), "the mean is that of the others"), ((0, 1, 2), "so there is no mean")]
)
def test_a_view_without_texture_is_left_out(tmp_path, capsys, flat, told):
    """Of one view alone NIQE_fit says nothing: the others are measured, and so are all other metrics of all."""
    out = write_foreign(tmp_path / "out", size=96)
    renders = sorted((out / "test/ours_30000/renders").iterdir())
    for i, path in enumerate(renders):
        write_png(path, np.full((96, 96, 3), 255, np.uint8) if i in flat else leaves(i, 96))
    for seed in range(12):
        write_png(tmp_path / "pristine" / f"{seed}.png", leaves(seed))
    params = MetricsParams(
        (str(out),), extra_metrics=("NIQE_fit",), niqe_fit=str(tmp_path / "pristine"), no_lpips=True, no_frames=True
    )
    measure_models(CommonParams(quiet=True, device="cpu"), params)
    shown = capsys.readouterr()
    assert shown.err.count("no NIQE_fit") == 1
    assert f"{renders[flat[0]]}: no block of it has texture" in shown.err
    assert f"{len(flat)} of 3 views have none, {told}" in shown.err
    assert ("NIQE_fit" in shown.out) == (len(flat) < 3)
    result = json.loads((out / "metrics.json").read_text())["methods"]["test/ours_30000"]
    scores = {name: view["NIQE_fit"] for name, view in result["views"].items() if "NIQE_fit" in view}
    assert set(scores) == {path.name for i, path in enumerate(renders) if i not in flat}
    assert result["mean"].get("NIQE_fit") == (pytest.approx(np.mean(list(scores.values()))) if scores else None)
    assert all({"PSNR", "SSIM"} <= set(view) for view in result["views"].values())


def test_too_small_or_too_few_is_refused(model):
    with pytest.raises(UserError, match="95x96 px, NIQE_fit needs 96x96"):
        model.score(np.zeros((96, 95, 3), np.uint8))
    with pytest.raises(UserError, match="sharp blocks of 96x96 px in all"):
        fit([leaves(0, 96)])


def test_a_folder_is_fitted_in_the_order_of_its_names(tmp_path):
    for seed in range(12):
        write_png(tmp_path / "in" / f"{seed:02}.png", leaves(seed))
    files = pristine_files(tmp_path)
    assert [p.name for p in files] == [f"{seed:02}.png" for seed in range(12)]
    np.testing.assert_array_equal(fit_files(files, "x").mean, fit(leaves(seed) for seed in range(12)).mean)
    with pytest.raises(UserError, match="--niqe_fit"):
        pristine_files(tmp_path / "nothing")
