"""The small network: what it sees and in which order, what its outputs mean, its file."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from priors.denoisers.tiny import (
    ProcessSpec,
    TinyConfig,
    TinyNet,
    TinyPrior,
    clean_estimate,
    load_prior,
    save_prior,
)
from priors.enlarge import enlarged
from priors.interfaces import Cond, ScorePrior
from priors.processes import VP
from utils.errors import UserError
from utils.rng import generator
from utils.state import save_state

SMALL = TinyConfig(frames=3, scale=2, widths=(8, 16), groups=4)
FULL = replace(SMALL, stem="full", prediction="eps")


def inputs(
    config: TinyConfig, h: int = 4, w: int = 6, scale: int = 2
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """x_t, LR window of distinct constant frames, u."""
    draws = generator(0, "tiny")
    lr = torch.arange(config.frames).view(1, -1, 1, 1, 1) / 10 + torch.tensor([0.0, 0.01, 0.02]).view(3, 1, 1)
    lr = lr.expand(2, -1, -1, h, w).contiguous()
    up = torch.rand(2, 3, scale * h, scale * w, generator=draws)
    return torch.randn(up.shape, generator=draws), lr, up


def seen_by(net: TinyNet, *args: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the U-Net itself is given: input and time."""
    got: list[tuple[torch.Tensor, torch.Tensor]] = []
    hook = net.unet.register_forward_pre_hook(lambda module, given: got.append((given[0], given[1])))
    net(*args)
    hook.remove()
    return got[0]


def randomised(net: TinyNet, seed: int = 0) -> TinyNet:
    """The last layer starts at 0, which would hide everything before it."""
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.1, generator=generator(seed, "out"))
    return net.eval()


def test_default_network_has_the_size_of_the_toy_benchmark():
    assert sum(p.numel() for p in TinyNet(TinyConfig()).parameters()) == pytest.approx(0.68e6, rel=0.05)


def test_full_stem_has_the_channels_of_the_published_network():
    assert TinyConfig(frames=3, stem="full", prediction="eps").in_channels == 12


def test_unshuffle_stem_shows_x_then_u_then_the_frames_in_order():
    x, lr, up = inputs(SMALL)
    seen, _ = seen_by(TinyNet(SMALL), x, lr, up, torch.zeros(2))
    assert torch.equal(seen[:, :12], torch.nn.functional.pixel_unshuffle(x, 2))
    assert torch.equal(seen[:, 12:24], torch.nn.functional.pixel_unshuffle(2 * up - 1, 2))
    for f in range(3):
        assert torch.equal(seen[:, 24 + 3 * f : 27 + 3 * f], 2 * lr[:, f] - 1)


def test_full_stem_shows_the_enlarged_frames_in_order_then_x():
    x, lr, up = inputs(FULL)
    seen, _ = seen_by(TinyNet(FULL), x, lr, up, torch.zeros(2))
    middle = [2 * enlarged(lr[:, 0], 12, 8) - 1, 2 * up - 1, 2 * enlarged(lr[:, 2], 12, 8) - 1, x]
    torch.testing.assert_close(seen, torch.cat(middle, 1), rtol=0, atol=1e-6)


def test_network_is_told_a_thousand_times_a():
    net = TinyNet(SMALL)
    process = VP.cosine(100)
    x, lr, up = inputs(SMALL)
    got: list[torch.Tensor] = []
    net.unet.register_forward_pre_hook(lambda module, given: got.append(given[1]))
    TinyPrior(net, process).x0(x, 40.0, Cond(lr=lr, up=up))
    assert got[0].tolist() == pytest.approx([1000 * process.coefficients(40.0).a] * 2)


@pytest.mark.parametrize("config", [SMALL, FULL, replace(SMALL, stem="full")], ids=["fold", "eps", "full-x0"])
def test_odd_sizes_come_back_at_their_size(config):
    x, lr, up = inputs(config, h=5, w=7)
    out = randomised(TinyNet(config))(x, lr, up, torch.zeros(2))
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


