"""DISTS: zero for equal images, symmetric, and the definition step by step on a network of random weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from evaluation.dists import CHANNELS, SHA256, ChannelWeights, Dists, read_channel_weights
from utils.errors import UserError
from utils.lpips_weights import LAYERS

WIDTHS = (3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)


@pytest.fixture(scope="module")
def backbone():
    """VGG16's shapes with random weights that keep the signal's size."""
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for k, layer in enumerate(LAYERS["vgg"]):
        fan_in = 9 * WIDTHS[k]
        tensors[f"features.{layer}.weight"] = (
            torch.randn(WIDTHS[k + 1], WIDTHS[k], 3, 3, generator=generator) * (2 / fan_in) ** 0.5
        )
        tensors[f"features.{layer}.bias"] = 0.1 * torch.randn(WIDTHS[k + 1], generator=generator)
    return tensors


@pytest.fixture(scope="module")
def weights():
    generator = torch.Generator().manual_seed(1)
    both = torch.rand(2, sum(CHANNELS), generator=generator)
    return ChannelWeights(*(both / both.sum()))


@pytest.fixture(scope="module")
def dists(backbone, weights):
    return Dists(backbone, weights)


def images(height=48, width=40):
    generator = torch.Generator().manual_seed(2)
    truth = torch.rand(3, height, width, generator=generator)
    return (truth + 0.2 * torch.rand(3, height, width, generator=generator)).clamp(0, 1), truth


def transcribed(x, y, backbone, alpha, beta):
    """The paper's equations 3 to 6 in loops over stages and channels, float64, in their own form."""
    window = np.hanning(5)[1:-1]
    window = torch.tensor(np.outer(window, window) / np.outer(window, window).sum())
    mean, std = torch.tensor([0.485, 0.456, 0.406]).double(), torch.tensor([0.229, 0.224, 0.225]).double()

    def stages(image):
        found, h = [image], ((image.permute(1, 2, 0) - mean) / std).permute(2, 0, 1)
        for layer in range(30):  # torchvision's `features`: 4, 9, 16, 23 are its pools
            if f"features.{layer}.weight" in backbone:
                w, b = (backbone[f"features.{layer}.{kind}"].double() for kind in ("weight", "bias"))
                h = F.relu(F.conv2d(h[None], w, b, padding=1))[0]
            if layer in (4, 9, 16, 23):
                found.append(h)
                pooled = [F.conv2d(c[None, None] ** 2, window[None, None], stride=2, padding=1)[0, 0] for c in h]
                h = torch.sqrt(torch.stack(pooled) + 1e-12)
        return [*found, h]

    total, similarity, start = float(alpha.sum() + beta.sum()), 0.0, 0
    for p, q in zip(stages(x.double()), stages(y.double()), strict=True):
        for c in range(len(p)):
            mx, my = p[c].mean(), q[c].mean()
            cov = (p[c] * q[c]).mean() - mx * my
            texture = (2 * mx * my + 1e-6) / (mx**2 + my**2 + 1e-6)
            structure = (2 * cov + 1e-6) / (p[c].var(correction=0) + q[c].var(correction=0) + 1e-6)
            similarity += float(alpha[start + c] * texture + beta[start + c] * structure) / total
        start += len(p)
    return 1 - similarity


def test_the_definition_step_by_step(dists, backbone, weights):
    image, truth = images()
    expected = transcribed(image, truth, backbone, weights.alpha.double(), weights.beta.double())
    assert dists(image, truth) == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3


def test_equal_images_have_distance_zero(dists):
    _, truth = images()
    assert dists(truth, truth) == 0.0


def test_symmetry(dists):
    image, truth = images()
    assert dists(image, truth) == dists(truth, image)


def test_a_larger_change_is_farther(dists):
    image, truth = images()
    distances = [dists(truth + t * (image - truth), truth) for t in (0.25, 0.5, 1.0)]
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_too_small_an_image_is_refused(dists):
    with pytest.raises(UserError, match="32x32"):
        dists(*images(31, 40))


def test_missing_and_other_weights_say_how_to_get_them(tmp_path):
    with pytest.raises(UserError, match=r"no such file.*pip download --no-deps dists-pytorch"):
        read_channel_weights(tmp_path / "weights.pt")
    torch.save({"alpha": torch.rand(1, 1475, 1, 1), "beta": torch.rand(1, 1475, 1, 1)}, tmp_path / "weights.pt")
    with pytest.raises(UserError, match=f"the published file has {SHA256}"):
        read_channel_weights(tmp_path / "weights.pt")


@pytest.mark.weights
def test_documented_numbers(weights_dir, tmp_path, monkeypatch):
    """What torchmetrics 1.9.0 documents for random images of seed 42, with the published weights."""
    if not (weights_dir / "dists_weights.pt").is_file():
        pytest.skip("SEQSPLAT_WEIGHTS holds no dists_weights.pt (weights.pt of DISTS)")
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    dists, _ = Dists.load(weights_dir / "dists_weights.pt")
    with torch.random.fork_rng():
        torch.manual_seed(42)
        images, truths = torch.rand(5, 3, 256, 256), torch.rand(5, 3, 256, 256)
    found = [dists(image, truth) for image, truth in zip(images[:2], truths[:2], strict=True)]
    assert found == pytest.approx([0.1285, 0.1344], abs=6e-5)
