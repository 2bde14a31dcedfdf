"""rms and largest error of a downscaled frame against its LR view, and where projection is refused."""

import json

import numpy as np
import pytest
import torch

from arguments.lr_kernel import projecting, refuse_unknown
from scene.alpha import premultiplied
from scene.lr_kernel import LRKernel, opaque_support_mask
from upsampling.consistency import (
    ConsistencyErrors,
    Measured,
    consistency_db,
    consistency_errors,
    summary,
    write_report,
)
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


@pytest.mark.parametrize(
    ("flags", "asked"),
    [
        ((True, "basicvsr", "auto"), "--project"),
        ((False, "small", "hard"), "--project_lr hard"),
        ((False, "small", "soft"), "--project_lr soft"),
        ((False, "ddnm", "auto"), "--upsampler ddnm, which works by projection"),
        ((False, "small", "auto"), ""),
        ((False, "basicvsr", "hard"), ""),  # a prior's flag
    ],
)
def test_projection_needs_an_operator_and_the_message_says_why_there_is_none(flags, asked):
    found = projecting(*flags)
    assert found == asked
    refuse_unknown(found, ("area", "renormalise"), False)
    if not asked:
        refuse_unknown(found, None, True)
        return
    with pytest.raises(UserError, match=f"^{asked}: no LR kernel is known; say with --lr_kernel"):
        refuse_unknown(found, None, False)
    with pytest.raises(
        UserError, match=f"^{asked}: the LR views were degraded .*no linear operator.*leave it out"
    ) as e:
        refuse_unknown(found, None, True)
    assert "lr_kernel" not in str(e.value)  # which would not help


def test_the_report_has_errors_in_grey_levels(tmp_path):
    values = {
        "a": Measured(40.0, ConsistencyErrors(1 / 255, 3 / 255, 12)),
        "b": Measured(50.0, ConsistencyErrors(2 / 255, 2.5 / 255, 12)),
        "c": Measured(60.0, None),
        "d": Measured(None, None),
    }
    write_report(tmp_path, ("area", "renormalise"), values, "")
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert found["errors"]["a"] == pytest.approx({"rms_levels": 1.0, "max_levels": 3.0})
    assert (found["errors"]["c"], found["errors"]["d"], found["not_measured"]) == (None, None, None)
    assert (found["mean_db"], found["mean_rms_levels"], found["max_levels"]) == pytest.approx((50.0, 1.5, 3.0))
    assert summary(tmp_path) == "LR consistency 50.0 dB in the mean, rms 1.50 and at most 3.0 of 255 levels"


@pytest.mark.parametrize(
    ("degraded", "reason"), [(True, "degraded (degradation.json"), (False, "no LR kernel is known")]
)
def test_without_an_operator_the_report_says_why(tmp_path, capsys, degraded, reason):
    write_report(tmp_path, None, {"a": Measured(None, None)}, "", degraded)
    found = json.loads((tmp_path / "consistency.json").read_text())
    assert reason in found["not_measured"]
    assert reason in capsys.readouterr().err
    assert (found["mean_db"], found["mean_rms_levels"], found["errors"]) == (None, None, {"a": None})
    assert summary(tmp_path) == ""
