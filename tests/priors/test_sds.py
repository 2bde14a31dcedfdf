"""SDS: its gradient against autograd, the closed form and the KL divergence; annealing; crops."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from priors.hooks import Clamp, ProjectLR
from priors.interfaces import Cond
from priors.processes import EDM, VP, Flow, ResShift
from priors.sampler import noised
from priors.sds import SDSGuidance, noise_share, unit_weight
from priors.spaces import PixelSpace
from scene.lr_kernel import LRKernel
from tests.priors.exact_priors import Gaussian, Perfect, images, normal, sd3_space
from utils.errors import UserError
from utils.rng import generator

LINEAR = VP.linear(1000, 1e-4, 2e-2)
SD = VP.scaled_linear(1000, 0.00085, 0.012)
KERNEL = LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
PROCESSES = {"vp": LINEAR, "edm": EDM(SD), "flow": Flow(3.0), "resshift": ResShift(15, 2.0, 0.3, 0.04)}


class Network(torch.nn.Module):
    """A prior with weights; notes whether it was called with a graph."""

    def __init__(self, process=LINEAR, space=None):
        super().__init__()
        self.process, self.space = process, space or PixelSpace()
        channels = self.space.channels
        self.mix = torch.nn.Conv2d(channels, channels, 3, padding=1, dtype=torch.float64)
        with torch.no_grad():
            self.mix.weight.copy_(normal(channels, channels, 3, 3) / 5)

    def x0(self, x_t, t, cond):
        result = self.mix(x_t).tanh()
        self.graph = result.requires_grad
        self.seen = x_t
        return result


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("weight", [noise_share, unit_weight])
def test_gradient_is_the_weighted_error_of_the_noise(process, weight):
    """w (eps_hat - eps), and w (a / s) (x - x0)."""
    prior = Network(process)
    x, eps = 2 * images(2, 3, 8, 8) - 1, normal(2, 3, 8, 8)
    cond, t = Cond(up=images(2, 3, 8, 8, seed=1)), process.times(10)[4]
    g = SDSGuidance(prior, 0, 9, 10, weight=weight).gradient(x, cond, t, eps)
    a, b, s = process.coefficients(t)
    u = 2 * cond.up - 1
    x_t = a * x + b * u + s * eps
    x0 = prior.x0(x_t, t, cond).detach()
    w = s * s / (a * a + s * s) if weight is noise_share else 1.0
    assert torch.allclose(g, w * ((x_t - a * x0 - b * u) / s - eps), atol=1e-9)
    assert torch.allclose(g, w * a / s * (x - x0), atol=1e-12)


def test_weight_of_vp_is_the_same_in_edm_coordinates():
    for t in (20.0, 500.0, 980.0):
        a, _, s = SD.coefficients(t)
        assert noise_share(SD.coefficients(t)) == pytest.approx(s * s, rel=1e-12)
        assert noise_share(EDM(SD).coefficients(s / a)) == pytest.approx(s * s, rel=1e-9)


@pytest.mark.parametrize("space", [PixelSpace(), sd3_space(5)], ids=["pixels", "latents"])
def test_loss_has_the_gradient_of_the_explicit_surrogate(space):
    """1/2 ||x - target||^2 / B with target = x - g, through encoder and renderer; nothing for the prior's weights."""
    prior, theta = Network(space=space), normal(2, 3, 8, 8).requires_grad_()
    guidance = SDSGuidance(prior, hooks=[Clamp()])
    guidance.loss(theta.sigmoid(), Cond(), 0, generator(3)).backward()
    assert prior.graph is False
    assert all(weight.grad is None for weight in prior.parameters())
    ours, theta.grad = theta.grad, None
    rng = generator(3)  # the same draws, in the same order: time, noise
    x = space.encode(theta.sigmoid())
    t = guidance.times[guidance.draw_level(0, rng)]
    noise = torch.randn(x.shape, generator=rng, dtype=x.dtype)
    target = x.detach() - guidance.gradient(x.detach(), Cond(), t, noise)
    (0.5 * (x - target).square().sum() / 2).backward()
    assert torch.allclose(ours, theta.grad, atol=1e-10)
    assert ours.abs().max() > 0


