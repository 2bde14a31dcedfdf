"""From a cost matrix to the calls of a video network: walks through all views, and gated subsequences.

A walk is a permutation of the N views. An ordering gives a list of `Call`s; those that are walks are cut into chunks by
one function, so that comparing them compares the order alone. Everything here is on indices, deterministic, and ties
go to the lower index.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from utils.errors import UserError
from utils.plugins import check_name, imported

CONTEXT = 7  # frames kept around what an adaptive call saves: the clip length that PSRT and Vimeo-90K are trained on
NEIGHBOURS = 2  # views that a frame needs around it to be saved under a limit


@dataclass(frozen=True)
class Call:
    """One call of the network: indices of its frames, positions that are saved, end frames doubled or not."""

    frames: tuple[int, ...]
    save: tuple[int, ...]
    padded: bool = False


@dataclass(frozen=True)
class Problem:
    """What an ordering may look at.

    Parameters
    ----------
    order : [N, N] cost that decides who comes next.
    gate : [N, N] in the unit of `thresholds`, None where nothing is limited.
    thresholds : limits of the gate, strict first.
    longest : most frames in one call, 0 = no limit.
    rng : for `random`.
    """

    order: Float[np.ndarray, "N N"]
    gate: Float[np.ndarray, "N N"] | None
    thresholds: tuple[float, ...]
    longest: int
    rng: np.random.Generator


Ordering = Callable[[Problem], list[Call]]
ORDERINGS: dict[str, Ordering] = {}


def ordering(name: str) -> Callable[[Ordering], Ordering]:
    """Make `find(problem) -> list[Call]` selectable as --ordering NAME."""

    def add(find: Ordering) -> Ordering:
        if name in ORDERINGS:
            raise ValueError(f"ordering {name!r} registered twice")
        ORDERINGS[name] = find
        return find

    return add


def find_ordering(name: str) -> Ordering:
    """A registered ordering, or MODULE:NAME. Raises UserError where it is neither known nor importable."""
    if ":" in name:
        found: Ordering = imported("--ordering", name)
        return found
    check_name("--ordering", name, ORDERINGS)
    return ORDERINGS[name]


def check_calls(calls: object, views: int, name: str) -> None:
    """Raise UserError unless `calls` is a list of `Call`s of known, different frames with positions to save."""
    if not isinstance(calls, list) or not all(isinstance(call, Call) for call in calls):
        raise UserError(f"--ordering {name}: a list of ordering.paths.Call is expected")
    for number, call in enumerate(calls, 1):
        known = all(0 <= i < views for i in call.frames) and all(0 <= k < len(call.frames) for k in call.save)
        if not known or not call.frames or len(set(call.frames)) < len(call.frames):
            raise UserError(
                f"--ordering {name}: call {number}: frames are different indices below {views}, positions to save "
                "lie among them"
            )


def check_cost(cost: Float[np.ndarray, "rows columns"]) -> None:
    """Raise UserError unless the matrix is square, not empty, and free of NaN."""
    if cost.ndim != 2 or cost.shape[0] != cost.shape[1] or not len(cost) or np.isnan(cost).any():
        raise UserError(f"cost matrix {cost.shape}: N x N with N >= 1 and no NaN is expected")


# --- walks ---


def nearest_first(cost: Float[np.ndarray, "N N"]) -> Int[np.ndarray, "N N"]:
    """Row i: all views, the nearest to i first; ties go to the lower index, NaN comes last."""
    return np.argsort(cost, axis=1, kind="stable")


def greedy_path(
    nearest: Int[np.ndarray, "N N"],
    start: int = 0,
    gate: Float[np.ndarray, "N N"] | None = None,
    limit: float = np.inf,
) -> list[int]:
    """Walk from `start`, always to the nearest view not yet visited (Ko et al., simple greedy S).

    Parameters
    ----------
    nearest : from `nearest_first`.
    gate, limit : the walk ends before the first step with gate > limit; without a gate it visits all.
    """
    free = np.ones(len(nearest), bool)
    free[start] = False
    path = [start]
    while len(path) < len(nearest):
        row = nearest[path[-1]]
        candidate = int(row[free[row].argmax()])
        if gate is not None and gate[path[-1], candidate] > limit:
            break
        path.append(candidate)
        free[candidate] = False
    return path


def chunks(walk: Sequence[int], longest: int) -> list[Call]:
    """Cut a walk into calls of `longest` frames; a short last one reaches back and saves what is new (S, Q02, Q03)."""
    n = len(walk)
    longest = min(longest, n) if longest else n
    calls, saved = [], 0
    while saved < n:
        first = min(saved, n - longest)
        part = tuple(walk[first : first + longest])
        calls.append(Call(part, tuple(range(saved - first, longest)), padded=True))
        saved = first + longest
    return calls


def path_cost(cost: Float[np.ndarray, "N N"], path: Sequence[int]) -> float:
    """Sum of the steps of an open path."""
    return float(cost[list(path[:-1]), list(path[1:])].sum())


# --- adaptive-length subsequences ---


def two_sided_walk(
    nearest: Int[np.ndarray, "N N"], gate: Float[np.ndarray, "N N"], limit: float, start: int, longest: int
) -> list[int]:
    """Grow a path of up to `longest` views from `start` at both ends, each step to the nearest free view within limit.

    The first step goes to one side and the second to the other, so `start` lies inside wherever two views are within
    its limit; then the end whose nearest view ranks lower takes it, the tail on a tie.
    """
    free = np.ones(len(nearest), bool)
    free[start] = False
    path = [start]

    def candidate(end: int) -> tuple[int, int] | None:
        row = nearest[end]
        allowed = free[row] & (gate[end, row] <= limit)
        rank = int(allowed.argmax())
        return (rank, int(row[rank])) if allowed[rank] else None

    while True:
        tail, head = candidate(path[-1]), candidate(path[0])
        if len(path) >= longest or (tail is None and head is None):
            return path
        second_step = len(path) == 2 and path[0] == start
        at_head = tail is None or (head is not None and (second_step or head[0] < tail[0]))
        taken = head if at_head else tail
        assert taken is not None
        path = [taken[1], *path] if at_head else [*path, taken[1]]
        free[taken[1]] = False


def als_calls(
    order: Float[np.ndarray, "N N"], gate: Float[np.ndarray, "N N"], thresholds: Sequence[float], longest: int
) -> list[Call]:
    """Adaptive-length subsequences: each view is saved where it has neighbours on both sides, strict limits first.

    Parameters
    ----------
    order : decides who comes next. gate : every step of a call stays within the limit of its pass.
    thresholds : limits, strict first. longest : most frames in a call (0 = no limit), at least 3 are used.

    Notes
    -----
    Ko et al., "Sequence Matters", section 3 and algorithm 2, with its losses mended (compat.py has the released rule):
    walks start from views not yet saved and grow at both ends, so each walk saves the view it starts from, also when it
    is full (Q04), and a view is left for a looser pass only when fewer than two others are within its limit (Q05);
    what is left after the last pass is saved between its two nearest views instead of alone (Q06); a call keeps what it
    saves and `CONTEXT` frames around it (Q07). An asymmetric gate is read from the end that grows.
    """
    n = len(order)
    nearest = nearest_first(order)
    longest = max(longest, NEIGHBOURS + 1) if longest else n
    saved: set[int] = set()
    calls: list[Call] = []
    for limit in thresholds:
        for start in range(n):
            if start in saved:
                continue
            walk = two_sided_walk(nearest, gate, limit, start, longest)
            new = [k for k in range(1, len(walk) - 1) if walk[k] not in saved]
            if new:
                first = max(new[0] - CONTEXT, 0)
                calls.append(Call(tuple(walk[first : new[-1] + CONTEXT + 1]), tuple(k - first for k in new)))
                saved.update(walk[k] for k in new)
    for start in range(n):
        if start not in saved:
            near = [int(j) for j in nearest[start] if j != start][:NEIGHBOURS]
            frames = [*near[:1], start, *near[1:]]
            calls.append(Call(tuple(frames), (frames.index(start),)))
            saved.add(start)
    return calls


# --- the registry ---


@ordering("file")
def _file(problem: Problem) -> list[Call]:
    return chunks(range(len(problem.order)), problem.longest)


@ordering("random")
def _random(problem: Problem) -> list[Call]:
    return chunks(problem.rng.permutation(len(problem.order)).tolist(), problem.longest)


@ordering("greedy")
def _greedy(problem: Problem) -> list[Call]:
    return chunks(greedy_path(nearest_first(problem.order)), problem.longest)


@ordering("als")
def _als(problem: Problem) -> list[Call]:
    if problem.gate is None:
        raise UserError("the ordering als needs a gate")
    return als_calls(problem.order, problem.gate, problem.thresholds, problem.longest)
