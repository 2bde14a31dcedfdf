"""Stable Diffusion 3: what is loaded, and that its autoencoder's way there and back keeps the scale and the shift."""

from itertools import pairwise

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from priors.denoisers.sd3 import load_sd3
from priors.interfaces import Cond
from priors.sampler import step
from tests.priors import tiny_models as tiny
from utils.errors import UserError


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny.save_sd3(tmp_path_factory.mktemp("sd3"))


@pytest.fixture(scope="module")
def parts(folder):
    kinds = {"transformer": SD3Transformer2DModel, "vae": AutoencoderKL}
    networks = [kind.from_pretrained(folder / name, low_cpu_mem_usage=False) for name, kind in kinds.items()]
    return *networks, FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")


@pytest.fixture(scope="module")
def prior(folder):
    return load_sd3(folder, texts=folder / "texts.safetensors")


def test_a_walk_is_that_of_the_scheduler(prior, parts):
    transformer, _, scheduler = parts
    start = torch.randn((2, 16, 8, 8), generator=torch.Generator().manual_seed(3))
    scheduler.set_timesteps(4)
    times = prior.process.times(4)
    assert times == pytest.approx(scheduler.sigmas.tolist(), abs=1e-6)
    ours = theirs = start
    states, pooled = prior.texts.prompt.expand(2, -1, -1), prior.texts.pooled.expand(2, -1)
    with torch.no_grad():
        for k, (t, t_next) in enumerate(pairwise(times)):
            ours = step(prior.process, ours, prior.x0(ours, t, Cond()), t, t_next)
            when = scheduler.timesteps[k]
            v = transformer(theirs, states, pooled, when.expand(2)).sample
            theirs = scheduler.step(v, when, theirs).prev_sample
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_latent_is_scaled_and_shifted_as_in_training(prior, parts):
    """(z - 0.0609) 1.5305 of the mode: not z + shift, and no sample."""
    image = torch.rand((1, 3, 16, 24), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        mode = parts[1].encode(2 * image - 1).latent_dist.mode()
        assert torch.allclose(prior.space.encode(image), (mode - 0.0609) * 1.5305, atol=1e-6)
        decoded = parts[1].decode(mode).sample / 2 + 0.5
        assert torch.allclose(prior.space.decode(prior.space.encode(image)), decoded, atol=1e-5)


def test_odd_sizes(prior):
    with torch.no_grad():
        assert prior.x0(torch.zeros(2, 16, 7, 9), 0.5, Cond()).shape == (2, 16, 7, 9)


def test_a_broken_file_of_embeddings_is_refused(folder, tmp_path):
    (tmp_path / "texts").write_bytes(b"no tensors")
    with pytest.raises(UserError, match="no file of embeddings"):
        load_sd3(folder, texts=tmp_path / "texts")


def test_full_size_shapes():
    """SD 3.5 medium: 24 blocks, the first 13 with a second attention; 2.24 billion parameters and a table of places."""
    with torch.device("meta"):
        transformer = SD3Transformer2DModel(
            sample_size=128,
            num_layers=24,
            attention_head_dim=64,
            num_attention_heads=24,
            joint_attention_dim=4096,
            caption_projection_dim=1536,
            pooled_projection_dim=2048,
            pos_embed_max_size=384,
            dual_attention_layers=tuple(range(13)),
            **tiny.SD3_TRANSFORMER,
        )
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            layers_per_block=2,
            latent_channels=16,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            **tiny.SD3_VAE,
        )
    assert (tiny.parameters(transformer), tiny.parameters(vae)) == (2_243_171_520, 83_819_683)
    assert tiny.manifest(tiny.shapes(transformer)) == (909, "51c7b1803d907676")
    assert tiny.manifest(tiny.shapes(vae)) == (244, "90cc8a0edcfa60d2")
