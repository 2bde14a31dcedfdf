"""PSRT-recurrent x4 (Shi et al., NeurIPS 2022): window attention over three frames at a time, aligned patch by patch.

Shapes: T frames [3, h, w] in, features [1, 120, h, w] of one branch kept per frame, frames [3, 4h, 4w] out. Inside the
attention a stack [3, h, w, 120] = (first arrival, the frame itself, second arrival), cut into windows of 3x8x8 tokens.
Key names are those of the published files.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from arguments.upsampling import UpsamplingParams
from upsampling.alignment import Alignment, along_path
from upsampling.precision import laid_out, precision
from upsampling.propagation import BRANCHES, Arrival, Flows, all_flows, propagate, sources_of
from upsampling.registry import State, Upsampler, filled, network
from upsampling.spynet import flow_bytes, padded_pixels, warp
from upsampling.video_network import CHANNELS, VideoNetwork
from utils.errors import UserError

WIDTH, HEADS, HIDDEN = 120, 6, 240
GROUPS, BLOCKS = 3, 6
DEPTH, SIDE = 3, 8  # frames and pixels of a window
TOKENS = DEPTH * SIDE * SIDE
SHIFT = SIDE // 2
APART = -100.0  # added to the score of tokens that a shift brought together from two ends of the image
HEAD_MULTIPLE = 8  # fused attention kernels of GPUs want the width of a head so; 20 is filled up with zeros
WINDOW_BATCH = 256  # windows that share a call of attention: its copies of them take 50 MB in half precision


def relative_positions(device: torch.device) -> Int64[Tensor, "n n"]:
    """Row of the bias table for each pair of a window's 192 tokens: (dz + 2) 225 + (dy + 7) 15 + (dx + 7)."""
    axes = (torch.arange(n, device=device) for n in (DEPTH, SIDE, SIDE))
    z, y, x = (c.flatten() for c in torch.meshgrid(*axes, indexing="ij"))
    dz, dy, dx = (c[:, None] - c[None, :] for c in (z, y, x))
    span = 2 * SIDE - 1
    return (dz + DEPTH - 1) * span**2 + (dy + SIDE - 1) * span + (dx + SIDE - 1)


