"""The features that IconVSR takes from EDVR-M (Wang et al., CVPR workshops 2019): a window of frames made into one.

Every frame of the window is aligned to the middle one by deformable convolutions, from coarse to fine (PCD), then all
are weighed and fused (TSA). Levels l1, l2, l3 are the frame's size, half and a quarter of it, so sides must be
multiples of 4. Key names are BasicSR's.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from upsampling.deformable import TAPS, Positions, deformed, sampling_bytes
from upsampling.precision import laid_out
from upsampling.video_network import CHANNELS, ResidualBlock

MULTIPLE = 4
GROUPS = 8  # of channels, each with positions of its own
BLOCKS = 5
LEVELS = ("l3", "l2", "l1")  # coarse to fine


def _conv(inputs: int = CHANNELS, size: int = 3, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, CHANNELS, size, stride, size // 2)


def _joined(*parts: Tensor) -> Tensor:
    return laid_out(torch.cat(parts, dim=1))


def _active(conv: nn.Module, *parts: Tensor) -> Tensor:
    return F.leaky_relu_(conv(_joined(*parts)), 0.1)


def _doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _DeformableConvolution(nn.Module):
    """Sample features where a convolution of other features says; its offsets are px, without a limit."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.02 * torch.randn(CHANNELS, CHANNELS, 3, 3))
        self.bias = nn.Parameter(torch.zeros(CHANNELS))
        self.conv_offset = nn.Conv2d(CHANNELS, 3 * GROUPS * TAPS, 3, padding=1)

    def forward(self, x: Float[Tensor, "1 c h w"], guide: Float[Tensor, "1 c h w"]) -> Float[Tensor, "1 c h w"]:
        raw = self.conv_offset(laid_out(guide))

        def positions(rows: slice) -> Positions:
            offset, mask = raw[:, :, rows].float().split([2 * GROUPS * TAPS, GROUPS * TAPS], dim=1)
            return offset.contiguous(), torch.sigmoid(mask)

        return deformed(x, positions, self.weight, self.bias)


class _PyramidAlignment(nn.Module):
    """PCD: features of one frame aligned to those of another, each level starting from the coarser one's result."""

    def __init__(self) -> None:
        super().__init__()
        self.offset_conv1 = nn.ModuleDict({level: _conv(2 * CHANNELS) for level in LEVELS})
        self.offset_conv2 = nn.ModuleDict(
            {level: _conv(CHANNELS if level == "l3" else 2 * CHANNELS) for level in LEVELS}
        )
        self.offset_conv3 = nn.ModuleDict({level: _conv() for level in LEVELS[1:]})
        self.dcn_pack = nn.ModuleDict({level: _DeformableConvolution() for level in LEVELS})
        self.feat_conv = nn.ModuleDict({level: _conv(2 * CHANNELS) for level in LEVELS[1:]})
        self.cas_offset_conv1 = _conv(2 * CHANNELS)
        self.cas_offset_conv2 = _conv()
        self.cas_dcnpack = _DeformableConvolution()

    def forward(self, neighbour: Sequence[Tensor], reference: Sequence[Tensor]) -> Float[Tensor, "1 c h w"]:
        """Both are [1, 64, h, w] of l3, l2, l1."""
        guide = _active(self.offset_conv2["l3"], _active(self.offset_conv1["l3"], neighbour[0], reference[0]))
        feature = F.leaky_relu_(self.dcn_pack["l3"](neighbour[0], guide), 0.1)
        for level, x, ref in zip(LEVELS[1:], neighbour[1:], reference[1:], strict=True):
            finer = _active(self.offset_conv1[level], x, ref)
            finer = _active(self.offset_conv2[level], finer, 2 * _doubled(guide))  # a pixel is two of the finer level
            guide = _active(self.offset_conv3[level], finer)
            feature = self.feat_conv[level](_joined(self.dcn_pack[level](x, guide), _doubled(feature)))
            feature = feature if level == "l1" else F.leaky_relu_(feature, 0.1)
        guide = _active(self.cas_offset_conv2, _active(self.cas_offset_conv1, feature, reference[-1]))
        return F.leaky_relu_(self.cas_dcnpack(feature, guide), 0.1)


