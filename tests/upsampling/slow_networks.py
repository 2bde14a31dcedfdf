"""BasicVSR++ and PSRT written down a second time: float64, plain loops, one image at a time; and made-up checkpoints.

Nothing is shared with the package. Tensors are [c, h, w]; a state maps the published key names to float64 values.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

State = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
FlowOf = Callable[[int, int], Tensor]
BRANCHES = ("backward_1", "forward_1", "backward_2", "forward_2")


# --- made-up checkpoints: published names and shapes, random values -------------------------------------------------


def _conv(key: str, *shape: int) -> Shapes:
    return {f"{key}.weight": shape, f"{key}.bias": shape[:1]}


def _shared(width: int) -> Shapes:
    shapes: Shapes = {"spynet.mean": (1, 3, 1, 1), "spynet.std": (1, 3, 1, 1)}
    widths = (8, 32, 64, 32, 16, 2)
    for level in range(6):
        for i in range(5):
            shapes |= _conv(f"spynet.basic_module.{level}.basic_module.{2 * i}", widths[i + 1], widths[i], 7, 7)
    shapes |= _conv("upconv1", 256, width, 3, 3) | _conv("upconv2", 256, 64, 3, 3)
    return shapes | _conv("conv_hr", 64, 64, 3, 3) | _conv("conv_last", 3, 64, 3, 3)


def _trunk(key: str, inputs: int, blocks: int) -> Shapes:
    shapes = _conv(f"{key}.main.0", 64, inputs, 3, 3)
    for i in range(blocks):
        shapes |= _conv(f"{key}.main.2.{i}.conv1", 64, 64, 3, 3) | _conv(f"{key}.main.2.{i}.conv2", 64, 64, 3, 3)
    return shapes


def basicvsr_pp_shapes() -> Shapes:
    shapes = _shared(64) | _trunk("feat_extract", 3, 5) | _trunk("reconstruction", 320, 5)
    for k, b in enumerate(BRANCHES):
        shapes |= _trunk(f"backbone.{b}", 128 + 64 * k, 7) | _conv(f"deform_align.{b}", 64, 128, 3, 3)
        for layer, (outputs, inputs) in {0: (64, 196), 2: (64, 64), 4: (64, 64), 6: (432, 64)}.items():
            shapes |= _conv(f"deform_align.{b}.conv_offset.{layer}", outputs, inputs, 3, 3)
    return shapes


def psrt_shapes() -> Shapes:
    shapes = _shared(64) | _conv("conv_first", 120, 3, 3, 3) | _conv("conv_before_upsample", 64, 120, 3, 3)
    for b in BRANCHES:
        p = f"patch_align.{b}"
        shapes |= _conv(f"{p}.patch_embed.norm", 120) | _conv(f"{p}.norm", 120)
        shapes |= _conv(f"{p}.conv_after_body", 120, 120, 3, 3) | _conv(f"{p}.conv_first", 120, 3, 3, 3)
        shapes |= _conv(f"{p}.conv_first_feat", 120, 64, 3, 3) | _conv(f"{p}.conv_before_upsample", 64, 120, 3, 3)
        for layer in range(3):
            shapes |= _conv(f"{p}.layers.{layer}.conv", 120, 120, 3, 3)
            for k in range(6):
                block = f"{p}.layers.{layer}.residual_group.blocks.{k}"
                shapes |= _conv(f"{block}.norm1", 120) | _conv(f"{block}.norm2", 120)
                shapes |= _conv(f"{block}.attn.qkv", 360, 120) | _conv(f"{block}.attn.proj", 120, 120)
                shapes |= _conv(f"{block}.mlp.fc1", 240, 120) | _conv(f"{block}.mlp.fc2", 120, 240)
                shapes |= {f"{block}.attn.relative_position_bias_table": (1125, 6)}
                shapes |= {f"{block}.attn.relative_position_index": (192, 192)}
    return shapes


def position_index() -> Tensor:
    """[192, 192] int64, by three nested loops over the tokens of a window."""
    tokens = [(z, y, x) for z in range(3) for y in range(8) for x in range(8)]
    rows = [[(a[0] - b[0] + 2) * 225 + (a[1] - b[1] + 7) * 15 + a[2] - b[2] + 7 for b in tokens] for a in tokens]
    return torch.tensor(rows)


def made(shapes: Shapes, seed: int = 0) -> State:
    """Random float32 values that keep signals near 1: flows of a pixel or two, offsets of some pixels."""
    g = torch.Generator().manual_seed(seed)
    state = {}
    for key, shape in shapes.items():
        if key.endswith("relative_position_index"):
            state[key] = position_index()
        elif key == "spynet.std" or (".norm" in key and key.endswith("weight")):
            state[key] = 1 + 0.1 * torch.rand(shape, generator=g)
        elif key.endswith("table"):
            state[key] = torch.randn(shape, generator=g)
        else:
            gain = {"spynet": 1.0, "conv_last": 3.0}.get(key.split(".")[0], 2.0 if "qkv.weight" in key else 0.7)
            fan_in = math.prod(shape[1:]) if key.endswith("weight") and len(shape) > 1 else 100
            state[key] = gain / fan_in**0.5 * torch.randn(shape, generator=g)
    return state


# --- the networks ---------------------------------------------------------------------------------------------------


def doubled(state: State) -> State:
    return {k: v.double() if v.is_floating_point() else v for k, v in state.items()}


def conv(s: State, key: str, x: Tensor) -> Tensor:
    weight = s[f"{key}.weight"]
    return F.conv2d(x[None], weight, s[f"{key}.bias"], padding=weight.shape[-1] // 2)[0]


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.1 * x)


def bilinear(x: Tensor, at_y: Tensor, at_x: Tensor) -> Tensor:
    """x at real positions, zero outside: [c, *positions]."""
    _, h, w = x.shape
    top, left = at_y.floor(), at_x.floor()
    result = torch.zeros(len(x), *at_y.shape, dtype=x.dtype)
    for row in (top, top + 1):
        for col in (left, left + 1):
            inside = (row >= 0) & (row < h) & (col >= 0) & (col < w)
            value = x[:, row.clamp(0, h - 1).long(), col.clamp(0, w - 1).long()]
            result += (1 - (at_y - row).abs()) * (1 - (at_x - col).abs()) * inside * value
    return result


def _targets(flow: Tensor) -> tuple[Tensor, Tensor]:
    h, w = flow.shape[1:]
    return torch.arange(h)[:, None] + flow[1], torch.arange(w)[None, :] + flow[0]


def warped(x: Tensor, flow: Tensor) -> Tensor:
    return bilinear(x, *_targets(flow))


def spynet(s: State, ref: Tensor, support: Tensor) -> Tensor:
    h, w = ref.shape[1:]
    size = (-(-h // 32) * 32, -(-w // 32) * 32)
    levels = []
    for frame in (ref, support):
        x = F.interpolate(frame[None], size, mode="bilinear", align_corners=False)
        pyramid = [(x - s["spynet.mean"]) / s["spynet.std"]]
        for _ in range(5):
            pyramid.insert(0, F.avg_pool2d(pyramid[0], 2))
        levels.append(pyramid)
    flow = torch.zeros(2, size[0] // 32, size[1] // 32, dtype=ref.dtype)
    for level, (a, b) in enumerate(zip(*levels, strict=True)):
        if level:
            flow = 2 * F.interpolate(flow[None], scale_factor=2, mode="bilinear", align_corners=True)[0]
        rows, cols = _targets(flow)
        moved = bilinear(b[0], rows.clamp(0, a.shape[2] - 1), cols.clamp(0, a.shape[3] - 1))
        x = torch.cat([a[0], moved, flow])
        for i in range(5):
            x = conv(s, f"spynet.basic_module.{level}.basic_module.{2 * i}", x)
            x = x.clamp(min=0) if i < 4 else x
        flow = flow + x
    flow = F.interpolate(flow[None], (h, w), mode="bilinear", align_corners=False)[0]
    return torch.stack([flow[0] * w / size[1], flow[1] * h / size[0]])


def trunk(s: State, key: str, x: Tensor, blocks: int) -> Tensor:
    x = lrelu(conv(s, f"{key}.main.0", x))
    for i in range(blocks):
        x = x + conv(s, f"{key}.main.2.{i}.conv2", conv(s, f"{key}.main.2.{i}.conv1", x).clamp(min=0))
    return x


def tail(s: State, x: Tensor, frame: Tensor) -> Tensor:
    for key in ("upconv1", "upconv2"):
        x = lrelu(F.pixel_shuffle(conv(s, key, x), 2))
    x = conv(s, "conv_last", lrelu(conv(s, "conv_hr", x)))
    return x + F.interpolate(frame[None], scale_factor=4, mode="bilinear", align_corners=False)[0]


Handed = Callable[[int, dict[int, Tensor]], Tensor | None]  # (frame, features made so far) -> what arrives


def basicvsr(state: State, frames: Tensor, arrival: Handed, rounds: int, blocks: int) -> Tensor:
    """BasicVSR over frames [t, 3, h, w] float64, whatever `arrival` hands to each visit; -> [t, 3, 4h, 4w]."""
    s, t = doubled(state), len(frames)
    made: list[dict[int, Tensor]] = []
    for name, order in (("backward_trunk", range(t)[::-1]), ("forward_trunk", range(t))):
        features: dict[int, Tensor] = {}
        for i in [*order] * rounds:
            arrived = arrival(i, features)
            if arrived is None:
                arrived = torch.zeros(64, *frames.shape[-2:], dtype=frames.dtype)
            features[i] = trunk(s, name, torch.cat([frames[i], arrived]), blocks)
        made.append(features)
    fused = [lrelu(conv(s, "fusion", torch.cat([made[0][i], made[1][i]]))) for i in range(t)]
    return torch.stack([tail(s, x, frame) for x, frame in zip(fused, frames, strict=True)])


def graph_arrival(
    angles_deg: Sequence[Sequence[float]], flow_of: Callable[[int, int], tuple[Tensor, Tensor]], limit_deg: float = 30.0
) -> Handed:
    """The mean over the three nearest views within the limit that have features; flow_of gives (flow, visible)."""

    def arrival(i: int, features: dict[int, Tensor]) -> Tensor | None:
        near = sorted((angles_deg[i][j], j) for j in features if j != i and angles_deg[i][j] <= limit_deg)[:3]
        total, weights = 0.0, 0.0
        for angle, j in near:
            flow, visible = flow_of(i, j)
            weight = (visible + 1e-3) * math.exp(-angle / 8)
            total, weights = total + weight * warped(features[j], flow), weights + weight
        return total / weights if near else None  # type: ignore[return-value]

    return arrival


def basicvsr_shapes(blocks: int) -> Shapes:
    shapes = _shared(64) | _conv("fusion", 64, 128, 1, 1)
    return shapes | _trunk("backward_trunk", 67, blocks) | _trunk("forward_trunk", 67, blocks)


def deform(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Deformable 3x3 convolution, tap after tap; offset [G * 18, h, w] as (dy, dx), mask [G * 9, h, w]."""
    c, h, w = x.shape
    groups = len(mask) // 9
    size = c // groups
    result = bias[:, None, None].expand(-1, h, w).clone()
    for group in range(groups):
        part = slice(group * size, (group + 1) * size)
        for tap in range(9):
            k = group * 9 + tap
            at_y = torch.arange(h)[:, None] + tap // 3 - 1 + offset[2 * k]
            at_x = torch.arange(w)[None, :] + tap % 3 - 1 + offset[2 * k + 1]
            value = mask[k] * bilinear(x[part], at_y, at_x)
            result += torch.einsum("oc,chw->ohw", weight[:, part, tap // 3, tap % 3], value)
    return result


def visits(branch: str, t: int) -> Iterator[tuple[int, int | None, int | None]]:
    """(frame, the one visited before it, the one before that), in the order of the branch."""
    order = list(range(t))[:: -1 if branch.startswith("backward") else 1]
    for step, i in enumerate(order):
        yield i, order[step - 1] if step > 0 else None, order[step - 2] if step > 1 else None


def both_flows(
    s: State, frames: Tensor, i: int, before: int, earlier: int | None, known: FlowOf | None
) -> tuple[Tensor, Tensor]:
    """Flows of frame i to the one before it and to the one before that; zero where there is none."""
    if known is not None:
        return known(i, before), torch.zeros_like(frames[0, :2]) if earlier is None else known(i, earlier)
    flow = spynet(s, frames[i], frames[before])
    if earlier is None:
        return flow, torch.zeros_like(flow)
    return flow, flow + warped(spynet(s, frames[before], frames[earlier]), flow)


def basicvsr_pp(state: State, frames: Tensor, known: FlowOf | None = None) -> Tensor:
    """[t, 3, h, w] float64 -> [t, 3, 4h, 4w]; `known` gives the flow [2, h, w] of any (frame, source) instead."""
    s, t = doubled(state), len(frames)
    features = {"spatial": [trunk(s, "feat_extract", frame, 5) for frame in frames]}
    zero = torch.zeros_like(features["spatial"][0])
    for branch in BRANCHES:
        done: dict[int, Tensor] = {}
        for i, before, earlier in visits(branch, t):
            current, f = features["spatial"][i], zero
            if before is not None:
                flow1, flow2 = both_flows(s, frames, i, before, earlier, known)
                n2, c2 = zero, zero
                if earlier is not None:
                    n2, c2 = done[earlier], warped(done[earlier], flow2)
                x = torch.cat([warped(done[before], flow1), current, c2, flow1, flow2])
                for layer in (0, 2, 4, 6):
                    x = conv(s, f"deform_align.{branch}.conv_offset.{layer}", x)
                    x = lrelu(x) if layer < 6 else x
                offset = 10 * torch.tanh(x[:288])
                for k in range(144):
                    flow = flow1 if k < 72 else flow2
                    offset[2 * k] += flow[1]
                    offset[2 * k + 1] += flow[0]
                key = f"deform_align.{branch}"
                both = torch.cat([done[before], n2])
                f = deform(both, offset, torch.sigmoid(x[288:]), s[f"{key}.weight"], s[f"{key}.bias"])
            made_before = [features[b][i] for b in BRANCHES if b in features]
            done[i] = f + trunk(s, f"backbone.{branch}", torch.cat([current, *made_before, f]), 7)
        features[branch] = [done[i] for i in range(t)]
    return torch.stack(
        [
            tail(s, trunk(s, "reconstruction", torch.cat([features[k][i] for k in features]), 5), frames[i])
            for i in range(t)
        ]
    )


def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d) + bias) v of one head."""
    scores = q @ k.T / q.shape[1] ** 0.5 + bias
    weights = torch.exp(scores - scores.max(1, keepdim=True).values)
    return weights / weights.sum(1, keepdim=True) @ v


def _windows(height: int, width: int, shift: int) -> Iterator[tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Of a padded grid: (z, y, x) of each window's 192 tokens, and which may see which."""
    z, dy, dx = (c.flatten() for c in torch.meshgrid(torch.arange(3), torch.arange(8), torch.arange(8), indexing="ij"))
    for top in range(0, height, 8):
        for left in range(0, width, 8):
            y, x = top + dy + shift, left + dx + shift
            wrapped = 2 * (y >= height) + (x >= width)  # from the other end of the image
            yield z, y % height, x % width, wrapped[:, None] == wrapped[None, :]


