"""What a run measures of its views, against every view rendered and compared by hand."""

import numpy as np
import pytest
import torch

from gaussian_renderer import render
from scene import load_scene
from tests.training_factory import settings, write_scene
from training.job import Job
from training.report import measurer
from training.views import training_views
from utils.psnr import psnr

BLACK = (0.0, 0.0, 0.0)


def measured(root, frames, **optimisation):
    """(what was measured, PSNR of each view against its frame, of each reduced one against its LR view)."""
    given, scene = settings(root, **optimisation), load_scene(root / "lr")
    views = training_views(scene, frames, given.model, given.optimisation, 0, "cpu")
    run = Job(given, root / "out", scene, views, frames, "cpu").trainer()
    found = {m.group: m.psnr for m in measurer(scene, views, given.pipeline, BLACK)(run.drawn, 0)}
    hr, lr = [], []
    for name, view in views.views.items():
        targets, options = views.targets(name, BLACK), {"rasterizer": given.pipeline.rasterizer, "sh_degree": 0}
        with torch.no_grad():
            image = render(view.camera, run.drawn, background=BLACK, dilation=given.pipeline.dilation, **options).color
        image = image.clamp(0, 1)
        hr += [float(psnr(image, targets.hr))] if targets.hr is not None else []
        lr += [float(psnr(view.kernel.down(image), targets.lr))] if targets.lr is not None else []
    return found, hr, lr


@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_all_views_against_their_frames(tmp_path, weight):
    write_scene(tmp_path)
    found, hr, lr = measured(tmp_path, tmp_path / "out/hr", lambda_tex=weight)
    assert found["frames"] == pytest.approx(np.mean(hr), abs=1e-4)
    assert ("lr" in found) == bool(lr) == (weight < 1)
    if lr:
        assert found["lr"] == pytest.approx(np.mean(lr), abs=0.05)  # not clamped before it is reduced


def test_views_without_frames_have_no_such_group(tmp_path):
    write_scene(tmp_path)
    assert "frames" not in measured(tmp_path, None)[0]
