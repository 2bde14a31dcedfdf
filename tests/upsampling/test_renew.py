"""Rounds of render consistency: frames that begin with renders, say what the LR views say, and are kept on a resume."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("diffusers")

from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior
from scene.lr_kernel import LRKernel
from tests.scene_factory import picture, write_blender
from upsampling import renew
from utils import errors
from utils.rng import generator

VIEWS, SIZE = 3, 16


@pytest.fixture
def scene(tmp_path):
    write_blender(tmp_path / "lr", views=VIEWS, size=SIZE, rgba=False)
    (tmp_path / "renders" / "train").mkdir(parents=True)
    for i in range(VIEWS):
        image = picture(i, 2 * SIZE, 2 * SIZE)[..., :3]
        Image.fromarray(np.ascontiguousarray(image)).save(tmp_path / "renders" / "train" / f"r_{i}.png")
    for name, noisy in (("sr3", True), ("regression", False)):
        net = TinyNet(TinyConfig(3, 2, noisy=noisy, widths=(8, 16), groups=4))
        torch.nn.init.normal_(net.unet.conv_out.weight, std=0.05, generator=generator(0, "renew"))
        process = ProcessSpec(steps=40) if noisy else ProcessSpec("none")
        save_prior(tmp_path / f"{name}.safetensors", net, process, {})
    blind = TinyNet(TinyConfig(1, 2, "full", "eps", widths=(8, 16), groups=4))  # sees no noise: what begins stays
    save_prior(tmp_path / "blind.safetensors", blind, ProcessSpec(steps=40), {})
    return tmp_path


def run(
    scene, monkeypatch, out="out", *more: str, model: str = "sr3", kernel: str = "bicubic"
) -> dict[str, np.ndarray]:
    words = ["-s", str(scene / "lr"), "--eval", "--renders", str(scene / "renders"), "-o", str(scene / out)]
    words += ["--model", str(scene / f"{model}.safetensors"), "--scale", "2", "--prior_steps", "6", "--quiet"]
    words += ["--device", "cpu", *(["--lr_kernel", kernel] if kernel else []), *more]
    monkeypatch.setattr("sys.argv", ["upsampling.renew", *words])
    errors.run(renew.main)
    return {p.stem: np.asarray(Image.open(p)) for p in sorted((scene / out / "train").glob("*.png"))}


def test_frames_begin_with_the_renders(scene, monkeypatch):
    """The less noise, the nearer they stay; without projection, which would bring them nearer in any case."""
    renders = {p.stem: np.asarray(Image.open(p)).astype(float) for p in (scene / "renders" / "train").glob("*.png")}
    far = []
    for level in ("0.05", "0.9"):
        found = run(scene, monkeypatch, f"out{level}", "--level", level, "--project_lr", "off", model="blind")
        assert set(found) == {"r_0", "r_1", "r_2"}
        far.append(np.mean([np.abs(found[name] - renders[name]).mean() for name in found]))
    assert far[0] < 0.3 * far[1]


def test_several_walks_are_averaged(scene, monkeypatch):
    """Of a network that sees no noise half of it is left in the mean of four walks."""
    options = ("--level", "0.5", "--project_lr", "off", "--prior_noise", "own")
    found = [
        run(scene, monkeypatch, f"out{count}", *options, "--prior_samples", count, model="blind") for count in "148"
    ]
    rest = [np.mean([np.abs(some[name] - found[2][name].astype(float)).mean() for name in some]) for some in found[:2]]
    assert rest[1] < 0.7 * rest[0]


def test_frames_say_what_the_lr_views_say(scene, monkeypatch):
    found = run(scene, monkeypatch)
    kernel = LRKernel("bicubic", "renormalise", (2 * SIZE, 2 * SIZE), (SIZE, SIZE))
    for name, image in found.items():
        lr = np.asarray(Image.open(scene / "lr" / "train" / f"{name}.png")).astype(np.float64)
        down = kernel.down(torch.from_numpy(image.astype(np.float64)).permute(2, 0, 1)).permute(1, 2, 0).numpy()
        clear = (lr > 40) & (lr < 215)
        assert np.sqrt(((down - lr)[clear] ** 2).mean()) < 1  # grey levels; a wild network is clipped in places


def test_a_second_call_does_nothing_and_other_settings_do_all_anew(scene, monkeypatch):
    first = run(scene, monkeypatch)
    times = {p: p.stat().st_mtime_ns for p in (scene / "out" / "train").glob("*.png")}
    run(scene, monkeypatch, "out", "--skip_done")
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    again = run(scene, monkeypatch, "out", "--overwrite", "--level", "0.8")
    assert any((again[name] != first[name]).any() for name in first)
    record = json.loads((scene / "out" / "run.json").read_text())["steps"]["renew"]
    assert record["settings"]["level"] == 0.8
    assert record["inputs"]["weights"]["files"] == 1


@pytest.mark.parametrize(
    ("more", "options", "message"),
    [
        (["--level", "0"], {}, "--level 0.0: more than 0"),
        (["--prior_steps", "0"], {"model": "regression"}, "has no walk that could begin with an image"),
        (["--project_lr", "hard"], {"kernel": ""}, "no LR kernel is known"),
        (["--scale", "4"], {}, "--renders {renders}/train/r_0.png: 32x32 px, 3 channels; 64x64 px without alpha"),
        (["--renders", "{scene}/no"], {}, "--renders {scene}/no/train/r_0.png: no such frame; render.py --hr_frames 2"),
    ],
)
def test_what_cannot_be_is_one_line(scene, monkeypatch, capsys, more, options, message):
    folders = {"scene": scene, "renders": scene / "renders"}
    (scene / "out" / "train").mkdir(parents=True)
    (scene / "out" / "train" / "r_0.png").write_bytes(b"a frame of an earlier run")
    with pytest.raises(SystemExit) as stopped:
        run(scene, monkeypatch, "out", *(word.format(**folders) for word in more), **options)
    assert stopped.value.code == 2
    assert message.format(**folders) in capsys.readouterr().err.splitlines()[-1]
    left = {path.name: path.read_bytes() for path in (scene / "out").rglob("*") if path.suffix}
    assert left == {"r_0.png": b"a frame of an earlier run"}


def test_the_seed_decides_and_is_recorded(scene, monkeypatch):
    found = [run(scene, monkeypatch, f"out{i}", "--seed", seed) for i, seed in enumerate("337")]
    assert all((found[0][name] == found[1][name]).all() for name in found[0])
    assert all((found[0][name] != found[2][name]).any() for name in found[0])
    records = [json.loads((scene / f"out{i}" / "run.json").read_text())["steps"]["renew"] for i in (0, 2)]
    assert [record["seed"] for record in records] == [3, 7]
    run(scene, monkeypatch, "out0", "--seed", "7", "--skip_done", "--overwrite")  # another seed is another result
    made = {p.name: p.read_bytes() for p in (scene / "out0" / "train").glob("*.png")}
    assert made == {p.name: p.read_bytes() for p in (scene / "out2" / "train").glob("*.png")}
