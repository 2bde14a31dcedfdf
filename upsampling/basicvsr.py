"""BasicVSR x4 (Chan et al., CVPR 2021): features run backward, then forward through a clip, aligned by learned flow.

Shapes: T frames [3, h, w] in, features [1, 64, h, w] kept per frame between the two passes, frames [3, 4h, 4w] out.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment, along_path
from upsampling.precision import laid_out, precision
from upsampling.registry import State, Upsampler, filled, network
from upsampling.spynet import flow_bytes, padded_pixels, warp
from upsampling.video_network import CHANNELS, Trunk, VideoNetwork, from_openmmlab

BLOCKS = 30


class BasicVSR(VideoNetwork):
    """The network, and an Upsampler; 6 291 311 parameters, 316 tensors.

    Notes
    -----
    `upsample` is a generator: the backward pass runs at the first frame asked for, then each frame is finished, handed
    out, and its backward feature freed. Convolutions run in the weights' dtype; flows, warps, and the sum with the
    bilinear skip stay in float32.
    """

    # What lies beyond fades slowly: a clip cut 2, 4, 6, 8 frames away gives a frame of the Vid4 calendar crop that
    # agrees with the whole clip's to 31, 34, 38, 41 dB.
    num_neighbours = 12
    overlap = 32  # LR px; the trunks see 61, but faintly

    def __init__(self) -> None:
        super().__init__()
        self.backward_trunk = Trunk(3 + CHANNELS, BLOCKS)
        self.forward_trunk = Trunk(3 + CHANNELS, BLOCKS)
        self.fusion = nn.Conv2d(2 * CHANNELS, CHANNELS, 1)

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """What a clip needs: features of all frames, and the largest of trunk, flow and tail (checked by a test)."""
        size = self.dtype.itemsize
        per_frame = h * w * (12 + CHANNELS * size) + 16 * padded_pixels(h, w)
        trunk = h * w * CHANNELS * (6 * size + 8)
        return t * per_frame + max(trunk, flow_bytes(h, w, size), self.tail_bytes(h, w))

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
            fused = self.fusion(laid_out(torch.cat([backward.pop(), feature], dim=1)))
            yield self._tail(F.leaky_relu_(fused, 0.1), frame[None])[0]

    def _propagate(
        self, trunk: nn.Module, frames: Tensor, pyramid: list[Tensor], sources: Sequence[int | None], reverse: bool
    ) -> Iterator[Tensor]:
        """Features of all frames in visiting order; one is kept only while a later frame still needs it."""
        order = range(len(frames) - 1, -1, -1) if reverse else range(len(frames))
        last_use = {s: i for i in order if (s := sources[i]) is not None}
        pairs = [(i, s) for i in order if (s := sources[i]) is not None]
        flows = self.spynet.flows(pyramid, pairs, frames.shape[-2:])
        kept: dict[int, Tensor] = {}
        for i in order:
            source = sources[i]
            if source is None:
                arrived = frames.new_zeros(1, CHANNELS, *frames.shape[-2:], dtype=self.dtype)
            else:
                arrived = warp(kept.pop(source) if last_use[source] == i else kept[source], next(flows))
            feature = trunk(torch.cat([frames[i][None].to(self.dtype), arrived], dim=1))  # [1, 3 + 64, h, w] in
            if i in last_use:
                kept[i] = feature
            yield feature


@network("basicvsr", "basicvsr_vimeo_bi")
def load_basicvsr(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    net = filled(BasicVSR, from_openmmlab(state) if state else None, device, "basicvsr")
    return net.in_precision(precision(settings.precision, device))
