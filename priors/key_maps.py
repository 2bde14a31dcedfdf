"""Names of the tensors of published files, for networks that diffusers builds under other names.

Files of the latent-diffusion layout (Stable Diffusion 2 and what was trained from it) number their blocks through
(`input_blocks.4.1.proj_in.weight`); diffusers has levels (`down_blocks.1.attentions.0.proj_in.weight`). Each function
takes the keys of a network of diffusers and returns, for each, the key of the file.
"""

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from utils.errors import UserError

_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "class_embedding": "label_emb",
    "controlnet_mid_block": "middle_block_out.0",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def ldm_unet(keys: Iterable[str], layers: int = 2) -> dict[str, str]:
    """Of a UNet2DConditionModel, or of a ControlNetModel without image encoder, whose levels have `layers` blocks.

    Blocks in which `conv2` was wrapped for SFT (`time_aware.modulate`) are known too: `spade` is theirs in the file.
    """
    keys = list(keys)
    attending = {key.split(".")[1] for key in keys if key.startswith("up_blocks.") and ".attentions." in key}
    return {key: _unet_key(key, layers, attending) for key in keys}


def ldm_vae(keys: Iterable[str], levels: int) -> dict[str, str]:
    """Of an AutoencoderKL or VQModel with so many levels. 1x1 convolutions of the file's attention are linear here."""
    return {key: _vae_key(key, levels) for key in keys}


def renamed(
    state: Mapping[str, Tensor], names: Mapping[str, str], wanted: Mapping[str, Tensor], where: str
) -> dict[str, Tensor]:
    """The tensors of a file under the names of a network, each of the network's shape.

    Parameters
    ----------
    state : of the file; every one of its tensors must be named, leave out before what is known to be of no use.
    names : key of the network -> key of the file. wanted : of the network, for its shapes.

    Raises
    ------
    UserError : tensors are missing, left over, or of another shape (1x1 convolutions may stand for linear layers).
    """
    missing = sorted(set(names.values()) - state.keys())
    left = sorted(state.keys() - set(names.values()))
    found = {key: _shaped(state[name], wanted[key]) for key, name in names.items() if name in state}
    shapes = sorted(key for key, value in found.items() if value.shape != wanted[key].shape)
    problems = {"missing": missing, "left over": left, "of another shape": shapes}
    if any(problems.values()):
        text = "; ".join(f"{len(some)} {what}, e.g. {some[0]}" for what, some in problems.items() if some)
        raise UserError(f"{where}: does not hold the network that was expected ({text})")
    return found


def part(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors under a prefix, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def _shaped(value: Tensor, like: Tensor) -> Tensor:
    """A 1x1 convolution as the linear layer that it is."""
    if value.ndim == like.ndim + 2 and value.shape[-2:] == (1, 1):
        return value[..., 0, 0]
    return torch.as_tensor(value)


def _unet_key(key: str, layers: int, attending: set[str]) -> str:
    for ours, theirs in _UNET_ENDS.items():
        if key.startswith(f"{ours}."):
            return theirs + key.removeprefix(ours)
    if found := re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.*)", key):
        return f"zero_convs.{found[1]}.0.{found[2]}"
    if found := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        place = 1 if found[1] == "attentions" else 2 * int(found[2])
        return f"middle_block.{place}.{_inside(found[1], found[3])}"
    found = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key)
    if not found:
        raise UserError(f"key map: {key} is of no network of this layout")
    way, level, kind, index, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    per_level = layers + 1
    if way == "down":
        number = 1 + level * per_level + (layers if kind == "downsamplers" else index)
        if kind == "downsamplers":
            return f"input_blocks.{number}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{number}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    number = level * per_level + (layers if kind == "upsamplers" else index)
    if kind == "upsamplers":
        return f"output_blocks.{number}.{1 + (found[2] in attending)}.{rest}"
    return f"output_blocks.{number}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    """Within a residual block; within a transformer both layouts agree."""
    if kind != "resnets":
        return rest
    if rest.startswith("conv2.spade."):
        return rest.removeprefix("conv2.")
    rest = rest.replace("conv2.conv.", "conv2.", 1)
    name, _, last = rest.rpartition(".")
    return f"{_RESNET[name]}.{last}"


def _vae_key(key: str, levels: int) -> str:
    key = key.replace("conv_norm_out", "norm_out")
    if found := re.fullmatch(r"(\w+)\.mid_block\.(resnets|attentions)\.(\d+)\.(.*)", key):
        if found[2] == "resnets":
            return f"{found[1]}.mid.block_{int(found[3]) + 1}.{found[4].replace('conv_shortcut', 'nin_shortcut')}"
        name, _, last = found[4].rpartition(".")
        return f"{found[1]}.mid.attn_1.{_VAE_ATTENTION[name]}.{last}"
    if found := re.fullmatch(r"(encoder|decoder)\.(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", key):
        half, way, level, kind, index, rest = found.groups()  # kind: resnets, downsamplers or upsamplers
        place = int(level) if way == "down" else levels - 1 - int(level)
        if kind == "resnets":
            return f"{half}.{way}.{place}.block.{index}.{rest.replace('conv_shortcut', 'nin_shortcut')}"
        return f"{half}.{way}.{place}.{way}sample.{rest}"
    return key
