"""Which views a view gets features from: the nearest ones that have features already, in several rounds.

A *neighbour cost* says how near two views are (smaller = nearer); the registry is open, see docs/extending.md.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from scene import Scene
from scene.angles import pose_angles, viewing_axes
from upsampling.alignment import Visit
from utils.matrices import square
from utils.plugins import imported

NeighbourCost = Callable[[Scene, Sequence[str]], Float[np.ndarray, "N N"]]
NEIGHBOUR_COSTS: dict[str, NeighbourCost] = {}


def neighbour_cost(name: str) -> Callable[[NeighbourCost], NeighbourCost]:
    """Make `measure(scene, names) -> [N, N]` selectable as --neighbour_cost NAME."""

    def add(measure: NeighbourCost) -> NeighbourCost:
        if name in NEIGHBOUR_COSTS:
            raise ValueError(f"neighbour cost {name!r} registered twice")
        NEIGHBOUR_COSTS[name] = measure
        return measure

    return add


@neighbour_cost("angle")
def angles(scene: Scene, names: Sequence[str]) -> Float[np.ndarray, "N N"]:
    """Angle between two cameras about the point that the scene's cameras look at, degrees."""
    return pose_angles(*viewing_axes(scene, names))


def cost_of_neighbours(name: str, scene: Scene, names: Sequence[str]) -> Float[np.ndarray, "N N"]:
    """The cost that --neighbour_cost names, of all pairs of views.

    Raises
    ------
    UserError : not importable, or what it returns is not [N, N] without NaN.
    """
    measure = NEIGHBOUR_COSTS.get(name) or imported("--neighbour_cost", name)
    return square(f"--neighbour_cost {name}", measure(scene, names), len(names))


def graph_visits(
    cost: Float[np.ndarray, "N N"],
    usable: Bool[np.ndarray, "N N"],
    factors: Float[np.ndarray, "N N"],
    order: Sequence[int],
    neighbours: int,
    passes: int,
) -> tuple[Visit, ...]:
    """One direction: `passes` rounds over `order`; each view gets from its nearest usable ones that have features.

    Parameters
    ----------
    cost : how near views are, row by row; ties go to the lower index.
    usable : may the column's view hand features to the row's?
    factors : weights of what is handed over.
    neighbours : how many at most.
    """
    nearest = np.argsort(cost, axis=1, kind="stable")
    made = np.zeros(len(cost), bool)
    visits = []
    for i in [*order] * passes:
        fit = made & usable[i]
        fit[i] = False
        sources = nearest[i][fit[nearest[i]]][:neighbours]
        visits.append(Visit(i, tuple(map(int, sources)), tuple(map(float, factors[i, sources]))))
        made[i] = True
    return tuple(visits)
