"""Priors in a run: which frames each frame was made from, in which channels, in which order, and what degraded views
forbid."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

import vsr_upsample
from arguments.degrade import DegradeParams
from arguments.lr_scene import LRSceneParams
from arguments.priors import PriorParams
from arguments.upsampling import UpsamplingParams
from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior
from scene.degrade import degrade
from scene.sequences import FILE_NAME, Sequences, Subsequence, write_sequences
from tests.scene_factory import write_blender
from upsampling import Job, load, renew, run
from upsampling.sources import folder_source
from utils import errors
from utils.errors import UserError
from utils.rng import generator

VIEWS, SIZE = 5, 16
CPU = torch.device("cpu")
NAMES = tuple(f"train/r_{i}" for i in (2, 0, 3, 1, 4))  # an order that is not that of the files


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[int, str]:
    """Regressors of one, three and five frames, with random last layers."""
    root, made = tmp_path_factory.mktemp("models"), {}
    for frames in (1, 3, 5):
        net = TinyNet(TinyConfig(frames, 2, noisy=False, widths=(8, 16), groups=4))
        torch.nn.init.normal_(net.unet.conv_out.weight, std=0.3, generator=generator(0, "seen"))
        made[frames] = str(root / f"{frames}.safetensors")
        save_prior(made[frames], net, ProcessSpec("none"), {})
    return made


@pytest.fixture
def scene(tmp_path):
    write_blender(tmp_path / "lr", views=VIEWS, test_views=1, size=SIZE, rgba=False)
    write_sequences(tmp_path / "out" / FILE_NAME, Sequences((Subsequence(NAMES, tuple(range(VIEWS))),)))
    return tmp_path


def upsampled(monkeypatch, root, *words: str, lr: str = "lr") -> None:
    flags = ["-s", str(root / lr), "-m", str(root / "out"), "--eval", "--scale", "2", "--device", "cpu", "--quiet"]
    monkeypatch.setattr("sys.argv", ["vsr_upsample.py", *flags, *words])
    errors.run(vsr_upsample.main)


def frames_of(folder) -> dict[str, np.ndarray]:
    return {p.stem: np.asarray(Image.open(p)).astype(float) for p in sorted((folder / "hr/train").glob("*.png"))}


@pytest.mark.parametrize(("frames", "window"), [(3, (2, 0, 3)), (5, (2, 2, 0, 3, 1))])  # of r_0, second in the order
def test_the_record_says_which_frames_each_frame_saw(models, scene, monkeypatch, frames, window):
    upsampled(monkeypatch, scene, "--upsampler", "small", "--model", models[frames], "--max_angle", "1")
    found = json.loads((scene / "out/hr/alignment.json").read_text())
    assert {k: v for k, v in found.items() if k != "views"} == {"propagation": "window"}
    entry = found["views"]["train/r_0"]
    assert entry["window"] == [f"train/r_{i}" for i in window]
    assert [n["name"] for n in entry["neighbours"]] == [f"train/r_{i}" for i in dict.fromkeys(window) if i]
    assert all(n["angle_deg"] > 1 and n["weight"] is None for n in entry["neighbours"])  # no angle keeps them out
    before = frames_of(scene / "out")
    Image.fromarray(np.full((SIZE, SIZE, 3), 90, np.uint8)).save(scene / "lr/train/r_3.png")
    upsampled(monkeypatch, scene, "--upsampler", "small", "--model", models[frames], "--overwrite")
    after = frames_of(scene / "out")
    changed = {f"train/{name}" for name in before if (before[name] != after[name]).any()}
    assert changed == {name for name, view in found["views"].items() if "train/r_3" in view["window"]}


def test_a_prior_of_one_frame_has_no_neighbours_to_record(models, scene, monkeypatch):
    upsampled(monkeypatch, scene, "--upsampler", "small", "--model", models[1])
    assert not (scene / "out/hr/alignment.json").exists()


def test_priors_see_rgb_whatever_the_release_did(models, scene, monkeypatch):
    for compat in ("", "sequence_matters"):
        more = ["--compat", compat, "--overwrite"] if compat else []
        upsampled(monkeypatch, scene, "--upsampler", "small", "--model", models[1], *more)
        found = frames_of(scene / "out")
        first = first if compat else found
    # the release's loader truncates to 8 bit where ours keeps the file's values: these have none to lose
    assert all((found[name] == first[name]).all() for name in first)


def test_both_orders_are_two_estimates_of_a_prior_of_three_frames(models, scene):
    prior = PriorParams(model=models[3], project_lr="off")
    settings = UpsamplingParams(upsampler="small", scale=2, ensemble=2)
    net = load(settings, None, CPU, prior=prior)
    source = folder_source(scene / "lr/train", "")
    run(Job(net, settings, source, scene / "both"))
    planes = torch.stack([torch.from_numpy(source.views.raw(f"r_{i}")).permute(2, 0, 1) / 255 for i in range(VIEWS)])
    forth = torch.stack(list(net.upsample(planes))).clamp(0, 1)
    back = torch.stack(list(net.upsample(planes.flip(0)))).clamp(0, 1).flip(0)
    assert float((forth - back).abs().max()) > 0.01  # another estimate indeed
    for i in range(VIEWS):
        found = np.asarray(Image.open(scene / f"both/r_{i}.png")) / 255
        np.testing.assert_allclose(found, ((forth + back) / 2)[i].permute(1, 2, 0), atol=0.51 / 255)
    assert len(list((scene / "both/confidence").glob("*.png"))) == VIEWS


@pytest.mark.parametrize("count", [2, 8])
def test_both_orders_of_a_prior_of_one_frame_are_refused(models, scene, count):
    with pytest.raises(UserError, match=f"--ensemble {count}: every frame is made alone.*give --ensemble {count // 2}"):
        UpsamplingParams(upsampler="ldm_sr", ensemble=count)
    settings = UpsamplingParams(upsampler="small", scale=2, ensemble=count)
    net = load(settings, None, CPU, prior=PriorParams(model=models[1]))
    with pytest.raises(UserError, match=f"--ensemble {count}: every frame is made alone"):
        run(Job(net, settings, folder_source(scene / "lr/train", ""), scene / "both"))


def test_a_graph_is_refused_for_its_own_reason():
    with pytest.raises(UserError, match="small sees the neighbours in the sequence; leave it out"):
        UpsamplingParams(upsampler="small", propagation="graph")


# --- degraded views ---


@pytest.fixture
def degraded(tmp_path, scene):
    write_blender(tmp_path / "hr", views=VIEWS, test_views=1, size=2 * SIZE, rgba=False)
    lr = LRSceneParams(str(tmp_path / "hr"), str(tmp_path / "degraded"), 2, quiet=True)
    degrade(lr, DegradeParams(preset="mild"))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--upsampler", "small", "--project_lr", "hard"], "--project_lr hard"),
        (["--upsampler", "small", "--project_lr", "soft", "--lr_kernel", "bicubic"], "--project_lr soft"),
        (["--upsampler", "ddnm", "--lr_kernel", "bicubic"], "--upsampler ddnm, which works by projection"),
        (["--upsampler", "bicubic", "--project", "--lr_kernel", "area"], "--project"),
    ],
)
def test_nothing_is_projected_onto_degraded_views_and_the_message_says_so(
    models, degraded, monkeypatch, capsys, words, asked
):
    with pytest.raises(SystemExit):
        upsampled(monkeypatch, degraded, *words, "--model", models[3], lr="degraded")
    expected = f"error: {asked}: the LR views were degraded (degradation.json: blur, noise, JPEG), no linear operator"
    assert capsys.readouterr().err.splitlines()[-1].startswith(expected)
    assert not list((degraded / "out").rglob("*.png"))


@pytest.mark.parametrize("kernel", [[], ["--lr_kernel", "bicubic"]])
def test_consistency_with_degraded_views_is_left_out_with_a_reason(models, degraded, monkeypatch, capsys, kernel):
    upsampled(monkeypatch, degraded, "--upsampler", "small", "--model", models[1], *kernel, lr="degraded")
    found = json.loads((degraded / "out/hr/consistency.json").read_text())
    assert found["kernel"] is found["mean_rms_levels"] is None
    assert found["not_measured"].startswith("the LR views were degraded (degradation.json")
    assert "LR consistency" not in capsys.readouterr().out


def test_rounds_onto_degraded_views_are_not_projected(models, degraded, monkeypatch, capsys):
    words = [
        "-s",
        degraded / "degraded",
        "--eval",
        "--renders",
        degraded / "hr",
        "-o",
        degraded / "new",
        "--scale",
        "2",
    ]
    words += ["--model", models[1], "--project_lr", "hard", "--lr_kernel", "bicubic", "--device", "cpu"]
    monkeypatch.setattr("sys.argv", ["upsampling.renew", *map(str, words)])
    with pytest.raises(SystemExit):
        errors.run(renew.main)
    assert "error: --project_lr hard: the LR views were degraded" in capsys.readouterr().err.splitlines()[-1]
