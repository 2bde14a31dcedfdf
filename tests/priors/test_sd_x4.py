"""Stable Diffusion x4: what is loaded, what the network is told, guidance."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionUpscalePipeline, UNet2DConditionModel
from safetensors.torch import save_file
from transformers import CLIPTextModel, CLIPTokenizer

from arguments.priors import PriorParams
from priors.denoisers.sd_x4 import load_sd_x4
from priors.denoisers.tiles import Tiled, cut
from priors.interfaces import Cond
from priors.making import SAMPLERS, Loading
from priors.sampler import sample
from tests.priors import tiny_models as tiny
from utils.errors import UserError

UNET = {"in_channels": 7, "num_class_embeds": 1000, "use_linear_projection": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("sd_x4")
    tiny.save_clip(path)
    StableDiffusionUpscalePipeline(
        vae=tiny.vae(levels=3, scaling_factor=0.08333),
        text_encoder=CLIPTextModel.from_pretrained(path / "text_encoder"),
        tokenizer=CLIPTokenizer.from_pretrained(path / "tokenizer"),
        unet=tiny.shaken(tiny.unet(**UNET)),
        low_res_scheduler=DDPMScheduler(beta_schedule="squaredcos_cap_v2"),
        scheduler=DDIMScheduler(beta_schedule="scaled_linear", prediction_type="v_prediction", clip_sample=False),
        max_noise_level=350,
    ).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableDiffusionUpscalePipeline.from_pretrained(folder, low_cpu_mem_usage=False)


@pytest.fixture(scope="module")
def prior(folder):
    return load_sd_x4(folder, prompt="a cab", negative="bad")


def _lr():
    return torch.rand((2, 1, 3, 8, 8), generator=torch.Generator().manual_seed(3))


def _x():
    return torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(4))


def test_the_prompt_is_embedded_as_the_pipeline_does(prior, pipeline):
    wanted, unwanted = pipeline.encode_prompt("a cab", "cpu", 1, True, "bad")
    assert torch.allclose(prior.texts.prompt, wanted, atol=1e-6)
    assert torch.allclose(prior.texts.negative, unwanted, atol=1e-6)


def test_a_step_is_that_of_the_pipelines_scheduler(prior, pipeline):
    """The guided v of the saved network, and the clean estimate that DDIM makes of it."""
    x, cond = _x(), Cond(lr=_lr(), noise_level=20, guidance=9.0)
    t, level = 601, torch.full((2,), 20)
    with torch.no_grad():
        seen = torch.cat([x, prior.noisy_view(x, cond)], dim=1)
        both = [
            pipeline.unet(seen, t, encoder_hidden_states=e.expand(2, -1, -1), class_labels=level).sample
            for e in (prior.texts.prompt, prior.texts.negative)
        ]
        v = both[1] + 9.0 * (both[0] - both[1])
        pipeline.scheduler.set_timesteps(50)
        clean = pipeline.scheduler.step(v, t, x).pred_original_sample
        assert torch.allclose(prior.x0(x, float(t), cond), clean, atol=1e-5)


def test_the_lr_view_is_noised_as_in_training(prior, pipeline):
    cond = Cond(lr=_lr(), noise_level=50)
    noise = torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(0)).expand(2, -1, -1, -1)
    wanted = pipeline.low_res_scheduler.add_noise(2 * cond.lr[:, 0] - 1, noise, torch.tensor([50, 50]))
    assert torch.allclose(prior.noisy_view(_x(), cond), wanted, atol=1e-6)
    assert torch.equal(prior.noisy_view(_x(), cond), prior.noisy_view(_x(), cond))


@pytest.mark.parametrize("level", [351, -1, 0.5])
def test_noise_levels_that_the_network_does_not_know_are_refused(prior, level):
    with pytest.raises(UserError, match="noise_level"):
        prior.x0(_x(), 9.0, Cond(lr=_lr(), noise_level=level))


def test_a_level_of_a_flag_is_refused_before_the_first_view(folder, prior):
    loading = Loading(torch.device("cpu"))
    level = prior.most + 1
    with pytest.raises(UserError, match=f"noise_level {level}; a whole number from 0 to {prior.most}"):
        SAMPLERS["sd_x4"](PriorParams(model=str(folder), noise_level=level), loading)
    SAMPLERS["sd_x4"](PriorParams(model=str(folder), noise_level=prior.most), loading)


def test_embeddings_of_the_condition_go_first(prior):
    x, other = _x(), torch.randn((1, 6, 8), generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        plain = prior.x0(x, 601.0, Cond(lr=_lr()))
        assert not torch.equal(prior.x0(x, 601.0, Cond(lr=_lr(), prompt=other)), plain)
        assert torch.equal(prior.x0(x, 601.0, Cond(lr=_lr(), prompt=prior.texts.prompt)), plain)
        # The same text on both sides of guidance changes nothing, whatever its scale.
        same = Cond(lr=_lr(), prompt=other, negative=other, guidance=7.0)
        assert torch.allclose(prior.x0(x, 601.0, same), prior.x0(x, 601.0, Cond(lr=_lr(), prompt=other)), atol=1e-6)


def test_embeddings_in_a_file_need_no_text_encoder(folder, prior, tmp_path):
    file = tmp_path / "texts.safetensors"
    load_sd_x4(folder, prompt="a cab", negative="bad", texts=file)
    bare = tmp_path / "bare"
    bare.mkdir()
    for part in ("unet", "vae", "scheduler", "low_res_scheduler", "model_index.json"):
        (bare / part).symlink_to(folder / part)
    kept = load_sd_x4(bare, prompt="a cab", negative="bad", texts=file).texts
    assert torch.equal(kept.prompt, prior.texts.prompt)
    assert torch.equal(kept.negative, prior.texts.negative)
    with pytest.raises(UserError, match="text_encoder"):
        load_sd_x4(bare)


def test_embeddings_in_a_file_are_of_their_texts_alone(folder, tmp_path):
    file = tmp_path / "texts.safetensors"
    load_sd_x4(folder, prompt="a cab", negative="bad", texts=file)
    before = file.read_bytes()
    held = "holds embeddings of prompt 'a cab', negative 'bad', not of prompt"
    for wanted in ({}, {"prompt": "a bed", "negative": "bad"}, {"prompt": "a cab"}):
        with pytest.raises(UserError, match=held) as found:
            load_sd_x4(folder, texts=file, **wanted)
        assert "\n" not in str(found.value)
    assert file.read_bytes() == before
    save_file({"prompt": torch.zeros(1, 6, 8), "negative": torch.zeros(1, 6, 8)}, file)
    with pytest.raises(UserError, match="holds embeddings of unknown texts"):
        load_sd_x4(folder, texts=file)


def test_tiles_see_one_noise(prior):
    """Tiles that overlap see the same noisy LR view where they do: that of the whole."""
    cond = Cond(lr=_lr(), noise_level=300)
    whole = prior.noisy_view(_x(), cond)
    left = cut(prior.prepared(cond), (0, 1, 0, 0.75))
    assert torch.equal(prior.noisy_view(_x()[..., :6], left), whole[..., :6])
    with torch.no_grad():
        assert Tiled(prior, 6, 2).x0(_x(), 9.0, cond).shape == (2, 4, 8, 8)


def test_a_walk_has_four_times_the_size(prior):
    z = sample(prior, Cond(lr=_lr(), noise_level=20), prior.process.times(2), torch.Generator(), shape=(2, 4, 8, 8))
    assert prior.space.decode(z).shape == (2, 3, 32, 32)


def test_full_size_shapes():
    """473.4 and 55.3 million parameters, the published x4 upscaler."""
    levels, attends = (256, 512, 512, 1024), ("CrossAttnDownBlock2D",) * 3
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=levels,
            cross_attention_dim=1024,
            only_cross_attention=(True, True, True, False),
            down_block_types=("DownBlock2D", *attends),
            up_block_types=("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
            **UNET,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512),
            layers_per_block=2,
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
        )
    assert (tiny.parameters(unet), tiny.parameters(vae)) == (473_398_020, 55_325_927)
    assert tiny.manifest(tiny.shapes(unet)) == (687, "c8fc5a1c3d4d84e6")
    assert tiny.manifest(tiny.shapes(vae)) == (204, "8d2e1b9886fbfa4b")
