"""StableSR's additions to a frozen diffusion model: a time-aware encoder of the LR view, and what it modulates.

The encoder is the first half of a UNet on the latent of the enlarged LR view; it also sees the time, since what is
needed of the LR view changes as noise goes. Its features, one map a resolution, scale and shift the features of every
residual block of the frozen UNet (spatial feature transform, SFT).

Wang et al., "Exploiting Diffusion Prior for Real-World Image Super-Resolution", IJCV 2024, section 3.1. Layer names are
those of the official files; unverified until `python -m priors verify stablesr` was run on a networked machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from priors.denoisers.ldm_blocks import AttentionBlock, Downsample, ResBlock, Stage, norm, time_embedding, time_layers

HIDDEN = 128  # channels between the condition and its gain and offset


class TimeAwareEncoder(nn.Module):
    """Features of the LR latent at a time, one map for each resolution of the UNet.

    Parameters
    ----------
    latent : channels of the latent. width : channels of the first level, and of what comes out, times `out` / `width`.
    multipliers : of `width`, one a level. blocks : residual blocks a level. attention : levels that attend.
    """

    def __init__(
        self,
        latent: int = 4,
        width: int = 256,
        out: int = 256,
        multipliers: Sequence[int] = (1, 1, 2, 2),
        blocks: int = 2,
        heads: int = 4,
        attention: Sequence[int] = (0, 1, 2),
    ) -> None:
        super().__init__()
        self.width, emb, channels = width, 4 * width, width
        self.time_embed = time_layers(width)
        stages: list[nn.Module] = [Stage(nn.Conv2d(latent, width, 3, padding=1))]
        ends: list[int] = []  # channels at the end of each level
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                layers: list[nn.Module] = [ResBlock(channels, emb, multiplier * width)]
                channels = multiplier * width
                if level in attention:
                    layers.append(AttentionBlock(channels, heads))
                stages.append(Stage(*layers))
            ends.append(channels)
            if level + 1 < len(multipliers):
                stages.append(Stage(Downsample(channels)))
        self.input_blocks = nn.ModuleList(stages)
        middle = (ResBlock(channels, emb, channels), AttentionBlock(channels, heads), ResBlock(channels, emb, channels))
        self.middle_block = Stage(*middle)
        self.fea_tran = nn.ModuleList(ResBlock(end, emb, out) for end in ends)

    def forward(
        self, latent: Float[Tensor, "B C h w"], times: Float[Tensor, "B"]
    ) -> dict[tuple[int, int], Float[Tensor, "B out _ _"]]:
        """Features by (height, width) of their map."""
        emb = self.time_embed(time_embedding(times, self.width).to(latent.dtype))
        maps, x = [], latent
        for stage in self.input_blocks:
            if isinstance(next(stage.children()), Downsample):
                maps.append(x)
            x = stage(x, emb)
        maps.append(self.middle_block(x, emb))
        return {(m.shape[-2], m.shape[-1]): last(m, emb) for m, last in zip(maps, self.fea_tran, strict=True)}


@dataclass(eq=False)
class Features:
    """Where the blocks of a UNet find the features of the call that is going on."""

    maps: dict[tuple[int, int], Tensor] = field(default_factory=dict)


class SFT(nn.Module):
    """(1 + gain) F + offset, both made of a condition by two convolutions with a ReLU between.

    Parameters
    ----------
    channels : of F. condition : channels of the features.
    normalise : normalise F first, as the official files want it (Park et al. 2019, SPADE); the paper's equation does
        not, and leaves F as it is while the last convolutions are zero.
    """

    def __init__(self, channels: int, condition: int = 256, normalise: bool = True) -> None:
        super().__init__()
        self.param_free_norm = norm(channels) if normalise else nn.Identity()
        self.mlp_shared = nn.Sequential(nn.Conv2d(condition, HIDDEN, 3, padding=1), nn.ReLU())
        self.mlp_gamma = _zeroed(nn.Conv2d(HIDDEN, channels, 3, padding=1))
        self.mlp_beta = _zeroed(nn.Conv2d(HIDDEN, channels, 3, padding=1))

    def forward(self, x: Float[Tensor, "B C h w"], condition: Float[Tensor, "B K h w"]) -> Float[Tensor, "B C h w"]:
        hidden = self.mlp_shared(condition)
        return self.param_free_norm(x) * (1 + self.mlp_gamma(hidden)) + self.mlp_beta(hidden)


class Modulated(nn.Module):
    """The last convolution of a residual block, then SFT by the features of the same size."""

    def __init__(self, conv: nn.Module, sft: SFT, features: Features) -> None:
        super().__init__()
        self.conv, self.spade = conv, sft
        self._features = (features,)  # in a tuple, since it is no part of the network

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D h w"]:
        y = self.conv(x)
        return self.spade(y, self._features[0].maps[y.shape[-2], y.shape[-1]])


def modulate(unet: nn.Module, condition: int = 256, normalise: bool = True) -> Features:
    """Put SFT into every residual block of a UNet of diffusers, in place.

    Returns
    -------
    Where to put the features before the UNet is called: `found.maps = encoder(latent, times)`.
    """
    features = Features()
    for block in list(unet.modules()):
        conv = getattr(block, "conv2", None)
        if isinstance(conv, nn.Conv2d) and hasattr(block, "time_emb_proj"):
            sft = SFT(conv.out_channels, condition, normalise).to(conv.weight.device, conv.weight.dtype)
            block.conv2 = Modulated(conv, sft, features)
    return features


def _zeroed(conv: nn.Conv2d) -> nn.Conv2d:
    for parameter in conv.parameters():
        torch.nn.init.zeros_(parameter)
    return conv