def test_mean_gradient_is_that_of_the_kl_divergence():
    """E[g] = w (s / a) d/dx KL(q(x_t | x) || p_t), by autograd of the KL of two Gaussians, prior N(mean, cov)."""
    root = normal(3, 3) / 2 + torch.eye(3, dtype=torch.float64)
    mean, cov, t, draws = normal(3, seed=1), root @ root.T, 400.0, 400_000
    a, _, s = LINEAR.coefficients(t)
    x = normal(3, seed=2).requires_grad_()
    eye = torch.eye(3, dtype=torch.float64)
    marginal = torch.distributions.MultivariateNormal(a * mean, a * a * cov + s * s * eye)
    kl = torch.distributions.kl_divergence(torch.distributions.MultivariateNormal(a * x, s * s * eye), marginal)
    (slope,) = torch.autograd.grad(kl, x)
    expected = noise_share(LINEAR.coefficients(t)) * s / a * slope
    guidance = SDSGuidance(Gaussian(LINEAR, mean, cov))
    many = x.detach().reshape(1, 3, 1, 1).expand(draws, 3, 1, 1)
    g = guidance.gradient(many, Cond(), t, normal(draws, 3, 1, 1, seed=3)).reshape(draws, 3).mean(0)
    assert (g - expected).abs().max() < 0.01 * expected.abs().max()


def test_projected_gradient_cannot_pull_against_the_lr_view():
    """A g is w (a / s) (A x - y): null for x that meets its LR view."""
    prior, lr, t = Network(), 0.2 + 0.6 * images(1, 3, 6, 8), 700.0
    guidance, cond = SDSGuidance(prior, hooks=[ProjectLR(KERNEL)]), Cond(lr=lr[:, None])
    for image in (images(1, 3, 24, 32), KERNEL.project(images(1, 3, 24, 32), lr)):
        g = guidance.gradient(2 * image - 1, cond, t, normal(1, 3, 24, 32))
        a, _, s = LINEAR.coefficients(t)
        expected = s * a * 2 * (KERNEL.down(image) - lr)  # w = s^2; space coordinates are twice the image's
        assert torch.allclose(KERNEL.down(g), expected, atol=1e-10)
        assert g.abs().max() > 0.01


def test_hooks_of_the_views_take_the_place_of_its_own():
    image, prior = images(1, 3, 8, 8).requires_grad_(), Network()
    guidance = SDSGuidance(prior, hooks=[lambda x0, context: 0 * x0])
    slopes = []
    for own, given in ((guidance, [Clamp()]), (SDSGuidance(prior, hooks=[Clamp()]), None), (guidance, None)):
        loss = own.loss(image, Cond(), 0, generator(0), hooks=given)
        slopes.append(torch.autograd.grad(loss, image)[0])
    assert torch.equal(slopes[0], slopes[1])
    assert not torch.allclose(slopes[0], slopes[2])


# --- annealing ---


def test_lower_bound_falls_from_one_below_the_top_to_the_least():
    guidance = SDSGuidance(Perfect(LINEAR, None), 20, 980, anneal=100)
    bounds = np.array([guidance.lower_bound(i) for i in range(0, 120_000, 50)])
    assert bounds[0] == 979
    assert (np.diff(bounds) <= 0).all()
    assert bounds.min() == 20
    assert guidance.lower_bound(10_000) == 880
    assert SDSGuidance(Perfect(LINEAR, None), 20, 980).lower_bound(0) == 20