def swin_block(s: State, key: str, x: Tensor, shift: int) -> Tensor:
    """x [3, h, w, 120]."""
    _, h, w, c = x.shape
    height, width = -(-h // 8) * 8, -(-w // 8) * 8
    normed = torch.zeros(3, height, width, c, dtype=x.dtype)
    normed[:, :h, :w] = F.layer_norm(x, (c,), s[f"{key}.norm1.weight"], s[f"{key}.norm1.bias"])
    mixed = torch.zeros_like(normed)
    table = s[f"{key}.attn.relative_position_bias_table"][position_index()]  # [192, 192, 6]
    for z, row, col, visible in _windows(height, width, shift):
        qkv = normed[z, row, col] @ s[f"{key}.attn.qkv.weight"].T + s[f"{key}.attn.qkv.bias"]  # [192, 360]
        for head in range(6):
            q, k, v = (qkv[:, 120 * i + 20 * head : 120 * i + 20 * (head + 1)] for i in range(3))
            bias = table[:, :, head] - 100.0 * ~visible
            mixed[z, row, col, 20 * head : 20 * (head + 1)] = attention(q, k, v, bias)
    x = x + mixed[:, :h, :w] @ s[f"{key}.attn.proj.weight"].T + s[f"{key}.attn.proj.bias"]
    y = F.layer_norm(x, (c,), s[f"{key}.norm2.weight"], s[f"{key}.norm2.bias"])
    y = y @ s[f"{key}.mlp.fc1.weight"].T + s[f"{key}.mlp.fc1.bias"]
    y = 0.5 * y * (1 + torch.erf(y / 2**0.5))
    return x + y @ s[f"{key}.mlp.fc2.weight"].T + s[f"{key}.mlp.fc2.bias"]


def psrt_branch(s: State, key: str, maps: list[Tensor]) -> Tensor:
    x = torch.stack(maps).permute(0, 2, 3, 1)
    x = F.layer_norm(x, (120,), s[f"{key}.patch_embed.norm.weight"], s[f"{key}.patch_embed.norm.bias"])
    for layer in range(3):
        y = x
        for k in range(6):
            y = swin_block(s, f"{key}.layers.{layer}.residual_group.blocks.{k}", y, 4 * (k % 2))
        y = torch.stack([conv(s, f"{key}.layers.{layer}.conv", frame.permute(2, 0, 1)) for frame in y])
        x = x + y.permute(0, 2, 3, 1)
    middle = F.layer_norm(x, (120,), s[f"{key}.norm.weight"], s[f"{key}.norm.bias"])[1]
    return maps[1] + conv(s, f"{key}.conv_after_body", middle.permute(2, 0, 1))


def patch_moved(x: Tensor, flow: Tensor) -> Tensor:
    """Patches of 8x8 px, each moved by its mean flow, to the nearest pixel; zero outside."""
    _, h, w = x.shape
    result = torch.zeros_like(x)
    mirror = lambda k, n: k if k < n else 2 * (n - 1) - k  # noqa: E731
    for top in range(0, h, 8):
        for left in range(0, w, 8):
            rows = [mirror(k, h) for k in range(top, top + 8)]
            cols = [mirror(k, w) for k in range(left, left + 8)]
            dx, dy = flow[:, rows][:, :, cols].mean((1, 2)).tolist()
            for row in range(top, min(top + 8, h)):
                for col in range(left, min(left + 8, w)):
                    y, x_ = round(row + dy), round(col + dx)
                    if 0 <= y < h and 0 <= x_ < w:
                        result[:, row, col] = x[:, y, x_]
    return result


def psrt(state: State, frames: Tensor, known: FlowOf | None = None) -> Tensor:
    """As `basicvsr_pp`."""
    s, t = doubled(state), len(frames)
    inputs = [conv(s, "conv_first", frame) for frame in frames]
    for branch in BRANCHES:
        done: dict[int, Tensor] = {}
        for i, before, earlier in visits(branch, t):
            maps = [inputs[i]] * 3
            if before is not None:
                flow1, flow2 = both_flows(s, frames, i, before, earlier, known)
                maps = [patch_moved(done[before], flow1), inputs[i], torch.zeros_like(inputs[i])]
                if earlier is not None:
                    maps[2] = patch_moved(done[earlier], flow2)
            done[i] = psrt_branch(s, f"patch_align.{branch}", maps)
        inputs = [done[i] for i in range(t)]
    return torch.stack([tail(s, conv(s, "conv_before_upsample", x), f) for x, f in zip(inputs, frames, strict=True)])
