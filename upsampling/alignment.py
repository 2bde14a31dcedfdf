"""Alignment: inside one call of a video network, which frame hands its features to which.

`backward[i]` is the frame whose features reach frame i in the backward-time pass (a later one), `forward[i]` the one
in the forward-time pass (an earlier one); None means that nothing arrives. Flows between them are learned (SPyNet).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Alignment:
    """Sources of one call's frames in both passes; a source must have been visited before it is used."""

    backward: tuple[int | None, ...]
    forward: tuple[int | None, ...]

    def __post_init__(self) -> None:
        n = len(self.backward)
        late = all(s is None or i < s < n for i, s in enumerate(self.backward))
        early = all(s is None or 0 <= s < i for i, s in enumerate(self.forward))
        if len(self.forward) != n or not late or not early:
            raise ValueError(f"not an alignment of {n} frames: {self}")

    def part(self, first: int, last: int) -> "Alignment":
        """The alignment of frames first..last-1 alone: what came from outside no longer arrives."""

        def moved(sources: tuple[int | None, ...]) -> tuple[int | None, ...]:
            return tuple(None if s is None or not first <= s < last else s - first for s in sources[first:last])

        return Alignment(moved(self.backward), moved(self.forward))


def along_path(n: int) -> Alignment:
    """Every frame gets from its neighbours in the sequence: plain video super-resolution. n >= 1."""
    return Alignment((*range(1, n), None), (None, *range(n - 1)))
