"""BasicVSR++ x4 (Chan et al., CVPR 2022): four passes over a clip, features aligned by flow and learned offsets.

Shapes: T frames [3, h, w] in, features [1, 64, h, w] of five kinds kept per frame, frames [3, 4h, 4w] out.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment, along_path
from upsampling.deformable import DeformableAlignment, alignment_bytes
from upsampling.precision import precision
from upsampling.propagation import BRANCHES, Arrival, Flows, all_flows, propagate, sources_of
from upsampling.registry import State, Upsampler, filled, network
from upsampling.spynet import flow_bytes, padded_pixels, warp
from upsampling.video_network import CHANNELS, Trunk, VideoNetwork, from_openmmlab

BLOCKS, OUTER_BLOCKS = 7, 5


class BasicVSRpp(VideoNetwork):
    """The network, and an Upsampler; 7 322 927 parameters, 274 tensors.

    Notes
    -----
    Every branch reads what the branches before it made of the frame. The last one finishes frame after frame, each
    handed out, and its features freed, before the next is begun. Convolutions run in the weights' dtype; flows,
    positions, sampling and the sum with the bilinear skip in float32.
    """

    # Both as for BasicVSR; how far BasicVSR++ sees was not measured, its weights being in no package registry.
    num_neighbours = 12
    overlap = 32  # LR px
    visits = len(BRANCHES)

    def __init__(self) -> None:
        super().__init__()
        self.feat_extract = Trunk(3, OUTER_BLOCKS)
        self.deform_align = nn.ModuleDict({name: DeformableAlignment(CHANNELS) for name in BRANCHES})
        self.backbone = nn.ModuleDict({name: Trunk((2 + k) * CHANNELS, BLOCKS) for k, name in enumerate(BRANCHES)})
        self.reconstruction = Trunk((1 + len(BRANCHES)) * CHANNELS, OUTER_BLOCKS)

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """What a clip needs: four features of all frames, flows, and the largest of branch, flow and tail."""
        size, feature = self.dtype.itemsize, h * w * CHANNELS * self.dtype.itemsize
        per_frame = h * w * (12 + 2 * 8) + len(BRANCHES) * feature
        align = alignment_bytes(h, w, CHANNELS, size, self.conv_last.weight.is_cuda)
        branch = 10 * feature + max(align, 12 * feature)
        flow = t * 16 * padded_pixels(h, w) + flow_bytes(h, w, size)  # the pyramid goes before features come
        return t * per_frame + max(branch, flow, self.tail_bytes(h, w))

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See BasicVSR.upsample."""
        alignment = alignment or along_path(len(frames))
        flows = all_flows(self.spynet, frames, alignment)
        made = [[self.feat_extract(frame[None].to(self.dtype))] for frame in frames]  # per frame, by branch
        for name in BRANCHES[:-1]:
            for i, feature in self._branch(name, made, flows[name], alignment):
                made[i].append(feature)
        for i, feature in self._branch(BRANCHES[-1], made, flows[BRANCHES[-1]], alignment):
            x = self.reconstruction(torch.cat([*made[i], feature], dim=1))
            made[i].clear()
            yield self._tail(x, frames[i][None])[0]

    def _branch(
        self, name: str, made: list[list[Tensor]], flows: Flows, alignment: Alignment
    ) -> Iterator[tuple[int, Tensor]]:
        def advance(i: int, first: Arrival | None, second: Arrival | None) -> Tensor:
            current = made[i][0]
            feature = torch.zeros_like(current) if first is None else self._aligned(name, current, first, second)
            return feature + self.backbone[name](torch.cat([*made[i], feature], dim=1))

        return propagate(sources_of(name, alignment), flows, advance, alignment.tick)

    def _aligned(self, name: str, current: Tensor, first: Arrival, second: Arrival | None) -> Tensor:
        """What arrives, aligned to `current` [1, 64, h, w]; zeros stand for a second arrival that there is not."""
        second = second or Arrival(torch.zeros_like(current), torch.zeros_like(first.flow))
        arrivals = (first, second)
        warped = [warp(a.feature, a.flow) for a in arrivals]
        condition = torch.cat([warped[0], current, warped[1]], dim=1)  # [1, 192, h, w]
        x, flows = (torch.cat(parts, dim=1) for parts in zip(*((a.feature, a.flow) for a in arrivals), strict=True))
        return self.deform_align[name](x, condition, flows)


@network("basicvsr_pp", "basicvsr_pp_vimeo_bi")
def load_basicvsr_pp(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    net = filled(BasicVSRpp, from_openmmlab(state) if state else None, device, "basicvsr_pp")
    return net.in_precision(precision(settings.precision, device))
