"""Our own statement of the released orderings, slow and literal, straight from the paper's pseudo-code.

Smaller = closer, ties go to the lower index. Tests compare the project's code with this, and, where the development
data are there, with the project's independent reference as well.
"""


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
