"""LDM-SR: the loader gives the network that was saved, and a walk is the one of diffusers' own pipeline."""

import json
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from diffusers import UNet2DModel, VQModel

from priors.denoisers.ldm_sr import load_ldm_sr
from priors.denoisers.loading import component
from priors.denoisers.tiles import Tiled
from priors.interfaces import Cond
from priors.sampler import sample, step
from tests.priors import tiny_models as tiny
from utils.errors import UserError


@pytest.fixture(scope="module")
def pipeline():
    return tiny.ldm_sr_pipeline()


@pytest.fixture(scope="module")
def folder(pipeline, tmp_path_factory):
    path = tmp_path_factory.mktemp("ldm_sr")
    pipeline.save_pretrained(path)
    return path


def _views(height=16, width=16):
    return torch.rand((2, 1, 3, height, width), generator=torch.Generator().manual_seed(3))


def test_the_loaded_network_is_the_saved_one_bit_for_bit(pipeline, folder):
    prior = load_ldm_sr(folder)
    x, lr = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(4)), _views()
    with torch.no_grad():
        eps = pipeline.unet(torch.cat([x, 2 * lr[:, 0] - 1], dim=1), 321.0).sample
        a, _, s = prior.process.coefficients(321.0)
        assert torch.equal(prior.x0(x, 321.0, Cond(lr=lr)), (x - s * eps) / a)
        image = pipeline.vqvae.decode(x).sample / 2 + 0.5
        assert torch.allclose(prior.space.decode(x), image, atol=1e-6)
        assert torch.allclose(prior.space.encode(image), pipeline.vqvae.encode(2 * image - 1).latents, atol=1e-6)


def test_a_walk_is_that_of_the_pipeline(pipeline, folder):
    prior, lr = load_ldm_sr(folder), _views()
    images = pipeline(
        2 * lr[:, 0] - 1, num_inference_steps=4, output_type="pt", generator=torch.Generator().manual_seed(5)
    )
    x = torch.randn((2, 3, 16, 16), generator=torch.Generator().manual_seed(5))
    times = prior.process.times(4)
    assert times == [*map(float, pipeline.scheduler.timesteps), -1.0]
    with torch.no_grad():
        for t, t_next in zip(times, [*times[1:-1], -1.0], strict=False):
            x = step(prior.process, x, prior.x0(x, t, Cond(lr=lr)), t, t_next)
        ours = prior.space.decode(x).clamp(0, 1)
    # The pipeline's scheduler ends at time 0 and in float32; the codebook search may then take another neighbour.
    assert (ours - images.images).abs().median() < 1e-4


def test_sizes_that_are_no_multiples_and_tiles(folder):
    prior, lr = load_ldm_sr(folder), _views(13, 19)
    x = torch.randn((2, 3, 13, 19), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        whole = prior.x0(x, 500.0, Cond(lr=lr))
        assert whole.shape == x.shape
        assert torch.equal(Tiled(prior, 32, 8).x0(x, 500.0, Cond(lr=lr)), whole)
        assert Tiled(prior, 8, 4).x0(x, 500.0, Cond(lr=lr)).shape == x.shape
    z = sample(prior, Cond(lr=lr), prior.process.times(2), torch.Generator().manual_seed(0), shape=(2, 3, 13, 19))
    assert prior.space.decode(z).shape == (2, 3, 52, 76)


def test_the_middle_frame_of_a_window_is_seen(folder):
    prior, lr = load_ldm_sr(folder), _views()
    window = torch.cat([torch.zeros_like(lr), lr, torch.ones_like(lr)], dim=1)
    x = torch.zeros(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(prior.x0(x, 9.0, Cond(lr=window)), prior.x0(x, 9.0, Cond(lr=lr)))


def test_gradients_pass_to_the_latent_and_not_into_the_network(folder):
    prior = load_ldm_sr(folder)
    x = torch.zeros(1, 3, 16, 16, requires_grad=True)
    prior.x0(x, 9.0, Cond(lr=_views()[:1])).sum().backward()
    assert x.grad is not None
    assert all(parameter.grad is None for parameter in prior.unet.parameters())


def test_full_size_shapes():
    """113.62 and 55.32 million parameters, as published (Yue et al. 2023, table of LDM; LDM's vq-f4)."""
    with torch.device("meta"):
        unet = UNet2DModel(sample_size=64, block_out_channels=(160, 320, 320, 640), **tiny.LDM_SR_UNET)
        vq = VQModel(block_out_channels=(128, 256, 512), num_vq_embeddings=8192, **tiny.VQ_F4)
    assert (tiny.parameters(unet), tiny.parameters(vq)) == (113_622_563, 55_322_782)
    assert tiny.manifest(tiny.shapes(unet)) == (330, "61298c4579e5673f")
    assert tiny.manifest(tiny.shapes(vq)) == (205, "baa7709b41f74cfb")


@pytest.mark.parametrize(
    ("change", "message"), [("drop", "missing keys"), ("add", "unexpected keys"), ("reshape", "size")]
)
def test_weights_that_are_not_the_networks_are_refused(folder, tmp_path, change, message):
    config = json.loads((folder / "unet/config.json").read_text())
    state = load_file(folder / "unet/diffusion_pytorch_model.safetensors")
    if change == "drop":
        del state["conv_in.weight"]
    elif change == "add":
        state["conv_extra.weight"] = torch.zeros(1)
    else:
        state["conv_in.weight"] = torch.zeros(3, 6, 3, 3)
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text(json.dumps(config))
    save_file(state, tmp_path / "unet/diffusion_pytorch_model.safetensors")
    with pytest.raises(UserError, match=message) as error:
        component(tmp_path, "UNet2DModel", "unet")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("CompVis/ldm-super-resolution-4x-openimages", ["not on this machine", "--download"]),
        ("no/such/folder", ["no such folder"]),
        ("stabilityai/stable-diffusion-2-1-base", ["withdrawn", "sd2-community/", "Manojb/"]),
        ("stabilityai/stable-diffusion-3.5-medium", ["gated", "licence", "HF_TOKEN", "--download"]),
    ],
)
def test_models_that_are_not_here_say_what_to_do_in_one_line(model, words):
    with pytest.raises(UserError) as error:
        component(model, "UNet2DModel", "unet")
    assert "\n" not in str(error.value)
    assert all(word in str(error.value) for word in words)


def test_a_download_without_a_network_is_one_line(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # the client waits between its attempts
    with pytest.raises(UserError, match="cannot be fetched") as error:
        component("CompVis/ldm-super-resolution-4x-openimages", "UNet2DModel", "unet", download=True)
    assert "\n" not in str(error.value)


def test_a_broken_folder_is_one_line(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet/config.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        component(tmp_path, "UNet2DModel", "unet")


def test_an_lr_view_of_another_size_is_refused(folder):
    prior = load_ldm_sr(folder)
    with pytest.raises(UserError, match="enlarges by 4"):
        prior.x0(torch.zeros(2, 3, 16, 16), 9.0, Cond(lr=_views(8, 8)))
    with pytest.raises(UserError, match="LR view"):
        prior.x0(torch.zeros(2, 3, 16, 16), 9.0, Cond())
