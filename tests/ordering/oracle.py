"""Our own statement of the released orderings, slow and literal, straight from the paper's pseudo-code; and of a tour.

Smaller = closer, ties go to the lower index. Tests compare the project's code with this, and, where the development
data are there, with the project's independent reference as well.
"""

import numpy as np


def walk(order, start, gate=None, limit=None):
    """To the nearest view not yet visited; with a gate, stop before the first step that exceeds the limit."""
    path, free = [start], set(range(len(order))) - {start}
    while free:
        nearest = min(free, key=lambda j: (order[path[-1]][j], j))
        if gate is not None and gate[path[-1]][nearest] > limit:
            break
        path.append(nearest)
        free.remove(nearest)
    return path


def simple_greedy(order, longest):
    """[(frames, saved frames)] of S: chunks of the walk; a short last chunk is re-cut from the walk's end."""
    path, done, calls = walk(order, 0), set(), []
    for i in range(0, len(path), longest):
        part = path[i : i + longest]
        if len(part) < longest:
            part = path[-longest:]
        calls.append((part, [f for f in part if f not in done]))
        done.update(part)
    return calls


def adaptive(order, gate, limits, longest):
    """[(frames, saved frames)] of ALS as released, with the calls that save nothing."""
    have, calls = set(), []
    for limit in limits:
        last = limit == limits[-1]
        for start in range(len(order)):
            if len(have) == len(order):
                return calls
            path = walk(order, start, gate, limit)
            if len(path) <= 2 and not last:
                continue
            path = path[:longest]
            if all(f in have for f in path):
                continue
            saved = [f for f in (path if last else path[1:-1]) if f not in have]
            have.update(saved)
            calls.append((path, saved))
    return calls


def tour(cost, restarts=8):
    """The best of the improved greedy walks: each time the best of all moves is made, tie by tie as in the code."""
    cost = np.where(np.isfinite(cost), cost, 10 * max(cost[np.isfinite(cost)].max(initial=0), 1.0))
    cost = (cost + cost.T) / 2

    def length(path):
        return float(cost[path[:-1], path[1:]].sum())

    walks = sorted((walk(cost, start) for start in range(len(cost))), key=length)
    best = min((improved(cost, path) for path in walks[:restarts]), key=length)
    return best if best[0] <= best[-1] else best[::-1]


def improved(cost, path):
    """Reversals before moves of a run, then the lower positions, where several moves are best."""
    n = len(path)
    b = np.zeros((n + 1, n + 1))  # one more view at cost 0 from all joins the two free ends into a cycle
    b[:n, :n] = cost
    cycle = [n, *path]
    while True:
        gain, following = min(all_moves(b, cycle), key=lambda move: move[0], default=(0.0, cycle))
        if gain > -1e-9:
            return cycle[1:]
        cycle = following


def all_moves(b, cycle):
    """(change of the cycle's length, the cycle after it) of every 2-opt and Or-opt move."""
    m = len(cycle)
    step = [b[cycle[k], cycle[(k + 1) % m]] for k in range(m)]
    for i in range(m):
        for j in range(i + 1, m):
            change = b[cycle[i], cycle[j]] + b[cycle[i + 1], cycle[(j + 1) % m]] - step[i] - step[j]
            yield change, cycle[: i + 1] + cycle[i + 1 : j + 1][::-1] + cycle[j + 1 :]
    for size in range(1, min(3, m - 2) + 1):
        for flipped in (False, True):
            for first in range(1, m - size + 1):
                run, rest = cycle[first : first + size], cycle[:first] + cycle[first + size :]
                run = run[::-1] if flipped else run
                before, after = rest[first - 1], rest[first % len(rest)]
                taken_out = b[before, after] - b[before, cycle[first]] - b[cycle[first + size - 1], after]
                for k in range(m):
                    if not first - 1 <= k < first + size:
                        change = taken_out + b[run[0], cycle[k]] + b[run[-1], cycle[(k + 1) % m]] - step[k]
                        place = rest.index(cycle[k]) + 1
                        yield change, rest[:place] + run + rest[place:]
