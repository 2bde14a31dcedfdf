"""BasicVSR x4 (Chan et al., CVPR 2021): features run backward, then forward through a clip, aligned by learned flow.

Shapes: T frames [3, h, w] in, features [1, 64, h, w] kept per frame between the two passes, frames [3, 4h, 4w] out.
Key names are BasicSR's; OpenMMLab's are mapped (`from_openmmlab`).
"""

import re
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment, along_path
from upsampling.precision import precision
from upsampling.registry import State, Upsampler, filled, network
from upsampling.spynet import MULTIPLE, SPyNet, warp

CHANNELS, BLOCKS = 64, 30
FLOW_BATCH = 4  # pairs that share a pass through SPyNet: coarse levels alone cannot fill the vector units
TAIL_PIXELS = 8192  # LR pixels that pass the x4 tail at a time: its maps are 16 times the trunk's
TAIL_HALO = 2  # LR rows that reach into the tail's output: two 3x3 at x4, one at x2, one at x1


class _ResidualBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.conv1(x).relu_()).add_(x)


class _Trunk(nn.Module):
    """[image, feature] -> feature."""

    def __init__(self) -> None:
        super().__init__()
        body = nn.Sequential(*(_ResidualBlock() for _ in range(BLOCKS)))
        self.main = nn.Sequential(nn.Conv2d(3 + CHANNELS, CHANNELS, 3, padding=1), nn.LeakyReLU(0.1, True), body)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