@pytest.mark.parametrize("iteration", [0, 250, 95_555])
def test_levels_are_uniform_from_the_bound_up(iteration):
    stats = pytest.importorskip("scipy.stats")
    guidance = SDSGuidance(Perfect(LINEAR, None), 20, 980, anneal=100)
    rng = generator(iteration)
    draws = np.array([guidance.draw_level(iteration, rng) for _ in range(100_000)])
    first = math.ceil(guidance.lower_bound(iteration))
    assert draws.min() == first
    assert draws.max() == 980
    counts = np.bincount(draws - first, minlength=981 - first)
    assert stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_times_rise_with_the_level_from_the_cleanest(process):
    levels = 15 if process.uses_up else 1000
    times = SDSGuidance(Perfect(process, None), 0, 5, levels).times
    assert len(times) == levels
    assert all(a < b for a, b in pairwise(times))
    assert times[-1] == process.last
    if process is LINEAR:
        assert times == tuple(range(1000))


def test_bounds_out_of_order_are_refused():
    for lowest, highest in ((-1, 5), (5, 5), (20, 1000)):
        with pytest.raises(UserError, match=f"between levels {lowest} and {highest} of 1000"):
            SDSGuidance(Perfect(LINEAR, None), lowest, highest)


# --- crops ---


def test_only_the_part_that_is_seen_gets_a_gradient():
    prior, image = Network(), images(2, 3, 24, 32).requires_grad_()
    cond = Cond(lr=images(2, 3, 3, 6, 8), up=images(2, 3, 24, 32, seed=1))
    places = set()
    for seed in range(8):
        image.grad = None
        guidance = SDSGuidance(prior, hooks=[ProjectLR(KERNEL)], crop=17)
        guidance.loss(image, cond, 0, generator(seed)).backward()
        rows, columns = (image.grad.abs().sum((0, 1)) > 0).nonzero().unbind(1)
        box = [int(v) for v in (rows.min(), rows.max() + 1, columns.min(), columns.max() + 1)]
        assert (box[1] - box[0], box[3] - box[2]) == (16, 16)
        assert all(v % 4 == 0 for v in box)
        assert prior.seen.shape == (2, 3, 16, 16)
        places.add(tuple(box))
    assert len(places) > 3


def test_crops_of_latents_lie_on_both_grids():
    """Scale 3, latents of 2 px: parts begin at multiples of 2 LR px."""
    prior, image = Network(space=sd3_space(5)), images(1, 3, 24, 30).requires_grad_()
    guidance, cond = SDSGuidance(prior, crop=13), Cond(lr=images(1, 1, 3, 8, 10))
    for seed in range(5):
        image.grad = None
        guidance.loss(image, cond, 0, generator(seed)).backward()
        rows, columns = (image.grad.abs().sum((0, 1)) > 0).nonzero().unbind(1)
        assert int(rows.min()) % 6 == int(columns.min()) % 6 == 0
        assert prior.seen.shape == (1, 5, 6, 6)


def test_crops_that_fit_nowhere_are_refused():
    guidance = SDSGuidance(Network(), crop=16)
    with pytest.raises(ValueError, match=r"cond\.lr"):
        guidance.loss(images(1, 3, 24, 32), Cond(), 0, generator(0))
    with pytest.raises(UserError, match="whole multiple"):
        guidance.loss(images(1, 3, 24, 33), Cond(lr=images(1, 1, 3, 6, 8)), 0, generator(0))


def test_a_prior_that_knows_the_image_pulls_towards_it():
    truth, image = 2 * images(1, 3, 8, 8) - 1, images(1, 3, 8, 8, seed=1).requires_grad_()
    guidance, optimizer, rng = SDSGuidance(Perfect(LINEAR, truth)), torch.optim.Adam([image], 0.05), generator(0)
    for i in range(200):
        optimizer.zero_grad()
        guidance.loss(image, Cond(), i, rng).backward()
        optimizer.step()
    assert (image - (truth + 1) / 2).abs().max() < 0.01
    x_t = noised(LINEAR, truth, 500.0, normal(1, 3, 8, 8))
    assert torch.allclose(guidance.gradient(truth, Cond(), 500.0, normal(1, 3, 8, 8)), torch.zeros_like(x_t))
