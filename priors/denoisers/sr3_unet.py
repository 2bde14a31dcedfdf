"""The network of the public SR3 code (Janspiry, Apache-2.0) under the names of its files, as a small prior.

Letters: F frames of the LR window, a = sqrt(abar), the noise level that the network is told. It sees the F enlarged
frames, then x_t, and predicts eps, at full size: stem "full" of `tiny`. The file `..._gen.pth` holds the network under
`denoise_fn.` and, beside it, what the process is made of.
"""

import math
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import interpolate, scaled_dot_product_attention

from priors.checkpoints import File, load_into, located, read_tensors
from priors.denoisers import tiny
from priors.denoisers.loading import frozen
from priors.interfaces import Process
from priors.processes import VP
from utils.errors import UserError

SUFFIX = ".pth"
# The network of 16 -> 128 px, whose attention is at the level of 16 px; 97 807 491 parameters with F = 1.
RELEASE = tiny.TinyConfig(
    frames=1,
    scale=8,
    stem="full",
    prediction="eps",
    widths=(64, 128, 256, 512, 512),
    blocks=2,
    attention=(False, False, False, True, False),
    groups=32,
    dropout=0.2,
)
FIRST = "denoise_fn.downs.0.weight"
BUFFERS = (  # all of them follow from the betas
    *("betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod"),
    *("log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
    *("posterior_variance", "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2"),
)


class Output(NamedTuple):
    """As networks of diffusers return it."""

    sample: Tensor


class Encoding(nn.Module):
    """Sines and cosines of a level at `width` / 2 frequencies from 1 down to nearly 1e-4."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    def forward(self, level: Float[Tensor, "B"]) -> Float[Tensor, "B width"]:
        half = self.width // 2
        frequencies = torch.exp(-math.log(1e4) / half * torch.arange(half, device=level.device, dtype=level.dtype))
        angles = level[:, None] * frequencies
        return torch.cat([angles.sin(), angles.cos()], 1)


class Block(nn.Module):
    """Norm, SiLU, dropout, 3 x 3."""

    def __init__(self, groups: int, before: int, after: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.GroupNorm(groups, before), nn.SiLU(), nn.Dropout(dropout), nn.Conv2d(before, after, 3, padding=1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.block(x))


class Residual(nn.Module):
    """Two blocks, the encoded level added between them."""

    def __init__(self, config: tiny.TinyConfig, before: int, after: int) -> None:
        super().__init__()
        self.noise_func = nn.ModuleDict({"noise_func": nn.Sequential(nn.Linear(config.widths[0], after))})
        self.block1 = Block(config.groups, before, after)
        self.block2 = Block(config.groups, after, after, config.dropout)
        self.res_conv = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        shift = self.noise_func["noise_func"](level)[:, :, None, None]
        return cast(Tensor, self.block2(self.block1(x) + shift) + self.res_conv(x))


class Attention(nn.Module):
    """Every pixel looks at every other one, with one head."""

    def __init__(self, groups: int, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1, bias=False)
        self.out = nn.Conv2d(width, width, 1)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        query, key, value = self.qkv(self.norm(x)).flatten(2).mT.chunk(3, -1)  # each [B, h w, C]
        seen = scaled_dot_product_attention(query, key, value)
        return cast(Tensor, x + self.out(seen.mT.reshape(x.shape)))


class Stage(nn.Module):
    """A residual block, and attention where the level has it."""

    def __init__(self, config: tiny.TinyConfig, before: int, after: int, attends: bool) -> None:
        super().__init__()
        self.res_block = Residual(config, before, after)
        if attends:
            self.attn = Attention(config.groups, after)

    def forward(self, x: Tensor, level: Tensor) -> Tensor:
        x = self.res_block(x, level)
        return self.attn(x) if hasattr(self, "attn") else x


class Resize(nn.Module):
    """To half or to twice the size."""

    def __init__(self, width: int, grows: bool) -> None:
        super().__init__()
        self.grows = grows
        self.conv = nn.Conv2d(width, width, 3, stride=1 if grows else 2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(interpolate(x, scale_factor=2.0) if self.grows else x))


class SR3UNet(nn.Module):
    """What `TinyNet` calls its U-Net, of any widths, with the names of the public code."""

    def __init__(self, config: tiny.TinyConfig) -> None:
        super().__init__()
        inner = config.widths[0]
        self.noise_level_mlp = nn.Sequential(
            Encoding(inner), nn.Linear(inner, 4 * inner), nn.SiLU(), nn.Linear(4 * inner, inner)
        )
        levels = list(zip(config.widths, config.attention, strict=True))
        width, kept = inner, [inner]  # channels now, and of what the way up meets again
        self.downs = nn.ModuleList([nn.Conv2d(config.in_channels, inner, 3, padding=1)])
        for level, (after, attends) in enumerate(levels):
            for _ in range(config.blocks):
                self.downs.append(Stage(config, width, after, attends))
                width = after
                kept.append(width)
            if level + 1 < len(levels):
                self.downs.append(Resize(width, False))
                kept.append(width)
        self.mid = nn.ModuleList([Stage(config, width, width, attends) for attends in (True, False)])
        self.ups = nn.ModuleList()
        for level, (after, attends) in reversed(list(enumerate(levels))):
            for _ in range(config.blocks + 1):
                self.ups.append(Stage(config, width + kept.pop(), after, attends))
                width = after
            if level:
                self.ups.append(Resize(width, True))
        self.final_conv = Block(config.groups, width, config.out_channels)

    def forward(self, x: Float[Tensor, "B C H W"], time: Float[Tensor, "B"]) -> Output:
        """eps. time : 1000 a, as `TinyNet` says it."""
        level = self.noise_level_mlp(time / tiny.LEVEL)
        kept = []
        for layer in self.downs:
            x = layer(x, level) if isinstance(layer, Stage) else layer(x)
            kept.append(x)
        for layer in self.mid:
            x = layer(x, level)
        for layer in self.ups:
            x = layer(torch.cat([x, kept.pop()], 1), level) if isinstance(layer, Stage) else layer(x)
        return Output(self.final_conv(x))


def load_sr3(
    path: str | Path,
    trust: str = "",
    device: torch.device | str = "cpu",
    shape: tiny.TinyConfig = RELEASE,
) -> tiny.TinyPrior:
    """The prior of a file of the public code, frozen, in evaluation mode. Its first layer says F.

    Parameters
    ----------
    trust : SHA-256 that the user vouches for; none is published. shape : other than the release's, without F.

    Raises
    ------
    UserError : missing or not vouched for, another network, or a number of channels that is not 3 F + 3 with F odd.
    """
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    path = located(File(Path(path).name), path, trust=trust)
    state = read_tensors(path)
    betas = state.get("betas")
    network = {name: value for name, value in state.items() if name not in BUFFERS}
    channels = network[FIRST].shape[1] if FIRST in network and network[FIRST].ndim == 4 else 6
    if channels % 6 or not channels:
        raise UserError(f"{path}: its network sees {channels} channels; 3 F + 3 with F odd (6, 12, 18) are expected")
    config = replace(shape, frames=channels // 3 - 1)
    with torch.device("meta"):
        unet = SR3UNet(config)
    load_into(nn.ModuleDict({"denoise_fn": unet}), network, str(path))
    process = VP.linear(2000, 1e-6, 1e-2) if betas is None else VP(tuple(betas.double().tolist()))
    net = tiny.TinyNet(config, unet=unet)
    return tiny.TinyPrior(cast(tiny.TinyNet, frozen(net).to(device)), cast(Process, process))
