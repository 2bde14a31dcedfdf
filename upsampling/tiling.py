"""Clips of any size under a memory bound: cut into chunks of frames and tiles of pixels, both with overlap.

A chunk's outer frames and a tile's rim lack context; they overlap their neighbours by what the network says matters,
frames are taken from one chunk only, and tiles are blended linearly over the inner half of the overlap.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from upsampling.alignment import Alignment, Graph, along_path
from upsampling.geometry import Flow
from upsampling.registry import Upsampler
from utils.errors import UserError
from utils.log import note

SMALLEST_TILE = 64  # LR px: below, flow is weak (vsr networks are made for 64 and more)
SLACK_BYTES = 256 << 20  # torch itself, weights, and the convolutions' own scratch


@dataclass(frozen=True)
class Plan:
    """How a clip is cut: `chunks` of frames (first, last + 1, of these kept from, to), grid of `tiles` (rows, cols).

    in_file : features wait in a file instead of memory.
    """

    chunks: tuple[tuple[int, int, int, int], ...]
    tiles: tuple[int, int]
    bytes: int
    in_file: bool = False


def plan(
    net: Upsampler, t: int, h: int, w: int, max_bytes: int, passes: int = 1, graph: bool = False, learned: bool = True
) -> Plan:
    """The coarsest cut of a clip of t frames of h x w px that stays under `max_bytes`.

    Parameters
    ----------
    graph : frames propagate in a graph: they stay together, and their features go to a file before frames are tiled.
    learned : in a graph, whether its flow is the network's own; else it comes from depths, which are kept.
    passes : how many run side by side, each with `max_bytes`; the error speaks of their sum, as the flag does.

    Raises
    ------
    UserError : no cut is small enough; names --max_memory and the least that it must be.
    """
    need = getattr(net, "graph_bytes" if graph else "working_bytes", None)
    if need is None:
        return Plan(_chunks(t, t, 0), (1, 1), 0)
    context = t - 1 if graph else 2 * net.num_neighbours
    views = (12 if learned or not graph else 16) * t * h * w  # frames, and depths
    least, smallest = min(t, context + 1), math.inf
    for tiles in _grids(h, w):
        th, tw = (min(_tile_side(net, n, k), n) for n, k in zip((h, w), tiles, strict=True))
        joined = 16 * net.scale**2 * h * w if tiles != (1, 1) else 0

        for where in ((False, learned), (True, learned)) if graph else ((),):

            def total(frames: int, where: tuple[bool, ...] = where, size: Any = (th, tw), joined: int = joined) -> int:
                kept = t if graph else max(frames - context, 1)
                return need(frames, *size, *where) + joined * kept + views + SLACK_BYTES

            if total(least) <= max_bytes:
                longest = max(n for n in range(least, t + 1) if total(n) <= max_bytes)
                return Plan(_chunks(t, longest, net.num_neighbours), tiles, total(longest), any(where[:1]))
            smallest = min(smallest, total(least))  # not always the finest grid's: tiles keep all HR frames of a graph
    needed = math.ceil(100 * passes * smallest / 2**30) / 100  # rounded up: as a value of the flag it suffices
    raise UserError(f"--max_memory {passes * max_bytes / 2**30:.2f}: {w}x{h} px need {needed:.2f} GB or more")


def work(cut: Plan, wanted: frozenset[int], visits: int) -> int:
    """How often `upsample` calls the alignment's tick, at most: for each visit of a frame and when it is finished.

    Parameters
    ----------
    wanted : as for `upsample`. visits : of each frame.
    """
    frames = sum(last - first for first, last, kept, end in cut.chunks if wanted & set(range(kept, end)))
    return (visits + 1) * frames * math.prod(cut.tiles)


def _tile_side(net: Upsampler, n: int, count: int) -> int:
    """Largest side of `count` tiles along n px, with their overlaps."""
    if count == 1:
        return n
    m = _multiple(net)
    return -(-n // (count * m)) * m + m // 2 + 2 * net.overlap  # type: ignore[attr-defined]


def _multiple(net: Upsampler) -> int:
    """What tiles' edges are multiples of."""
    return getattr(net, "multiple", 1)


def _grids(h: int, w: int) -> Iterator[tuple[int, int]]:
    """Grids of tiles from coarse to fine, the longer side of a tile cut first."""
    rows = cols = 1
    while True:
        yield rows, cols
        if max(h / rows, w / cols) < 2 * SMALLEST_TILE:
            return
        rows, cols = (rows + 1, cols) if h / rows > w / cols else (rows, cols + 1)


def _chunks(t: int, longest: int, margin: int) -> tuple[tuple[int, int, int, int], ...]:
    """Chunks of at most `longest` frames whose kept parts meet; each has `margin` frames around what is kept."""
    if longest >= t:
        return ((0, t, 0, t),)
    chunks, kept = [], 0
    while kept < t:
        first = max(kept - margin, 0)
        last = min(first + longest, t)
        end = t if last == t else last - margin
        chunks.append((first, last, kept, end))
        kept = end
    return tuple(chunks)


