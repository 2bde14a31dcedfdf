"""Modulated deformable convolution (Zhu et al., CVPR 2019) on every device, and the alignment BasicVSR++ makes of it.

Letters: G groups of input channels with positions of their own; 9 taps, row by row; per group and tap an offset
(dy, dx) in pixels and a weight (mask) in 0-1. Positions and sampling are float32; only the matrix product is not.
"""

import warnings
from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upsampling.precision import laid_out

TAPS = 9
GROUPS = 16
LARGEST_OFFSET = 10.0  # px beyond the flow
# Pixels sampled at a time: each takes 5 kB. More on a GPU, to keep it busy.
STRIP_PIXELS = {"cpu": 16384, "cuda": 32768}

Positions = tuple[Tensor, Tensor]  # offsets and masks as `deform_conv` takes them


def deform_conv(
    x: Float[Tensor, "1 c h w"],
    offset: Float[Tensor, "1 o r w"],
    mask: Float[Tensor, "1 m r w"],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, " d"],
    top: int = 0,
) -> Float[Tensor, "1 d r w"]:
    """Rows top..top+r-1 of a deformable 3x3 convolution, zeros outside the image.

    Parameters
    ----------
    offset : [1, G * 9 * 2, r, w], float32, px: group, tap, then (dy, dx).
    mask : [1, G * 9, r, w], float32.
    weight, bias : their dtype is that of the matrix product and of the result.
    """
    _, c, h, w = x.shape
    rows, groups = offset.shape[2], mask.shape[1] // TAPS
    step = torch.arange(-1, 2, device=x.device, dtype=torch.float32)
    tap_y, tap_x = step.repeat_interleave(3).view(TAPS, 1, 1), step.repeat(3).view(TAPS, 1, 1)
    at_y = torch.arange(top, top + rows, device=x.device, dtype=torch.float32).view(rows, 1)
    at_x = torch.arange(w, device=x.device, dtype=torch.float32)
    offset = offset.view(groups, TAPS, 2, rows, w)
    y, x_ = offset[:, :, 0] + (at_y + tap_y), offset[:, :, 1] + (at_x + tap_x)  # [G, 9, r, w]
    # Pixel centres at (2 k + 1) / n - 1: right also where a side is 1 px, which leaves align_corners no scale.
    grid = torch.stack(((2 * x_ + 1) / w - 1, (2 * y + 1) / h - 1), dim=-1).view(groups, TAPS * rows, w, 2)
    images = x.float().reshape(groups, c // groups, h, w)
    sampled = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    sampled = sampled.view(groups, c // groups, TAPS, rows * w).mul_(mask.view(groups, 1, TAPS, rows * w))
    product = weight.reshape(-1, c * TAPS) @ sampled.view(c * TAPS, rows * w).to(weight.dtype)  # [d, r * w]
    return product.add_(bias[:, None]).view(1, -1, rows, w)


@lru_cache(maxsize=1)
def torchvision_operator() -> Callable[..., Tensor] | None:
    """torchvision's compiled `deform_conv2d`, or None where that package is absent or does not fit this torch."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns about image decoders that nobody asked for
            from torchvision.ops import deform_conv2d
    except (ImportError, RuntimeError, OSError):
        return None
    return deform_conv2d


def deformed(
    x: Float[Tensor, "1 c h w"],
    positions: Callable[[slice], Positions],
    weight: Float[Tensor, "d c 3 3"],
    bias: Float[Tensor, " d"],
) -> Float[Tensor, "1 d h w"]:
    """A whole deformable 3x3 convolution: by torchvision's operator on a GPU that has it, else strip by strip.

    Parameters
    ----------
    positions : gives offsets and masks of the rows asked for; made as they are needed, since they outgrow the image.
    """
    operator = torchvision_operator() if x.is_cuda else None
    if operator is not None:
        offset, mask = positions(slice(None))
        return operator(x.float().contiguous(), offset, weight.float(), bias.float(), padding=1, mask=mask).to(x.dtype)
    h, w = x.shape[-2:]
    rows = max(STRIP_PIXELS[x.device.type] // w, 1)
    out = x.new_empty(1, len(weight), h, w)
    for top in range(0, h, rows):
        strip = slice(top, top + rows)
        out[:, :, strip] = deform_conv(x, *positions(strip), weight, bias, top)
    return out


class DeformableAlignment(nn.Module):
    """Gather the features of two earlier frames where the flow, corrected by a learned offset, finds them."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels
        self.weight = nn.Parameter(0.02 * torch.randn(channels, 2 * channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        widths = (3 * channels + 4, channels, channels, channels, 3 * GROUPS * TAPS)
        layers: list[nn.Module] = []
        for i in range(4):
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, padding=1), nn.LeakyReLU(0.1, True)]
        self.conv_offset = nn.Sequential(*layers[:-1])

    def forward(
        self, x: Float[Tensor, "1 c2 h w"], condition: Float[Tensor, "1 c3 h w"], flows: Float[Tensor, "1 4 h w"]
    ) -> Float[Tensor, "1 c h w"]:
        """Align.

        Parameters
        ----------
        x : features of the two frames, side by side.
        condition : both warped by their flows, with the frame's own feature between them.
        flows : to the first (x, y), to the second (x, y), px, float32.
        """
        raw = self.conv_offset(laid_out(torch.cat([condition, flows.to(condition.dtype)], dim=1)))

        def positions(rows: slice) -> Positions:
            return self._positions(raw[:, :, rows], flows[:, :, rows])

        return deformed(x, positions, self.weight, self.bias)

    def _positions(self, raw: Tensor, flows: Tensor) -> Positions:
        """Offsets (dy, dx) and masks, float32: the first half of the groups follow the first flow."""
        offset, mask = raw.float().split([2 * GROUPS * TAPS, GROUPS * TAPS], dim=1)
        offset = LARGEST_OFFSET * torch.tanh(offset)
        half = GROUPS * TAPS
        offset[:, :half] += flows[:, :2].flip(1).repeat(1, half // 2, 1, 1)
        offset[:, half:] += flows[:, 2:].flip(1).repeat(1, half // 2, 1, 1)
        return offset.contiguous(), torch.sigmoid(mask)


def sampling_bytes(h: int, w: int, channels: int, groups: int, element: int, cuda: bool) -> int:
    """Memory of one `deformed` of `channels` inputs beyond its input, with weights of `element` bytes."""
    image = h * w * channels * 4
    sampled = channels * TAPS * (4 + 4 + element) + groups * TAPS * 4 * 10
    if cuda and torchvision_operator() is not None:
        return image + h * w * sampled
    return image + min(h * w, STRIP_PIXELS["cuda" if cuda else "cpu"] + w) * sampled


def alignment_bytes(h: int, w: int, channels: int, element: int, cuda: bool) -> int:
    """Memory of one `DeformableAlignment` beyond its inputs, with weights of `element` bytes."""
    fields = h * w * ((3 * channels + 4) + 2 * channels + 3 * GROUPS * TAPS) * element
    return fields + sampling_bytes(h, w, 2 * channels, GROUPS, element, cuda)
