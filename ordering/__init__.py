"""Orders the views of a scene into the calls of a video network: costs between views, paths through them.

`build` is the door: scene and settings in, `Sequences` out. The paper's own behaviour stands apart in compat.py.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from jaxtyping import Float

from arguments.ordering import OrderingParams
from ordering import tour  # noqa: F401 (registers itself)
from ordering.compat import (
    rank_of,
    released_als,
    released_centres,
    released_names,
    released_pose_cost,
    released_thresholds,
)
from ordering.costs import Background, find_cost, measured
from ordering.paths import Call, Problem, check_calls, find_ordering
from scene import SEQUENCE_MATTERS, Scene
from scene.angles import pose_angles, viewing_axes
from scene.sequences import Sequences, Subsequence, check_sequences
from utils.errors import UserError
from utils.log import note
from utils.rng import numpy_generator

BLACK: Background = (0.0, 0.0, 0.0)
LIMITS = {"pose": (15.0, 30.0, 45.0), "orb": (30.0, 50.0)}  # degrees, ranks: the paper's on its two data sets
PAPER_GATE = {"orb": "pose", "pose": "orb"}  # by what views are ordered by (SM, appendix B)
ORB_PAIR_S = 0.001  # CPU-seconds a pair of 400 descriptors each
LONG_S = 60.0
FEATURE_LONGEST, POSE_LONGEST = 100, 8


@dataclass(frozen=True)
class Plan:
    """Settings with every "auto" decided for one scene. gate : "" = no step is limited."""

    ordering: str
    cost: str
    gate: str
    thresholds: tuple[float, ...]
    longest: int


def decide(settings: OrderingParams, kind: str, compat: str = "") -> Plan:
    """Which ordering, cost, gate, limits and length the settings mean on a scene of this kind.

    Raises
    ------
    UserError : an ordering, cost or gate that --compat does not have, or a gate without limits.
    """
    released = compat == SEQUENCE_MATTERS
    ordering = settings.ordering
    if ordering == "auto":
        ordering = "als" if settings.als else "greedy" if settings.similarity or released else "tour"
    cost = settings.cost if not settings.similarity else {"feature": "orb", "pose": "pose"}[settings.similarity]
    if cost == "auto":
        cost = ("orb" if kind == "blender" else "pose") if ordering in ("greedy", "als") else "pose"
    if released and (ordering not in ("greedy", "als") or cost not in PAPER_GATE):
        raise UserError(
            f"--compat {compat} knows the orderings greedy and als on the costs orb and pose, "
            f"not {ordering} on {cost}; leave --compat away"
        )
    gate = settings.gate if ordering == "als" or ":" in ordering else ""
    if gate == "auto":
        gate = PAPER_GATE.get(cost, "pose") if ordering == "als" else ""
    elif released and gate and gate != PAPER_GATE[cost]:
        raise UserError(f"--compat {compat}: ordered by {cost}, the release limits {PAPER_GATE[cost]}, not {gate}")
    thresholds = settings.thres_values or LIMITS.get(gate, ())
    if gate and not thresholds:
        raise UserError(f"--gate {gate}: say with --thres_values which steps are allowed, in the unit of that cost")
    longest = settings.num_images_in_sequence
    if not longest and (released or ordering == "als"):
        longest = FEATURE_LONGEST if cost == "orb" else POSE_LONGEST
    return Plan(ordering, cost, gate, thresholds, longest)


def describe(scene: Scene, settings: OrderingParams, compat: str = "") -> str:
    """What `build` would do, for --dry_run: reads names and sizes only."""
    plan = decide(settings, scene.kind, compat)
    names = released_names(scene) if compat == SEQUENCE_MATTERS else scene.train
    seconds = _orb_seconds(plan, len(names))
    limits = f", limits {' '.join(f'{t:g}' for t in plan.thresholds)} of {plan.gate}" if plan.gate else ""
    cut = f", at most {plan.longest} frames a call" if plan.longest else ""
    return f"order {len(names)} views by {plan.ordering} on {plan.cost}{limits}{cut}; about {max(seconds, 1):.0f} s"


def _orb_seconds(plan: Plan, views: int) -> float:
    """CPU-seconds that ORB takes in a plan, 0 without it."""
    return views * 0.02 + views**2 / 2 * ORB_PAIR_S if "orb" in (plan.cost, plan.gate) else 0.0


def build(
    scene: Scene, settings: OrderingParams, *, seed: int = 0, compat: str = "", background: Background = BLACK
) -> Sequences:
    """Order the training views of a scene (with --compat on COLMAP scenes: all views, Q17).

    Parameters
    ----------
    background : RGB 0-1 on which RGBA views are composed for ORB.
    seed : for the ordering `random`.

    Returns
    -------
    Sequences in which every ordered view is saved exactly once, with cost and angle of each step.

    Raises
    ------
    UserError : a cost that this scene cannot give, or settings that contradict each other.
    """
    plan = decide(settings, scene.kind, compat)
    released = compat == SEQUENCE_MATTERS
    names = released_names(scene) if released else list(scene.train)
    if plan.gate == "orb" and (seconds := _orb_seconds(plan, len(names))) > LONG_S and not released:
        note(f"the ORB ranks that als limits take about {seconds / 60:.0f} min; with --gate pose it needs no images")
    find, unit = find_ordering(plan.ordering), find_cost(plan.cost).unit
    order = _matrix(plan.cost, scene, names, background, released)
    gate = None
    if plan.gate:
        limited = _matrix(plan.gate, scene, names, background, released)
        gate = rank_of(limited) if plan.gate == "orb" else limited  # the paper limits ORB's rank, not its bits (Q10)
    if released and gate is not None:
        thresholds = released_thresholds(plan.thresholds, scene, len(names))
        calls = released_als(order, gate, thresholds, plan.longest)
    else:
        rng = numpy_generator(seed, "ordering")
        calls = find(Problem(order, gate, plan.thresholds, plan.longest, rng))
        check_calls(calls, len(names), plan.ordering)
    angles = pose_angles(*viewing_axes(scene, names))
    chosen = asdict(settings) | {"resolved": asdict(plan), "compat": compat}
    result = Sequences(
        tuple(_named(call, names, order, angles) for call in calls),
        plan.ordering,
        {k: list(v) if isinstance(v, tuple) else v for k, v in chosen.items()},
        plan.cost,
        unit,
    )
    check_sequences(result, names)
    return result


def _matrix(
    cost: str, scene: Scene, names: Sequence[str], background: Background, released: bool
) -> Float[np.ndarray, "N N"]:
    if released and cost == "pose":
        return released_pose_cost(released_centres(scene, names))
    return measured(cost, scene, names, background)


def _named(
    call: Call, names: Sequence[str], order: Float[np.ndarray, "N N"], angles: Float[np.ndarray, "N N"]
) -> Subsequence:
    here, there = list(call.frames[:-1]), list(call.frames[1:])

    def finite(values: np.ndarray) -> tuple[float | None, ...]:
        return tuple(float(v) if np.isfinite(v) else None for v in values)

    return Subsequence(
        tuple(names[i] for i in call.frames),
        call.save,
        call.padded,
        finite(order[here, there]),
        finite(angles[here, there]),
    )
