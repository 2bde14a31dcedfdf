"""rms and largest error of a downscaled frame against its LR view, and where projection is refused."""

import numpy as np
import pytest
import torch

from scene.alpha import premultiplied
from scene.lr_kernel import LRKernel, opaque_support_mask
from upsampling.consistency import consistency_db, consistency_errors, refuse_unknown
from utils.errors import UserError

AREA = LRKernel("area", "renormalise", (48, 40), (12, 10))
BICUBIC = LRKernel("bicubic", "renormalise", (48, 40), (12, 10))


def pictures(channels=3, low=1, high=255):
    rng = np.random.default_rng(0)
    hr = rng.integers(low, high, (40, 48, channels), np.uint8)
    return hr, rng.integers(low, high, (10, 12, channels), np.uint8)


def test_errors_are_those_of_the_definition():
    hr, lr = pictures()
    difference = hr.reshape(10, 4, 12, 4, 3).mean((1, 3)) / 255 - lr / 255  # area by its definition
    found = consistency_errors(AREA, hr, lr)
    assert found.rms == pytest.approx(np.sqrt((difference**2).mean()), abs=1e-6)
    assert found.max == pytest.approx(np.abs(difference).max(), abs=1e-6)
    assert found.values == lr.size


def test_rms_and_decibels_are_the_same_number():
    hr, lr = pictures()
    assert -20 * np.log10(consistency_errors(BICUBIC, hr, lr).rms) == pytest.approx(consistency_db(BICUBIC, hr, lr))


def test_saturated_values_do_not_count():
    hr, lr = pictures()
    whole = consistency_errors(AREA, hr, lr)
    marked = lr.copy()
    marked[3, 4, 1], marked[7, 2, 0] = 0, 255
    difference = hr.reshape(10, 4, 12, 4, 3).mean((1, 3)) / 255 - lr / 255
    difference[3, 4, 1] = difference[7, 2, 0] = 0
    found = consistency_errors(AREA, hr, marked)
    assert found.values == whole.values - 2
    assert found.rms == pytest.approx(np.sqrt((difference**2).sum() / found.values), abs=1e-6)
    assert consistency_errors(AREA, hr, np.full_like(lr, 255)) is None


def test_a_view_made_of_the_frame_is_half_a_level_off_at_most():
    hr, _ = pictures(low=40, high=216)
    small = BICUBIC.down(torch.from_numpy(hr / 255.0).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    found = consistency_errors(BICUBIC, hr, np.rint(small.clip(0, 1) * 255).astype(np.uint8))
    assert 0 < found.rms < found.max <= 0.5 / 255 + 1e-6


def test_with_alpha_only_opaque_support_counts():
    hr, lr = pictures(4)
    hr[..., 3] = 255
    hr[:, :20, 3] = 128
    lr[..., 3] = 255
    mask = opaque_support_mask(AREA, torch.from_numpy(premultiplied(hr))[..., 3]).numpy()
    found = consistency_errors(AREA, hr, lr)
    difference = (hr[..., :3].reshape(10, 4, 12, 4, 3).mean((1, 3)) - lr[..., :3]) / 255
    assert found.values == 3 * mask.sum() == 3 * 70
    assert found.max == pytest.approx(np.abs(difference[mask]).max(), abs=1e-6)
    hr[..., 3] = 128
    assert consistency_errors(AREA, hr, lr) is None


def test_projection_needs_a_known_kernel_and_views_that_were_not_degraded(tmp_path):
    refuse_unknown(("area", "renormalise"), tmp_path)
    with pytest.raises(UserError, match="no LR kernel is known"):
        refuse_unknown(None, tmp_path)
    (tmp_path / "degradation.json").write_text("{}")
    with pytest.raises(UserError, match=r"were degraded .*leave --project out"):
        refuse_unknown(("area", "renormalise"), tmp_path)
