"""Score distillation by every system: each is told what its walks are told, and pulls on renders of any size."""

import json
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from arguments.guidance import GuidanceParams
from arguments.priors import PriorParams
from arguments.upsampling import PRIORS
from priors.checkpoints import sha256_of
from priors.crops import Box
from priors.denoisers.seesr import IMAGE, TAGS
from priors.denoisers.tiny import ProcessSpec, TinyConfig, TinyNet, save_prior
from priors.hooks import ProjectLR, ProjectLRLatent
from priors.interfaces import Cond
from priors.making import Loading, Maker
from priors.processes import VP
from priors.samplers import SAMPLERS
from priors.sds import SDSGuidance
from scene import load_scene
from scene.lr_kernel import LRKernel
from tests.priors import tiny_models as tiny
from tests.priors.exact_priors import Perfect, context, images, normal, sd3_space
from tests.priors.test_controlnet_sr import (  # noqa: F401 (fixtures)
    base,
    control,
    diffbir,
    diffbir_file,
    seesr,
    seesr_folder,
    unet,
)
from tests.priors.test_published import maker, priors  # noqa: F401 (a fixture)
from tests.priors.test_sd_x4 import folder as sd_x4_folder  # noqa: F401 (a fixture)
from tests.priors.test_sdxl import folder as sdxl_folder  # noqa: F401 (a fixture)
from tests.priors.test_stablesr import files, networks  # noqa: F401 (fixtures)
from tests.priors.test_stablesr import prior as stablesr  # noqa: F401 (a fixture)
from tests.training_factory import command, write_scene
from training.guidance import Guidance, load_guidance, prior_commits, prior_files
from training.views import Targets, View
from utils.errors import UserError
from utils.rng import generator

PUBLISHED = ("stablesr", "diffbir", "seesr", "addsr", "resshift", "diffusehigh")
WHOLE = ("small", "ddnm", "ddnm_sd3", "ldm_sr", "sd_x4")
SIZE, LR_SIZE = (68, 52), (17, 13)  # 52 px are no whole latents of 8 px
LINEAR = VP.linear(1000, 1e-4, 2e-2)
SETTINGS = GuidanceParams(sds="small", sds_lambda=1.0)


@pytest.fixture(scope="module")
def models(sd_x4_folder, tmp_path_factory) -> dict[str, PriorParams]:  # noqa: F811
    """Flags of the systems that are loaded from one folder or file."""
    root = tmp_path_factory.mktemp("guides")
    net = TinyNet(TinyConfig(3, 4, widths=(8, 16), groups=4))
    torch.nn.init.normal_(net.unet.conv_out.weight, std=0.05, generator=generator(0, "net"))
    save_prior(root / "sr3.safetensors", net, ProcessSpec(steps=40), {})
    tiny.ldm_sr_pipeline().save_pretrained(root / "ldm_sr")
    sd3 = tiny.save_sd3(root / "sd3")
    own = PriorParams(model=str(root / "sr3.safetensors"))
    return {
        "small": own,
        "ddnm": own,
        "ddnm_sd3": PriorParams(model=str(sd3), texts=str(sd3 / "texts.safetensors")),
        "ldm_sr": PriorParams(model=str(root / "ldm_sr")),
        "sd_x4": PriorParams(model=str(sd_x4_folder), prompt="a cab"),
    }


@pytest.fixture(scope="module")
def camera(tmp_path_factory):
    scene = load_scene(write_scene(tmp_path_factory.mktemp("scene")) / "lr")
    found = next(iter(scene.cameras.values()))
    return replace(found, width=SIZE[0], height=SIZE[1])


def made(name: str, priors, models) -> Maker:  # noqa: F811
    if name in PUBLISHED:
        return maker(priors, name)
    return SAMPLERS[name](models[name], Loading(torch.device("cpu"), 4))


def pull(found: Maker, settings: GuidanceParams, camera, degraded: bool = False, device: torch.device | str = "cpu"):
    guide = Guidance.of(found.prior, found.frames, settings, 0, found.told, degraded)
    view = View(camera, LRKernel("bicubic", "renormalise", SIZE, LR_SIZE), 4)
    lr = torch.rand((3, LR_SIZE[1], LR_SIZE[0]), generator=generator(0, "lr")).to(device)
    render = torch.rand((3, SIZE[1], SIZE[0]), generator=generator(0, "render")).to(device)
    pulling = guide.guide(1, view, Targets(None, lr))
    assert pulling is not None
    return pulling(render)


def test_every_system_is_tried_here():
    assert {*PUBLISHED, *WHOLE, "stablesr_turbo"} == set(PRIORS)


