"""What the recurrent networks share: residual blocks, flow, the x4 tail, precision, and names of their checkpoints.

BasicVSR, BasicVSR++ and PSRT all end in two pixel shuffles to x4 and add the bilinearly enlarged frame. Key names are
BasicSR's; OpenMMLab's are mapped (`from_openmmlab`).
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from upsampling.alignment import Alignment, Graph, Visit, blended, flows, handed, pairs_of
from upsampling.features import Features
from upsampling.geometry import Flow
from upsampling.precision import laid_out, layout
from upsampling.registry import State
from upsampling.spynet import SPyNet

CHANNELS = 64
# LR pixels that pass the x4 tail at a time: its maps are 16 times the trunk's. More on a GPU, to keep it busy.
TAIL_PIXELS = {"cpu": 8192, "cuda": 32768}
TAIL_HALO = 2  # LR rows that reach into the tail's output: two 3x3 at x4, one at x2, one at x1

# (frame, what arrives at it) -> its feature, both [1, 64, h, w]
Step = Callable[[int, Tensor], Tensor]


class ResidualBlock(nn.Module):
    """x + conv(relu(conv(x))), 64 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu_()).add_(x)


class Trunk(nn.Module):
    """A convolution from `inputs` to 64 channels, then `blocks` residual blocks."""

    def __init__(self, inputs: int, blocks: int) -> None:
        super().__init__()
        body = nn.Sequential(*(ResidualBlock() for _ in range(blocks)))
        self.main = nn.Sequential(nn.Conv2d(inputs, CHANNELS, 3, padding=1), nn.LeakyReLU(0.1, True), body)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(laid_out(x))


class VideoNetwork(nn.Module):
    """Flow network and x4 tail under the names that checkpoints have; features are made by the networks themselves."""

    scale = 4
    num_neighbours = 12
    overlap = 32  # LR px
    visits = 2  # of each frame along a path

    def __init__(self) -> None:
        super().__init__()
        self.spynet = SPyNet()
        self.upconv1 = nn.Conv2d(CHANNELS, 4 * CHANNELS, 3, padding=1)
        self.upconv2 = nn.Conv2d(CHANNELS, 4 * CHANNELS, 3, padding=1)
        self.conv_hr = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    @property
    def dtype(self) -> torch.dtype:
        """What convolutions and features are kept in."""
        return self.conv_hr.weight.dtype

    def in_precision(self, dtype: torch.dtype) -> "VideoNetwork":
        """All but LayerNorms in `dtype`, convolutions in the layout in which the device does them fastest."""
        for module in self.modules():
            if not isinstance(module, nn.LayerNorm):
                for parameter in module.parameters(recurse=False):
                    parameter.data = parameter.data.to(dtype)
            if isinstance(module, nn.Conv2d):
                weight = module.weight
                weight.data = weight.data.contiguous(memory_format=layout(weight.device, dtype))
        return self

    def _propagate(
        self, step: Step, frames: Tensor, alignment: Alignment | Graph, kept: Features, reverse: bool
    ) -> Iterator[Tensor]:
        """The feature made at each visit. The backward pass leaves the last of every frame in `kept`; the forward pass
        keeps one only while a later visit still needs it."""
        visits = alignment.visits(reverse)
        last_use = {s: n for n, visit in enumerate(visits) for s in visit.sources}
        known = flows(self.spynet, frames, pairs_of(visits), alignment.flow_of)
        for n, visit in enumerate(visits):
            feature = step(visit.frame, self._arrived(visit, frames, kept, known))
            if reverse or last_use.get(visit.frame, -1) > n:
                kept[visit.frame] = feature
            alignment.tick()
            yield feature
            for used in [] if reverse else [s for s in visit.sources if last_use[s] == n]:
                del kept[used]

    def _arrived(self, visit: Visit, frames: Tensor, kept: Features, known: Iterator[Flow]) -> Tensor:
        """[1, 64, h, w]: what the sources of a visit hand to it."""
        if not visit.sources:
            return frames.new_zeros(1, CHANNELS, *frames.shape[-2:], dtype=self.dtype)
        if not visit.factors:
            return handed(kept[visit.sources[0]], next(known))
        features, known = (kept[s] for s in visit.sources), islice(known, len(visit.sources))
        return blended(features, known, visit.factors).to(self.dtype)

    def tail_bytes(self, h: int, w: int) -> int:
        """Memory that `_tail` needs for a frame of h x w LR px, with the one before it, still on its way out."""
        strip = min(h * w, self._tail_pixels() + 4 * w)
        return strip * 16 * CHANNELS * 4 * self.dtype.itemsize + 4 * 16 * 12 * h * w

    def _tail_pixels(self) -> int:
        return TAIL_PIXELS[self.conv_hr.weight.device.type]

    def _tail(self, feature: Tensor, frame: Tensor) -> Tensor:
        """Feature [1, 64, h, w] -> frame [1, 3, 4h, 4w]: two pixel shuffles, then the bilinear skip; strip by strip."""
        h, w = feature.shape[-2:]
        rows = max(self._tail_pixels() // w, 8)
        out = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
        for top in range(0, h, rows):
            bottom = min(top + rows, h)
            first, last = max(top - TAIL_HALO, 0), min(bottom + TAIL_HALO, h)
            x = feature[:, :, first:last]
            for conv in (self.upconv1, self.upconv2):
                x = F.leaky_relu_(F.pixel_shuffle(conv(laid_out(x)), 2), 0.1)
            x = self.conv_last(F.leaky_relu_(self.conv_hr(laid_out(x)), 0.1))
            out[:, :, 4 * top : 4 * bottom] += x[:, :, 4 * (top - first) : 4 * (bottom - first)]
        return out


_FROM_OPENMMLAB = (
    (re.compile(r"^(backward|forward)_resblocks\."), r"\1_trunk."),
    (re.compile(r"^upsample([12])\.upsample_conv\."), r"upconv\1."),
    (re.compile(r"^edvr\.feat_l([23])_conv([12])\.conv\."), r"edvr.conv_l\1_\2."),
    (re.compile(r"^edvr\.pcd_alignment\."), "edvr.pcd_align."),
    (re.compile(r"^(edvr\.(?:pcd_align|fusion)\..*)\.conv\."), r"\1."),
)
_SPYNET_LAYER = re.compile(r"^(spynet\.basic_module\.\d\.basic_module\.)(\d)\.conv\.")


def from_openmmlab(state: State) -> State:
    """A state dict in BasicSR's key names; one that already is comes back unchanged."""
    if not any(_SPYNET_LAYER.match(key) for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        new = _SPYNET_LAYER.sub(lambda m: f"{m[1]}{2 * int(m[2])}.", key)
        for pattern, name in _FROM_OPENMMLAB:
            new = pattern.sub(name, new)
        renamed[new] = value
    return renamed
