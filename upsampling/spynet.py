"""SPyNet: optical flow from coarse to fine (Ranjan and Black, CVPR 2017), in the variant inside video SR networks.

Letters: `ref` is the frame that gets features, `support` the frame they come from; a flow [n, 2, h, w] in pixels,
channel 0 = x (right), 1 = y (down), says where in `support` each pixel of `ref` is found.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upsampling.precision import laid_out

LEVELS = 6
MULTIPLE = 32  # 2 ** (LEVELS - 1): the coarsest level must keep whole pixels
FLOW_BATCH = 4  # pairs that share a pass: coarse levels alone cannot fill the vector units


def warp(
    x: Float[Tensor, "n c h w"], flow: Float[Tensor, "n 2 h w"], padding: str = "zeros", mode: str = "bilinear"
) -> Float[Tensor, "n c h w"]:
    """Sample `x` at every pixel plus its flow, in float32.

    Parameters
    ----------
    flow : pixels of this level.
    padding : what lies outside: "zeros" (features) or "border" (frames inside SPyNet).
    mode : "bilinear" or "nearest".
    """
    h, w = x.shape[-2:]
    rows = torch.arange(h, device=x.device, dtype=torch.float32).view(1, h, 1)
    cols = torch.arange(w, device=x.device, dtype=torch.float32).view(1, 1, w)
    flow = flow.float()
    grid = torch.stack(
        ((flow[:, 0] + cols) * (2 / max(w - 1, 1)) - 1, (flow[:, 1] + rows) * (2 / max(h - 1, 1)) - 1), dim=-1
    )  # [n, h, w, 2]
    return F.grid_sample(x.float(), grid, mode=mode, padding_mode=padding, align_corners=True).to(x.dtype)


class _Level(nn.Module):
    """Residual flow of one level from [ref, warped support, upsampled flow]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        widths = (8, 32, 64, 32, 16, 2)
        for i in range(5):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 7, padding=3), nn.ReLU(inplace=True)]
        self.basic_module = nn.Sequential(*layers[:-1])

    def forward(self, x: Tensor) -> Tensor:
        return self.basic_module(x)


class SPyNet(nn.Module):
    """Six-level flow network; 1 440 300 parameters. Its key names are those of the published checkpoints."""

    mean: Tensor
    std: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.basic_module = nn.ModuleList(_Level() for _ in range(LEVELS))
        self.register_buffer("mean", torch.zeros(1, 3, 1, 1))
        self.register_buffer("std", torch.ones(1, 3, 1, 1))

    def pyramid(self, frames: Float[Tensor, "n 3 h w"]) -> list[Tensor]:
        """Normalised frames, coarsest level first; each frame's is built once and serves all its flows."""
        h, w = (-(-s // MULTIPLE) * MULTIPLE for s in frames.shape[-2:])
        x = F.interpolate(frames, size=(h, w), mode="bilinear", align_corners=False)
        levels = [(x - self.mean) / self.std]
        for _ in range(LEVELS - 1):
            levels.append(F.avg_pool2d(levels[-1], 2))
        return levels[::-1]

    def forward(self, ref: list[Tensor], support: list[Tensor], size: tuple[int, int]) -> Float[Tensor, "n 2 h w"]:
        """Flow from pyramids of `ref` and `support` (equal shapes), at `size` = (h, w) of the frames."""
        n, _, h, w = ref[0].shape
        up = ref[0].new_zeros(n, 2, h, w)
        dtype = next(self.basic_module.parameters()).dtype
        for level, net in enumerate(self.basic_module):
            if level:
                up = 2 * F.interpolate(up, scale_factor=2, mode="bilinear", align_corners=True)
            x = torch.cat([ref[level], warp(support[level], up, "border"), up], dim=1)
            up = up + net(laid_out(x.to(dtype))).float()
        h, w = up.shape[-2:]
        flow = F.interpolate(up, size=size, mode="bilinear", align_corners=False)
        return torch.stack((flow[:, 0] * (size[1] / w), flow[:, 1] * (size[0] / h)), dim=1)

    def flows(
        self, pyramid: list[Tensor], pairs: Sequence[tuple[int, int]], size: Sequence[int]
    ) -> Iterator[Float[Tensor, "1 2 h w"]]:
        """Flow of each (ref, support) pair of frames in `pyramid`, at `size` = (h, w), computed a few pairs ahead."""
        for start in range(0, len(pairs), FLOW_BATCH):
            # Stacked, not indexed by a list: that would wait for a GPU to take the indices.
            ref, support = (
                [torch.stack([x[i] for i in frames]) for x in pyramid]
                for frames in zip(*pairs[start : start + FLOW_BATCH], strict=True)
            )
            flows = self(ref, support, (size[0], size[1]))
            yield from flows.split(1)


def flow_bytes(h: int, w: int, element: int) -> int:
    """Memory of a pass over FLOW_BATCH pairs with weights of `element` bytes."""
    return FLOW_BATCH * padded_pixels(h, w) * (104 * element + 40)


def padded_pixels(h: int, w: int) -> int:
    """Pixels of a frame once its sides are multiples of 32, at most."""
    return (h + MULTIPLE) * (w + MULTIPLE)
