"""SDXL: what is loaded, what the network is told, and that a walk is that of diffusers' Euler scheduler."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel

from priors.denoisers.sdxl import load_sdxl
from priors.interfaces import Cond
from priors.sampler import step
from tests.priors import tiny_models as tiny


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_sdxl(tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="module")
def pipeline(folder):
    return StableDiffusionXLPipeline.from_pretrained(folder, low_cpu_mem_usage=False, add_watermarker=False)


@pytest.fixture(scope="module")
def prior(folder):
    return load_sdxl(folder, prompt="a cab", negative="bad")


def test_the_prompt_is_embedded_as_the_pipeline_does(prior, pipeline, folder):
    found = pipeline.encode_prompt("a cab", negative_prompt="bad", device="cpu")
    ours = (prior.texts.prompt, prior.texts.negative, prior.texts.pooled, prior.texts.negative_pooled)
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(ours, found, strict=True))
    assert not load_sdxl(folder, prompt="a cab").texts.negative.any()  # nothing to avoid is zeros


@pytest.mark.filterwarnings("ignore:__array__ implementation")  # of diffusers
def test_a_walk_is_that_of_the_pipeline(prior, pipeline):
    cond, size = Cond(guidance=5.0), 64
    images = pipeline(
        "a cab",
        negative_prompt="bad",
        guidance_scale=5.0,
        num_inference_steps=3,
        height=size,
        width=size,
        output_type="latent",
        generator=torch.Generator().manual_seed(1),
    ).images
    x = torch.randn((1, 4, 8, 8), generator=torch.Generator().manual_seed(1)) * pipeline.scheduler.init_noise_sigma
    times = prior.process.times(3)
    assert times == pytest.approx(pipeline.scheduler.sigmas.tolist(), rel=1e-5)
    with torch.no_grad():
        for t, t_next in pairwise(times):
            x = step(prior.process, x, prior.x0(x, t, cond), t, t_next)
    assert torch.allclose(x, images, atol=1e-4, rtol=1e-4)


def test_odd_sizes(prior):
    with torch.no_grad():
        assert prior.x0(torch.zeros(2, 4, 7, 9), 0.5, Cond()).shape == (2, 4, 7, 9)


def test_the_network_is_told_the_size_of_training(prior):
    assert prior.side == 64


def test_full_size_shapes():
    """2.567 billion parameters, the published base model."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            block_out_channels=(320, 640, 1280),
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
            transformer_layers_per_block=[1, 2, 10],
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            **tiny.SDXL_UNET,
        )
    assert tiny.parameters(unet) == 2_567_463_684
    assert tiny.manifest(tiny.shapes(unet)) == (1680, "74f0e72e3fd82f55")
