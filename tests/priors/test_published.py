"""Published systems as makers, with tiny models: sizes, draws, what leads them, colours, and what is refused."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from arguments.flags import parse_groups, settings
from arguments.guidance import GuidanceParams
from arguments.priors import PriorParams
from priors import post
from priors.checkpoints import checkpoint, sha256_of
from priors.denoisers import controlnet_sr
from priors.denoisers.controlnet_sr import load_diffbir
from priors.denoisers.resshift import VQ_F4, load_resshift
from priors.denoisers.seesr import NEGATIVE, POSITIVE, load_seesr
from priors.denoisers.stablesr import load_stablesr
from priors.denoisers.text import clip
from priors.enlarge import enlarged
from priors.interfaces import Cond
from priors.making import Known, Loading, Maker, tiles_of
from priors.published import (
    addsr_maker,
    diffbir_maker,
    diffusehigh_maker,
    resshift_maker,
    seesr_maker,
    stablesr_maker,
)
from priors.samplers import SAMPLERS, input_files
from priors.spaces import LatentSpace
from priors.verify import Options, _on_base
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
from tests.priors.test_stablesr import ENCODER, files, networks  # noqa: F401 (fixtures)
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


@pytest.mark.parametrize("name", ["stablesr", "seesr", "resshift"])
def test_tiles_of_ones_own_share_what_those_of_the_release_do(priors, name):
    prior = priors[name]
    network = prior.network if name == "resshift" else prior.unet
    sides, calls = [], maker(priors, name, replace(PARAMS, prior_tile=32, prior_steps=1, guidance_scale=1.0))
    handle = network.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-1]))
    image = made(calls)
    handle.remove()
    assert image.shape == (3, 52, 68)
    tiles = {"stablesr": 4 * 3, "seesr": 3 * 2, "resshift": 3 * 2}  # of 9 x 7 latents, or of 17 x 13
    assert len(sides) == tiles[name]


@pytest.mark.parametrize(
    ("wanted", "own", "overlap", "tiles"),
    [
        (0, 512, 256, (64, 32)),  # StableSR, DiffBIR
        (0, 768, 32, (96, 4)),  # SeeSR, AddSR
        (256, 512, 256, (32, 16)),
        (64, 512, 64, (8, 1)),
        (8, 512, 256, (1, 0)),
    ],
)
def test_overlaps_grow_with_tiles(wanted, own, overlap, tiles):
    space = LatentSpace(None, channels=4, factor=8)
    assert tiles_of(space, wanted, own, overlap) == tiles
    with pytest.raises(UserError, match="--prior_tile 7: 8 px or more"):
        tiles_of(space, 7, own, overlap)


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


@pytest.mark.parametrize("name", ["stablesr", "diffbir_v2", "seesr", "addsr"])
def test_texts_reach_every_system_on_stable_diffusion_2(name, base, files, diffbir_file, seesr_folder, tmp_path):  # noqa: F811
    """Those that are given, else the system's own."""
    load = {
        "stablesr": lambda **given: load_stablesr(files[1], encoder=ENCODER, **given),
        "diffbir_v2": lambda **given: load_diffbir(diffbir_file, **given),
    }.get(name, lambda **given: load_seesr(seesr_folder[0], tag_width=6, **given))
    own = {"stablesr": ("", ""), "diffbir_v2": ("", controlnet_sr.NEGATIVE)}
    encode = clip(base)
    for options, texts in (
        (Options(base=str(base)), own.get(name, (POSITIVE, NEGATIVE))),
        (Options(base=str(base), prompt="a cab", negative="bad"), ("a cab", "bad")),
    ):
        found = load(**_on_base(checkpoint(name), options)).texts
        assert torch.equal(found.prompt, encode(texts[0]))
        assert torch.equal(found.negative, encode(texts[1]))


def test_texts_of_the_flags_through_the_official_files(base, diffbir_file):  # noqa: F811
    params = PriorParams(model=str(diffbir_file), base=str(base), prompt="a cab", negative_prompt="bad")
    found = SAMPLERS["diffbir"](params, replace(LOADING, trust=(sha256_of(diffbir_file),))).prior.texts
    assert torch.equal(found.prompt, clip(base)("a cab"))
    assert torch.equal(found.negative, clip(base)("bad"))
    assert not torch.equal(found.prompt, found.negative)


def test_networks_of_the_official_files_compute_in_the_precision_that_is_asked_for(base, diffbir_file):  # noqa: F811
    loading = replace(LOADING, trust=(sha256_of(diffbir_file),), dtype=torch.bfloat16)
    prior = SAMPLERS["diffbir"](PriorParams(model=str(diffbir_file), base=str(base)), loading).prior
    dtypes = [next(part.parameters()).dtype for part in (prior.unet, prior.control, prior.space.vae)]
    assert dtypes == [torch.bfloat16, torch.bfloat16, torch.float32]


