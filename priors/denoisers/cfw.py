"""Controllable feature wrapping: what the encoder saw of the LR view, mixed into the decoder of an autoencoder.

F_m = F_d + w C([F_e, F_d]) on the levels between the coarsest and the finest, C = residual block, two RRDBs, residual
block (Wang et al., IJCV 2024, section 3.2). w = 0 is the autoencoder alone; 0.5 is the release's choice.

Layer names are those of the official file; unverified until `python -m priors verify stablesr` was run on a networked
machine.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

GROWTH = 32
DAMPING = 0.2  # of a dense block and of an RRDB, before it is added to its input


class ResBlock(nn.Module):
    """norm, SiLU, conv, twice, plus the input."""

    def __init__(self, c_in: int, c_out: int, groups: int = 32) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, c_in, eps=1e-6)
        self.conv1 = nn.Conv2d(c_in, c_out, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, c_out, eps=1e-6)
        self.conv2 = nn.Conv2d(c_out, c_out, 3, padding=1)
        if c_in != c_out:
            self.conv_out = nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))
        return h + (self.conv_out(x) if hasattr(self, "conv_out") else x)


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees all before it."""

    conv5: nn.Module

    def __init__(self, channels: int) -> None:
        super().__init__()
        for k in range(5):
            conv = nn.Conv2d(channels + k * GROWTH, GROWTH if k < 4 else channels, 3, padding=1)
            setattr(self, f"conv{k + 1}", conv)

    def forward(self, x: Tensor) -> Tensor:
        seen = [x]
        for k in range(4):
            seen.append(F.leaky_relu(getattr(self, f"conv{k + 1}")(torch.cat(seen, 1)), 0.2))
        return x + DAMPING * self.conv5(torch.cat(seen, 1))


class RRDB(nn.Module):
    """Three dense blocks, damped, plus the input (Wang et al. 2018, ESRGAN)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(channels) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + DAMPING * self.rdb3(self.rdb2(self.rdb1(x)))


class Fusion(nn.Module):
    """C of one level."""

    def __init__(self, channels: int, groups: int = 32) -> None:
        super().__init__()
        self.encode_enc_1 = ResBlock(2 * channels, channels, groups)
        self.encode_enc_2 = nn.Sequential(RRDB(channels), RRDB(channels))
        self.encode_enc_3 = ResBlock(channels, channels, groups)

    def forward(self, encoded: Float[Tensor, "B C h w"], decoded: Float[Tensor, "B C h w"]) -> Float[Tensor, "B C h w"]:
        return self.encode_enc_3(self.encode_enc_2(self.encode_enc_1(torch.cat([encoded, decoded], dim=1))))


class CFW(nn.Module):
    """C of all levels, and the decoder that uses them.

    Parameters
    ----------
    channels : of the autoencoder's levels, finest first (`vae.config.block_out_channels`).
    """

    def __init__(self, channels: Sequence[int] = (128, 256, 512, 512), groups: int = 32) -> None:
        super().__init__()
        self.levels = len(channels)
        for level in range(1, self.levels - 1):
            setattr(self, f"fusion_layer_{level}", Fusion(channels[level], groups))

    def encoded(self, vae: nn.Module, image: Float[Tensor, "B 3 H W"]) -> list[Tensor]:
        """Features of an image in [-1, 1] at the end of each level of the encoder, finest first."""
        encoder, features = vae.encoder, []
        h = encoder.conv_in(image)  # type: ignore[operator, union-attr]
        for block in encoder.down_blocks:  # type: ignore[union-attr]
            for resnet in block.resnets:
                h = resnet(h, None)
            features.append(h)
            for down in block.downsamplers or ():
                h = down(h)
        return features

    def decode(
        self, vae: nn.Module, z: Float[Tensor, "B C h w"], features: Sequence[Tensor], weight: float = 0.5
    ) -> Float[Tensor, "B 3 H W"]:
        """Image in [-1, 1] of a latent in the autoencoder's own units.

        Parameters
        ----------
        features : `encoded` of the enlarged LR view, of the same size as the result. weight : w, 0-1.
        """
        decoder = vae.decoder
        h = vae.post_quant_conv(z) if vae.post_quant_conv is not None else z  # type: ignore[operator]
        h = decoder.mid_block(decoder.conv_in(h), None)  # type: ignore[operator, union-attr]
        for k, block in enumerate(decoder.up_blocks):  # type: ignore[arg-type, union-attr]
            for resnet in block.resnets:
                h = resnet(h, temb=None)
            level = self.levels - 1 - k
            if weight and 0 < level < self.levels - 1:
                h = h + weight * getattr(self, f"fusion_layer_{level}")(features[level], h)
            for up in block.upsamplers or ():
                h = up(h)
        return decoder.conv_out(decoder.conv_act(decoder.conv_norm_out(h)))  # type: ignore[operator, union-attr]