@pytest.mark.parametrize("name", [*WHOLE, *PUBLISHED])
@pytest.mark.parametrize("crop", [0, 48])
def test_every_system_pulls_on_renders_of_any_size(priors, models, camera, name, crop):  # noqa: F811
    found = made(name, priors, models)
    gradient, size = pull(found, replace(SETTINGS, sds_crop=crop), camera)
    assert gradient.shape == (3, 52, 68)
    assert bool(torch.isfinite(gradient).all())
    assert float(size) > 0
    rows, columns = (int((gradient.abs().sum((0, axis)) > 0).sum()) for axis in (2, 1))
    factor = found.prior.space.factor
    whole = (52 // factor * factor, 68 // factor * factor)
    assert (rows, columns) == ((48, 48) if crop else whole)


@pytest.mark.parametrize("name", ["ldm_sr", "stablesr", "diffusehigh"])
def test_projection_changes_the_pull_in_latents_only_on_request(priors, models, camera, name):  # noqa: F811
    found = made(name, priors, models)
    automatic, on, off = (pull(found, replace(SETTINGS, sds_project=flag), camera)[0] for flag in ("auto", "on", "off"))
    assert torch.equal(automatic, off)
    assert not torch.allclose(on, off)


@pytest.mark.parametrize("name", ["stablesr", "diffbir", "seesr", "addsr", "diffusehigh", "ddnm_sd3", "sd_x4"])
def test_guidance_by_text_is_that_of_the_walk_unless_it_is_given(priors, models, name):  # noqa: F811
    own = {"stablesr": 1.0, "diffbir": 4.0, "seesr": 5.5, "diffusehigh": 10.0}.get(name, 1.0)
    cond = Cond(lr=images(1, 1, 3, 13, 17, dtype=torch.float32), up=images(1, 3, 52, 68, dtype=torch.float32))
    assert made(name, priors, models).told(cond).guidance == own
    assert GuidanceParams(sds=name, sds_guidance=7.0).prior.guidance_scale == 7.0
    assert GuidanceParams(sds=name).prior.guidance_scale == -1.0


def test_taggers_work_without_a_graph(priors, models, camera):  # noqa: F811
    found, seen = made("seesr", priors, models), []

    def told(cond):
        seen.append(torch.is_grad_enabled())
        return found.told(cond)

    with torch.enable_grad():
        pull(replace(found, told=told), SETTINGS, camera)
    assert seen == [False]


def test_the_upscaler_is_told_its_level_of_noise(priors, models):  # noqa: F811
    assert made("sd_x4", priors, models).told(Cond()).noise_level == 20.0


def test_seesr_is_told_tags_and_their_prompt(priors, models):  # noqa: F811
    found = made("seesr", priors, models)
    told = found.told(Cond(lr=images(1, 1, 3, 13, 17, dtype=torch.float32)))
    assert told.extra[TAGS].shape == (1, 4, 6)
    assert torch.equal(told.prompt, found.prior.encode("grey, clean, high-resolution, 8k"))
    assert IMAGE not in told.extra


def test_through_the_flags(base, diffbir_file, tmp_path):  # noqa: F811
    """Files that their maker published no checksum of, on a base, with texts; and they are inputs of the run."""
    flags = {"sds_model": str(diffbir_file), "sds_base": str(base), "sds_prompt": "a cab", "sds_negative_prompt": "bad"}
    with pytest.raises(UserError, match=r"no checksum is published.*--sds_trust_weights"):
        load_guidance(GuidanceParams(sds="diffbir", **flags), 0, "cpu")
    trust = sha256_of(diffbir_file)
    settings = GuidanceParams(
        sds="diffbir", sds_trust_weights=trust, sds_texts=str(tmp_path / "t.safetensors"), **flags
    )
    guide = load_guidance(settings, 0, "cpu")
    assert guide is not None
    assert not guide.project
    with pytest.raises(UserError, match="holds embeddings of prompt 'a cab', negative 'bad'"):
        load_guidance(replace(settings, sds_prompt="a bed"), 0, "cpu")
    named = set(prior_files(replace(settings, sds_tagger="tests.priors.test_guides:NAME")))
    assert named >= {diffbir_file, base / "unet" / "config.json"}
    assert any(path.name == "test_guides.py" for path in named)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"sds": "stablesr"}, "allows no commercial use.*--sds_accept_licence"),
        ({"sds": "seesr", "sds_model": "."}, "--sds_tagger MODULE:NAME|not on this machine|holds no"),
        ({"sds": "diffbir", "sds_release": "seesr"}, "--sds_release seesr: is not one of --sds diffbir"),
        ({"sds": "small"}, "--sds_model FILE: which network"),
        ({"sds": "ddnm_sd3"}, "gated"),
    ],
)
def test_what_is_missing_is_one_line(flags, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(UserError, match=message) as found:
        load_guidance(GuidanceParams(**flags), 0, "cpu")
    assert "\n" not in str(found.value)


def test_what_is_wrong_with_its_files_is_told_in_the_flags_of_training():
    with pytest.raises(UserError, match="--sds_release seesr: is not one of --sds diffbir"):
        prior_files(GuidanceParams(sds="diffbir", sds_release="seesr"))
    with pytest.raises(UserError, match="--sds_release seesr: is not one of --sds diffbir"):
        prior_commits(GuidanceParams(sds="diffbir", sds_release="seesr"))


def test_a_latent_estimate_that_says_what_the_lr_view_says_stays():
    """However much the autoencoder loses; going there and back alone would move it."""
    kernel, z = LRKernel("bicubic", "renormalise", (32, 24), (8, 6)), normal(1, 5, 12, 16)
    prior = Perfect(LINEAR, z, sd3_space(5))
    lr = kernel.down(prior.space.decode(z))
    told = context(prior, Cond(lr=lr[:, None]))
    assert torch.allclose(ProjectLRLatent(kernel, strength=1.0)(z, told), z, atol=1e-12)
    other = context(prior, Cond(lr=lr[:, None] + 0.1))
    assert not torch.allclose(ProjectLRLatent(kernel, strength=1.0)(z, other), z, atol=1e-3)


def test_a_part_of_a_latent_projection_leaves_its_border_alone():
    """LR pixels whose support leaves the part say nothing, as in pixels."""
    kernel, truth = LRKernel("bicubic", "renormalise", (64, 48), (16, 12)), images(1, 3, 48, 64)
    lr, box = kernel.down(truth), Box(4, 2, 8, 8, (16, 12))
    part = box.of(truth)
    prior = Perfect(LINEAR, part, sd3_space(12))  # invertible
    told = context(prior, Cond(lr=box.of(lr)[:, None]))
    hook, exact = ProjectLRLatent(kernel, strength=1.0), ProjectLR(kernel)
    z = prior.space.encode(part)
    assert torch.allclose(hook.cropped(box)(z, told), z, atol=1e-9)  # the truth says what it says, borders too
    wrong = prior.space.encode(part + 0.1 * normal(1, 3, 32, 32))
    ours, theirs = (h.cropped(box)(wrong, told) for h in (hook, exact))
    assert torch.allclose(ours, theirs, atol=1e-9)
    assert not torch.allclose(ours, wrong, atol=1e-2)


def test_a_render_that_is_clean_and_agrees_is_left_alone_in_latents():
    """With the round trip of `ProjectLR` the autoencoder's loss would pull."""
    space, kernel = sd3_space(5), LRKernel("bicubic", "renormalise", (32, 24), (8, 6))
    x = normal(1, 5, 12, 16)
    cond = Cond(lr=kernel.down(space.decode(x))[:, None])
    sds = SDSGuidance(Perfect(LINEAR, x, space))
    g = sds.gradient(x, cond, 500.0, normal(1, 5, 12, 16), hooks=[ProjectLRLatent(kernel, strength=1.0)])
    assert g.abs().max() < 1e-10


def test_tags_are_no_image_even_where_their_shape_is_that_of_the_view():
    """[1, 6, 8] embeddings beside an LR view of 8 x 6 px are not cut."""
    from priors.crops import cropped_cond

    cond = Cond(lr=images(1, 1, 3, 6, 8), extra={TAGS: images(1, 6, 8), IMAGE: images(1, 3, 24, 32)})
    part = cropped_cond(cond, Box(0, 0, 4, 4, (8, 6)), (32, 24))
    assert part.extra[TAGS].shape == (1, 6, 8)
    assert part.extra[IMAGE].shape == (1, 3, 16, 16)


def test_through_the_script(priors, models, tmp_path, monkeypatch):  # noqa: F811
    """Latents, a crop, projection on request."""
    import train

    write_scene(tmp_path)
    flags = {"iterations": 4, "lambda_tex": 0.0, "scale": 4, "sds_every": 2, "quiet": True}
    words = command(tmp_path, tmp_path / "out", **flags, sds="ldm_sr", sds_model=models["ldm_sr"].model)
    monkeypatch.setattr("sys.argv", ["train.py", *words, "--frames", "none", "--sds_project", "--sds_crop", "48"])
    train.main()
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["iteration"] for line in lines if "sds" in line] == [2, 4]
