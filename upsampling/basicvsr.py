"""BasicVSR x4 (Chan et al., CVPR 2021): features run backward, then forward through a clip, aligned by learned flow.

Shapes: T frames [3, h, w] in, features [1, 64, h, w] kept per frame between the two passes, frames [3, 4h, 4w] out.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment, Graph, along_path
from upsampling.features import Features
from upsampling.precision import laid_out, precision
from upsampling.registry import State, Upsampler, filled, network
from upsampling.spynet import flow_bytes, padded_pixels
from upsampling.video_network import CHANNELS, Step, Trunk, VideoNetwork, from_openmmlab

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

    def graph_bytes(self, t: int, h: int, w: int, in_file: bool, learned: bool) -> int:
        """What a clip needs in a graph: its frames, features of both directions unless they wait in a file, and a step.

        A learned flow adds the frames' pyramids and its own network; a known one is made as it is asked for.
        A step holds two features in float32 and three warps of one; features in a file pass through memory one by one.
        """
        size = self.dtype.itemsize
        kept = h * w * 2 * CHANNELS * size
        trunk = h * w * CHANNELS * (6 * size + 8)
        blend = h * w * CHANNELS * (3 * size + 16)
        pyramid, flow = (16 * padded_pixels(h, w), flow_bytes(h, w, size)) if learned else (0, 0)
        step = max(trunk + blend, flow, self.tail_bytes(h, w)) + 2 * kept
        return t * (12 * h * w + (0 if in_file else kept) + pyramid) + step

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | Graph | None = None
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
        step_back, step_forth = (self._step(trunk, frames) for trunk in (self.backward_trunk, self.forward_trunk))
        visits = alignment.visits(reverse=False)
        finished = {visit.frame: n for n, visit in enumerate(visits)}
        with Features(alignment.folder) as backward, Features(alignment.folder) as kept:
            for _ in self._propagate(step_back, frames, alignment, backward, reverse=True):
                pass
            forward = self._propagate(step_forth, frames, alignment, kept, reverse=False)
            for n, (visit, feature) in enumerate(zip(visits, forward, strict=True)):
                if finished[visit.frame] == n:
                    fused = self.fusion(laid_out(torch.cat([backward.pop(visit.frame), feature], dim=1)))
                    yield self._tail(F.leaky_relu_(fused, 0.1), frames[visit.frame][None])[0]

    def _step(self, trunk: nn.Module, frames: Tensor) -> Step:
        return lambda i, arrived: trunk(torch.cat([frames[i][None].to(self.dtype), arrived], dim=1))  # 3 + 64 in


@network("basicvsr", "basicvsr_vimeo_bi")
def load_basicvsr(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    net = filled(BasicVSR, from_openmmlab(state) if state else None, device, "basicvsr")
    return net.in_precision(precision(settings.precision, device))