def test_untrained_prior_returns_u():
    x, lr, up = inputs(SMALL)
    x0 = TinyPrior(TinyNet(SMALL), VP.cosine(10)).x0(x, 9.0, Cond(lr=lr, up=up))
    assert torch.equal(x0, 2 * up - 1)


def test_u_is_made_of_the_middle_frame_where_it_is_not_given():
    x, lr, _ = inputs(SMALL)
    x0 = TinyPrior(TinyNet(SMALL), VP.cosine(10)).x0(x, 3.0, Cond(lr=lr))
    torch.testing.assert_close(x0, 2 * enlarged(lr[:, 1], 12, 8) - 1)


@pytest.mark.parametrize("prediction", ["x0", "eps", "v"])
def test_exact_prediction_gives_the_clean_image(prediction):
    x0, eps, up = (
        torch.rand(2, 3, 8, 8, generator=generator(1, name), dtype=torch.float64) for name in ("a", "b", "c")
    )
    c = VP.cosine(100).coefficients(60.0)
    x_t = c.a * x0 + c.s * eps
    exact = {"x0": (x0 - (2 * up - 1)) / 0.25, "eps": eps, "v": c.a * eps - c.s * x0}[prediction]
    torch.testing.assert_close(clean_estimate(exact, x_t, up, c, prediction), x0, rtol=0, atol=1e-12)


def test_regressor_does_not_look_at_x():
    config = replace(SMALL, noisy=False)
    prior = TinyPrior(randomised(TinyNet(config)), ProcessSpec("none").make())
    x, lr, up = inputs(config)
    cond = Cond(lr=lr, up=up)
    assert torch.equal(prior.x0(x, 1.0, cond), prior.x0(-x, 0.3, cond))


def test_of_a_longer_window_the_middle_frames_are_seen():
    prior = TinyPrior(randomised(TinyNet(SMALL)), VP.cosine(10))
    x, lr, up = inputs(SMALL)
    longer = torch.cat([torch.rand_like(lr[:, :1]), lr, torch.rand_like(lr[:, :1])], 1)
    assert torch.equal(prior.x0(x, 5.0, Cond(lr=longer, up=up)), prior.x0(x, 5.0, Cond(lr=lr, up=up)))


def test_gradient_reaches_x_and_no_weight_of_a_loaded_prior(tmp_path):
    save_prior(tmp_path / "p.safetensors", randomised(TinyNet(SMALL)), ProcessSpec(steps=10), {})
    prior = load_prior(tmp_path / "p.safetensors")
    x, lr, up = inputs(SMALL)
    assert not prior.x0(x, 5.0, Cond(lr=lr, up=up)).requires_grad
    prior.x0(x.requires_grad_(), 5.0, Cond(lr=lr, up=up)).sum().backward()
    assert x.grad is not None
    assert float(x.grad.abs().sum()) > 0
    assert all(p.grad is None for p in prior.net.parameters())


def test_it_is_a_score_prior():
    assert isinstance(TinyPrior(TinyNet(SMALL), VP.cosine(10)), ScorePrior)


def test_building_a_network_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    first, again, other = TinyNet(SMALL, 1), TinyNet(SMALL, 1), TinyNet(SMALL, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.unet.conv_in.weight, again.unet.conv_in.weight)
    assert not torch.equal(first.unet.conv_in.weight, other.unet.conv_in.weight)


@pytest.mark.parametrize(
    "spec",
    [
        ProcessSpec(steps=20),
        ProcessSpec(steps=20, schedule="linear"),
        ProcessSpec("resshift", 4, least=0.2),
        ProcessSpec("none"),
    ],
)
def test_file_gives_the_same_prior(tmp_path, spec):
    config = replace(SMALL, noisy=spec.kind != "none")
    net = randomised(TinyNet(config))
    save_prior(tmp_path / "p.safetensors", net, spec, {"name": "x"})
    prior = load_prior(tmp_path / "p.safetensors")
    x, lr, up = inputs(config)
    assert prior.process == spec.make()
    t = prior.process.times(1)[0]
    assert torch.equal(prior.x0(x, t, Cond(lr=lr, up=up)), TinyPrior(net, spec.make()).x0(x, t, Cond(lr=lr, up=up)))


