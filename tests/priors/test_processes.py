"""Processes: schedules against diffusers and the papers' numbers, transitions, times, conversions to x0."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch

from priors.interfaces import Process
from priors.processes import EDM, VP, Flow, ResShift, from_scheduler, time_at, x0_from_eps, x0_from_flow, x0_from_v
from tests.priors.exact_priors import normal
from utils.errors import UserError

SD = VP.scaled_linear(1000, 0.00085, 0.012)
PROCESSES = {
    "vp": VP.linear(1000, 1e-4, 2e-2),
    "edm": EDM(SD),
    "flow": Flow(3.0, fresh=False),
    "resshift": ResShift(15, 2.0, 0.3, 0.04),
}
EVERY = pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)


@EVERY
def test_all_fulfil_the_protocol_and_are_clean_at_clean(process):
    assert isinstance(process, Process)
    assert process.coefficients(process.clean) == (1.0, 0.0, 0.0)
    assert process.uses_up == (process.coefficients(process.last).b > 0)


@EVERY
def test_a_transition_from_any_earlier_time_gives_the_marginal(process):
    times = process.times(6)
    for earlier, t in ((b, a) for k, a in enumerate(times) for b in times[k + 1 :]):
        now, before, r = process.coefficients(t), process.coefficients(earlier), process.ratio(t, earlier)
        if process.uses_up:  # r = 1, and x0 moves to u by what b grows
            assert now.a + now.b == pytest.approx(before.a + before.b, abs=1e-15)
            assert r == 1
        else:
            assert now.a == pytest.approx(r * before.a, rel=1e-9, abs=1e-15)
        assert now.s**2 >= r**2 * before.s**2


@EVERY
def test_times_descend_to_clean_and_a_start_is_kept(process):
    for steps in (1, 2, 7, 15):
        times = process.times(steps)
        assert len(times) == steps + 1
        assert times[-1] == process.clean
        assert all(a > b for a, b in pairwise(times))
    start = process.times(15)[6]
    assert process.times(5, start)[0] == pytest.approx(start, rel=1e-9)


def test_a_level_is_a_place_on_the_way_and_edm_is_at_that_of_its_schedule():
    assert time_at(SD, 0.3) == pytest.approx(-1 + 0.3 * 1000)
    assert time_at(SD, 0.0001) == 0.0
    assert time_at(Flow(3.0), 0.0001) == pytest.approx(0.0001)
    assert time_at(PROCESSES["resshift"], 0.01) == 1.0
    now = SD.coefficients(time_at(SD, 0.3))
    assert time_at(EDM(SD), 0.3) == pytest.approx(now.s / now.a)
    assert EDM(SD).network_time(time_at(EDM(SD), 0.3)) == pytest.approx(299.0)
    assert time_at(EDM(SD), 1.0) == pytest.approx(EDM(SD).last)


def test_known_values_of_schedules():
    sr3 = VP.linear(2000, 1e-6, 1e-2)
    assert sr3.coefficients(1999).a ** 2 == pytest.approx(4.4e-5, rel=0.02)
    assert sr3.coefficients(1000).a ** 2 == pytest.approx(0.081, rel=0.02)
    sdxl = VP(SD.betas, "leading", 1)
    assert sdxl.times(50)[-16] == 281  # DiffuseHigh's 15 last of 50 steps
    assert EDM(sdxl).times(50)[-16] == pytest.approx(0.779, abs=5e-4)
    assert sdxl.coefficients(281).a ** 2 == pytest.approx(0.62, abs=5e-3)
    assert Flow(3.0).times(8) == pytest.approx([1, 0.948, 0.883, 0.801, 0.694, 0.548, 0.338, 0.0089, 0], abs=6e-4)


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        (
            ResShift(15, 2.0, 0.3, 0.04),
            ".02 .1172 .1763 .2336 .2916 .351 .4124 .4759 .5417 .6099 .6807 .754 .83 .9086 .99",
        ),
        (ResShift(4, 2.0, 0.3, 0.2), ".1 .5201 .7614 .99"),
    ],
)
def test_sqrt_eta_of_resshift(process, expected):
    values = [float(v) for v in expected.split()]
    assert [process.sqrt_eta(t) for t in range(1, process.steps + 1)] == pytest.approx(values, abs=6e-5)
    assert process.sqrt_eta(process.steps) == pytest.approx(0.99, abs=1e-15)


def test_vp_between_whole_times_is_linear_in_log_abar():
    a0, a1, half = (PROCESSES["vp"].coefficients(t).a for t in (10, 11, 10.5))
    assert half == pytest.approx(math.sqrt(a0 * a1), rel=1e-12)
    assert PROCESSES["vp"].time_of(2 * math.log(half)) == pytest.approx(10.5, abs=1e-9)


def test_edm_is_vp_in_other_coordinates():
    for t in (0.0, 281.0, 999.0):
        a, _, s = SD.coefficients(t)
        assert EDM(SD).network_time(s / a) == pytest.approx(t, abs=1e-6)
        assert EDM(SD).network_scale(s / a) == pytest.approx(a, rel=1e-12)


def test_network_inputs_of_flow_and_resshift():
    assert Flow(3.0).network_time(0.25) == 250
    process = PROCESSES["resshift"]
    assert [process.network_time(t) for t in (1, 15)] == [0, 14]  # the release counts from 0
    eta = process.coefficients(15).b
    assert process.network_scale(15) == pytest.approx(1 / math.sqrt(1 + process.kappa**2 * eta), rel=1e-12)


# --- conversions ---


@EVERY
def test_x0_from_eps_undoes_noising(process):
    x0, eps, u = (normal(2, 3, 4, 4, seed=k) for k in range(3))
    c = process.coefficients(process.times(3)[1])
    x_t = c.a * x0 + c.b * u + c.s * eps
    assert torch.allclose(x0_from_eps(x_t, eps, c, u), x0, atol=1e-12)


@pytest.mark.parametrize("process", [SD, EDM(SD)], ids=["vp", "edm"])
def test_x0_from_v_undoes_the_velocity_of_the_vp_network(process):
    x0, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    t = process.times(4)[2]
    c = process.coefficients(t)
    a, _, s = SD.coefficients(process.network_time(t))  # what the network works in
    v = a * eps - s * x0
    assert torch.allclose(x0_from_v(c.a * x0 + c.s * eps, v, c), x0, atol=1e-9)


def test_x0_from_flow_undoes_the_velocity():
    x0, eps = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    assert torch.allclose(x0_from_flow(0.3 * x0 + 0.7 * eps, eps - x0, 0.7), x0, atol=1e-14)


# --- against diffusers ---


def abar_of(process):
    return np.array([process.coefficients(t).a ** 2 for t in range(len(process.betas))])


@pytest.mark.parametrize(
    ("process", "config"),
    [
        (VP.linear(2000, 1e-6, 1e-2), {"beta_schedule": "linear", "beta_start": 1e-6, "beta_end": 1e-2}),
        (SD, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        (VP.cosine(2000), {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
def test_schedules_are_those_of_diffusers(process, config):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=len(process.betas), **config)
    np.testing.assert_allclose(abar_of(process), scheduler.alphas_cumprod.double().numpy(), atol=1e-6)


@pytest.mark.parametrize("steps", [4, 30, 50, 600, 1000])
@pytest.mark.parametrize(("spacing", "offset"), [("trailing", 0), ("leading", 0), ("leading", 1), ("linspace", 0)])
def test_vp_times_are_those_of_diffusers(steps, spacing, offset):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, steps_offset=offset)
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps - max(int(scheduler.timesteps[0]) - 999, 0)  # it may ask for one beyond the schedule
    assert from_scheduler(scheduler_config(scheduler)).times(steps)[:-1] == expected.tolist()


@pytest.mark.parametrize("steps", [1, 8, 28])
def test_flow_times_are_those_of_diffusers(steps):
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(steps)
    process = from_scheduler(scheduler_config(scheduler))
    assert process == Flow(3.0)
    assert process.times(steps) == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    network_times = [process.network_time(t) for t in process.times(steps)[:-1]]
    assert network_times == pytest.approx(scheduler.timesteps.tolist(), rel=1e-6)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers with NumPy 2
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_edm_times_are_those_of_diffusers_euler(spacing):
    diffusers = pytest.importorskip("diffusers")
    config = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "timestep_spacing": spacing}
    scheduler = diffusers.EulerDiscreteScheduler(**config, steps_offset=1)
    scheduler.set_timesteps(20)
    process = from_scheduler(scheduler_config(scheduler))
    assert process.times(20) == pytest.approx(scheduler.sigmas.tolist(), rel=2e-5)  # float32 sums there
    assert [process.network_time(t) for t in process.times(20)[:-1]] == pytest.approx(scheduler.timesteps.tolist())


@pytest.mark.parametrize("name", ["DDPMScheduler", "PNDMScheduler", "DPMSolverMultistepScheduler"])
def test_other_schedulers_give_their_schedule(name):
    diffusers = pytest.importorskip("diffusers")
    scheduler = getattr(diffusers, name)(beta_schedule="scaled_linear", beta_end=0.015)
    process = from_scheduler(scheduler_config(scheduler))
    assert process.spacing == scheduler.config.timestep_spacing
    np.testing.assert_allclose(abar_of(process), scheduler.alphas_cumprod.double().numpy(), atol=1e-6)


def test_rescaling_to_zero_signal_is_that_of_diffusers():
    diffusers = pytest.importorskip("diffusers")
    scheduler = diffusers.DDIMScheduler(beta_schedule="scaled_linear", rescale_betas_zero_snr=True)
    process = from_scheduler(scheduler_config(scheduler))
    np.testing.assert_allclose(abar_of(process), scheduler.alphas_cumprod.double().numpy(), atol=1e-6)
    assert process.coefficients(999).a == pytest.approx(2**-12, rel=1e-6)  # not 0: eps gives x0


def scheduler_config(scheduler):
    return {"_class_name": type(scheduler).__name__, **scheduler.config}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "without _class_name"),
        ({"_class_name": "HeunDiscreteScheduler"}, "scheduler HeunDiscreteScheduler: one of DDPM"),
        ({"_class_name": "DDIMScheduler", "beta_schedule": "sigmoid"}, "beta_schedule 'sigmoid'"),
        ({"_class_name": "DDIMScheduler", "timestep_spacing": "odd"}, "spacing 'odd'"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "use_dynamic_shifting": True}, "use_dynamic_shifting"),
    ],
)
def test_unknown_schedulers_are_refused(config, message):
    with pytest.raises(UserError, match=message):
        from_scheduler(config)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: VP(()), "0 betas"),
        (lambda: VP((0.1, 1.0)), "2 betas"),
        (lambda: Flow(0.0), "shift 0"),
        (lambda: ResShift(15, 0.0, 0.3, 0.04), "kappa"),
        (lambda: ResShift(0, 2.0, 0.3, 0.04), "steps"),
        (lambda: SD.times(0), "0 steps"),
        (lambda: SD.times(12, 10.0), "12 steps from time 10"),
        (lambda: Flow(3.0).times(3, 1.5), "sigma 1.5"),
        (lambda: PROCESSES["resshift"].times(16), "16 steps"),
    ],
)
def test_values_out_of_range_are_refused(make, message):
    with pytest.raises(UserError, match=message):
        make()
