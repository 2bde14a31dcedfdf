"""Blocks of UNets in the layout of latent diffusion (Rombach et al., CVPR 2022), with the layer names of its files.

Two families keep these names: the time-aware encoder of StableSR and the network of ResShift. Features are
[B, C, h, w], `emb` [B, E] an embedding of the time.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

GROUPS = 32


def time_embedding(times: Float[Tensor, "B"], width: int) -> Float[Tensor, "B width"]:
    """Cosines, then sines, of t at `width` / 2 frequencies from 1 to 1/10000 (Vaswani et al. 2017, section 3.5)."""
    half = width // 2
    frequencies = torch.exp(torch.arange(half, device=times.device) * (-math.log(10000) / half))
    angles = times.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def time_layers(width: int) -> nn.Sequential:
    """From the sinusoidal embedding to `emb`, four times as wide."""
    return nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 4 * width))


def norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


class ResBlock(nn.Module):
    """norm, SiLU, conv; the time, added or as scale and shift of the second norm; norm, SiLU, conv; plus the input."""

    def __init__(self, c_in: int, emb: int, c_out: int, scale_shift: bool = False) -> None:
        super().__init__()
        self.scale_shift = scale_shift
        self.in_layers = nn.Sequential(norm(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb, 2 * c_out if scale_shift else c_out))
        conv = nn.Conv2d(c_out, c_out, 3, padding=1)
        nn.init.zeros_(conv.weight)
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        self.out_layers = nn.Sequential(norm(c_out), nn.SiLU(), nn.Dropout(0.0), conv)
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)  # [B, c_out, h, w]
        time = self.emb_layers(emb)[:, :, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.out_layers[1:](self.out_layers[0](h) * (1 + scale) + shift)
        else:
            h = self.out_layers(h + time)
        return self.skip_connection(x) + h


class AttentionBlock(nn.Module):
    """Self-attention of all positions; `qkv` holds query, key and value of one head after another."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)
        nn.init.zeros_(self.proj_out.weight)
        nn.init.zeros_(self.proj_out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        flat = x.reshape(batch, channels, height * width)
        qkv = self.qkv(self.norm(flat)).reshape(batch, self.heads, 3, channels // self.heads, -1)
        q, k, v = (part.transpose(-1, -2) for part in qkv.unbind(2))  # [B, heads, positions, C / heads]
        h = F.scaled_dot_product_attention(q, k, v).transpose(-1, -2).reshape(flat.shape)
        return (flat + self.proj_out(h)).reshape(x.shape)


class Downsample(nn.Module):
    """Halves both sides by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Doubles both sides by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Stage(nn.Sequential):
    """Layers of one entry of `input_blocks` or `output_blocks`; those that know the time get it."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, emb) if isinstance(layer, ResBlock) else layer(x)
        return x
