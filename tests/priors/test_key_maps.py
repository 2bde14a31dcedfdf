"""Key maps: against diffusers' own conversion of files in the latent-diffusion layout, at full size, without memory."""

import pytest
import torch

pytest.importorskip("diffusers")

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel, VQModel
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

from priors import key_maps
from priors.denoisers.time_aware import modulate
from tests.priors import tiny_models as tiny
from utils.errors import UserError

SD2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
KL = {
    "layers_per_block": 2,
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
}


@pytest.fixture(scope="module")
def unet():
    with torch.device("meta"):
        return UNet2DConditionModel(**SD2)


def _file(network, names):
    """A file of the other layout, by the map."""
    state = network.state_dict()
    return {theirs: state[ours] for ours, theirs in names.items()}


def test_unet_against_diffusers(unet):
    names = key_maps.ldm_unet(unet.state_dict())
    file = {f"model.diffusion_model.{key}": value for key, value in _file(unet, names).items()}
    converted = convert_ldm_unet_checkpoint(dict(file), unet.config)
    assert {k: v.shape for k, v in converted.items()} == {k: v.shape for k, v in unet.state_dict().items()}
    # Not only the same names: each tensor, marked by its size on the meta device, came from the same place.
    assert all(converted[key] is file[f"model.diffusion_model.{name}"] for key, name in names.items())


def test_unet_is_that_of_stable_diffusion_2(unet):
    """865.91 million parameters; names that are in its published file."""
    names = key_maps.ldm_unet(unet.state_dict())
    assert tiny.parameters(unet) == 865_910_724
    assert tiny.manifest({name: unet.state_dict()[key].shape for key, name in names.items()}) == (
        686,
        "ec47c2823c63ccad",
    )
    assert {
        "input_blocks.3.0.op.weight",
        "middle_block.1.transformer_blocks.0.attn2.to_k.weight",
        "output_blocks.2.1.conv.weight",
        "output_blocks.5.2.conv.bias",
        "out.2.bias",
    } <= set(names.values())


def test_vae_against_diffusers():
    with torch.device("meta"):
        vae = AutoencoderKL(**KL)
    names = key_maps.ldm_vae(vae.state_dict(), 4)
    file = {f"first_stage_model.{key}": value for key, value in _file(vae, names).items()}
    converted = convert_ldm_vae_checkpoint(dict(file), vae.config)
    assert all(converted[key] is file[f"first_stage_model.{name}"] for key, name in names.items())
    assert tiny.manifest({name: vae.state_dict()[key].shape for key, name in names.items()}) == (
        248,
        "48bcf5a182e322f4",
    )


def test_codebook_keeps_its_name():
    with torch.device("meta"):
        vq = VQModel(**KL | {"block_out_channels": (128, 256, 512)} | {k: KL[k][:3] for k in KL if "types" in k})
    names = key_maps.ldm_vae(vq.state_dict(), 3)
    assert names["quantize.embedding.weight"] == "quantize.embedding.weight"
    assert names["decoder.up_blocks.0.upsamplers.0.conv.bias"] == "decoder.up.2.upsample.conv.bias"


def test_controlnet_has_the_unets_first_half():
    with torch.device("meta"):
        control = ControlNetModel(**SD2)
    keys = [key for key in control.state_dict() if "cond_embedding" not in key]
    names = key_maps.ldm_unet(keys)
    assert len(set(names.values())) == len(keys)
    assert {"zero_convs.11.0.bias", "middle_block_out.0.weight", "input_blocks.1.1.proj_in.weight"} <= set(
        names.values()
    )


def test_modulated_blocks():
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SD2)
        modulate(unet)
    names = key_maps.ldm_unet(unet.state_dict())
    assert len(set(names.values())) == len(names)
    assert names["down_blocks.0.resnets.0.conv2.conv.weight"] == "input_blocks.1.0.out_layers.3.weight"
    assert names["up_blocks.3.resnets.2.conv2.spade.mlp_shared.0.bias"] == "output_blocks.11.0.spade.mlp_shared.0.bias"


def test_files_that_do_not_fit_are_refused():
    network = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 1))
    wanted = network.state_dict()
    names = {key: f"x.{key}" for key in wanted}
    file = _file(network, names) | {"x.0.weight": wanted["0.weight"][:, :, None, None]}
    assert torch.equal(key_maps.renamed(file, names, wanted, "f")["0.weight"], wanted["0.weight"])
    for change, message in (({"x.2.bias": wanted["0.bias"]}, "left over"), ({"x.0.bias": torch.ones(4)}, "shape")):
        with pytest.raises(UserError, match=message):
            key_maps.renamed(file | change, names, wanted, "f")
    del file["x.1.bias"]
    with pytest.raises(UserError, match=r"1 missing, e\.g\. x\.1\.bias"):
        key_maps.renamed(file, names, wanted, "f")