@dataclass(frozen=True)
class Windows:
    """How a stack of one size is cut into windows, made once per size."""

    rows: int
    cols: int
    positions: Int64[Tensor, "n n"]
    kinds: tuple[tuple[slice, slice, Tensor | None], ...]  # of a shifted grid: which windows, and what separates them

    @classmethod
    def of(cls, h: int, w: int, device: torch.device) -> "Windows":
        """For images of h x w px. Only windows of the last row and column hold tokens from two ends of the image."""
        half = (torch.arange(SIDE, device=device) >= SIDE - SHIFT).long()
        y, x = half.view(1, SIDE, 1), half.view(1, 1, SIDE)
        most, last = slice(0, -1), slice(-1, None)

        def between(part: Tensor) -> Tensor:
            flat = part.expand(DEPTH, SIDE, SIDE).flatten()
            return APART * (flat[:, None] != flat[None, :]).float()  # [192, 192]

        kinds = (
            (most, most, None),
            (last, most, between(y)),
            (most, last, between(x)),
            (last, last, between(2 * y + x)),
        )
        return cls(-(-h // SIDE), -(-w // SIDE), relative_positions(device), kinds)


def attend(
    q: Float[Tensor, "n m k d"], k: Float[Tensor, "n m k d"], v: Float[Tensor, "n m k d"], bias: Float[Tensor, "m k k"]
) -> Float[Tensor, "n m k d"]:
    """softmax(q k^T / sqrt(d) + bias) v for n windows, m heads, by torch's fused kernels where the device has them."""
    d = q.shape[-1]
    q, k, v = (F.pad(part, (0, -d % HEAD_MULTIPLE)) for part in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None], scale=d**-0.5)[..., :d]


class _Attention(nn.Module):
    """Attention within windows; every second block shifts them by half a window."""

    def __init__(self) -> None:
        super().__init__()
        entries = (2 * DEPTH - 1) * (2 * SIDE - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(0.02 * torch.randn(entries, HEADS))
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Float[Tensor, "3 h w c"], windows: Windows, shifted: bool) -> Float[Tensor, "3 h w c"]:
        _, h, w, _ = x.shape
        rows, cols = windows.rows, windows.cols
        x = F.pad(x, (0, 0, 0, cols * SIDE - w, 0, rows * SIDE - h))
        x = x.roll((-SHIFT, -SHIFT), (1, 2)) if shifted else x
        x = x.view(DEPTH, rows, SIDE, cols, SIDE, WIDTH).permute(1, 3, 0, 2, 4, 5)
        x = self.qkv(x.reshape(rows, cols, TOKENS, WIDTH))
        x = self._mixed(x.view(rows, cols, TOKENS, 3, HEADS, WIDTH // HEADS), windows, shifted)
        x = x.view(rows, cols, DEPTH, SIDE, SIDE, WIDTH).permute(2, 0, 3, 1, 4, 5)
        x = x.reshape(DEPTH, rows * SIDE, cols * SIDE, WIDTH)
        x = x.roll((SHIFT, SHIFT), (1, 2)) if shifted else x
        return self.proj(x[:, :h, :w])

    def _mixed(
        self, qkv: Float[Tensor, "rows cols k 3 m d"], windows: Windows, shifted: bool
    ) -> Float[Tensor, "rows cols k c"]:
        """Values mixed within each window; a few windows at a time, those of one kind together."""
        bias = self.relative_position_bias_table.float()[windows.positions].permute(2, 0, 1)
        bias = bias.contiguous()  # [6, 192, 192]; fused kernels of GPUs take no mask whose last axis has gaps
        out = qkv.new_empty(*qkv.shape[:3], WIDTH)
        at_once = max(WINDOW_BATCH // windows.cols, 1)  # rows of windows
        for part_rows, part_cols, apart in windows.kinds if shifted else ((slice(None), slice(None), None),):
            kind = bias if apart is None else bias + apart
            parts = qkv[part_rows, part_cols].split(at_once), out[part_rows, part_cols].split(at_once)
            for part, target in zip(*parts, strict=True):
                if part.numel():
                    q, k, v = part.flatten(0, 1).permute(2, 0, 3, 1, 4)
                    target.copy_(attend(q, k, v, kind).transpose(1, 2).reshape(target.shape))
        return out


class _Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, HIDDEN)
        self.fc2 = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class _Block(nn.Module):
    """Attention and perceptron, each added to what came in; the sum stays in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attn = _Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = _Perceptron()

    def forward(self, x: Tensor, windows: Windows, shifted: bool) -> Tensor:
        dtype = self.mlp.fc1.weight.dtype
        x = x + self.attn(self.norm1(x).to(dtype), windows, shifted)
        return x + self.mlp(self.norm2(x).to(dtype))


class _ResidualGroup(nn.Module):
    """The blocks of a group, under the name that the published files have."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(_Block() for _ in range(BLOCKS))


class _Group(nn.Module):
    """Six blocks and a 3x3 convolution of each frame, added to what came in."""

    def __init__(self) -> None:
        super().__init__()
        self.residual_group = _ResidualGroup()
        self.conv = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Float[Tensor, "3 h w c"], windows: Windows) -> Float[Tensor, "3 h w c"]:
        y = x
        for number, block in enumerate(self.residual_group.blocks):
            y = block(y, windows, shifted=number % 2 == 1)
        y = self.conv(laid_out(y.permute(0, 3, 1, 2).to(self.conv.weight.dtype)))
        return x + y.permute(0, 2, 3, 1)


class _PatchEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)


class _Branch(nn.Module):
    """One branch's network: three maps -> the feature of the frame in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = _PatchEmbedding()
        self.layers = nn.ModuleList(_Group() for _ in range(GROUPS))
        self.norm = nn.LayerNorm(WIDTH)
        self.conv_after_body = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        # Never used, but the published files hold them, and files are loaded strictly.
        self.conv_first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.conv_first_feat = nn.Conv2d(CHANNELS, WIDTH, 3, padding=1)
        self.conv_before_upsample = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def forward(self, stack: Float[Tensor, "3 c h w"], windows: Windows) -> Float[Tensor, "1 c h w"]:
        x = self.patch_embed.norm(stack.float().permute(0, 2, 3, 1))  # [3, h, w, 120]
        for group in self.layers:
            x = group(x, windows)
        middle = self.norm(x[1:2]).permute(0, 3, 1, 2).to(stack.dtype)
        return stack[1:2] + self.conv_after_body(laid_out(middle))


def patch_aligned(arrival: Arrival) -> Float[Tensor, "1 c h w"]:
    """What arrives, moved in whole patches of 8x8 px: each by the mean flow of its pixels, to the nearest pixel."""
    h, w = arrival.flow.shape[-2:]
    right, below = -w % SIDE, -h % SIDE
    mode = "reflect" if right < w and below < h else "replicate"  # a side of a few pixels cannot be reflected so far
    mean = F.avg_pool2d(F.pad(arrival.flow, (0, right, 0, below), mode=mode), SIDE)
    flow = mean.repeat_interleave(SIDE, 2).repeat_interleave(SIDE, 3)[:, :, :h, :w]
    return warp(arrival.feature, flow, mode="nearest")


class PSRT(VideoNetwork):
    """The network, and an Upsampler; 13 366 943 parameters, in files 1154 tensors with 72 index buffers.

    Notes
    -----
    Every branch reads what the branch before it made of the frame. Convolutions, matrix products and attention run in
    the weights' dtype; flows, LayerNorms, the sums inside a branch and the bilinear skip in float32.
    """

    # As for BasicVSR; how far PSRT sees was not measured, its weights being in no package registry. It was trained on
    # clips of 14 to 16 frames.
    num_neighbours = 12
    overlap = 32  # LR px
    multiple = SIDE  # tiles begin where windows do
    visits = len(BRANCHES)

    def __init__(self) -> None:
        super().__init__()
        self.conv_first = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.patch_align = nn.ModuleDict({name: _Branch() for name in BRANCHES})
        self.conv_before_upsample = nn.Conv2d(WIDTH, CHANNELS, 3, padding=1)

    def working_bytes(self, t: int, h: int, w: int) -> int:
        """What a clip needs: one feature of all frames, flows, and the largest of branch, flow and tail."""
        size, pixels = self.dtype.itemsize, (h + SIDE) * (w + SIDE)
        per_frame = h * w * (12 + 2 * 8 + WIDTH * size)
        stream = DEPTH * WIDTH * pixels  # values of a stack
        part = min(pixels, (WINDOW_BATCH + w // SIDE) * SIDE**2) * DEPTH * WIDTH  # values that attention takes at once
        branch = stream * (3 * 4 + 6 * size) + part * 9 * size
        flow = t * 16 * padded_pixels(h, w) + flow_bytes(h, w, size)  # the pyramid goes before features come
        return t * per_frame + max(branch, flow, self.tail_bytes(h, w))

    @torch.inference_mode()
    def upsample(
        self, frames: Float[Tensor, "t 3 h w"], alignment: Alignment | None = None
    ) -> Iterator[Float[Tensor, "3 H W"]]:
        """See BasicVSR.upsample."""
        alignment = alignment or along_path(len(frames))
        flows = all_flows(self.spynet, frames, alignment)
        windows = Windows.of(frames.shape[-2], frames.shape[-1], frames.device)
        made = {i: self.conv_first(laid_out(frame[None].to(self.dtype))) for i, frame in enumerate(frames)}
        for name in BRANCHES[:-1]:
            made = dict(self._branch(name, made, flows[name], alignment, windows))
        for i, feature in self._branch(BRANCHES[-1], made, flows[BRANCHES[-1]], alignment, windows):
            yield self._tail(self.conv_before_upsample(laid_out(feature)), frames[i][None])[0]

    def _branch(
        self, name: str, inputs: dict[int, Tensor], flows: Flows, alignment: Alignment, windows: Windows
    ) -> Iterator[tuple[int, Tensor]]:
        def advance(i: int, first: Arrival | None, second: Arrival | None) -> Tensor:
            current = inputs.pop(i)
            if first is None:
                maps = [current, current, current]
            else:
                behind = torch.zeros_like(current) if second is None else patch_aligned(second)
                maps = [patch_aligned(first), current, behind]
            return self.patch_align[name](torch.cat(maps), windows)

        return propagate(sources_of(name, alignment), flows, advance, alignment.tick)


_INDEX = re.compile(r"\.attn\.relative_position_index$")


def without_indices(state: State) -> State:
    """`state` less its 72 stored index buffers, after they were compared with `relative_positions`.

    Raises
    ------
    UserError : an index buffer says something else, so the file is of another network.
    """
    positions = relative_positions(torch.device("cpu"))
    for key, value in state.items():
        if _INDEX.search(key) and not torch.equal(value.long(), positions):
            raise UserError(f"psrt: {key} is not the index of 3x8x8 windows: another configuration of the network")
    return {key: value for key, value in state.items() if not _INDEX.search(key)}


@network("psrt", "psrt_vimeo")
def load_psrt(settings: UpsamplingParams, device: torch.device, state: State | None) -> Upsampler:
    net = filled(PSRT, without_indices(state) if state else None, device, "psrt")
    return net.in_precision(precision(settings.precision, device))
