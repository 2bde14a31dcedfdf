"""The adapter of the package spandrel, against a stand-in with its interface; and what is said where it is broken."""

import hashlib
import sys
import types
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

from arguments.upsampling import UpsamplingParams
from tests.forked import ScriptProcess
from tests.upsampling.test_networks import CPU, moving_texture
from upsampling import load, resolve_weights
from upsampling.spandrel import to_install
from utils.errors import UserError


class UnsupportedModelError(Exception):
    pass


class _Net(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Conv2d(channels, channels * 4, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pixel_shuffle(self.body(x), 2)


class ImageModelDescriptor:
    """x2, of as many channels as the file's convolution has inputs."""

    scale = 2
    architecture = types.SimpleNamespace(name="Tiny")

    def __init__(self, state: dict[str, torch.Tensor]) -> None:
        self.input_channels = self.output_channels = state["body.weight"].shape[1]
        self.model = _Net(self.input_channels)
        self.model.load_state_dict(state)

    def eval(self) -> "ImageModelDescriptor":
        self.model.eval()
        return self

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        assert image.ndim == 4
        return self.model(image).clamp(0, 1)


class ModelLoader:
    def __init__(self, device: torch.device) -> None:
        assert device == CPU

    def load_from_state_dict(self, state: dict[str, torch.Tensor]) -> ImageModelDescriptor:
        if "body.weight" not in state:
            raise UnsupportedModelError
        return ImageModelDescriptor(state)


@pytest.fixture
def package(monkeypatch):
    module = types.ModuleType("spandrel")
    for item in (UnsupportedModelError, ImageModelDescriptor, ModelLoader):
        setattr(module, item.__name__, item)
    monkeypatch.setitem(sys.modules, "spandrel", module)


def _file(tmp_path: Path, state: dict[str, torch.Tensor]) -> UpsamplingParams:
    path = tmp_path / "net.pth"
    torch.save({"params_ema": state}, path)
    trusted = hashlib.sha256(path.read_bytes()).hexdigest()
    return UpsamplingParams(upsampler="spandrel", weights=str(path), trust_weights=trusted, scale=2)


def test_the_model_and_its_scale_come_from_the_file(tmp_path, package):
    state = _Net(3).state_dict()
    flags = _file(tmp_path, state)
    weights = resolve_weights(flags)
    assert weights.record()["id"] == "spandrel trusted by the user"
    net = load(flags, weights, CPU)
    assert (net.scale, net.num_neighbours) == (2, 0)
    frames = moving_texture(3, 9, 7)
    expected = F.pixel_shuffle(F.conv2d(frames, state["body.weight"], state["body.bias"], padding=1), 2).clamp(0, 1)
    assert torch.allclose(torch.stack(list(net.upsample(frames))), expected, atol=1e-6)


def test_what_is_no_rgb_model_of_the_scale_is_refused(tmp_path, package):
    weights = resolve_weights(_file(tmp_path, _Net(3).state_dict()))
    with pytest.raises(UserError, match="spandrel magnifies 2 times; give --scale 2"):
        load(UpsamplingParams(upsampler="spandrel"), weights, CPU)
    for state, reason in (
        (_Net(1).state_dict(), "Tiny does not map RGB images to RGB images"),
        ({"a": torch.ones(2)}, r"no network that spandrel knows \(UnsupportedModelError\)"),
        ({"body.weight": torch.ones(12, 3, 3, 3)}, r"no network that spandrel knows \(Error\(s\) in loading"),
    ):
        flags = _file(tmp_path, state)
        weights = resolve_weights(flags)
        with pytest.raises(UserError, match=f"net.pth: {reason}"):
            load(flags, weights, CPU)
    with pytest.raises(UserError, match="from a file alone; give --weights FILE"):
        load(UpsamplingParams(upsampler="spandrel", random_weights=True), None, CPU)


def test_a_file_is_needed_and_trust(tmp_path, package, monkeypatch):
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path))
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path))
    with pytest.raises(UserError, match=r"swinir_x4 not found.*--download --trust_weights SHA256.*SwinIR-M_x4\.pth"):
        resolve_weights(UpsamplingParams(upsampler="spandrel"))
    flags = _file(tmp_path, _Net(3).state_dict())
    with pytest.raises(UserError, match=f"if you trust it: --trust_weights {flags.trust_weights}"):
        resolve_weights(UpsamplingParams(upsampler="spandrel", weights=flags.weights))


def _first_on_path(folder: Path) -> None:
    sys.path.insert(0, str(folder))


def test_where_torchvision_is_broken_one_line_says_what_to_install(tmp_path):
    """As torchvision from PyPI is beside a torch for processors alone."""
    for name, body in (
        ("spandrel", "import torchvision"),
        ("torchvision", "raise RuntimeError('operator torchvision::nms does not exist')"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(body)
    (tmp_path / "lr").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "lr" / "a.png")
    flags = _file(tmp_path, _Net(3).state_dict())
    argv = ["--frames", str(tmp_path / "lr"), "-o", str(tmp_path / "out"), "--upsampler", "spandrel", "--scale", "2"]
    argv += ["--weights", flags.weights, "--trust_weights", flags.trust_weights]
    script = ScriptProcess(argv, tmp_path / "stderr", partial(_first_on_path, tmp_path), "upsample")
    assert script.wait() == 2
    line = script.text().splitlines()[-1]
    assert "Traceback" not in script.text()
    assert "error: --upsampler spandrel: the package cannot be imported (operator torchvision::nms" in line
    assert f"{to_install(torch.__version__)}, then pip install spandrel" in line


def test_the_torchvision_that_fits_a_torch():
    assert to_install("2.13.0") == "pip install 'torchvision==0.28.*'"
    assert to_install("2.5.1+cu124") == "pip install 'torchvision==0.20.*' (its cu124 build, from where torch came)"
    assert to_install("2.13.0+cpu") == "pip install 'torchvision==0.28.*' (its cpu build, from where torch came)"