def upsample(
    net: Upsampler,
    frames: Float[Tensor, "t 3 h w"],
    wanted: frozenset[int],
    max_bytes: int,
    alignment: Alignment | Graph | None = None,
) -> Iterator[tuple[int, Float[Tensor, "3 H W"]]]:
    """Upsample a clip under a memory bound.

    Parameters
    ----------
    wanted : positions that are needed; chunks that hold none of them are not computed.
    max_bytes : bound of the working memory.
    alignment : who hands features to whom; None = along the clip.

    Returns
    -------
    Iterator of (position, frame [3, H, W] float32 clamped to 0-1) in ascending order of position.

    Raises
    ------
    UserError : `plan` finds no cut, or memory runs out twice (it is halved once, with a note).
    """
    left = set(wanted)
    alignment = alignment or along_path(len(frames))
    for attempt in range(2):
        try:
            for position, frame in _upsample(net, frames, frozenset(left), max_bytes >> attempt, alignment):
                left.discard(position)
                yield position, frame.clamp(0, 1)
            return
        except (MemoryError, RuntimeError) as error:
            # torch reports a failed allocation on the CPU as RuntimeError with these words.
            if attempt or not (isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate" in str(error)):
                raise
        note("out of memory: trying once more with half of --max_memory")
        if frames.is_cuda:
            torch.cuda.empty_cache()  # blocks of sizes that will not come again; the failed attempt is freed by now


def _upsample(
    net: Upsampler, frames: Tensor, wanted: frozenset[int], max_bytes: int, alignment: Alignment | Graph
) -> Iterator[tuple[int, Tensor]]:
    t, _, h, w = frames.shape
    cut = plan(net, t, h, w, max_bytes, 1, isinstance(alignment, Graph), alignment.flow_of is None)
    if isinstance(alignment, Graph) and not cut.in_file:
        alignment = replace(alignment, folder=None)
    part: Any  # a Graph only for networks that take one
    for first, last, kept, end in cut.chunks:
        here = wanted & set(range(kept, end))
        if not here:
            continue
        clip, part = frames[first:last], alignment.part(first, last)
        only: Any = getattr(net, "only", None)
        made = only(frozenset(i - first for i in here)) if only else net
        outputs = (
            _finished(made, clip, part) if cut.tiles == (1, 1) else _tiled(made, clip, part, kept - first, cut.tiles)
        )
        for position, frame in enumerate(outputs, first):
            if position in here:
                yield position, frame
            if position >= end - 1:
                break


def _finished(net: Any, clip: Tensor, alignment: Alignment | Graph) -> Iterator[Tensor]:
    """Frames of a clip, checked and counted.

    Raises
    ------
    UserError : a network of the user's own yields something else, or too few.
    """
    t, _, h, w = clip.shape
    shape, count = (3, net.scale * h, net.scale * w), 0
    for frame in net.upsample(clip, alignment):
        if not isinstance(frame, Tensor) or frame.shape != shape or not frame.is_floating_point():
            found = f"{list(frame.shape)} {frame.dtype}" if isinstance(frame, Tensor) else type(frame).__name__
            raise UserError(f"{_named(net)}: yields {found}; a frame {list(shape)} of floats is expected")
        alignment.tick()
        count += 1
        yield frame
    if count < t:
        raise UserError(f"{_named(net)}: yields {count} frames for {t} views; one for each is expected")


def _named(net: Any) -> str:
    return f"{type(net).__module__}.{type(net).__qualname__}.upsample"


def _tiled(
    net: Any, clip: Tensor, alignment: Alignment | Graph, start: int, tiles: tuple[int, int]
) -> Iterator[Tensor]:
    """All frames of a clip, tile after tile; the first `start`, which nobody keeps, come back as single pixels."""
    t, _, h, w = clip.shape
    s = net.scale
    joined = clip.new_zeros(t - start, 3, s * h, s * w)
    overlap: int = net.overlap
    rows, cols = (_spans(n, k, overlap, _multiple(net)) for n, k in zip((h, w), tiles, strict=True))
    row_weights, col_weights = _ramps(rows, h, s, overlap), _ramps(cols, w, s, overlap)
    for (top, bottom), row_weight in zip(rows, row_weights, strict=True):
        for (left, right), col_weight in zip(cols, col_weights, strict=True):
            weight = (row_weight[:, None] * col_weight[None, :]).to(clip.device)
            part = clip[:, :, top:bottom, left:right].contiguous()
            local = alignment.mapped(partial(Flow.cropped, top=top, bottom=bottom, left=left, right=right))
            for i, frame in enumerate(_finished(net, part, local)):
                if i >= start:
                    joined[i - start, :, s * top : s * bottom, s * left : s * right] += frame * weight
    yield from (clip.new_zeros(3, 1, 1) for _ in range(start))
    yield from joined


def _spans(n: int, count: int, overlap: int, multiple: int = 1) -> list[tuple[int, int]]:
    """`count` equal parts of 0..n, cut at multiples of `multiple`, each extended by `overlap` within the image."""
    edges = [0, *(round(n * k / count / multiple) * multiple for k in range(1, count)), n]
    return [(max(a - overlap, 0), min(b + overlap, n)) for a, b in pairwise(edges)]


def _ramps(spans: list[tuple[int, int]], n: int, scale: int, overlap: int) -> list[Tensor]:
    """Blending weights of each span in HR pixels, summing to 1: none in the outer half of an overlap, which lacks
    context, linear over the inner half, 1 elsewhere."""
    position = torch.arange(scale * n, dtype=torch.float64) + 0.5
    far = torch.full_like(position, scale * n)
    tents = []
    for first, last in spans:
        rise = position - scale * (first + overlap // 2) if first else far
        fall = scale * (last - overlap // 2) - position if last < n else far
        tents.append(torch.minimum(rise, fall).clamp(min=0))
    total = torch.stack(tents).sum(0)
    return [(tent / total)[scale * a : scale * b].float() for tent, (a, b) in zip(tents, spans, strict=True)]