class BasicVSR(nn.Module):
    """The network, and an Upsampler; 6 291 311 parameters, 316 tensors.

    Notes
    -----
    `upsample` is a generator: the backward pass runs at the first frame asked for, then each frame is finished, handed
    out, and its backward feature freed. Convolutions run in the weights' dtype; flows, warps, and the sum with the
    bilinear skip stay in float32.
    """

    scale = 4
    # What lies beyond fades slowly: a clip cut 2, 4, 6, 8 frames away gives a frame of the Vid4 calendar crop that
    # agrees with the whole clip's to 31, 34, 38, 41 dB.
    num_neighbours = 12
    overlap = 32  # LR px; the trunks see 61, but faintly

    def __init__(self) -> None:
        super().__init__()
        self.spynet = SPyNet()
        self.backward_trunk = _Trunk()
        self.forward_trunk = _Trunk()
        self.fusion = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)
        self.upconv1 = nn.Conv2d(CHANNELS, 4 * CHANNELS, 3, padding=1)
        self.upconv2 = nn.Conv2d(CHANNELS, 4 * CHANNELS, 3, padding=1)
        self.conv_hr = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)
        self.conv_last = nn.Conv2d(CHANNELS, 3, 3, padding=1)

    def in_precision(self, dtype: torch.dtype) -> "BasicVSR":
        """Convolutions in `dtype` with the channels innermost, the layout in which processors do them fastest."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                module.to(dtype)
                module.weight.data = module.weight.data.contiguous(memory_format=torch.channels_last)
        return self

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """What a clip needs: features of all frames, and the largest of trunk, flow and tail (checked by a test)."""
        size = self.fusion.weight.element_size()
        padded = (h + MULTIPLE) * (w + MULTIPLE)
        per_frame = h * w * (12 + CHANNELS * size) + 16 * padded
        trunk = h * w * CHANNELS * (6 * size + 8)
        flow = FLOW_BATCH * padded * (104 * size + 40)
        tail = min(h * w, TAIL_PIXELS + 4 * w) * 16 * CHANNELS * 4 * size + 2 * 16 * 12 * h * w
        return t * per_frame + max(trunk, flow, tail)

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """Upsample a clip.

        Parameters
        ----------
        frames : [T, 3, h, w], float32, RGB in [0, 1], any h, w >= 1, T >= 1.
        alignment : who hands features to whom; None = along the clip.

        Returns
        -------
        Iterator of T frames [3, 4h, 4w], float32, not clamped.
        """
        alignment = alignment or along_path(len(frames))
        pyramid = self.spynet.pyramid(frames)
        backward = list(self._propagate(self.backward_trunk, frames, pyramid, alignment.backward, reverse=True))
        forward = self._propagate(self.forward_trunk, frames, pyramid, alignment.forward, reverse=False)
        for frame, feature in zip(frames, forward, strict=True):
            fused = F.leaky_relu_(self.fusion(torch.cat([backward.pop(), feature], dim=1)), 0.1)
            yield self._tail(fused, frame[None])[0]

    def _propagate(
        self, trunk: nn.Module, frames: Tensor, pyramid: list[Tensor], sources: Sequence[int | None], reverse: bool
    ) -> Iterator[Tensor]:
        """Features of all frames in visiting order; one is kept only while a later frame still needs it."""
        order = range(len(frames) - 1, -1, -1) if reverse else range(len(frames))
        last_use = {s: i for i in order if (s := sources[i]) is not None}
        flows = self._flows(pyramid, [(i, s) for i in order if (s := sources[i]) is not None], frames.shape[-2:])
        kept: dict[int, Tensor] = {}
        for i in order:
            source = sources[i]
            if source is None:
                arrived = self._like_feature(frames[i])
            else:
                arrived = warp(kept.pop(source) if last_use[source] == i else kept[source], next(flows))
            x = torch.cat([frames[i][None].to(arrived.dtype), arrived], dim=1)  # [1, 3 + 64, h, w]
            feature = trunk(x.contiguous(memory_format=torch.channels_last))
            if i in last_use:
                kept[i] = feature
            yield feature

    def _like_feature(self, frame: Tensor) -> Tensor:
        return frame.new_zeros(1, CHANNELS, *frame.shape[-2:], dtype=self.fusion.weight.dtype)

    def _flows(self, pyramid: list[Tensor], pairs: list[tuple[int, int]], size: Sequence[int]) -> Iterator[Tensor]:
        """Flow of each (ref, support) pair, [1, 2, h, w], computed a few pairs ahead."""
        for start in range(0, len(pairs), FLOW_BATCH):
            refs, supports = map(list, zip(*pairs[start : start + FLOW_BATCH], strict=True))
            flows = self.spynet([x[refs] for x in pyramid], [x[supports] for x in pyramid], (size[0], size[1]))
            yield from flows.split(1)

    def _tail(self, feature: Tensor, frame: Tensor) -> Tensor:
        """Feature [1, 64, h, w] -> frame [1, 3, 4h, 4w]: two pixel shuffles, then the bilinear skip; strip by strip."""
        h, w = feature.shape[-2:]
        rows = max(TAIL_PIXELS // w, 8)
        out = F.interpolate(frame, scale_factor=4, mode="bilinear", align_corners=False)
        for top in range(0, h, rows):
            bottom = min(top + rows, h)
            first, last = max(top - TAIL_HALO, 0), min(bottom + TAIL_HALO, h)
            x = feature[:, :, first:last]
            for conv in (self.upconv1, self.upconv2):
                x = F.leaky_relu_(F.pixel_shuffle(conv(x), 2), 0.1)
            x = self.conv_last(F.leaky_relu_(self.conv_hr(x), 0.1))
            out[:, :, 4 * top : 4 * bottom] += x[:, :, 4 * (top - first) : 4 * (bottom - first)]
        return out


_FROM_OPENMMLAB = (
    (re.compile(r"^(backward|forward)_resblocks\."), r"\1_trunk."),
    (re.compile(r"^upsample([12])\.upsample_conv\."), r"upconv\1."),
)
_SPYNET_LAYER = re.compile(r"^(spynet\.basic_module\.\d\.basic_module\.)(\d)\.conv\.")


def from_openmmlab(state: State) -> State:
    """A state dict in BasicSR's key names; one that already is comes back unchanged."""
    if not any(key.startswith("backward_resblocks.") for key in state):
        return state
    renamed = {}
    for key, value in state.items():
        new = _SPYNET_LAYER.sub(lambda m: f"{m[1]}{2 * int(m[2])}.", key)
        for pattern, name in _FROM_OPENMMLAB:
            new = pattern.sub(name, new)
        renamed[new] = value
    return renamed


@network("basicvsr", "basicvsr_vimeo_bi")
def load_basicvsr(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    net = filled(BasicVSR, from_openmmlab(state) if state else None, device, "basicvsr")
    return net.in_precision(precision(settings.precision, device))
