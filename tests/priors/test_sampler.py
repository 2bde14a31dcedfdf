"""The step against diffusers' schedulers and the posteriors of the papers; sampling with priors known exactly."""

import math
from itertools import pairwise

import pytest
import torch

from priors.hooks import ProjectLR
from priors.interfaces import Cond
from priors.processes import EDM, VP, Flow, ResShift
from priors.sampler import noised, sample, standard_noise, step
from scene.lr_kernel import LRKernel
from tests.priors.exact_priors import Gaussian, Perfect, images, normal
from utils.rng import generator

LINEAR = VP.linear(1000, 1e-4, 2e-2)
SD = VP.scaled_linear(1000, 0.00085, 0.012)
SD_CONFIG = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
RESSHIFT = ResShift(15, 2.0, 0.3, 0.04)
X = 2 * images(2, 3, 5, 4) - 1
EPS, XI = (normal(2, 3, 5, 4, seed=k) for k in (1, 2))


def assert_equal(ours, theirs, tolerance=1e-6):
    torch.testing.assert_close(ours, theirs.double(), atol=tolerance, rtol=0)


def noisy(process, t):
    """x_t of an image X under noise EPS, from which EPS gives X back."""
    return noised(process, X, t, EPS)


def exactly(scheduler):
    """Its formulas on the schedule in float64: the products of its own are float32, 1e-6 off after 1000 factors."""
    abar = [SD.coefficients(t).a ** 2 for t in range(1000)]
    scheduler.alphas_cumprod = torch.tensor(abar, dtype=torch.float64)
    return scheduler


@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
def test_vp_step_is_ddim(eta):
    diffusers = pytest.importorskip("diffusers")
    scheduler = exactly(diffusers.DDIMScheduler(**SD_CONFIG, clip_sample=False, set_alpha_to_one=True))
    scheduler.set_timesteps(10)
    for t, t_next in ((900, 800), (500, 400), (100, 0), (0, -1)):
        x_t = noisy(SD, t)
        expected = scheduler.step(EPS, t, x_t, eta=eta, variance_noise=XI).prev_sample
        assert_equal(step(SD, x_t, X, t, t_next, eta=eta, noise=XI), expected)


def test_stochastic_vp_step_between_neighbours_is_the_ddpm_posterior():
    diffusers = pytest.importorskip("diffusers")
    scheduler = exactly(diffusers.DDPMScheduler(**SD_CONFIG, clip_sample=False, variance_type="fixed_small"))
    for t in (999, 500, 1, 0):
        x_t, noise = noisy(SD, t), torch.randn(X.shape, generator=generator(t), dtype=X.dtype)
        expected = scheduler.step(EPS, t, x_t, generator=generator(t)).prev_sample
        assert_equal(step(SD, x_t, X, t, t - 1, eta=1.0, noise=noise), expected)


def test_stochastic_vp_step_is_the_ddpm_posterior_in_float64():
    for t in (999, 500, 1):
        beta, abar, before = LINEAR.betas[t], LINEAR.coefficients(t).a ** 2, LINEAR.coefficients(t - 1).a ** 2
        x_t = noisy(LINEAR, t)
        mean = math.sqrt(before) * beta / (1 - abar) * X + math.sqrt(1 - beta) * (1 - before) / (1 - abar) * x_t
        expected = mean + math.sqrt(beta * (1 - before) / (1 - abar)) * XI  # Ho et al. 2020, equation 7
        assert_equal(step(LINEAR, x_t, X, t, t - 1, eta=1.0, noise=XI), expected, 1e-12)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
def test_edm_step_is_eulers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.EulerDiscreteScheduler(**SD_CONFIG)
    scheduler.set_timesteps(10)
    for t, sigma, sigma_next in zip(scheduler.timesteps, *pairs(scheduler.sigmas.double()), strict=True):
        x_t = noisy(EDM(SD), sigma)
        scheduler.is_scale_input_called = True  # by us: EPS does not depend on the input
        expected = scheduler.step(EPS, t, x_t).prev_sample  # x_t in float32
        assert_equal(step(EDM(SD), x_t, X, sigma, sigma_next), expected, 1e-6 * max(1, sigma))


def test_flow_step_is_that_of_flow_match_euler():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    for t, sigma, sigma_next in zip(scheduler.timesteps, *pairs(scheduler.sigmas.double()), strict=True):
        x_t = noisy(Flow(3.0), sigma)
        expected = scheduler.step((EPS - X).float(), t, x_t.float()).prev_sample
        assert_equal(step(Flow(3.0), x_t, X, sigma, sigma_next), expected)


def pairs(values):
    """Values, and their successors."""
    return values[:-1].tolist(), values[1:].tolist()


