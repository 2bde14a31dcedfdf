"""Models of published families, a few thousand parameters small, saved in the layout that the loaders read."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from priors.denoisers.swin_unet import SwinShape

SMALL_SWIN = SwinShape(
    width=32, multipliers=(1, 1), blocks=1, size=8, attended=(8, 4), window=4, attention=32, head=16, mlp=2
)
SCALED_LINEAR = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "clip_sample": False}


def seeded(make: Any, seed: int = 0) -> Any:
    """`make()` with torch's global generator seeded, and left as it was; in evaluation mode where it is a network."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        made = make()
    return made.eval() if isinstance(made, nn.Module) else made


def shaken(network: nn.Module, seed: int = 1) -> nn.Module:
    """Every parameter moved a little, so that what starts at zero does not hide."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return network


def manifest(shapes: Mapping[str, Iterable[int]]) -> tuple[int, str]:
    """Number of tensors, and the first 16 digits of the SHA-256 of their sorted lines "name shape"."""
    lines = sorted(f"{name} {'x'.join(map(str, shape))}" for name, shape in shapes.items())
    return len(lines), hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def shapes(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in network.state_dict().items()}


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def unet(**changes: Any) -> Any:
    """UNet2DConditionModel in the layout of Stable Diffusion 2: two levels, the first one attends."""
    from diffusers import UNet2DConditionModel

    values: dict[str, Any] = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (32, 64),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 8,
        "attention_head_dim": (2, 4),
        "use_linear_projection": True,
        "norm_num_groups": 32,
    }
    return seeded(lambda: UNet2DConditionModel(**values | changes))


def vae(levels: int = 4, channels: int = 4, **changes: Any) -> Any:
    """AutoencoderKL of 2^(levels - 1) image px per latent."""
    from diffusers import AutoencoderKL

    values: dict[str, Any] = {
        "block_out_channels": (8, 16, 16, 16)[:levels],
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "latent_channels": channels,
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    return seeded(lambda: AutoencoderKL(**values | changes))


def save(folder: Path, **parts: Any) -> Path:
    """Each part (network or scheduler of diffusers) into its subfolder."""
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    return folder


def save_clip(folder: Path, width: int = 8, name: str = "") -> None:
    """A CLIP text encoder and its tokenizer, which knows letters only."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    words = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in "abcdefgh" for end in ("", "</w>"))]
    source = folder / "words"
    source.mkdir(parents=True, exist_ok=True)
    (source / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (source / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(source, model_max_length=6)
    tokenizer.save_pretrained(folder / f"tokenizer{name}")
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )
    seeded(lambda: CLIPTextModel(config)).save_pretrained(folder / f"text_encoder{name}")


SD3_TRANSFORMER = {"patch_size": 2, "in_channels": 16, "out_channels": 16, "qk_norm": "rms_norm"}
SD3_VAE = {"scaling_factor": 1.5305, "shift_factor": 0.0609, "use_quant_conv": False, "use_post_quant_conv": False}
SDXL_UNET = {"addition_embed_type": "text_time", "use_linear_projection": True}


def save_sd3(folder: Path) -> Path:
    """Transformer, autoencoder, scheduler, and a file `texts.safetensors` of embeddings in place of text encoders."""
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

    from priors.denoisers.text import Embeddings

    changes = {
        "sample_size": 8,
        "num_layers": 2,
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 8,
        "caption_projection_dim": 16,
        "pooled_projection_dim": 12,
        "pos_embed_max_size": 12,
        "dual_attention_layers": (0,),
    }
    transformer = shaken(seeded(lambda: SD3Transformer2DModel(**SD3_TRANSFORMER | changes)))
    autoencoder, scheduler = vae(channels=16, **SD3_VAE), FlowMatchEulerDiscreteScheduler(shift=3.0)
    save(folder, transformer=transformer, vae=autoencoder, scheduler=scheduler)
    generator = torch.Generator().manual_seed(2)
    shapes = (1, 5, 8), (1, 5, 8), (1, 12), (1, 12)
    Embeddings(*(torch.randn(shape, generator=generator) for shape in shapes)).save(folder / "texts.safetensors")
    return folder


def save_sdxl(folder: Path) -> Path:
    """A whole pipeline with two text encoders."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    save_clip(folder)
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    second = CLIPTextConfig(**encoder.config.to_dict() | {"projection_dim": 8})
    changes = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8 + 6 * 4}
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    scheduled = {"timestep_spacing": "leading", "steps_offset": 1, "beta_schedule": "scaled_linear"}
    StableDiffusionXLPipeline(
        vae=vae(scaling_factor=0.13025),
        text_encoder=encoder,
        text_encoder_2=seeded(lambda: CLIPTextModelWithProjection(second)),
        tokenizer=tokenizer,
        tokenizer_2=tokenizer,
        unet=shaken(unet(cross_attention_dim=16, **SDXL_UNET | changes)),
        scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, **scheduled),
        add_watermarker=False,
    ).save_pretrained(folder)
    return folder


def save_sd2(folder: Path, **changes: Any) -> Path:
    """Stable Diffusion 2: two levels, 8 image px per latent."""
    from diffusers import DDIMScheduler

    scheduler = DDIMScheduler(**SCALED_LINEAR, steps_offset=1, **changes)
    save(folder, unet=shaken(unet()), vae=vae(scaling_factor=0.18215), scheduler=scheduler)
    save_clip(folder)
    return folder


def saved(state: Mapping[str, torch.Tensor], path: Path) -> Path:
    """A file as publishers make them: a state dict in a container."""
    torch.save({"state_dict": {key: value.clone() for key, value in state.items()}}, path)
    return path


LDM_SR_UNET = {
    "in_channels": 6,
    "out_channels": 3,
    "layers_per_block": 2,
    "attention_head_dim": 32,
    "down_block_types": ("DownBlock2D", "DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D", "UpBlock2D"),
}
VQ_F4 = {
    "layers_per_block": 2,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
}
SMALL_VQ = {"block_out_channels": (8, 16, 16), "layers_per_block": 1, "num_vq_embeddings": 32, "norm_num_groups": 4}


def ldm_sr_pipeline() -> Any:
    """LDMSuperResolutionPipeline."""
    from diffusers import DDIMScheduler, LDMSuperResolutionPipeline, UNet2DModel, VQModel

    changes = {"block_out_channels": (32, 32, 32, 64), "layers_per_block": 1, "sample_size": 16}
    return LDMSuperResolutionPipeline(
        vqvae=seeded(lambda: VQModel(**VQ_F4 | SMALL_VQ)),
        unet=seeded(lambda: UNet2DModel(**LDM_SR_UNET | changes)),
        scheduler=DDIMScheduler(**SCALED_LINEAR | {"beta_start": 0.0015, "beta_end": 0.0155}),
    )


def save_resshift(folder: Path) -> tuple[Path, Path, Any, Any]:
    """Files of network and autoencoder in the official layout, and both networks."""
    from diffusers import VQModel

    from priors import key_maps
    from priors.denoisers.swin_unet import SwinUNet

    network = shaken(seeded(lambda: SwinUNet(SMALL_SWIN)))
    autoencoder = seeded(lambda: VQModel(**VQ_F4 | SMALL_VQ))
    names = key_maps.ldm_vae(autoencoder.state_dict(), 3)
    state = {names[key]: value for key, value in autoencoder.state_dict().items()}
    attention = tuple(f"attn_1.{part}.weight" for part in ("q", "k", "v", "proj_out"))
    state = {key: value[..., None, None] if key.endswith(attention) else value for key, value in state.items()}
    wrapped = {f"module._orig_mod.{key}": value for key, value in network.state_dict().items()}
    return saved(wrapped, folder / "x.pth"), saved(state, folder / "vq.pth"), network, autoencoder
