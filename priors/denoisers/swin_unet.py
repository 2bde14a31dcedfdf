"""The network of ResShift: a UNet in the layout of latent diffusion whose attention looks at windows (Liu et al. 2021).

Layer names are those of the official files (Yue et al., "ResShift", NeurIPS 2023 and TPAMI 2024); unverified until
`python -m priors verify resshift` was run on a networked machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from priors.denoisers.ldm_blocks import Downsample, ResBlock, Stage, Upsample, norm, time_embedding, time_layers

MASKED = -100.0  # added to the score of pairs that the shift made neighbours


@dataclass(frozen=True)
class SwinShape:
    """Sizes of the network; the defaults are those of the official x4 models.

    Parameters
    ----------
    latent, condition : channels of the noisy latent and of the LR view, which has the latent's size.
    width : channels of a level, times `multipliers`. blocks : residual blocks a level.
    size : side of the latent in training; levels whose side is in `attended` attend.
    window, depth, attention, head, mlp : of the windowed attention: side of a window, blocks, channels, channels of a
        head, how much wider the perceptron is.
    """

    latent: int = 3
    condition: int = 3
    width: int = 160
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    blocks: int = 2
    size: int = 64
    attended: tuple[int, ...] = (64, 32, 16, 8)
    window: int = 8
    depth: int = 2
    attention: int = 192
    head: int = 32
    mlp: int = 4

    @property
    def multiple(self) -> int:
        """Sides of the latent must be multiples of this: a whole number of windows on every level."""
        return self.window * 2 ** (len(self.multipliers) - 1)


class WindowAttention(nn.Module):
    """Attention among the positions of a window, with a learned score for each offset between two of them."""

    def __init__(self, channels: int, window: int, heads: int) -> None:
        super().__init__()
        self.window, self.heads = window, heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        at = torch.cartesian_prod(torch.arange(window), torch.arange(window))  # [window^2, 2]
        offset = at[:, None] - at[None] + window - 1
        self.register_buffer("relative_position_index", offset[..., 0] * (2 * window - 1) + offset[..., 1])
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """x [windows, positions, C], mask [windows of one image, positions, positions] or None."""
        count, positions, channels = x.shape
        q, k, v = self.qkv(x).reshape(count, positions, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]  # type: ignore[operator]
        bias = bias.reshape(positions, positions, self.heads).permute(2, 0, 1)[None]  # [1, heads, positions, positions]
        if mask is not None:
            bias = bias + mask.repeat(count // len(mask), 1, 1)[:, None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype).expand(count, -1, -1, -1))
        return self.proj(y.transpose(1, 2).reshape(count, positions, channels))


class SwinBlock(nn.Module):
    """Windowed attention, then a perceptron, each added to its input; every other block moves the windows by half."""

    def __init__(self, channels: int, size: int, shape: SwinShape, shifted: bool) -> None:
        super().__init__()
        self.window = min(shape.window, size)
        self.shift = shape.window // 2 if shifted and size > shape.window else 0
        self.norm1 = norm(channels)
        self.attn = WindowAttention(channels, self.window, channels // shape.head)
        self.norm2 = norm(channels)
        self.mlp = nn.Module()
        self.mlp.fc1 = nn.Conv2d(channels, shape.mlp * channels, 1)
        self.mlp.fc2 = nn.Conv2d(shape.mlp * channels, channels, 1)
        self.register_buffer("attn_mask", shifted_mask(size, size, self.window, self.shift) if self.shift else None)

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        side, shift = self.window, self.shift
        h = self.norm1(x)
        h = h.roll((-shift, -shift), (2, 3)) if shift else h
        h = h.reshape(batch, channels, height // side, side, width // side, side)
        h = h.permute(0, 2, 4, 3, 5, 1).reshape(-1, side * side, channels)  # [windows, positions, C]
        mask = shifted_mask(height, width, side, shift).to(x) if shift else None
        h = self.attn(h, mask).reshape(batch, height // side, width // side, side, side, channels)
        h = h.permute(0, 5, 1, 3, 2, 4).reshape(x.shape)
        x = x + (h.roll((shift, shift), (2, 3)) if shift else h)
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))  # type: ignore[operator]


class WindowedLayer(nn.Module):
    """To the channels of the attention, its blocks, and back; nothing is added to the input."""

    def __init__(self, channels: int, size: int, shape: SwinShape) -> None:
        super().__init__()
        self.patch_embed, self.patch_unembed = nn.Module(), nn.Module()
        self.patch_embed.proj = nn.Conv2d(channels, shape.attention, 1)
        self.patch_unembed.proj = nn.Conv2d(shape.attention, channels, 1)
        blocks = (SwinBlock(shape.attention, size, shape, shifted=i % 2 == 1) for i in range(shape.depth))
        self.blocks = nn.ModuleList(blocks)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch_embed.proj(x)  # type: ignore[operator]
        for block in self.blocks:
            x = block(x)
        return self.patch_unembed.proj(x)  # type: ignore[operator]


class SwinUNet(nn.Module):
    """Clean latent of a noisy one, the LR view of the same size, and a time.

    Attention follows the first residual block of each level on the way down and up.
    """

    def __init__(self, shape: SwinShape = SwinShape()) -> None:
        super().__init__()
        self.shape = shape
        emb, channels, size = 4 * shape.width, shape.width * shape.multipliers[0], shape.size
        self.time_embed = time_layers(shape.width)
        stages: list[nn.Module] = [Stage(nn.Conv2d(shape.latent + shape.condition, channels, 3, padding=1))]
        skips = [channels]
        for level, multiplier in enumerate(shape.multipliers):
            for i in range(shape.blocks):
                c_in, channels = channels, shape.width * multiplier
                stages.append(self._stage(c_in, channels, size, i == 0))
                skips.append(channels)
            if level + 1 < len(shape.multipliers):
                stages.append(Stage(Downsample(channels)))
                skips.append(channels)
                size //= 2
        self.input_blocks = nn.ModuleList(stages)
        ends = [ResBlock(channels, emb, channels, scale_shift=True) for _ in range(2)]
        self.middle_block = Stage(ends[0], WindowedLayer(channels, size, shape), ends[1])
        self.output_blocks = nn.ModuleList(self._way_up(channels, size, skips))
        channels = shape.width * shape.multipliers[0]
        self.out = nn.Sequential(norm(channels), nn.SiLU(), nn.Conv2d(channels, shape.latent, 3, padding=1))

    def forward(
        self, x: Float[Tensor, "B C h w"], times: Float[Tensor, "B"], lr: Float[Tensor, "B K h w"]
    ) -> Float[Tensor, "B C h w"]:
        """h and w are multiples of `shape.multiple`; lr in [-1, 1]."""
        emb = self.time_embed(time_embedding(times, self.shape.width).to(x.dtype))
        skips, h = [], torch.cat([x, lr], dim=1)
        for stage in self.input_blocks:
            h = stage(h, emb)
            skips.append(h)
        h = self.middle_block(h, emb)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, skips.pop()], dim=1), emb)
        return self.out(h)

    def _way_up(self, channels: int, size: int, skips: list[int]) -> Sequence[nn.Module]:
        stages = []
        for level, multiplier in reversed(list(enumerate(self.shape.multipliers))):
            for i in range(self.shape.blocks + 1):
                c_in, channels = channels + skips.pop(), self.shape.width * multiplier
                stage = self._stage(c_in, channels, size, i == 0)
                if level and i == self.shape.blocks:
                    stage.append(Upsample(channels))
                    size *= 2
                stages.append(stage)
        return stages

    def _stage(self, c_in: int, c_out: int, size: int, first: bool) -> Stage:
        stage = Stage(ResBlock(c_in, 4 * self.shape.width, c_out, scale_shift=True))
        if first and size in self.shape.attended:
            stage.append(WindowedLayer(c_out, size, self.shape))
        return stage


def shifted_mask(height: int, width: int, window: int, shift: int) -> Float[Tensor, "windows positions positions"]:
    """0 for pairs in a window that were neighbours before the image was rolled by `shift`, else -100."""
    region = torch.zeros(height, width)
    for k, (size, view) in enumerate(((height, region), (width, region.T))):
        view[size - window : size - shift] += 3.0**k
        view[size - shift :] += 2 * 3.0**k
    region = region.reshape(height // window, window, width // window, window).transpose(1, 2)
    region = region.reshape(-1, window * window)
    return torch.where(region[:, :, None] == region[:, None, :], 0.0, MASKED)
