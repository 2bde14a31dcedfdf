"""RLFN x4: residual local feature network (Kong et al., CVPR workshops 2022), single image, 317 218 parameters."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment
from upsampling.registry import State, Upsampler, filled, network

WIDTH, INNER, GATE = 46, 48, 16


class _Attention(nn.Module):
    """Enhanced spatial attention: a gate computed on a coarse grid (stride 2, then pooling 7 by 3)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(WIDTH, GATE, 1)
        self.conv_f = nn.Conv2d(GATE, GATE, 1)
        self.conv2 = nn.Conv2d(GATE, GATE, 3, stride=2)
        self.conv3 = nn.Conv2d(GATE, GATE, 3, padding=1)
        self.conv4 = nn.Conv2d(GATE, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.conv1(x)
        m = self.conv3(F.max_pool2d(self.conv2(a), 7, stride=3))
        m = F.interpolate(m, size=x.shape[-2:], mode="bilinear", align_corners=False)
        return x * torch.sigmoid(self.conv4(m + self.conv_f(a)))


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1_r = nn.Conv2d(WIDTH, INNER, 3, padding=1)
        self.c2_r = nn.Conv2d(INNER, INNER, 3, padding=1)
        self.c3_r = nn.Conv2d(INNER, WIDTH, 3, padding=1)
        self.c5 = nn.Conv2d(WIDTH, WIDTH, 1)
        self.esa = _Attention()

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for conv in (self.c1_r, self.c2_r, self.c3_r):
            y = F.leaky_relu(conv(y), 0.05)
        return self.esa(self.c5(y + x))


class RLFN(nn.Module):
    """The network, and an Upsampler; it works on values of 0-255."""

    scale = 4
    num_neighbours = 0
    overlap = 48  # LR px; the gate sees farther, but faintly
    smallest = 15  # px a side: stride 2 without padding, then a window of 7

    def __init__(self) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.block_1, self.block_2, self.block_3, self.block_4 = (_Block() for _ in range(4))
        self.conv_2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.upsampler = nn.Sequential(nn.Conv2d(WIDTH, 3 * 16, 3, padding=1), nn.PixelShuffle(4))

    def forward(self, x: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n 3 H W"]:
        first = self.conv_1(255 * x)
        y = first
        for block in (self.block_1, self.block_2, self.block_3, self.block_4):
            y = block(y)
        return self.upsampler(self.conv_2(y) + first) / 255

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """Six feature maps at a time, and the output."""
        return 4 * h * w * (6 * INNER + 3 * 16 * 3)

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See registry.Upsampler. Images below 15 px a side are extended by their edge and cut again."""
        h, w = frames.shape[-2:]
        extra = (0, max(self.smallest - w, 0), 0, max(self.smallest - h, 0))
        for frame in frames:
            yield self(F.pad(frame[None], extra, mode="replicate"))[0, :, : 4 * h, : 4 * w]


@network("rlfn", "rlfn_x4")
def load_rlfn(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    return filled(RLFN, state, device, "rlfn")
