"""Published systems as makers, with tiny models: sizes, draws, what leads them, colours, and what is refused."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from arguments.priors import PriorParams
from priors import post
from priors.denoisers.resshift import VQ_F4, load_resshift
from priors.enlarge import enlarged
from priors.making import Known, Loading, Maker
from priors.published import (
    addsr_maker,
    diffbir_maker,
    diffusehigh_maker,
    resshift_maker,
    seesr_maker,
    stablesr_maker,
)
from priors.samplers import SAMPLERS
from scene.lr_kernel import LRKernel
from tests.priors import tiny_models as tiny
from tests.priors.test_controlnet_sr import (  # noqa: F401 (fixtures)
    Tagger,
    base,
    control,
    diffbir,
    diffbir_file,
    seesr,
    seesr_folder,
    unet,
)
from tests.priors.test_resshift_net import SMALL
from tests.priors.test_sdxl import folder as sdxl_folder  # noqa: F401 (a fixture)
from tests.priors.test_stablesr import files, networks  # noqa: F401 (fixtures)
from tests.priors.test_stablesr import prior as stablesr  # noqa: F401 (a fixture)
from utils.errors import UserError
from utils.rng import generator

PARAMS = PriorParams(prior_steps=2)
LOADING = Loading(torch.device("cpu"), 4)
KNOWN = Known(LRKernel("bicubic", "renormalise", (68, 52), (17, 13)))
NAMES = ["stablesr", "diffbir", "seesr", "addsr", "resshift", "diffusehigh"]


@pytest.fixture(scope="module")
def priors(stablesr, diffbir, seesr, sdxl_folder, tmp_path_factory):  # noqa: F811
    from priors.denoisers.sdxl import load_sdxl

    made = tiny.save_resshift(tmp_path_factory.mktemp("resshift"))
    resshift = load_resshift(made[0], made[1], 4, shape=SMALL, vq=VQ_F4 | tiny.SMALL_VQ)
    sdxl = load_sdxl(sdxl_folder, prompt="a cab", negative="bad")
    return {"stablesr": stablesr, "diffbir": diffbir, "seesr": seesr, "resshift": resshift, "sdxl": sdxl}


def maker(priors, name: str, params: PriorParams = PARAMS, loading: Loading = LOADING) -> Maker:
    built = {
        "stablesr": lambda: stablesr_maker(priors["stablesr"], params, loading),
        "diffbir": lambda: diffbir_maker(priors["diffbir"], params, loading),
        "seesr": lambda: seesr_maker(priors["seesr"], params, loading, Tagger()),
        "addsr": lambda: addsr_maker(priors["seesr"], params, loading, Tagger()),
        "resshift": lambda: resshift_maker(priors["resshift"], params),
        "diffusehigh": lambda: diffusehigh_maker(priors["sdxl"], replace(params, noising_steps=1), loading),
    }
    return built[name]()


def window() -> torch.Tensor:
    return torch.rand((1, 3, 13, 17), generator=generator(0, "window"))


def made(found: Maker, known=KNOWN, seed: int = 0) -> torch.Tensor:
    with torch.no_grad():
        return found.make(window(), known, generator(seed, "published"))


@pytest.mark.parametrize("name", NAMES)
def test_images_have_their_size_and_the_seed_decides(priors, name):
    found = maker(priors, name)
    image = made(found)
    assert image.shape == (3, 52, 68)
    assert bool(torch.isfinite(image).all())
    assert torch.equal(image, made(found))
    assert not torch.equal(image, made(found, seed=1))
    assert found.frames == 1
    assert found.scale == (4 if name == "resshift" else 0)


@pytest.mark.parametrize("name", ["stablesr", "diffbir", "seesr", "addsr"])
def test_colours_are_those_of_the_lr_view_where_nothing_is_projected(priors, name):
    up = enlarged(window(), 68, 52)
    plain, automatic = made(maker(priors, name)), made(maker(priors, name), known=None)
    torch.testing.assert_close(automatic, post.color_wavelet(plain[None], up)[0])
    adain = made(maker(priors, name, replace(PARAMS, color_fix="adain")))
    torch.testing.assert_close(adain.mean((1, 2)), up[0].mean((1, 2)), rtol=0, atol=1e-5)
    assert torch.equal(made(maker(priors, name, replace(PARAMS, color_fix="none")), known=None), plain)


def test_diffbir_has_two_stages(priors):
    seen = []

    def restore(lr, width, height):
        seen.append(tuple(lr.shape))
        return torch.full((len(lr), 3, height, width), 0.5)

    plain = made(maker(priors, "diffbir"))
    restored = priors | {"diffbir": replace(priors["diffbir"], restore=restore)}
    led = made(maker(restored, "diffbir"))
    assert seen == [(1, 3, 13, 17)]  # once a walk
    assert not torch.equal(led, plain)
    pulled = made(maker(restored, "diffbir", replace(PARAMS, restoration_scale=0.05)))
    assert not torch.equal(pulled, led)


def test_restoration_through_the_upsamplers_registry(tmp_path):
    from arguments.upsampling import UpsamplingParams
    from upsampling.registry import _restoring

    settings, device = UpsamplingParams(upsampler="diffbir"), torch.device("cpu")
    first = _restoring(settings, PriorParams(restoration="bicubic"), device)
    image = first(window(), 72, 56)
    assert image.shape == (1, 3, 56, 72)
    assert 0 <= image.min() <= image.max() <= 1
    with pytest.raises(UserError, match="--restoration psrt: one of bicubic"):
        _restoring(settings, PriorParams(restoration="psrt"), device)


@pytest.mark.parametrize(
    ("name", "params", "message"),
    [
        ("stablesr", PriorParams(), "allows no commercial use.*--accept_licence"),
        ("resshift", PriorParams(release="resshift_nothing"), "no published model named 'resshift_nothing'"),
        ("diffbir", PriorParams(release="seesr"), "--release seesr: is not one of --upsampler diffbir"),
        ("seesr", PriorParams(), "is published as a folder"),
        ("diffusehigh", PriorParams(model="/nowhere"), "/nowhere"),
        ("sd_x4", PriorParams(model="stabilityai/stable-diffusion-2-1"), "withdrawn by its maker.*mirror"),
        ("ddnm_sd3", PriorParams(), "gated: accept the Stability Community licence"),
    ],
)
def test_what_is_missing_is_one_line(name, params, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message) as found:
        SAMPLERS[name](params, LOADING)
    assert "\n" not in str(found.value)


WITHOUT = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("diffusers", "transformers", "pywt", "huggingface_hub"):
            raise ModuleNotFoundError(f"No module named {name!r}")
sys.meta_path.insert(0, Missing())
import train, vsr_upsample, training.session, training.guidance, upsampling, evaluation.run_metrics, priors.samplers
from arguments.priors import PriorParams
from priors.making import Loading
from utils import errors
import torch
errors.run(lambda: priors.samplers.SAMPLERS["ldm_sr"](PriorParams(), Loading(torch.device("cpu"))))
"""


def test_without_the_optional_packages_the_rest_works_and_the_message_says_what_to_install():
    done = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: the package diffusers cannot be imported")
    assert "pip install -r requirements-priors.txt" in done.stderr
