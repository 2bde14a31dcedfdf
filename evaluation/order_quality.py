"""What the order of the views did: the steps between consecutive views, and the frames beside the large ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from evaluation.metrics import mean
from scene import Scene
from scene.sequences import FILE_NAME, Sequences, read_sequences
from upsampling.geometry import Geometry, depth_path


def measure_order(
    scene: Scene,
    frames: Path,
    per_view: Mapping[str, Mapping[str, float]],
    jump_deg: float,
    geometry: Path,
) -> dict[str, Any] | None:
    """Relate the quality of frames to the steps of the schedule that made them.

    Parameters
    ----------
    frames : folder of the frames; the schedule is `sequences.json` beside it.
    per_view : what was measured of each frame, by view.
    jump_deg : a step of more degrees is a jump.
    geometry : folder of the views' depths; need not exist.

    Returns
    -------
    {"method", "mean_step_deg", "worst_step_deg", "step_deg": `steps_beside` of the measured views,
    "jumps": {"over_deg", "steps": how many, "views": measured frames beside one, and the mean of what was measured of
    them}}, and with the depths of all views that take part "step_px": `mean_step_px`; None without a schedule whose
    angles are known.

    Notes
    -----
    Ko et al., "Sequence Matters", table 2, scores one set of frames (those beside the jumps of S) under both orderings:
    `mean_of` with the "views" of the one run and the "per_view" of the other.
    """
    path = frames.parent / FILE_NAME
    sequences = read_sequences(path) if path.is_file() else None
    if sequences is None or not sequences.step_angles_deg():
        return None
    angles, beside = sequences.step_angles_deg(), steps_beside(sequences)
    views = [name for name in per_view if beside.get(name, 0.0) > jump_deg]
    jumps = {"over_deg": jump_deg, "steps": sum(angle > jump_deg for angle in angles), "views": views}
    taking_part = {name for call in sequences.subsequences for name in call.frames}
    known = all(depth_path(geometry, name).is_file() for name in taking_part)
    flow = {"step_px": mean_step_px(scene, sequences, geometry)} if known else {}
    return flow | {
        "method": sequences.method,
        "mean_step_deg": sum(angles) / len(angles),
        "worst_step_deg": max(angles),
        "step_deg": {name: beside[name] for name in per_view if name in beside},
        "jumps": jumps | mean_of(per_view, views),
    }


def steps_beside(sequences: Sequences) -> dict[str, float]:
    """The larger of the steps to and from each saved view, degrees, in the call that it is saved from.

    Views alone in their call, or with steps of unknown angle, are left out.
    """
    found: dict[str, float] = {}
    for call in sequences.subsequences:
        for place in call.save:
            angles = [a for a in call.angles_deg[max(place - 1, 0) : place + 1] if a is not None]
            if angles:
                found[call.frames[place]] = max(angles)
    return found


def mean_step_px(scene: Scene, sequences: Sequences, folder: Path) -> float | None:
    """How far surfaces move from one view to the next, LR pixels: mean over all steps of the mean over the foreground.

    Parameters
    ----------
    folder : depths of the views (`render.py --geometry`). None where no step has a foreground.

    Raises
    ------
    UserError : no readable depth of a view.

    Notes
    -----
    This is what a network's learned flow has to find; from about 5 px on SPyNet misses most of it.
    """
    geometry, cpu = Geometry(folder, scene.cameras, tolerance=1.0), torch.device("cpu")
    steps = dict.fromkeys(
        step for call in sequences.subsequences for step in zip(call.frames[1:], call.frames, strict=False)
    )
    means = []
    for target, support in steps:
        solid = geometry.depth(target, cpu) > 0
        if bool(solid.any()):
            means.append(float(geometry.flow(target, support, cpu).px[0].norm(dim=0)[solid].mean()))
    return sum(means) / len(means) if means else None


def mean_of(per_view: Mapping[str, Mapping[str, float]], views: Sequence[str]) -> dict[str, float]:
    """Mean of what was measured of some views; {} where none of them was."""
    there = [per_view[name] for name in views if name in per_view]
    return mean(there) if there else {}
