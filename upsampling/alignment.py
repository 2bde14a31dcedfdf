"""Alignment: inside one call of a video network, which frame hands its features to which, and along which flow.

Along a *path* each frame gets from one other in each of the two passes: `backward[i]` is the frame whose features reach
frame i in the backward-time pass (a later one), `forward[i]` the one in the forward-time pass (an earlier one); None
means that nothing arrives. In a *graph* it gets from several, and is visited several times in each direction.
Flows between frames are known (`flow_of`, from geometry) or, where that is None, the network's own (SPyNet).
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from jaxtyping import Float
from torch import Tensor

from upsampling.geometry import Flow, FlowOf
from upsampling.spynet import SPyNet, warp

Near = Callable[[int, int], bool]  # (frame, source): is the one near enough to the other for features to help?
Tick = Callable[[], None]
UNSEEN = 1e-3  # weight of what a support does not show, so that a pixel that none shows still gets something


def nothing() -> None:
    """Show no progress."""


@dataclass(frozen=True)
class Visit:
    """One step of a pass: `frame` gets features from `sources`, which were visited before.

    factors : weight of each source before visibility, for the mean over them; () = a single source, handed on as it is.
    """

    frame: int
    sources: tuple[int, ...] = ()
    factors: tuple[float, ...] = ()


@dataclass(frozen=True)
class Alignment:
    """Sources of one call's frames in both passes of a path; a source must have been visited before it is used.

    near : asked by networks that take from a source's source as well; None = all are.
    tick : called after each visit of a frame in a pass, and when it is finished: that is how work is counted.
    """

    backward: tuple[int | None, ...]
    forward: tuple[int | None, ...]
    flow_of: FlowOf | None = None
    near: Near | None = None
    tick: Tick = nothing
    folder: ClassVar[None] = None  # see Graph

    def __post_init__(self) -> None:
        n = len(self.backward)
        late = all(s is None or i < s < n for i, s in enumerate(self.backward))
        early = all(s is None or 0 <= s < i for i, s in enumerate(self.forward))
        if len(self.forward) != n or not late or not early:
            raise ValueError(f"not an alignment of {n} frames: {self}")

    def visits(self, reverse: bool) -> tuple[Visit, ...]:
        """The backward-time (`reverse`) or forward-time pass, step by step."""
        sources = self.backward if reverse else self.forward
        order = range(len(sources))[:: -1 if reverse else 1]
        return tuple(Visit(i, () if (s := sources[i]) is None else (s,)) for i in order)

    def part(self, first: int, last: int) -> "Alignment":
        """The alignment of frames first..last-1 alone: what came from outside no longer arrives."""

        def moved(sources: tuple[int | None, ...]) -> tuple[int | None, ...]:
            return tuple(None if s is None or not first <= s < last else s - first for s in sources[first:last])

        flow_of, near = self.flow_of, self.near
        shifted = None if flow_of is None else (lambda i, s: flow_of(i + first, s + first))
        near_there = None if near is None else (lambda i, s: near(i + first, s + first))
        return Alignment(moved(self.backward), moved(self.forward), shifted, near_there, self.tick)

    def mapped(self, change: Callable[[Flow], Flow]) -> "Alignment":
        """The same alignment of frames that were cut or mirrored, with `change` done to every known flow."""
        return replace(self, flow_of=_mapped(self.flow_of, change))


@dataclass(frozen=True)
class Graph:
    """Every frame gets the mean of what several others hand it, in several rounds.

    Attributes
    ----------
    backward, forward : visits of both directions; a frame's last one counts, in `forward` those are in ascending order.
    folder : where features wait in a file; None = in memory.
    tick : see `Alignment`.
    """

    backward: tuple[Visit, ...]
    forward: tuple[Visit, ...]
    flow_of: FlowOf | None = None
    folder: Path | None = None
    tick: Tick = nothing

    def visits(self, reverse: bool) -> tuple[Visit, ...]:
        """See `Alignment.visits`."""
        return self.backward if reverse else self.forward

    def part(self, first: int, last: int) -> "Graph":
        """All frames: a graph is not cut."""
        assert first == 0
        return self

    def mapped(self, change: Callable[[Flow], Flow]) -> "Graph":
        """See `Alignment.mapped`."""
        return replace(self, flow_of=_mapped(self.flow_of, change))


def _mapped(flow_of: FlowOf | None, change: Callable[[Flow], Flow]) -> FlowOf | None:
    return None if flow_of is None else lambda i, s: change(flow_of(i, s))


def along_path(n: int) -> Alignment:
    """Every frame gets from its neighbours in the sequence: plain video super-resolution. n >= 1."""
    return Alignment((*range(1, n), None), (None, *range(n - 1)))


def pairs_of(visits: Sequence[Visit]) -> list[tuple[int, int]]:
    """(frame, source) of every hand-over, in the order in which they happen."""
    return [(visit.frame, s) for visit in visits for s in visit.sources]


def flows(
    spynet: SPyNet, frames: Float[Tensor, "t 3 h w"], pairs: Sequence[tuple[int, int]], flow_of: FlowOf | None
) -> Iterator[Flow]:
    """The flow of each pair (frame, source), as it is asked for: what is known, else learned."""
    if flow_of is not None:
        return (flow_of(i, s) for i, s in pairs)
    learned = spynet.flows(spynet.pyramid(frames), pairs, frames.shape[-2:]) if pairs else iter(())
    return (Flow(px) for px in learned)


def handed(feature: Float[Tensor, "1 c h w"], flow: Flow) -> Float[Tensor, "1 c h w"]:
    """A source's feature as it arrives along a path: warped, zero where the source does not show the surface."""
    arrived = warp(feature, flow.px)
    return arrived if flow.visible is None else arrived * flow.visible.to(arrived.dtype)


def blended(
    features: Iterable[Float[Tensor, "1 c h w"]], known: Iterable[Flow], factors: Sequence[float]
) -> Float[Tensor, "1 c h w"]:
    """What arrives from several sources: sum w warp(feature) / sum w with w = factor (visible + UNSEEN), float32."""
    total: Tensor | float = 0.0
    norm: Tensor | float = 0.0
    for feature, flow, factor in zip(features, known, factors, strict=True):
        weight = factor * ((1.0 if flow.visible is None else flow.visible) + UNSEEN)
        total = total + weight * warp(feature.float(), flow.px)
        norm = norm + weight
    return total / norm  # type: ignore[return-value]
