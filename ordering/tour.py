"""A short open path through all views: greedy walks improved by 2-opt and Or-opt (Lin 1965, Or 1976).

A path with one more view at cost 0 from all, the joint, is a cycle of M = N + 1 nodes; the joint stays at position 0.
b[i, j] is the cost between the nodes at positions i and j, step[i] = b[i, i + 1]. Each move is the best of all O(N^2),
yet only those are looked at that can shorten the path: what is added must somewhere be less than what is taken away,
and the nodes within that radius are the first ones of a sorted row.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int

from ordering.paths import Call, Problem, check_cost, chunks, greedy_path, nearest_first, ordering, path_cost

RUN = 3  # views that Or-opt moves at once, at most


@dataclass(frozen=True)
class _Costs:
    """Costs between the nodes of a cycle, and each node's neighbours, the nearest first."""

    between: Float[np.ndarray, "M M"]
    nearest: Int[np.ndarray, "M M"]
    ascending: Float[np.ndarray, "M M"]  # between, each row sorted
    tolerance: float  # a smaller gain may be rounding

    def within(
        self, nodes: Int[np.ndarray, "E"], limits: Float[np.ndarray, "E"]
    ) -> tuple[Int[np.ndarray, "C"], Int[np.ndarray, "C"]]:
        """All (e, node) with between[nodes[e], node] < limits[e]."""
        low, high = np.zeros(len(nodes), np.int64), np.full(len(nodes), len(self.between))
        while (low < high).any():  # all rows' binary searches at once
            middle = np.minimum((low + high) // 2, len(self.between) - 1)
            less = (self.ascending[nodes, middle] < limits) & (low < high)
            low, high = np.where(less, middle + 1, low), np.where(less, high, np.minimum(high, middle))
        entry = np.repeat(np.arange(len(nodes)), low)
        rank = np.arange(len(entry)) - np.repeat(np.cumsum(low) - low, low)
        return entry, self.nearest[nodes[entry], rank]


def tour_path(cost: Float[np.ndarray, "N N"], restarts: int = 8) -> list[int]:
    """A short open path through all views, both ends free.

    Parameters
    ----------
    cost : [N, N]; an asymmetric one is averaged with its transpose. +inf counts as ten times the dearest finite step.
    restarts : the best greedy walks (of all N starts) that are improved; the best result wins.

    Returns
    -------
    A permutation of range(N), the end with the lower index first; no single 2-opt or Or-opt move shortens it.
    """
    check_cost(cost)
    finite = cost[np.isfinite(cost)]
    far = 10 * max(float(finite.max(initial=0.0)), 1.0)
    dense = np.where(np.isfinite(cost), cost, far)
    dense = (dense + dense.T) / 2
    nearest = nearest_first(dense)
    walks = sorted((greedy_path(nearest, s) for s in range(len(cost))), key=lambda p: path_cost(dense, p))
    costs = _closed(dense, max(1e-9, 1e-12 * far))
    best = min((_improved(costs, p) for p in walks[:restarts]), key=lambda p: path_cost(dense, p))
    return best if best[0] <= best[-1] else best[::-1]


def _closed(cost: Float[np.ndarray, "N N"], tolerance: float) -> _Costs:
    n = len(cost)
    between = np.zeros((n + 1, n + 1))
    between[:n, :n] = cost
    nearest = nearest_first(between)
    return _Costs(between, nearest, np.take_along_axis(between, nearest, axis=1), tolerance)


def _improved(costs: _Costs, path: Sequence[int]) -> list[int]:
    """Apply the best 2-opt or Or-opt move until none shortens the path."""
    cycle = np.array([len(path), *path])
    while True:
        position = np.argsort(cycle)
        step = costs.between[cycle, np.roll(cycle, -1)]
        # (end, other): the step that ends at position `end` is longer than from there to position `other`
        end, node = costs.within(cycle, np.roll(step, 1))
        shorter = end, position[node]
        gain_2opt, reversal = _best_two_opt(costs, cycle, position, step, shorter)
        gain_or, move = _best_or_opt(costs, cycle, position, step, shorter)
        if min(gain_2opt, gain_or) > -costs.tolerance:
            return cycle[1:].tolist()
        if gain_2opt <= gain_or:
            first, last = reversal
            cycle[first : last + 1] = cycle[first : last + 1][::-1].copy()
        else:
            cycle = _moved(cycle, *move)


def _first_least(change: Float[np.ndarray, "C"], *keys: Int[np.ndarray, "C"]) -> int:
    """Index of the least change; ties go to the lower keys, the first key before the second."""
    ties = np.flatnonzero(change == change.min())
    return int(ties[np.lexsort([key[ties] for key in reversed(keys)])[0]])


def _best_two_opt(
    costs: _Costs, cycle: np.ndarray, position: np.ndarray, step: np.ndarray, shorter: tuple[np.ndarray, np.ndarray]
) -> tuple[float, tuple[int, int]]:
    """Change of length by reversing positions i + 1 .. j of the cycle, and the best (i + 1, j).

    Notes
    -----
    b[i, j] + b[i + 1, j + 1] < step[i] + step[j] needs b[i, j] < step[i] or b[i + 1, j + 1] < step[j].
    """
    m = len(cycle)
    start, node = costs.within(cycle, step)
    i = np.concatenate([start, shorter[1] - 1])
    j = np.concatenate([position[node], (shorter[0] - 1) % m])
    apart = (i < j) & (i >= 0)
    i, j = i[apart], j[apart]
    if not len(i):
        return np.inf, (1, 1)
    b = costs.between
    change = b[cycle[i], cycle[j]] + b[cycle[i + 1], cycle[(j + 1) % m]] - step[i] - step[j]
    best = _first_least(change, i, j)
    return float(change[best]), (int(i[best]) + 1, int(j[best]))


def _best_or_opt(
    costs: _Costs, cycle: np.ndarray, position: np.ndarray, step: np.ndarray, shorter: tuple[np.ndarray, np.ndarray]
) -> tuple[float, tuple[int, int, int, bool]]:
    """Change of length by moving a run of 1-3 views elsewhere, and (first, length, after, reversed).

    Notes
    -----
    With `saving` = what taking the run out saves, head and tail its ends towards k and k + 1:
    b[head, k] + b[tail, k + 1] < saving + step[k] needs b[head, k] < saving or b[tail, k + 1] < step[k].
    """
    m, b = len(cycle), costs.between
    best: tuple[float, tuple[int, int, int, bool]] = (np.inf, (1, 1, 0, False))
    for length in range(1, min(RUN, m - 2) + 1):
        first = np.arange(1, m - length + 1)  # position 0 holds the joint of the ends and stays
        last, before, after = first + length - 1, first - 1, (first + length) % m
        x, y, p, q = cycle[first], cycle[last], cycle[before], cycle[after]
        closing = b[p, q] - b[p, x] - b[y, q]
        for flipped in (False, True)[: min(length, 2)]:
            head, tail = (y, x) if flipped else (x, y)
            at, node = costs.within(head, -closing)
            run_of_tail = shorter[1] - (1 if flipped else length)  # the run whose tail that position is
            at = np.concatenate([at, run_of_tail])
            k = np.concatenate([position[node], (shorter[0] - 1) % m])
            allowed = (at >= 0) & (at < len(first))
            at, k = at[allowed], k[allowed]
            outside = (k < before[at]) | (k > last[at])
            at, k = at[outside], k[outside]
            if not len(at):
                continue
            change = closing[at] + b[head[at], cycle[k]] + b[tail[at], cycle[(k + 1) % m]] - step[k]
            least = _first_least(change, at, k)
            if change[least] < best[0]:
                best = (float(change[least]), (int(first[at[least]]), length, int(k[least]), flipped))
    return best


def _moved(cycle: np.ndarray, first: int, length: int, after: int, flipped: bool) -> np.ndarray:
    run = cycle[first : first + length]
    rest = np.delete(cycle, np.s_[first : first + length])
    place = after + 1 if after < first else after + 1 - length
    return np.concatenate([rest[:place], run[::-1] if flipped else run, rest[place:]])


@ordering("tour")
def _tour(problem: Problem) -> list[Call]:
    return chunks(tour_path(problem.order), problem.longest)
