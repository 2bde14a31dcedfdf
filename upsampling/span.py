"""SPAN x4, 28 channels: parameter-free attention (Wan et al., CVPR workshops 2024), single image."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment
from upsampling.registry import State, Upsampler, filled, network

WIDTH = 28
MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class _Conv(nn.Module):
    """A 3x3 convolution under the key that the published, already merged, weights have."""

    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.eval_conv = nn.Conv2d(inputs, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.eval_conv(x)


class _Block(nn.Module):
    """out = (h + x) (sigmoid(h) - 1/2): the features are their own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.c1_r, self.c2_r, self.c3_r = (_Conv(WIDTH) for _ in range(3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first = F.silu(self.c1_r(x))
        h = self.c3_r(F.silu(self.c2_r(first)))
        return (h + x) * (torch.sigmoid(h) - 0.5), first


class SPAN(nn.Module):
    """The network, and an Upsampler; 150 688 parameters."""

    scale = 4
    num_neighbours = 0
    overlap = 24  # LR px: 21 convolutions 3x3, so the result is the untiled one

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = _Conv(3)
        self.block_1, self.block_2, self.block_3, self.block_4, self.block_5, self.block_6 = (
            _Block() for _ in range(6)
        )
        self.conv_cat = nn.Conv2d(4 * WIDTH, WIDTH, 1)
        self.conv_2 = _Conv(WIDTH)
        self.upsampler = nn.Sequential(nn.Conv2d(WIDTH, 3 * 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 H W"]:
        start = self.conv_1(255 * (x - x.new_tensor(MEAN).view(1, 3, 1, 1)))
        first, _ = self.block_1(start)
        y = first
        for block in (self.block_2, self.block_3, self.block_4, self.block_5):
            y, _ = block(y)
        y, inner = self.block_6(y)
        return self.upsampler(self.conv_cat(torch.cat([start, self.conv_2(y), first, inner], dim=1)))

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """Eight feature maps at a time, and the output."""
        return 4 * h * w * (8 * WIDTH + 3 * 16 * 3)

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See registry.Upsampler."""
        for frame in frames:
            yield self(frame[None])[0]


@network("span", "span28_x4")
def load_span(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    return filled(SPAN, state, device, "span")
