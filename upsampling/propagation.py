"""Second-order propagation: each frame of a pass gets features from its source and from that one's source.

Used by BasicVSR++ (Chan et al., CVPR 2022) and PSRT (Shi et al., NeurIPS 2022), in four branches after one another.
Letters: frame `i`, its source `s`, the source's source `ss`; flows say where in the source each pixel of i is found.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from upsampling.alignment import Alignment, Near, Tick, nothing
from upsampling.geometry import FlowOf
from upsampling.spynet import SPyNet, warp

BRANCHES = ("backward_1", "forward_1", "backward_2", "forward_2")


@dataclass(frozen=True)
class Flows:
    """Flows [1, 2, h, w] of one direction.

    learned : frame -> flow to its source; empty where `known` (from geometry) gives any flow.
    near : of the alignment: a source's source that is too far hands nothing on.
    """

    learned: dict[int, Tensor]
    known: FlowOf | None = None
    near: Near | None = None

    def to_source(self, i: int, s: int) -> Float[Tensor, "1 2 h w"]:
        """Flow from frame i to its source s."""
        return self.learned[i] if self.known is None else self.known(i, s).px

    def to_second(self, i: int, s: int, ss: int) -> Float[Tensor, "1 2 h w"]:
        """Flow from frame i to the source ss of its source s: known, or the two learned flows one after the other."""
        if self.known is not None:
            return self.known(i, ss).px
        return self.learned[i] + warp(self.learned[s], self.learned[i])


@dataclass(frozen=True)
class Arrival:
    """A feature that arrives at a frame, and the flow that leads to it."""

    feature: Float[Tensor, "1 c h w"]
    flow: Float[Tensor, "1 2 h w"]


# (frame, what arrives from its source, what arrives from the source's source) -> the frame's feature
Advance = Callable[[int, Arrival | None, Arrival | None], Tensor]


def sources_of(branch: str, alignment: Alignment) -> tuple[int | None, ...]:
    """Sources of all frames in the pass that `branch` makes."""
    return alignment.backward if branch.startswith("backward") else alignment.forward


def all_flows(spynet: SPyNet, frames: Float[Tensor, "t 3 h w"], alignment: Alignment) -> dict[str, Flows]:
    """Flows of every branch; branches of one direction share theirs."""
    if alignment.flow_of is not None:
        return dict.fromkeys(BRANCHES, Flows({}, alignment.flow_of, alignment.near))
    pyramid = spynet.pyramid(frames)
    found = {}
    for name in BRANCHES[:2]:
        pairs = [(i, s) for i, s in enumerate(sources_of(name, alignment)) if s is not None]
        learned = spynet.flows(pyramid, pairs, frames.shape[-2:])
        found[name] = Flows({i: flow for (i, _), flow in zip(pairs, learned, strict=True)}, near=alignment.near)
    return {name: found[name[:-1] + "1"] for name in BRANCHES}


def propagate(
    sources: Sequence[int | None], flows: Flows, advance: Advance, tick: Tick = nothing
) -> Iterator[tuple[int, Tensor]]:
    """Run one branch.

    Parameters
    ----------
    sources : whose features each frame gets; all later frames (a backward pass) or all earlier ones.
    flows : between any frame and its sources.
    advance : makes a frame's feature; called in visiting order. tick : called after it.

    Returns
    -------
    Iterator of (frame, feature) in visiting order; a feature is kept only while a later frame still needs it.
    """
    reverse = any(s is not None and s > i for i, s in enumerate(sources))
    order = range(len(sources))[:: -1 if reverse else 1]
    seconds = [None if s is None else sources[s] for s in sources]
    if (near := flows.near) is not None:
        seconds = [ss if ss is not None and near(i, ss) else None for i, ss in enumerate(seconds)]
    last_use = {s: i for i in order for s in (sources[i], seconds[i]) if s is not None}
    kept: dict[int, Tensor] = {}
    for i in order:
        first = second = None
        s = sources[i]
        if s is not None:
            first = Arrival(kept[s], flows.to_source(i, s))
            if (ss := seconds[i]) is not None:
                second = Arrival(kept[ss], flows.to_second(i, s, ss))
        feature = advance(i, first, second)
        if i in last_use:
            kept[i] = feature
        for used in [k for k in kept if last_use[k] == i]:
            del kept[used]
        tick()
        yield i, feature