def _pooled(x: Tensor) -> tuple[Tensor, Tensor]:
    """Half the size, by maximum and by mean."""
    return F.max_pool2d(x, 3, 2, 1), F.avg_pool2d(x, 3, 2, 1)


class _Fusion(nn.Module):
    """TSA: frames weighed by how alike they are to the middle one, fused, then scaled pixel by pixel."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.temporal_attn1, self.temporal_attn2 = _conv(), _conv()
        self.feat_fusion = _conv(frames * CHANNELS, 1)
        self.spatial_attn1 = _conv(frames * CHANNELS, 1)
        self.spatial_attn2 = _conv(2 * CHANNELS, 1)
        self.spatial_attn3, self.spatial_attn4, self.spatial_attn5 = _conv(), _conv(size=1), _conv()
        self.spatial_attn_l1 = _conv(size=1)
        self.spatial_attn_l2, self.spatial_attn_l3 = _conv(2 * CHANNELS), _conv()
        self.spatial_attn_add1, self.spatial_attn_add2 = _conv(size=1), _conv(size=1)

    def forward(self, aligned: Sequence[Float[Tensor, "1 c h w"]]) -> Float[Tensor, "1 c h w"]:
        x = self._weighed(aligned)
        feature = _active(self.feat_fusion, x)
        attention = _active(self.spatial_attn2, *_pooled(_active(self.spatial_attn1, x)))
        coarse = _active(self.spatial_attn_l2, *_pooled(_active(self.spatial_attn_l1, attention)))
        coarse = _doubled(_active(self.spatial_attn_l3, coarse))
        attention = _active(self.spatial_attn4, _active(self.spatial_attn3, attention).add_(coarse))
        attention = self.spatial_attn5(laid_out(_doubled(attention)))
        added = self.spatial_attn_add2(_active(self.spatial_attn_add1, attention))
        return feature.mul_(torch.sigmoid(attention)).mul_(2).add_(added)

    def _weighed(self, aligned: Sequence[Tensor]) -> Float[Tensor, "1 n h w"]:
        wanted = self.temporal_attn1(aligned[len(aligned) // 2])
        likeness = ((self.temporal_attn2(x) * wanted).sum(1, keepdim=True) for x in aligned)
        return _joined(*(x * torch.sigmoid(a) for x, a in zip(aligned, likeness, strict=True)))


class WindowFeatures(nn.Module):
    """The feature extractor under the name `edvr` of IconVSR's checkpoints; `frames` of a window: 5 or 7."""

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.feature_extraction = nn.Sequential(*(ResidualBlock() for _ in range(BLOCKS)))
        self.conv_l2_1, self.conv_l2_2 = _conv(stride=2), _conv()
        self.conv_l3_1, self.conv_l3_2 = _conv(stride=2), _conv()
        self.pcd_align = _PyramidAlignment()
        self.fusion = _Fusion(frames)

    def forward(self, frames: Float[Tensor, "t 3 h w"], window: Sequence[int]) -> Float[Tensor, "1 c h w"]:
        """Features of the middle frame of `window`, which are indices into `frames`; one may come more than once.

        h, w must be multiples of 4.
        """
        centre = window[len(window) // 2]
        middle = self._levels(frames[centre][None])
        aligned = {centre: self.pcd_align(middle, middle)}
        for i in set(window) - {centre}:
            aligned[i] = self.pcd_align(self._levels(frames[i][None]), middle)
        return self.fusion([aligned[i] for i in window])

    def _levels(self, frame: Float[Tensor, "1 3 h w"]) -> tuple[Tensor, Tensor, Tensor]:
        l1 = self.feature_extraction(_active(self.conv_first, frame.to(self.conv_first.weight.dtype)))
        l2 = _active(self.conv_l2_2, _active(self.conv_l2_1, l1))
        l3 = _active(self.conv_l3_2, _active(self.conv_l3_1, l2))
        return l3, l2, l1


def window_bytes(frames: int, h: int, w: int, element: int, cuda: bool) -> int:
    """Memory of one `WindowFeatures` with weights of `element` bytes."""
    feature = h * w * CHANNELS * element
    offsets = 3 * h * w * GROUPS * TAPS * element
    aligning = 5 * feature + offsets + sampling_bytes(h, w, CHANNELS, GROUPS, element, cuda)
    return frames * feature + max(aligning, (frames + 4) * feature)