def test_noising_is_that_of_flow_match_euler():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(8)
    for t in scheduler.timesteps[:3]:
        expected = scheduler.scale_noise(X.float(), t[None], EPS.float()).double()
        assert torch.allclose(noised(Flow(3.0), X, float(t) / 1000, EPS), expected, atol=1e-6)


def test_stochastic_flow_step_is_the_clean_estimate_under_fresh_noise():
    expected = 0.6 * EPS + 0.4 * XI
    assert torch.allclose(step(Flow(3.0), X, EPS, 0.7, 0.4, eta=1.0, noise=XI), expected, atol=1e-14)


def test_stochastic_resshift_step_is_its_posterior():
    u = images(2, 3, 5, 4)
    for t in range(1, 16):
        eta, before = RESSHIFT.coefficients(t).b, RESSHIFT.coefficients(t - 1).b
        mean = before / eta * X + (eta - before) / eta * EPS  # Yue et al. 2023, with x0 = EPS
        expected = mean + RESSHIFT.kappa * math.sqrt(before / eta * (eta - before)) * XI
        result = step(RESSHIFT, X, EPS, t, t - 1, u=u, eta=1.0, noise=XI)
        torch.testing.assert_close(result, expected, atol=1e-12, rtol=0)


def test_the_last_step_is_the_clean_estimate_bit_for_bit():
    for process in (LINEAR, EDM(SD), Flow(3.0), RESSHIFT):
        t = process.times(4)[3]
        assert torch.equal(step(process, X, EPS, t, process.clean, u=XI, eta=1.0), EPS)


# --- ResShift's marginals ---

DRAWS = 200_000


def assert_normal(x, mean, deviation):
    """Mean and standard deviation within 4 standard errors."""
    assert abs(float(x.mean()) - mean) < 4 * deviation / math.sqrt(x.numel())
    assert abs(float(x.std()) - deviation) < 4 * deviation / math.sqrt(2 * x.numel())


def test_fifteen_transitions_of_resshift_give_its_marginal():
    x0, u, rng = 0.3, -0.5, generator(0)
    x = torch.full((DRAWS,), x0, dtype=torch.float64)
    for t in range(1, 16):
        now, before = RESSHIFT.coefficients(t), RESSHIFT.coefficients(t - 1)
        x = x + (now.b - before.b) * (u - x0) + math.sqrt(now.s**2 - before.s**2) * standard_noise(x, rng)
    eta = RESSHIFT.sqrt_eta(15) ** 2
    assert_normal(x, x0 + eta * (u - x0), RESSHIFT.kappa * math.sqrt(eta))


@pytest.mark.parametrize("t", [2, 8, 15])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_a_step_with_the_true_image_gives_the_marginal_before(t, eta):
    rng, shape = generator(t), (DRAWS,)
    x0, u = (torch.full(shape, v, dtype=torch.float64) for v in (0.3, -0.5))
    x_t = noised(RESSHIFT, x0, t, rng, u)
    x = step(RESSHIFT, x_t, x0, t, t - 1, u=u, eta=eta, noise=standard_noise(x0, rng))
    a, b, s = RESSHIFT.coefficients(t - 1)
    assert_normal(x, a * 0.3 - b * 0.5, s)


# --- sampling ---

PROCESSES = {"vp": LINEAR, "edm": EDM(SD), "flow": Flow(3.0), "flow, Markov": Flow(3.0, fresh=False), "rs": RESSHIFT}


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("eta", [0.0, 0.85, 1.0])
@pytest.mark.parametrize("guess", [False, True])
def test_a_perfect_denoiser_ends_at_the_image(process, eta, guess):
    truth = 2 * images(2, 3, 6, 4, dtype=torch.float32) - 1
    prior, cond = Perfect(process, truth), Cond(up=images(2, 3, 6, 4, seed=1, dtype=torch.float32))
    start = {"begin": -truth} if guess else {"shape": truth.shape}
    result = sample(prior, cond, process.times(8), generator(0), eta=eta, **start)
    assert torch.allclose(result, truth, atol=1e-6)
    assert result.dtype == torch.float32


def gaussian():
    """N(mean, cov) of pixels 1 x 2 in three channels that know of each other."""
    root = normal(6, 6) / 3 + torch.eye(6, dtype=torch.float64) / 2
    return normal(6, seed=1) / 2, root @ root.T


def test_ddim_draws_from_a_gaussian():
    mean, cov = gaussian()
    prior, begin = Gaussian(LINEAR, mean, cov), torch.zeros(20_000, 3, 1, 2, dtype=torch.float64)
    x = sample(prior, Cond(up=begin), LINEAR.times(200), generator(0), shape=begin.shape).flatten(1)
    assert torch.linalg.norm(torch.cov(x.T) - cov) < 0.05 * torch.linalg.norm(cov)
    assert (x.mean(0) - mean).abs().max() < 0.05 * cov.diagonal().max().sqrt()


