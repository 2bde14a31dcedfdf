"""What a training step on a GPU cannot do without: bytes and operations of each stage, and the device's own rates.

Counted is what the algorithm moves between kernels, each array once for every kernel that reads or writes it, whatever
the caches may save; operations are additions, multiplications and special functions, a fused multiply-add two. Letters:
N Gaussians, of which D are drawn; I instances, pairs of a tile and a Gaussian; B buckets of 32 instances; E blended
pairs of a pixel and a Gaussian; P pixels; T tiles of 16 x 16 pixels.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

TILE_PX, TILE_PIXELS, BUCKET = 16, 256, 32
FLOAT = 4  # bytes of a float and of an index
RECORD = 48  # bytes of a drawn Gaussian on the screen
SUMS = 64  # bytes of the gradient sums of a Gaussian or an instance
SH_FLOATS = 48
GEOMETRY_FLOATS = 11  # means, scales, quats, opacity
PARAMETERS = GEOMETRY_FLOATS + SH_FLOATS
STATISTICS = 3
RADIX_BITS = 8
CHANNELS = 3
OTHERS = "others"
COPY_BYTES, PRODUCT_SIDE, ROUNDS = 1 << 30, 8192, 10

# Operations of a blended pair: alpha of it is 5 multiply-adds and one exponential, then the colours; back again the
# gradient of alpha, nine sums, and the state of the pixel.
FLOPS_PAIR_FORWARD = 2 * 5 + 1 + 2 * 5
FLOPS_PAIR_BACKWARD = 2 * 15 + 11 + 2
FLOPS_PROJECT = 400  # of a Gaussian: covariance, projection, ellipse
FLOPS_SH = 2 * SH_FLOATS + 40
FLOPS_ADAM = 12  # of a parameter
# Of a channel of a pixel: filters of 11 taps along both axes, for x, y, x^2 + y^2, x y, SSIM and its derivatives; then
# for three derivatives of SSIM.
FLOPS_SLOPES, FLOPS_GRADIENT = 2 * 11 * 2 * 4 + 60, 2 * 11 * 2 * 3
SLOPES_FLOATS = 2 + 3  # image and target in, derivatives out
GRADIENT_FLOATS = 3 + 2 + 1  # derivatives, image and target in, gradient out


@dataclass(frozen=True)
class Counts:
    """Of one image: N, D, I, E, and its sides [px]."""

    n: int
    drawn: int
    instances: int
    pairs: int
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height

    @property
    def tiles(self) -> int:
        return math.ceil(self.width / TILE_PX) * math.ceil(self.height / TILE_PX)

    @property
    def buckets(self) -> int:
        """At least so many: the last one of each tile may hold fewer than 32."""
        return math.ceil(self.instances / BUCKET)


@dataclass(frozen=True)
class Work:
    """Bytes moved and operations."""

    bytes: int
    flops: int


@dataclass(frozen=True)
class Rates:
    """Bytes a second of a copy (read and written both counted), operations a second of a float32 matrix product."""

    bytes_per_s: float
    flops_per_s: float


def sort_bytes(elements: int, bits: int) -> int:
    """Of a radix sort of (32-bit key, 32-bit value): one pass for the digits' counts, then read and write of each."""
    passes = math.ceil(bits / RADIX_BITS)
    return elements * FLOAT + passes * elements * 2 * (2 * FLOAT)


def _preprocess(c: Counts) -> Work:
    read = FLOAT * (c.n * GEOMETRY_FLOATS + c.drawn * SH_FLOATS)
    written = c.drawn * RECORD + c.n * FLOAT * 5  # flags, radius twice, key, number of tiles
    return Work(read + written, c.n * FLOPS_PROJECT + c.drawn * FLOPS_SH)


def _sort_bin(c: Counts) -> dict[str, Work]:
    selected = c.n * FLOAT + c.drawn * 4 * FLOAT  # keys; the drawn ones' indices, and their keys side by side
    slots = c.drawn * (2 * FLOAT + 3 * 8)  # tiles of each; offsets of 8 bytes, made, and summed up
    sorts = sort_bytes(c.drawn, 32) + sort_bytes(c.instances, c.tiles.bit_length())
    emitted = c.drawn * (RECORD + 4 * FLOAT + 8) + c.instances * 3 * FLOAT  # tile, slot, and the Gaussian of it
    ranges = 10 * c.tiles * FLOAT  # cleared, written, read; buckets
    return {
        "emit_kernel": Work(emitted, 0),
        "list_kernel": Work(4 * c.instances * FLOAT, 0),
        OTHERS: Work(selected + slots + sorts + ranges, 0),
    }