@pytest.mark.parametrize("prediction", ["x0", "eps"])
def test_residuals_in_half_precision_are_near_and_noise_stays_whole(tmp_path, prediction):
    config = replace(SMALL, prediction=prediction, stem="unshuffle" if prediction == "x0" else "full")
    save_prior(tmp_path / "p.safetensors", randomised(TinyNet(config)), ProcessSpec(steps=20), {})
    x, lr, up = inputs(config)
    dtypes = (torch.float32, torch.bfloat16)
    priors = [load_prior(tmp_path / "p.safetensors", dtype=dtype) for dtype in dtypes]
    whole, half = (prior.x0(x, 9.0, Cond(lr=lr, up=up)) for prior in priors)
    assert half.dtype == torch.float32
    if prediction == "eps":
        assert torch.equal(whole, half)
        return
    residual = (whole - (2 * up - 1)).square().mean().sqrt()
    assert 0 < (whole - half).square().mean().sqrt() < 0.02 * residual
    assert {p.dtype for p in priors[1].net.parameters()} == {torch.bfloat16}


def test_foreign_and_damaged_files_are_one_line(tmp_path):
    save_state(tmp_path / "other.safetensors", {"x": torch.zeros(1)}, {"kind": "other"})
    with pytest.raises(UserError, match="not a small prior"):
        load_prior(tmp_path / "other.safetensors")
    save_prior(tmp_path / "p.safetensors", TinyNet(SMALL), ProcessSpec(), {})
    data = bytearray((tmp_path / "p.safetensors").read_bytes())
    data[-1] ^= 1
    (tmp_path / "p.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="changed since"):
        load_prior(tmp_path / "p.safetensors")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frames": 2}, "no middle one"),
        ({"frames": "3"}, "wrong type"),
        ({"widths": [8, "x"]}, "wrong type"),
        ({"stem": "other"}, "stem"),
        ({"widths": [8, 32]}, "not those of its settings"),
    ],
)
def test_settings_of_a_file_are_checked(tmp_path, changes, message):
    from dataclasses import asdict

    info = {"kind": "seqsplat small prior", "schema": 1, "network": asdict(SMALL) | changes}
    info |= {"process": asdict(ProcessSpec()), "record": {}}
    save_state(tmp_path / "p.safetensors", TinyNet(SMALL).state_dict(), info)
    with pytest.raises(UserError, match=message) as caught:
        load_prior(tmp_path / "p.safetensors")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prediction": "eps"}, "learns nothing"),
        ({"noisy": False, "prediction": "v"}, "regressor"),
        ({"widths": (6, 8)}, "multiples of 4"),
        ({"attention": (True,)}, "one attention flag"),
        ({"dropout": 1.0}, "dropout"),
        ({"scale": 0}, "scale = 0"),
        ({"prediction": "score"}, "score"),
    ],
)
def test_shapes_that_make_no_network_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        replace(SMALL, **changes)


def test_wrong_window_and_size_are_refused():
    prior = TinyPrior(TinyNet(SMALL), VP.cosine(10))
    x, lr, up = inputs(SMALL)
    with pytest.raises(UserError, match="sees 3 frames"):
        prior.x0(x, 5.0, Cond(lr=lr[:, :1], up=up))
    with pytest.raises(UserError, match="made for x2"):
        prior.x0(x, 5.0, Cond(lr=lr[..., :-1], up=up))
    with pytest.raises(UserError, match="needs LR views"):
        prior.x0(x, 5.0, Cond(up=up))


def test_enlarged_is_pillows_bicubic():
    lr = torch.rand(1, 3, 9, 13, generator=generator(0, "pillow"))
    bands = [np.asarray(Image.fromarray(p.numpy()).resize((52, 27), Image.Resampling.BICUBIC)) for p in lr[0]]
    torch.testing.assert_close(enlarged(lr, 52, 27)[0], torch.from_numpy(np.stack(bands)), rtol=0, atol=2e-6)


def test_regressors_process_gives_its_answer_in_one_step():
    process = ProcessSpec("none").make()
    assert process.times(1) == [1.0, process.clean]
    assert math.isclose(process.coefficients(1.0).s, 1.0)