def test_official_files_are_inputs_wherever_they_lie(base, diffbir_file, tmp_path, monkeypatch):  # noqa: F811
    """Found by their names alone, too; of a folder that is named no other files."""
    monkeypatch.setenv("SEQSPLAT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("SEQSPLAT_WEIGHTS", str(tmp_path))
    params = PriorParams(base=str(base))
    assert set(input_files("diffbir", params)) == {path for path in base.rglob("*") if path.is_file()}
    (tmp_path / "v2.pth").write_bytes(diffbir_file.read_bytes())
    (tmp_path / "other.pth").write_bytes(b"")
    for named in (params, replace(params, model=str(tmp_path))):
        assert [path for path in input_files("diffbir", named) if path.suffix == ".pth"] == [tmp_path / "v2.pth"]
    assert input_files("small", PriorParams(model=str(diffbir_file))) == [diffbir_file]
    with pytest.raises(UserError, match="no checksum is published; give --trust_weights"):  # before anything is made
        input_files("resshift", PriorParams(accept_licence=True), download=True)


def test_another_base_is_another_result():
    """An id of the hub is no file, whose bytes would say so."""
    assert settings(PriorParams(base="a/b")) != settings(PriorParams(base="a/c"))
    assert settings(GuidanceParams(sds="diffbir", sds_base="a/b")) != settings(GuidanceParams(sds="diffbir"))


class Words(Tagger):
    """Says the same of every view."""

    def __init__(self, *words: str) -> None:
        self.said = list(words)

    def words(self, image):
        return [self.said for _ in image]


@pytest.mark.parametrize("make", [seesr_maker, addsr_maker])
def test_tags_become_the_prompt(seesr, base, make):  # noqa: F811
    encode, cond = clip(base), Cond(lr=window()[None])
    for positive, wanted in (("clean, high-resolution, 8k",) * 2, ("bad", "bad")):
        prior = replace(seesr, positive=positive)
        told = make(prior, PARAMS, LOADING, Words("cab", "bed")).told(cond)
        assert torch.equal(told.prompt, encode(f"cab, bed, {wanted}"))
        assert torch.equal(told.extra["tags"], Tagger().embeddings(window()))
        assert torch.equal(make(prior, PARAMS, LOADING, Words()).told(cond).prompt, seesr.texts.prompt)
    several = Cond(lr=torch.cat([window(), 1 - window()])[:, None])
    assert make(seesr, PARAMS, LOADING, Words("cab")).told(several).prompt.shape == (2, 6, 8)
    images = [made(make(seesr, PARAMS, LOADING, Words(word))) for word in ("cab", "bed")]
    assert not torch.equal(*images)


def test_each_text_is_encoded_once(base):  # noqa: F811
    encode = clip(base)
    assert encode("cab") is encode("cab")


def test_tags_need_the_text_encoder(base, seesr_folder, tmp_path):  # noqa: F811
    file = tmp_path / "texts.safetensors"
    for _ in "ab":  # whether the file was made just now or before
        prior = load_seesr(seesr_folder[0], base=base, tag_width=6, texts=file)
        with pytest.raises(UserError, match=r"tags of a view \(cab\) need the text encoder.*leave the file"):
            made(seesr_maker(prior, PARAMS, LOADING, Words("cab")))
        assert made(seesr_maker(prior, PARAMS, LOADING, Words())).shape == (3, 52, 68)


def test_the_weight_of_addsrs_own_estimate(priors):
    images = [made(maker(priors, "addsr", replace(PARAMS, psr_weight=weight))) for weight in (0.0, 0.5)]
    assert torch.equal(images[1], made(maker(priors, "addsr")))
    assert not torch.equal(*images)
    with pytest.raises(UserError, match=r"--psr_weight 1\.5: a number from 0 to 1"):
        PriorParams(psr_weight=1.5)


def test_diffusehighs_sharpening(priors):
    def of(**flags):
        return made(maker(priors, "diffusehigh", replace(PARAMS, **flags)))

    plain = of()
    assert torch.equal(plain, of(sharpening_kernel_size=3, sharpening_sigma=(0.1, 2.0)))
    assert torch.equal(of(sharpening_sigma=(0.7,)), of(sharpening_sigma=(0.7, 0.7)))
    changed = [{"sharpening_kernel_size": 5}, {"sharpening_sigma": (0.7,)}, {"sharpening_alpha": 0.0}]
    assert all(not torch.equal(plain, of(**flags)) for flags in changed)
    for wrong in ({"sharpening_kernel_size": 4}, {"sharpening_sigma": (2.0, 0.1)}):  # before the first view
        with pytest.raises(UserError, match="sharpening_sigma"):
            maker(priors, "diffusehigh", replace(PARAMS, **wrong))
    with pytest.raises(UserError, match="--sharpening_sigma"):
        PriorParams(sharpening_sigma=(1.0, 2.0, 3.0))
    assert parse_groups("x", "", [PriorParams], ["--sharpness_factor", "2"])[0].sharpening_alpha == 2.0


def test_diffusehigh_sees_the_whole_image_or_tiles_of_it(priors):
    whole, *others = (made(maker(priors, "diffusehigh", replace(PARAMS, prior_tile=tile))) for tile in (0, 512, 32))
    assert torch.equal(whole, others[0])  # one tile
    assert others[1].shape == whole.shape
    assert not torch.equal(whole, others[1])


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
        ("stablesr", PriorParams(release="stablesr_turbo"), "--release stablesr_turbo: is not one of"),
        ("seesr", PriorParams(), "is published as a folder"),
        ("diffusehigh", PriorParams(model="/nowhere"), "/nowhere"),
        (
            "diffusehigh",
            PriorParams(prior_eta=0.5),
            "diffusehigh draws no noise in its steps",
        ),
        ("ddnm_sd3", PriorParams(prior_eta=1.0), "--prior_eta 1: ddnm_sd3 draws no noise in its steps"),
        ("sd_x4", PriorParams(model="stabilityai/stable-diffusion-2-1"), "withdrawn by its maker.*mirror"),
        ("ddnm_sd3", PriorParams(), "gated: accept the Stability Community licence"),
    ],
)
def test_what_is_missing_is_one_line(name, params, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message) as found:
        SAMPLERS[name](params, LOADING)
    assert "\n" not in str(found.value)
