"""Priors as upsamplers: through the script, consistent with the LR views, refused in one line."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import vsr_upsample
from arguments.priors import PriorParams
from arguments.upsampling import PRIORS
from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior
from priors.enlarge import enlarged
from priors.samplers import SAMPLERS, Clamped, Loading, PriorUpsampler, load_sampler, sampler
from scene.lr_kernel import LRKernel
from tests.priors_factory import smooth_picture
from utils import errors
from utils.errors import UserError
from utils.rng import generator

CPU = torch.device("cpu")
KERNEL = ("bicubic", "renormalise")
LOADING = Loading(CPU, 2)


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, str]:
    """Files of a regressor of one frame, an SR3 network of three, and a ResShift one; with random last layers."""
    root, made = tmp_path_factory.mktemp("priors"), {}
    kinds = {
        "regression": (TinyConfig(1, 2, noisy=False, widths=(8, 16), groups=4), ProcessSpec("none")),
        "sr3": (TinyConfig(3, 2, widths=(8, 16), groups=4), ProcessSpec(steps=40)),
        "resshift": (TinyConfig(1, 2, widths=(8, 16), groups=4), ProcessSpec("resshift", steps=4, least=0.2)),
    }
    for name, (config, process) in kinds.items():
        net = TinyNet(config)
        torch.nn.init.normal_(net.unet.conv_out.weight, std=0.05, generator=generator(0, name))
        made[name] = str(root / f"{name}.safetensors")
        save_prior(made[name], net, process, {})
    return made


def views(count: int = 3, width: int = 12, height: int = 8) -> torch.Tensor:
    images = [smooth_picture(width, height, seed) for seed in range(count)]
    return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255 * 0.8 + 0.1


def made(name: str, params: PriorParams, kernel=KERNEL, frames: torch.Tensor | None = None, seed: int = 0):
    net = load_sampler(name, params, LOADING, kernel, seed)
    return torch.stack(list(net.upsample(views() if frames is None else frames)))


@pytest.mark.parametrize("name", ["regression", "sr3", "resshift"])
@pytest.mark.parametrize("mode", ["hard", "soft", "off", "auto"])
def test_frames_say_what_the_lr_views_say(models, name, mode):
    steps = 0 if name == "regression" else 3
    frames = made("small", PriorParams(model=models[name], prior_steps=steps, project_lr=mode))
    assert frames.shape == (3, 3, 16, 24)
    error = (LRKernel(*KERNEL, (24, 16), (12, 8)).down(frames) - views()).abs().max()
    if mode == "off":
        assert error > 0.02
    else:
        bound = 0.5 / 255 if mode == "soft" else 0.0
        assert error < bound + 1e-6
        assert mode != "soft" or error > 0.4 / 255  # it is not exact where it need not be


def test_ddnm_is_consistent_and_the_seed_decides(models):
    for wrong in ("resshift", "regression"):
        with pytest.raises(UserError, match="ddnm walks from noise to images; give an SR3 network"):
            made("ddnm", PriorParams(model=models[wrong]))
    params = PriorParams(model=models["sr3"], prior_steps=4)
    with pytest.raises(UserError, match="--project_lr: this prior works by projection"):
        made("ddnm", params, None)
    frames = made("ddnm", params)
    assert (LRKernel(*KERNEL, (24, 16), (12, 8)).down(frames) - views()).abs().max() < 1e-6
    assert torch.equal(frames, made("ddnm", params))
    assert not torch.equal(frames, made("ddnm", params, seed=1))


def test_a_regressor_is_its_network(models):
    maker = SAMPLERS["small"](PriorParams(model=models["regression"]), LOADING)
    frames = made("small", PriorParams(model=models["regression"], project_lr="off"))
    lr = views()
    with torch.no_grad():
        residual = maker.prior.net(None, lr[:, None], enlarged(lr, 24, 16), torch.zeros(3))  # type: ignore[attr-defined]
    torch.testing.assert_close(frames, enlarged(lr, 24, 16) + 0.25 * residual / 2, rtol=0, atol=1e-5)


def test_frames_share_their_noise_on_request_and_several_walks_are_averaged(models):
    same = views(1).expand(2, -1, -1, -1)
    params = {"model": models["sr3"], "prior_steps": 3, "project_lr": "off"}
    shared = made("small", PriorParams(**params), frames=same)
    assert torch.equal(shared[0], shared[1])
    own = load_sampler("small", PriorParams(**params, prior_noise="own"), LOADING, None)
    noises = [own._draws(view, 0).initial_seed() for view in views(2)]
    assert noises[0] != noises[1]  # whether they share a call or not
    two = made("small", PriorParams(**params, prior_samples=2), frames=same)
    net = load_sampler("small", PriorParams(**params), LOADING, None)
    window = same[[0, 0, 0]]
    with torch.no_grad():
        walks = [net.maker.make(window, None, generator(0, "prior", k)) for k in range(2)]
    torch.testing.assert_close(two[0], torch.stack(walks).mean(0))
    assert torch.equal(walks[0], shared[0])


def test_gradients_are_on_between_frames_and_after_them(models):
    """Colour and alpha of a clip are made in turns, and whoever takes the frames may want gradients."""
    net = load_sampler("small", PriorParams(model=models["sr3"], prior_steps=2), LOADING)
    for _ in zip(net.upsample(views()), net.upsample(views()), strict=True):
        assert torch.is_grad_enabled()
    assert torch.is_grad_enabled()


def test_neighbours_are_told_in_order_and_repeated_at_the_ends(models):
    net = load_sampler("small", PriorParams(model=models["sr3"], project_lr="off"), LOADING, None)
    told: list[torch.Tensor] = []

    def make(window, kernel, draws):
        told.append(window[:, 0, 0, 0])
        return window.new_zeros(3, 4, 4)

    frames = torch.arange(4.0).view(4, 1, 1, 1).expand(-1, 3, 2, 2)
    list(PriorUpsampler(type(net.maker)(make, 2, 3, net.maker.prior), 2, None, 0.0, 1, True, 0).upsample(frames))
    assert [t.tolist() for t in told] == [[0, 0, 1], [0, 1, 2], [1, 2, 3], [2, 3, 3]]


def test_views_with_alpha_speak_only_where_it_is_flat(models):
    alpha = torch.ones(8, 12)
    alpha[:, 6:] = torch.rand(8, 6, generator=generator(0, "alpha"))
    net = load_sampler("small", PriorParams(model=models["sr3"], prior_steps=3), LOADING, KERNEL)
    frames = torch.stack(list(net.masked([alpha] * 3).upsample(views())))
    error = (LRKernel(*KERNEL, (24, 16), (12, 8)).down(frames) - views()).abs().amax((0, 1, 2))
    assert error[:4].max() < 1e-6
    assert error[8:].min() > 1e-3


def test_through_the_script_with_alpha(models, tmp_path, monkeypatch):
    (tmp_path / "lr").mkdir()
    for i in range(2):
        alpha = np.full((8, 12, 1), 255, np.uint8)
        alpha[:, :5] = 0
        Image.fromarray(np.concatenate([smooth_picture(12, 8, i), alpha], 2)).save(tmp_path / "lr" / f"{i}.png")
    words = ["--frames", str(tmp_path / "lr"), "-o", str(tmp_path / "out"), "--scale", "2", "--lr_kernel", "bicubic"]
    words += ["--upsampler", "small", "--model", models["sr3"], "--prior_steps", "3", "--quiet", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["vsr_upsample.py", *words])
    vsr_upsample.main()
    image = np.asarray(Image.open(tmp_path / "out" / "0.png"))
    assert image.shape == (16, 24, 4)
    assert set(np.unique(image[:, :6, 3])) == {0}
    assert set(np.unique(image[:, 15:, 3])) == {255}
    record = json.loads((tmp_path / "out" / "run.json").read_text())["steps"]["upsample"]
    assert record["inputs"]["weights"]["files"] == 1
    assert record["notes"]["propagation"] == "window"
    found = json.loads((tmp_path / "out" / "consistency.json").read_text())
    assert found["worst_db"] > 55  # rms under 1e-3 and rounding


def test_alpha_goes_through_our_own_networks_and_published_ones_leave_it_to_a_filter(models, tmp_path, monkeypatch):
    soft = np.linspace(0, 255, 96).reshape(8, 12, 1).astype(np.uint8)
    (tmp_path / "lr").mkdir()
    Image.fromarray(np.concatenate([smooth_picture(12, 8, 0), soft], 2)).save(tmp_path / "lr" / "0.png")
    errors_of = {}
    for alpha in ("network", "bicubic"):
        words = ["--frames", str(tmp_path / "lr"), "-o", str(tmp_path / alpha), "--scale", "2", "--alpha", alpha]
        words += ["--lr_kernel", "bicubic", "--upsampler", "small", "--model", models["sr3"], "--prior_steps", "3"]
        monkeypatch.setattr("sys.argv", ["vsr_upsample.py", *words, "--quiet", "--device", "cpu"])
        vsr_upsample.main()
        made = torch.from_numpy(np.asarray(Image.open(tmp_path / alpha / "0.png"))[..., 3].astype(np.float64))
        again = LRKernel(*KERNEL, (24, 16), (12, 8)).down(made[None, None])[0, 0].numpy()
        errors_of[alpha] = np.abs(again - soft[..., 0])[1:-1, 1:-1].max()
    assert errors_of["network"] < 1 < errors_of["bicubic"]  # projected onto the LR alpha, but for rounding
    net = load_sampler("small", PriorParams(model=models["sr3"]), LOADING)
    assert not net.colour_only
    assert replace(net, maker=replace(net.maker, prior=Clamped(net.maker.prior))).colour_only


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--upsampler", "small"], "--model FILE: which network?"),
        (["--upsampler", "small", "--model", "nowhere.safetensors"], "nowhere.safetensors"),
        (
            ["--upsampler", "small", "--model", "{regression}", "--scale", "4"],
            "small magnifies 2 times; give --scale 2",
        ),
        (["--upsampler", "small", "--model", "{regression}", "--project_lr", "hard"], "no LR kernel is known"),
        (["--upsampler", "ldm_sr", "--model", "/nowhere"], "/nowhere"),
        (["--upsampler", "small", "--prior_eta", "2"], "--prior_eta 2.0"),
        (["--upsampler", "small", "--model", "{regression}", "--prior_eta", "1"], "a regressor, draws no noise"),
        (["--upsampler", "small", "--model", "{regression}", "--prior_steps", "7"], "a regressor, which has one"),
        (["--upsampler", "small", "--model", "{regression}", "--ensemble", "2"], "both orders give the same"),
        (["--upsampler", "small", "--model", "{sr3}", "--prior_steps", "41"], "--prior_steps 41: 41 steps from time"),
        (["--upsampler", "ddnm", "--lr_kernel", "area", "--project_lr", "off"], "leave --project_lr off away"),
        (["--upsampler", "diffusehigh", "--dwt_mode", "reflect"], "wavelet mode 'reflect'; one of"),
        (["--upsampler", "smal"], "did you mean small"),
    ],
)
def test_what_cannot_be_is_one_line(models, tmp_path, monkeypatch, capsys, words, message):
    (tmp_path / "lr").mkdir()
    Image.fromarray(smooth_picture(12, 8, 0)).save(tmp_path / "lr" / "0.png")
    given = [word.format(**models) for word in words]
    scale = [] if "--scale" in given else ["--scale", "2"]
    flags = ["--frames", str(tmp_path / "lr"), "-o", str(tmp_path / "out"), *scale, "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["vsr_upsample.py", *flags, *given])
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "0.png").write_bytes(b"a frame of an earlier run")
    with pytest.raises(SystemExit) as stopped:
        errors.run(vsr_upsample.main)
    assert stopped.value.code == 2
    (error,) = capsys.readouterr().err.strip().splitlines()
    assert error.startswith("error: ")
    assert message in error
    left = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir() if path.name != ".lock"}
    assert left == {"0.png": b"a frame of an earlier run"}


def test_names_are_taken_once_and_the_flags_know_them():
    with pytest.raises(ValueError, match="registered twice"):
        sampler("small")(SAMPLERS["small"])
    assert set(SAMPLERS) == set(PRIORS)