def ddnm(second):
    """DDNM samples of channels of 1 x 2 px with variances 0.5 and `second`; LR is their mean. Also what they should be.

    Returns
    -------
    samples [N, 6]; means [6] given the LR view and not, both in space coordinates; worst LR error.
    """
    kernel, row = LRKernel("area", "renormalise", (2, 1), (1, 1)), torch.full((1, 2), 0.5, dtype=torch.float64)
    block = torch.tensor([[0.5, 0.1], [0.1, second]], dtype=torch.float64)
    eye, mean = torch.eye(3, dtype=torch.float64), normal(6, seed=1) / 2
    lr = torch.tensor([0.9, 0.2, 0.8], dtype=torch.float64).reshape(1, 3, 1, 1).expand(DRAWS // 10, 3, 1, 1)
    prior, cond = Gaussian(LINEAR, mean, torch.kron(eye, block)), Cond(lr=lr[:, None])
    x = sample(
        prior, cond, LINEAR.times(100), generator(0), hooks=[ProjectLR(kernel)], eta=1.0, shape=(len(lr), 3, 1, 2)
    )
    a = torch.kron(eye, row)
    gain = torch.kron(eye, block @ row.T / (row @ block @ row.T))
    given = mean + gain @ (2 * lr[0].flatten() - 1 - a @ mean)
    return x.flatten(1), given, mean, (kernel.down(prior.space.decode(x)) - lr).abs().max()


def test_ddnm_meets_the_lr_view_and_fills_in_the_conditional_mean():
    x, given, _, error = ddnm(second=0.5)  # what A sees and what it does not are independent
    assert error < 1e-6
    standard_error = math.sqrt(0.2 / len(x))  # of half the difference of 2 px
    assert (x.mean(0) - given).abs().max() < 4 * standard_error


def test_ddnm_follows_what_it_sees_where_the_rest_depends_on_it_though_not_all_the_way():
    """At high noise the projected estimate knows less than the LR view tells: 0.58 of the way is DDNM's own bias."""
    x, given, mean, error = ddnm(second=0.3)
    assert error < 1e-6
    row = torch.kron(torch.eye(3, dtype=torch.float64), torch.tensor([[1.0, -1.0]], dtype=torch.float64))
    torch.testing.assert_close(row @ (x.mean(0) - mean), 0.58 * row @ (given - mean), atol=0.03, rtol=0)


def test_shared_noise_is_the_same_for_all_views_and_seeds_repeat():
    prior, cond = Gaussian(LINEAR, *gaussian()), Cond(up=torch.zeros(3, 3, 1, 2, dtype=torch.float64))
    keywords = {"eta": 1.0, "shape": (3, 3, 1, 2)}
    shared = sample(prior, cond, LINEAR.times(5), generator(1), shared_noise=True, **keywords)
    assert torch.equal(shared, shared[:1].expand_as(shared))
    own = [sample(prior, cond, LINEAR.times(5), generator(2), **keywords) for _ in range(2)]
    assert torch.equal(*own)
    assert not torch.allclose(own[0][0], own[0][1])


def test_hooks_work_in_their_order_and_know_the_step():
    seen = []

    def note(x0, context):
        seen.append((context.index, context.steps, context.t, context.t_next, tuple(context.names)))
        return x0 + 1

    times = LINEAR.times(3)
    prior = Perfect(LINEAR, torch.zeros(1, 3, 2, 2))
    result = sample(
        prior, Cond(), times, generator(0), hooks=[note, lambda x0, context: 3 * x0], shape=(1, 3, 2, 2), names=["a"]
    )
    assert torch.equal(result, torch.full((1, 3, 2, 2), 3.0))
    assert seen == [(k, 3, a, b, ("a",)) for k, (a, b) in enumerate(pairwise(times))]


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"times": [999.0, 10.0]}, "descending to -1"),
        ({"times": [10.0, 20.0, -1.0]}, "descending"),
        ({"times": [-1.0]}, "descending"),
        ({"shape": None}, "begin or shape"),
    ],
)
def test_sampling_without_what_it_needs_is_refused(keywords, message):
    arguments = {"times": [999.0, -1.0], "shape": (1, 3, 2, 2), **keywords}
    with pytest.raises(ValueError, match=message):
        sample(Perfect(LINEAR, torch.zeros(1, 3, 2, 2)), Cond(), generator=generator(0), **arguments)


def test_resshift_needs_u():
    with pytest.raises(ValueError, match=r"cond\.up"):
        sample(Perfect(RESSHIFT, X), Cond(), RESSHIFT.times(2), generator(0), shape=(2, 3, 5, 4))
    for missing in (lambda: step(RESSHIFT, X, X, 5, 4), lambda: noised(RESSHIFT, X, 5, EPS)):
        with pytest.raises(ValueError, match="needs u"):
            missing()
