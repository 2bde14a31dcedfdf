"""IconVSR x4 (Chan et al., CVPR 2021): BasicVSR, its passes coupled, features refilled from neighbours at keyframes.

Shapes: T frames [3, h, w] in, features [1, 64, h, w] kept per frame between the two passes, frames [3, 4h, 4w] out.
Inside, sides are extended to multiples of 4. A *keyframe*'s window holds `reach` frames on each side of it.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment, along_path
from upsampling.edvr import MULTIPLE, WindowFeatures, window_bytes
from upsampling.features import Features
from upsampling.geometry import Flow
from upsampling.precision import laid_out, precision
from upsampling.registry import State, Upsampler, filled, network
from upsampling.spynet import flow_bytes, padded_pixels
from upsampling.video_network import CHANNELS, Trunk, VideoNetwork, from_openmmlab
from utils.errors import UserError

BLOCKS = 30
STRIDE = 5  # every fifth frame is a keyframe, and the last one
REACHES = (2, 3)  # of the networks trained on REDS and on Vimeo-90K


def keyframe_windows(alignment: Alignment, reach: int) -> dict[int, tuple[int, ...]]:
    """The window of every keyframe: 2 `reach` + 1 frames, itself in the middle.

    Parameters
    ----------
    alignment : a frame's line are the frames whose features can reach it: its source, that one's source, and so on,
        in both passes. It is the whole clip, or the part between two frames that nothing passes.

    Notes
    -----
    Where the line ends inside a window, frames of its other side stand in, as in the published code, which for that
    needs 2 `reach` + 1 frames: the k-th beyond an end is the frame `reach` + k from that end. In a shorter line
    it is the one farthest from that end, so a frame alone is its own window.
    """
    windows = {}
    for i in range(len(alignment.forward)):
        earlier, later = _line(alignment.forward, i), _line(alignment.backward, i)
        if len(earlier) % STRIDE == 0 or not later:
            line = (*earlier[::-1], i, *later)
            middle, last = len(earlier), len(line) - 1
            window = []
            for k in range(middle - reach, middle + reach + 1):
                k = min(reach - k, last) if k < 0 else max(2 * last - k - reach, 0) if k > last else k
                window.append(line[k])
            windows[i] = tuple(window)
    return windows


def _line(sources: Sequence[int | None], i: int) -> list[int]:
    """The frames whose features reach frame `i` in one pass, nearest first."""
    found = []
    while (source := sources[i]) is not None:
        found.append(i := source)
    return found


class IconVSR(VideoNetwork):
    """The network, and an Upsampler; 414 tensors, 8 694 991 parameters with `reach` 2, 8 711 375 with 3.

    Notes
    -----
    Like BasicVSR, a generator. Features of windows are made in the backward pass and kept until the forward pass
    comes to their keyframe. A chunk of a longer clip begins and ends with keyframes of its own.
    """

    # Both as for BasicVSR; how far IconVSR sees was not measured, its weights being in no package registry.
    num_neighbours = 12
    overlap = 32  # LR px
    multiple = MULTIPLE  # tiles begin where pixels of the coarsest level do

    def __init__(self, reach: int) -> None:
        super().__init__()
        self.reach = reach
        self.edvr = WindowFeatures(2 * reach + 1)
        self.backward_fusion = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.backward_trunk = Trunk(3 + CHANNELS, BLOCKS)
        self.forward_fusion = nn.Conv2d(2 * CHANNELS, CHANNELS, 3, padding=1)
        self.forward_trunk = Trunk(3 + 2 * CHANNELS, BLOCKS)

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """What a clip needs: features of all frames and keyframes, and the largest of window, trunk, flow and tail."""
        size, h, w = self.dtype.itemsize, h + MULTIPLE - 1, w + MULTIPLE - 1
        feature = h * w * CHANNELS * size
        kept = t * (h * w * 12 + feature + 16 * padded_pixels(h, w)) + (t // STRIDE + 2) * feature
        window = window_bytes(2 * self.reach + 1, h, w, size, self.conv_last.weight.is_cuda)
        trunk = h * w * CHANNELS * (8 * size + 8)
        return kept + max(window, trunk, flow_bytes(h, w, size), self.tail_bytes(h, w))

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See BasicVSR.upsample. A window's frames come from the line that features travel, see `keyframe_windows`."""
        alignment = (alignment or along_path(len(frames))).mapped(mirrored_flow)
        h, w = frames.shape[-2:]
        frames = _extended(frames)
        windows = keyframe_windows(alignment, self.reach)
        refills: dict[int, Tensor] = {}
        backward = Features()

        def step_back(i: int, arrived: Tensor) -> Tensor:
            if i in windows:
                refills[i] = self.edvr(frames, windows[i])
                arrived = self._refilled(self.backward_fusion, arrived, refills[i])
            return self.backward_trunk(torch.cat([frames[i][None].to(self.dtype), arrived], dim=1))

        def step_forth(i: int, arrived: Tensor) -> Tensor:
            if i in windows:
                arrived = self._refilled(self.forward_fusion, arrived, refills.pop(i))
            return self.forward_trunk(torch.cat([frames[i][None].to(self.dtype), backward.pop(i), arrived], dim=1))

        for _ in self._propagate(step_back, frames, alignment, backward, reverse=True):
            pass
        forward = self._propagate(step_forth, frames, alignment, Features(), reverse=False)
        for frame, feature in zip(frames, forward, strict=True):
            yield self._tail(feature, frame[None])[0, :, : 4 * h, : 4 * w]

    def _refilled(self, fusion: nn.Module, arrived: Tensor, refill: Tensor) -> Tensor:
        return fusion(laid_out(torch.cat([arrived, refill], dim=1)))


def _extended(x: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c h4 w4"]:
    """Mirrored beyond the right and lower edge to multiples of 4 px; the edge repeated where a side is 1 or 2 px."""
    h, w = x.shape[-2:]
    right, below = -w % MULTIPLE, -h % MULTIPLE
    return F.pad(x, (0, right, 0, below), mode="reflect" if right < w and below < h else "replicate")


def mirrored_flow(flow: Flow) -> Flow:
    """A known flow between frames that were extended: a mirrored pixel is found where its support's mirror image is."""
    h, w = flow.px.shape[-2:]
    px = _extended(flow.px)
    px[:, 0, :, w:].neg_()
    px[:, 1, h:].neg_()
    return Flow(px, None if flow.visible is None else _extended(flow.visible))


def reach_of(state: State) -> int:
    """Frames on each side of a keyframe that the network of a checkpoint looks at.

    Raises
    ------
    UserError : the file is of another network, or of windows that no published file has.
    """
    key = "edvr.fusion.feat_fusion.weight"
    frames = state[key].shape[1] / CHANNELS if key in state and state[key].ndim == 4 else 0
    for reach in REACHES:
        if frames == 2 * reach + 1:
            return reach
    raise UserError(f"iconvsr: the file has no {key} for windows of 5 or 7 frames: another network or configuration")


@network("iconvsr", "iconvsr_vimeo_bi_mm")
def load_iconvsr(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    state = from_openmmlab(state) if state else None
    reach = reach_of(state) if state else REACHES[-1]
    net = filled(lambda: IconVSR(reach), state, device, "iconvsr")
    return net.in_precision(precision(settings.precision, device))
