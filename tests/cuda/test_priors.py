"""Diffusion priors on a GPU against the same on the CPU: frames, and score distillation. Noise is drawn on the CPU."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from priors.making import Known, Loading, Maker
from priors.samplers import SAMPLERS, load_sampler
from scene.lr_kernel import LRKernel
from tests.priors.test_guides import SETTINGS, WHOLE, camera, models, pull  # noqa: F401 (fixtures)
from tests.priors.test_sd_x4 import folder as sd_x4_folder  # noqa: F401 (a fixture)
from utils.compute import use_device
from utils.rng import generator

pytestmark = pytest.mark.gpu
KNOWN = Known(LRKernel("bicubic", "renormalise", (64, 48), (16, 12)))
TOLERANCE = 2e-3  # of 0-1: sums in another order, fed back by a few steps


def maker(name: str, models, device: torch.device | str) -> Maker:  # noqa: F811
    return SAMPLERS[name](replace(models[name], prior_steps=3), Loading(torch.device(device), 4))


@pytest.mark.parametrize("name", WHOLE)
def test_frames_are_those_of_the_cpu(cuda, models, name):  # noqa: F811
    use_device(cuda)
    views = torch.rand((3, 3, 12, 16), generator=generator(0, "views")) * 0.8 + 0.1
    images = []
    for device in ("cpu", cuda):
        found = maker(name, models, device)
        window = views[: found.frames].to(device)
        with torch.no_grad():
            image = found.make(window, KNOWN, generator(0, "walk"))
        assert image.device.type == torch.device(device).type
        images.append(KNOWN.settled(image, window[len(window) // 2]).cpu())
    torch.testing.assert_close(images[1], images[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["small", "ddnm"])
def test_views_with_alpha(cuda, models, name):  # noqa: F811
    """Where they say nothing is known from their alphas, which stay on the CPU."""
    use_device(cuda)
    views, alpha = torch.rand((2, 3, 12, 16), generator=generator(0, "views")), torch.ones(12, 16)
    alpha[:, 8:] = torch.rand(12, 8, generator=generator(0, "alpha"))
    frames = []
    for device in ("cpu", cuda):
        loading, params = Loading(torch.device(device), 4), replace(models[name], prior_steps=3)
        net = load_sampler(name, params, loading, ("bicubic", "renormalise")).masked([alpha] * 2)
        frames.append(torch.stack(list(net.upsample(views.to(device)))).cpu())
    torch.testing.assert_close(frames[1], frames[0], rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("project", ["on", "off"])
def test_the_pull_is_that_of_the_cpu(cuda, models, camera, name, project):  # noqa: F811
    use_device(cuda)
    settings = replace(SETTINGS, sds=name, sds_project=project)
    (expected, size), (found, other) = (
        pull(maker(name, models, device), settings, camera, device=device) for device in ("cpu", cuda)
    )
    assert float(other) == pytest.approx(float(size), rel=1e-3)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-2, atol=1e-2 * float(expected.abs().max()))
