"""DiffBIR, SeeSR and AddSR: what begins at zero changes nothing, what is loaded is what was saved, and the losses."""

import re
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import ControlNetModel, UNet2DConditionModel

from priors import key_maps
from priors.denoisers import addsr
from priors.denoisers.controlnet_sr import LATENT, ir_controlnet, load_diffbir
from priors.denoisers.sd2 import walk_from_lr
from priors.denoisers.seesr import TagPrompter, load_seesr, official_names, prompt_of, with_image_attention
from priors.hooks import RefineCondition
from priors.interfaces import Cond
from tests.priors import tiny_models as tiny
from tests.priors.exact_priors import context
from utils.errors import UserError

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}


def _noise(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def _up(count=1, height=64, width=64):
    return torch.rand((count, 3, height, width), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tiny.save_sd2(tmp_path_factory.mktemp("sd2"))


@pytest.fixture(scope="module")
def unet(base):
    return UNet2DConditionModel.from_pretrained(base / "unet", low_cpu_mem_usage=False).eval()


@pytest.fixture(scope="module")
def control(unet):
    return tiny.shaken(tiny.seeded(lambda: ir_controlnet(unet)))


@pytest.fixture(scope="module")
def diffbir_file(control, tmp_path_factory):
    names = key_maps.ldm_unet(control.state_dict(), 1)
    state = {names[key]: value for key, value in control.state_dict().items()}
    return tiny.saved(state, tmp_path_factory.mktemp("diffbir") / "v2.pth")


@pytest.fixture(scope="module")
def diffbir(base, diffbir_file):
    return load_diffbir(diffbir_file, base=base)


def test_diffbir_walks_from_the_noisiest_time_to_the_least(diffbir):
    """As its release respaces; the base's own scheduler would begin at 981."""
    assert diffbir.process.times(50)[0] == 999.0
    assert diffbir.process.times(50)[-2:] == [0.0, -1.0]


class Tagger:
    """Sees the mean colour."""

    def words(self, image):
        return [["grey"] for _ in image]

    def embeddings(self, image):
        return image.mean((2, 3))[:, None].expand(-1, 4, -1).repeat(1, 1, 2)


@pytest.fixture(scope="module")
def seesr_folder(unet, tmp_path_factory):
    folder = tmp_path_factory.mktemp("seesr")
    network = UNet2DConditionModel.from_config(unet.config)
    networks = {"unet": network, "controlnet": ControlNetModel.from_unet(network)}
    for name, made in networks.items():
        made.save_config(folder / name)
        tiny.seeded(lambda made=made: with_image_attention(made, 6))
        tiny.shaken(made)
        names = official_names(made.state_dict())
        state = {names[key]: value for key, value in made.state_dict().items()}
        torch.save(state, folder / name / "diffusion_pytorch_model.bin")
    return folder, networks


@pytest.fixture(scope="module")
def seesr(base, seesr_folder):
    return load_seesr(seesr_folder[0], base=base, tag_width=6)


def _seen(count=1):
    return Cond(up=_up(count), extra={"tags": _noise(1, 4, 6, seed=2)})


def test_ir_controlnet_begins_as_the_first_half_of_the_network(unet):
    control = ir_controlnet(unet).eval()
    assert torch.equal(control.conv_in.weight[:, :4], unet.conv_in.weight)
    assert not control.conv_in.weight[:, 4:].any()
    x, text = _noise(2, 4, 8, 8), _noise(2, 5, 8, seed=1)
    both = torch.cat([x, _noise(2, 4, 8, 8, seed=3)], dim=1)
    with torch.no_grad():
        down, mid = control(both, 7, text, both, return_dict=False)
        assert not any(part.any() for part in (*down, mid))
        changed = unet(x, 7, text, down_block_additional_residuals=down, mid_block_additional_residual=mid).sample
        assert torch.equal(changed, unet(x, 7, text).sample)


def test_diffbir_loaded_is_diffbir_saved(diffbir, unet, control):
    x, cond, t = _noise(2, 4, 8, 8), Cond(up=_up(2)), 321.0
    with torch.no_grad():
        states = diffbir.texts.prompt.expand(2, -1, -1)
        both = torch.cat([x, diffbir.space.encode(cond.up)], dim=1)
        down, mid = control(both, t, states, both, return_dict=False)
        options = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        eps = unet(x, t, states, **options).sample
        a, _, s = diffbir.process.coefficients(t)
        assert torch.equal(diffbir.x0(x, t, cond), (x - s * eps) / a)


def test_diffbir_is_led_by_the_restored_image(diffbir):
    grey = replace(diffbir, restore=lambda lr, width, height: lr.new_full((len(lr), 3, height, width), 0.5))
    cond = Cond(lr=_up(1, 16, 16)[:, None], up=_up())
    assert torch.equal(grey.prepared(cond).extra["image"], torch.full((1, 3, 64, 64), 0.5))
    given = Cond(up=_up(), extra={"image": 1 - _up()})
    with torch.no_grad():
        assert torch.equal(grey.prepared(given).extra[LATENT], diffbir.space.encode(1 - _up()))
    with pytest.raises(UserError, match="led by an image"):
        diffbir.x0(_noise(1, 4, 8, 8), 9.0, Cond())


def test_diffbir_of_odd_latents_walks(diffbir):
    z, ready = walk_from_lr(diffbir, Cond(up=_up(1, 56, 72)), [600.0, 200.0, -1.0], torch.Generator().manual_seed(0))
    assert z.shape == ready.extra[LATENT].shape == (1, 4, 7, 9)


def test_diffbir_files_that_do_not_fit_are_refused(base, diffbir_file, tmp_path):
    state = torch.load(diffbir_file, weights_only=True)["state_dict"]
    state["zero_convs.0.0.bias"] = torch.zeros(3)
    with pytest.raises(UserError, match="of another shape"):
        load_diffbir(tiny.saved(state, tmp_path / "x.pth"), base=base)


def test_image_attention_begins_as_nothing(unet):
    changed = UNet2DConditionModel.from_config(unet.config).eval()
    changed.load_state_dict(unet.state_dict())
    seen = with_image_attention(changed, 6)
    seen.tags = _noise(2, 4, 6)
    x, text = _noise(2, 4, 8, 8), _noise(2, 5, 8, seed=1)
    with torch.no_grad():
        assert torch.equal(changed(x, 7, text).sample, unet(x, 7, text).sample)


def test_seesr_loaded_is_seesr_saved(seesr, seesr_folder):
    unet, control = seesr_folder[1]["unet"].eval(), seesr_folder[1]["controlnet"].eval()
    x, cond, t = _noise(1, 4, 8, 8), _seen(), 321.0
    for module in (*unet.modules(), *control.modules()):
        if hasattr(module, "_seen"):
            module._seen[0].tags = cond.extra["tags"]
    with torch.no_grad():
        states = seesr.texts.prompt
        down, mid = control(x, t, states, cond.up, return_dict=False)
        options = {"down_block_additional_residuals": down, "mid_block_additional_residual": mid}
        eps = unet(x, t, states, **options).sample
        a, _, s = seesr.process.coefficients(t)
        assert torch.equal(seesr.x0(x, t, cond), (x - s * eps) / a)


def test_seesr_sees_image_and_tags(seesr):
    x, cond = _noise(1, 4, 8, 8), _seen()
    with torch.no_grad():
        plain = seesr.x0(x, 500.0, cond)
        tags = Cond(up=cond.up, extra={"tags": -cond.extra["tags"]})
        image = Cond(up=cond.up, extra={**cond.extra, "image": 1 - cond.up})
        assert all(float((seesr.x0(x, 500.0, other) - plain).abs().max()) > 1e-4 for other in (tags, image))
    with pytest.raises(UserError, match="tags"):
        seesr.x0(x, 500.0, Cond(up=cond.up))


def test_official_names_stand_beside_the_first_attention():
    names = official_names(
        ["a.attentions.0.text.norm.bias", "a.attentions.0.image.norm.bias", "a.resnets.0.conv1.bias"]
    )
    assert list(names.values()) == [
        "a.attentions.0.norm.bias",
        "a.image_attentions.0.norm.bias",
        "a.resnets.0.conv1.bias",
    ]


def test_prompt_of_tags():
    assert prompt_of(["cat", "sofa"]) == "cat, sofa, clean, high-resolution, 8k"
    assert isinstance(Tagger(), TagPrompter)


def test_full_size_diffbir():
    """Names of the official file: a first half that sees 8 channels, 13 ways out; 363 million parameters."""
    with torch.device("meta"):
        control = ir_controlnet(UNet2DConditionModel(**SD2))
    names = key_maps.ldm_unet(control.state_dict())
    shapes = {names[key]: shape for key, shape in tiny.shapes(control).items()}
    assert tiny.parameters(control) == 363_153_280
    assert shapes["input_blocks.0.0.weight"] == (320, 8, 3, 3)
    assert sum(name.startswith(("zero_convs.", "middle_block_out.")) for name in shapes) == 2 * 13
    assert tiny.manifest(shapes) == (324, "4451b276831eed6d")


def test_full_size_seesr():
    """749.9 million trained parameters, as published: tags' attention in 16 blocks, and a ControlNet with it in 7."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD2)
        before, control = tiny.parameters(unet), ControlNetModel.from_unet(unet)
        for network in (unet, control):
            with_image_attention(network)
    assert tiny.parameters(unet) - before + tiny.parameters(control) == 749_881_040
    official = {name: unet.state_dict()[key].shape for key, name in official_names(unet.state_dict()).items()}
    seen = [name for name in official if re.search(r"image_attentions.*attn2\.to_k\.weight", name)]
    assert len(seen) == 16
    assert {official[name][1] for name in seen} == {512}
    assert tiny.manifest(official) == (1102, "fcdbbb64d7287cbb")


@pytest.mark.parametrize(("s", "wanted"), [(999, 0.5), (749, 1.05), (499, 2.205), (249, 4.6305)])
def test_gamma(s, wanted):
    assert addsr.gamma(s) == pytest.approx(wanted, rel=1e-12)


def test_hinge_losses_of_known_logits():
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-2.0, 0.0, 1.0])
    assert float(addsr.hinge_discriminator(real, fake)) == pytest.approx((0 + 0.5 + 2) / 3 + (0 + 1 + 2) / 3)
    assert float(addsr.hinge_generator(fake)) == pytest.approx(1 / 3)


def test_the_student_learns_and_the_teacher_does_not():
    student, teacher = (_noise(1, 4, 2, 2, seed=k).requires_grad_() for k in (0, 1))
    loss = addsr.student_loss(student, teacher, 499.0, 0 * student.sum())
    loss.backward()
    assert teacher.grad is None
    assert torch.allclose(student.grad, 2 * 2.205 * (student - teacher).detach() / 16, atol=1e-6)


def test_the_prediction_refines_image_and_tags(seesr):
    """From the second step on: half the decoded estimate, half the LR view; and its tags."""
    cond, x0 = _seen(), _noise(1, 4, 8, 8)
    told = context(seesr, cond)
    with torch.no_grad():
        for hook in (RefineCondition(0.5, "image"), addsr.RefineTags(Tagger())):
            assert hook(x0, told) is x0
        mixed = 0.5 * seesr.space.decode(x0).clamp(0, 1) + 0.5 * cond.up
    assert torch.allclose(told.cond.extra["image"], mixed)
    assert torch.equal(told.cond.extra["tags"], Tagger().embeddings(told.cond.extra["image"]))


def test_four_steps_of_the_student(seesr):
    hooks = (RefineCondition(0.5, "image"), addsr.RefineTags(Tagger()))
    times = [*addsr.STUDENT_TIMES, -1.0]
    z, _ = walk_from_lr(seesr, _seen(), times, torch.Generator().manual_seed(0), hooks=hooks)
    assert z.shape == (1, 4, 8, 8)
    assert bool(torch.isfinite(z).all())
