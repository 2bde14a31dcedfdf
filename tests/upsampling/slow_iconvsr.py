"""IconVSR written down a second time, as `slow_networks` does it: float64, one image at a time, nothing shared.

Windows of keyframes are made as the published code makes them, by frames put before and behind the clip.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.upsampling import slow_networks as slow
from tests.upsampling.slow_networks import Shapes, State, conv, lrelu

Known = Callable[[int, int], tuple[Tensor, Tensor]]  # [2, h, w] px, [h, w] 0-1


def _conv(key: str, inputs: int, size: int = 3) -> Shapes:
    return {f"edvr.{key}.weight": (64, inputs, size, size), f"edvr.{key}.bias": (64,)}


def _pack(key: str) -> Shapes:
    shapes = _conv(key, 64)
    return shapes | {f"edvr.{key}.conv_offset.weight": (216, 64, 3, 3), f"edvr.{key}.conv_offset.bias": (216,)}


def shapes(frames: int) -> Shapes:
    """Keys and shapes of a BasicSR file; `frames` of a window: 5 (REDS) or 7 (Vimeo-90K)."""
    found = slow._shared(64) | slow._trunk("backward_trunk", 67, 30) | slow._trunk("forward_trunk", 131, 30)
    for key in ("backward_fusion", "forward_fusion"):
        found |= {f"{key}.weight": (64, 128, 3, 3), f"{key}.bias": (64,)}
    found |= _conv("conv_first", 3)
    for i in range(5):
        found |= _conv(f"feature_extraction.{i}.conv1", 64) | _conv(f"feature_extraction.{i}.conv2", 64)
    for key in ("conv_l2_1", "conv_l2_2", "conv_l3_1", "conv_l3_2"):
        found |= _conv(key, 64)
    for level in ("l3", "l2", "l1"):
        found |= _conv(f"pcd_align.offset_conv1.{level}", 128) | _pack(f"pcd_align.dcn_pack.{level}")
        found |= _conv(f"pcd_align.offset_conv2.{level}", 64 if level == "l3" else 128)
        if level != "l3":
            found |= _conv(f"pcd_align.offset_conv3.{level}", 64) | _conv(f"pcd_align.feat_conv.{level}", 128)
    found |= _conv("pcd_align.cas_offset_conv1", 128) | _conv("pcd_align.cas_offset_conv2", 64)
    found |= _pack("pcd_align.cas_dcnpack")
    for key, (inputs, size) in {
        **{"temporal_attn1": (64, 3), "temporal_attn2": (64, 3), "feat_fusion": (64 * frames, 1)},
        **{"spatial_attn1": (64 * frames, 1), "spatial_attn2": (128, 1), "spatial_attn3": (64, 3)},
        **{"spatial_attn4": (64, 1), "spatial_attn5": (64, 3), "spatial_attn_l1": (64, 1)},
        **{"spatial_attn_l2": (128, 3), "spatial_attn_l3": (64, 3)},
        **{"spatial_attn_add1": (64, 1), "spatial_attn_add2": (64, 1)},
    }.items():
        found |= _conv(f"fusion.{key}", inputs, size)
    return found


def made(reach: int) -> State:
    """A made-up checkpoint whose windows show in the output, and whose 30 blocks do not let signals explode."""
    state = slow.made(shapes(2 * reach + 1), reach)
    for key, value in state.items():
        if "trunk.main.2" in key or "feature_extraction" in key:
            value *= 0.3 if "conv2" in key else 1.0
        elif key.startswith("edvr"):
            value *= 3.0 if "conv_offset" in key else 2.2
        elif "_fusion" in key:
            value *= 2.0
    return state


def openmmlab(key: str) -> str:
    """OpenMMLab's name of a BasicSR key that is EDVR's: layers with an activation are wrapped, so a word longer."""
    parts = key.split(".")
    if parts[0] != "edvr":
        return key
    if parts[1].startswith("conv_l"):
        _, level, number = parts[1].split("_")
        parts[1:2] = [f"feat_{level}_conv{number}", "conv"]
    elif parts[1] == "pcd_align":
        parts[1] = "pcd_alignment"
        if "offset_conv" in parts[2] or parts[2] == "feat_conv":
            parts.insert(-1, "conv")
    elif parts[1] == "fusion" and parts[2] not in (
        *("temporal_attn1", "temporal_attn2", "spatial_attn5", "spatial_attn_add2"),
    ):
        parts.insert(-1, "conv")
    return ".".join(parts)


def _strided(s: State, key: str, x: Tensor) -> Tensor:
    """Every second pixel of a convolution."""
    return lrelu(conv(s, key, x)[:, ::2, ::2])


def _up(x: Tensor) -> Tensor:
    """Twice the size: weights 3/4 and 1/4, the edge repeated."""
    for axis in (1, 2):
        first, last = x.narrow(axis, 0, 1), x.narrow(axis, x.shape[axis] - 1, 1)
        before = torch.cat([first, x.narrow(axis, 0, x.shape[axis] - 1)], axis)
        behind = torch.cat([x.narrow(axis, 1, x.shape[axis] - 1), last], axis)
        both = torch.stack([0.75 * x + 0.25 * before, 0.75 * x + 0.25 * behind], axis + 1)
        x = both.flatten(axis, axis + 1)
    return x


def _levels(s: State, frame: Tensor) -> dict[str, Tensor]:
    x = lrelu(conv(s, "edvr.conv_first", frame))
    for i in range(5):
        key = f"edvr.feature_extraction.{i}"
        x = x + conv(s, f"{key}.conv2", conv(s, f"{key}.conv1", x).clamp(min=0))
    l2 = lrelu(conv(s, "edvr.conv_l2_2", _strided(s, "edvr.conv_l2_1", x)))
    return {"l1": x, "l2": l2, "l3": lrelu(conv(s, "edvr.conv_l3_2", _strided(s, "edvr.conv_l3_1", l2)))}


def _deformed(s: State, key: str, x: Tensor, guide: Tensor) -> Tensor:
    out = conv(s, f"{key}.conv_offset", guide)
    return slow.deform(x, out[:144], torch.sigmoid(out[144:]), s[f"{key}.weight"], s[f"{key}.bias"])


def align(s: State, neighbour: dict[str, Tensor], reference: dict[str, Tensor]) -> Tensor:
    p = "edvr.pcd_align"
    guide = feature = None
    for level in ("l3", "l2", "l1"):
        x = lrelu(conv(s, f"{p}.offset_conv1.{level}", torch.cat([neighbour[level], reference[level]])))
        if guide is None:
            guide = lrelu(conv(s, f"{p}.offset_conv2.{level}", x))
        else:
            guide = lrelu(conv(s, f"{p}.offset_conv2.{level}", torch.cat([x, 2 * _up(guide)])))
            guide = lrelu(conv(s, f"{p}.offset_conv3.{level}", guide))
        moved = _deformed(s, f"{p}.dcn_pack.{level}", neighbour[level], guide)
        if feature is not None:
            moved = conv(s, f"{p}.feat_conv.{level}", torch.cat([moved, _up(feature)]))
        feature = moved if level == "l1" else lrelu(moved)
    guide = lrelu(conv(s, f"{p}.cas_offset_conv1", torch.cat([feature, reference["l1"]])))
    guide = lrelu(conv(s, f"{p}.cas_offset_conv2", guide))
    return lrelu(_deformed(s, f"{p}.cas_dcnpack", feature, guide))


def _pools(x: Tensor) -> Tensor:
    """Maximum and mean of 3x3 px around every second pixel; zeros beyond the edge count for the mean alone."""
    c, h, w = x.shape
    highest, mean = (torch.empty(c, (h + 1) // 2, (w + 1) // 2, dtype=x.dtype) for _ in range(2))
    for row in range(0, h, 2):
        for col in range(0, w, 2):
            part = x[:, max(row - 1, 0) : row + 2, max(col - 1, 0) : col + 2].flatten(1)
            highest[:, row // 2, col // 2] = part.max(1).values
            mean[:, row // 2, col // 2] = part.sum(1) / 9
    return torch.cat([highest, mean])


def fuse(s: State, aligned: list[Tensor]) -> Tensor:
    def at(key: str, x: Tensor) -> Tensor:
        return conv(s, f"edvr.fusion.{key}", x)

    wanted = at("temporal_attn1", aligned[len(aligned) // 2])
    x = torch.cat([a * torch.sigmoid((at("temporal_attn2", a) * wanted).sum(0)) for a in aligned])
    feature = lrelu(at("feat_fusion", x))
    fine = lrelu(at("spatial_attn2", _pools(lrelu(at("spatial_attn1", x)))))
    coarse = lrelu(at("spatial_attn_l2", _pools(lrelu(at("spatial_attn_l1", fine)))))
    coarse = _up(lrelu(at("spatial_attn_l3", coarse)))
    fine = lrelu(at("spatial_attn4", lrelu(at("spatial_attn3", fine)) + coarse))
    fine = at("spatial_attn5", _up(fine))
    return feature * torch.sigmoid(fine) * 2 + at("spatial_attn_add2", lrelu(at("spatial_attn_add1", fine)))


def window_feature(s: State, frames: list[Tensor]) -> Tensor:
    """EDVR-M's feature of the middle one of 5 or 7 frames [3, h, w]."""
    levels = [_levels(s, frame) for frame in frames]
    return fuse(s, [align(s, level, levels[len(frames) // 2]) for level in levels])


def iconvsr(state: State, frames: Tensor, known: Known | None = None) -> Tensor:
    """[t, 3, h, w] float64 -> [t, 3, 4h, 4w]; t of at least 5 or 7, as the published code wants it.

    known : gives flow and visibility of (frame, source) where they are not to be learned; h, w are then multiples of 4.
    """
    s, (t, _, height, width) = slow.doubled(state), frames.shape
    x = F.pad(frames, (0, -width % 4, 0, -height % 4), mode="reflect")
    reach = s["edvr.fusion.feat_fusion.weight"].shape[1] // 128
    before, behind = {2: ([4, 3], [-4, -5]), 3: ([6, 5, 4], [-5, -6, -7])}[reach]
    padded = [*(x[k] for k in before), *x, *(x[k] for k in behind)]
    keyframes = sorted({*range(0, t, 5), t - 1})
    refill = {k: window_feature(s, padded[k : k + 2 * reach + 1]) for k in keyframes}

    def refilled(branch: str, i: int, f: Tensor) -> Tensor:
        return conv(s, f"{branch}_fusion", torch.cat([f, refill[i]])) if i in refill else f

    def handed(f: Tensor, i: int, source: int) -> Tensor:
        if known is None:
            return slow.warped(f, slow.spynet(s, x[i], x[source]))
        flow, visible = known(i, source)
        return slow.warped(f, flow) * visible

    back: dict[int, Tensor] = {}
    f = torch.zeros(64, *x.shape[2:], dtype=x.dtype)
    for i in reversed(range(t)):
        f = f if i == t - 1 else handed(f, i, i + 1)
        f = back[i] = slow.trunk(s, "backward_trunk", torch.cat([x[i], refilled("backward", i, f)]), 30)
    f, out = torch.zeros_like(f), []
    for i in range(t):
        f = f if i == 0 else handed(f, i, i - 1)
        f = slow.trunk(s, "forward_trunk", torch.cat([x[i], back[i], refilled("forward", i, f)]), 30)
        out.append(slow.tail(s, f, x[i])[:, : 4 * height, : 4 * width])
    return torch.stack(out)