def _checkpoints(c: Counts) -> int:
    return c.buckets * TILE_PIXELS * (1 + CHANNELS) * FLOAT


def _forward(c: Counts) -> Work:
    gathered = c.instances * (FLOAT + RECORD)
    images = c.pixels * (CHANNELS + 1 + 1) * FLOAT  # colour, transmittance, where each pixel ended
    return Work(gathered + images + _checkpoints(c), c.pairs * FLOPS_PAIR_FORWARD)


def _loss(c: Counts) -> dict[str, Work]:
    values = c.pixels * CHANNELS
    return {
        "ssim_slopes": Work(values * SLOPES_FLOATS * FLOAT, values * FLOPS_SLOPES),
        "loss_gradient": Work(values * GRADIENT_FLOATS * FLOAT, values * FLOPS_GRADIENT),
    }


def _blend_backward(c: Counts, deterministic: bool) -> dict[str, Work]:
    behind = c.buckets * TILE_PIXELS * 2 * FLOAT  # transmittance, and the rest of the image times its gradient
    images = c.pixels * (CHANNELS + 2 + CHANNELS + 1) * FLOAT  # read, and put side by side with where each pixel ended
    gathered = c.instances * (2 * FLOAT + RECORD)
    found = {
        "find_states": Work(_checkpoints(c) + behind + images, 0),
        "differentiate_buckets": Work(behind + gathered + c.instances * SUMS, c.pairs * FLOPS_PAIR_BACKWARD),
    }
    if deterministic:
        return {**found, "sum_slots": Work(c.instances * SUMS + c.drawn * SUMS, 0)}
    return {**found, OTHERS: Work(c.n * SUMS, 0)}  # zeros to add to


def _geometry(c: Counts) -> Work:
    updated = c.n * PARAMETERS * 6 * FLOAT  # parameter and two moments, read and written
    beside = c.n * (SUMS + 2 * FLOAT + 2 * STATISTICS * FLOAT)
    return Work(updated + beside, c.n * (2 * FLOPS_PROJECT + FLOPS_SH + PARAMETERS * FLOPS_ADAM))


def kernel_work(c: Counts, *, deterministic: bool = False) -> dict[str, dict[str, Work]]:
    """What each kernel of each stage moves and computes; OTHERS = those of CUB and of the runtime."""
    return {
        "preprocess": {"preprocess_kernel": _preprocess(c)},
        "sort_bin": _sort_bin(c),
        "forward": {"blend_kernel": _forward(c)},
        "loss": _loss(c),
        "blend_backward": _blend_backward(c, deterministic),
        "geometry": {"differentiate_gaussians": _geometry(c)},
    }


def _sum(parts: Iterable[Work]) -> Work:
    each = list(parts)
    return Work(sum(w.bytes for w in each), sum(w.flops for w in each))


def work(c: Counts, *, deterministic: bool = False) -> dict[str, Work]:
    """What each stage moves and computes; `whole` is the sum."""
    stages = {name: _sum(of.values()) for name, of in kernel_work(c, deterministic=deterministic).items()}
    return {**stages, "whole": _sum(stages.values())}


def floor_ms(what: Work, rates: Rates) -> float:
    """The least time that memory and arithmetic allow, both at once."""
    return 1e3 * max(what.bytes / rates.bytes_per_s, what.flops / rates.flops_per_s)


def floors(found: dict[str, Work], rates: Rates) -> dict[str, float]:
    """The floor of each stage [ms]; that of `whole` is their sum, for they run one after the other."""
    each = {name: floor_ms(what, rates) for name, what in found.items() if name != "whole"}
    return {**each, "whole": sum(each.values())}


def _best_s(work_once: Any) -> float:
    """Seconds of the fastest of a few rounds, by events of the current stream."""
    rounds = []
    for _ in range(ROUNDS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work_once()
        end.record()
        end.synchronize()
        rounds.append(begin.elapsed_time(end) / 1e3)
    return min(rounds[1:])


def measured_rates(device: torch.device, copy_bytes: int = COPY_BYTES, side: int = PRODUCT_SIDE) -> Rates:
    """What the device reaches in a copy and in a float32 matrix product without tensor cores; needs a GPU."""
    source = torch.zeros(copy_bytes // FLOAT, device=device)
    target = torch.empty_like(source)
    copy_s = _best_s(lambda: target.copy_(source))
    del source, target
    a, b = (torch.rand(side, side, device=device) for _ in range(2))
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        product_s = _best_s(lambda: a @ b)
    finally:
        torch.set_float32_matmul_precision(before)
    return Rates(2 * copy_bytes / copy_s, 2 * side**3 / product_s)
