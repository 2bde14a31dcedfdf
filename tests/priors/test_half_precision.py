"""Networks in bfloat16, as on a GPU: samples stay float32, and near those of the network in float32."""

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

from priors.denoisers.controlnet_sr import ir_controlnet, load_diffbir
from priors.denoisers.ldm_sr import load_ldm_sr
from priors.denoisers.resshift import VQ_F4, load_resshift
from priors.denoisers.sd3 import load_sd3
from priors.denoisers.sdxl import load_sdxl
from priors.denoisers.seesr import load_seesr, official_names, with_image_attention
from priors.denoisers.stablesr import load_stablesr
from priors.denoisers.time_aware import TimeAwareEncoder, modulate
from priors.key_maps import ldm_unet
from priors.verify import one_step
from tests.priors import tiny_models as tiny

ENCODER = {"width": 64, "out": 32, "multipliers": (1, 2), "blocks": 1, "heads": 2}


def _ldm_sr(folder, dtype):
    tiny.ldm_sr_pipeline().save_pretrained(folder)
    return load_ldm_sr(folder, dtype=dtype)


def _sdxl(folder, dtype):
    return load_sdxl(tiny.save_sdxl(folder), dtype=dtype)


def _sd3(folder, dtype):
    tiny.save_sd3(folder)
    return load_sd3(folder, texts=folder / "texts.safetensors", dtype=dtype)


def _resshift(folder, dtype):
    files = tiny.save_resshift(folder)
    return load_resshift(files[0], files[1], 4, shape=tiny.SMALL_SWIN, vq=VQ_F4 | tiny.SMALL_VQ, dtype=dtype)


def _stablesr(folder, dtype):
    unet, encoder = tiny.unet(), tiny.seeded(lambda: TimeAwareEncoder(**ENCODER))
    tiny.seeded(lambda: modulate(unet, 32))
    names = ldm_unet(unet.state_dict(), 1)
    state = {f"model.diffusion_model.{names[key]}": value for key, value in tiny.shaken(unet).state_dict().items()}
    state |= {f"structcond_stage_model.{key}": value for key, value in tiny.shaken(encoder).state_dict().items()}
    base = tiny.save_sd2(folder / "base")
    return load_stablesr(tiny.saved(state, folder / "x.ckpt"), base=base, encoder=ENCODER, dtype=dtype)


def _diffbir(folder, dtype):
    base = tiny.save_sd2(folder / "base")
    control = tiny.shaken(tiny.seeded(lambda: ir_controlnet(tiny.unet())))
    names = ldm_unet(control.state_dict(), 1)
    state = {names[key]: value for key, value in control.state_dict().items()}
    return load_diffbir(tiny.saved(state, folder / "v2.pth"), base=base, dtype=dtype)


def _seesr(folder, dtype):
    from diffusers import ControlNetModel

    base = tiny.save_sd2(folder / "base")
    for name, network in (("unet", tiny.unet()), ("controlnet", ControlNetModel.from_unet(tiny.unet()))):
        network.save_config(folder / name)
        tiny.seeded(lambda made=network: with_image_attention(made))
        names = official_names(network.state_dict())
        state = {names[key]: value for key, value in tiny.shaken(network).state_dict().items()}
        torch.save(state, folder / name / "diffusion_pytorch_model.bin")
    return load_seesr(folder, base=base, dtype=dtype)


@pytest.mark.parametrize("make", [_ldm_sr, _sdxl, _sd3, _resshift, _stablesr, _diffbir, _seesr])
def test_in_half_precision(make, tmp_path):
    whole, half = (one_step(make(tmp_path, dtype)) for dtype in (torch.float32, torch.bfloat16))
    assert whole.dtype == half.dtype == torch.float32
    assert bool(torch.isfinite(half).all())
    error = float((whole - half).square().mean().sqrt() / whole.std())
    assert 0 < error < 0.1  # 8 bits of mantissa through some twenty layers
