"""The released ordering of "Sequence Matters", quirk by quirk, for --compat sequence_matters.

Quirks keep the numbers under which the project describes them. Reproduced here: Q04, Q05, Q06, Q10, Q11, Q13, Q14,
Q15 (with a warning), Q16, Q17. Shared with the default: Q02, Q03 (`paths.chunks`), Q12 made deterministic. Calls that
save nothing (Q07) are left out: no result changes. What is waste or a crash (Q08, Q09) has no counterpart: the
schedule is computed at once, from the settings alone.
"""

import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Float

from ordering.paths import Call, greedy_path, nearest_first
from scene import Scene
from scene.colmap import model_folder
from scene.colmap_model import read_model
from utils.errors import UserError
from utils.log import warn

ACCEPTED_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".JPG"}


def released_names(scene: Scene) -> list[str]:
    """The views that the release puts into its sequences, in its order.

    Raises
    ------
    UserError : a file name without a digit (the release stops there), or no view left.

    Notes
    -----
    Q17: all views of a COLMAP scene, test views too; NeRF-synthetic: the training views. Q16: sorted by the number that
    all digits of the file name make; names with "normal" or "depth" and other file types are passed over.
    """
    views = scene.train if scene.kind == "blender" else [*scene.train, *scene.test]
    kept = []
    for name in views:
        file = PurePosixPath(scene.images.path(name).name)
        if file.suffix not in ACCEPTED_SUFFIXES or "normal" in file.name or "depth" in file.name:
            continue
        digits = re.sub(r"\D", "", file.name)
        if not digits:
            raise UserError(f"{scene.root}: {file} has no digit in its name, by which --compat sequence_matters sorts")
        kept.append((int(digits[:4000]), file.name, name))
    if not kept:
        raise UserError(f"{scene.root}: --compat sequence_matters finds no view among {len(views)}")
    return [name for _, _, name in sorted(kept)]


def released_centres(scene: Scene, names: Sequence[str]) -> Float[np.ndarray, "N 3"]:
    """Camera centres as the release looks them up for the i-th of `names`.

    Raises
    ------
    UserError : COLMAP has no image with the id that the release looks up (it stops there with a KeyError).

    Notes
    -----
    Q15: in COLMAP scenes the i-th file gets the pose of image_id i + 1, whatever name that image has; a warning tells
    when that is the wrong pose. NeRF-synthetic poses belong to their file. COLMAP centres are float32.
    """
    if scene.kind != "colmap":
        return np.stack([scene.cameras[name].centre for name in names])
    folder = model_folder(scene.root)
    assert folder is not None
    stem_of_id = {key: image.name.rpartition(".")[0] for key, image in read_model(folder).images.items()}
    by_stem = {name.partition("/")[2]: scene.cameras[name].centre for name in names}
    centres, wrong = [], 0
    for i, name in enumerate(names):
        stem = stem_of_id.get(i + 1)
        if stem not in by_stem:
            raise UserError(
                f"{folder}: the release takes the pose of view {i} from image_id {i + 1}, which is not there; its "
                "ordering stops on this scene, run without --compat"
            )
        centres.append(by_stem[stem])
        wrong += stem != name.partition("/")[2]
    if wrong:
        warn(
            f"{folder}: image ids follow another order than file names: as in the release, {wrong} of {len(names)} "
            "views are ordered by the pose of another view (without --compat they are matched by name)"
        )
    return np.stack(centres).astype(np.float32)


def released_pose_cost(centres: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N N"]:
    """Angle in degrees between camera centres as seen from the world's origin, diagonal 0 (Q14).

    A camera at the origin gives NaN: it sorts last, and no limit stops it (NaN > limit is false). Not symmetric in
    float32 to the last bit, as in the release.
    """
    with np.errstate(invalid="ignore", divide="ignore"):
        unit = centres / np.linalg.norm(centres, axis=1, keepdims=True)
        angles = np.degrees(np.arccos(np.clip(unit @ unit.T, -1.0, 1.0)))
    np.fill_diagonal(angles, 0.0)
    return angles


def rank_of(cost: Float[np.ndarray, "N N"]) -> Float[np.ndarray, "N N"]:
    """rank[i, j] = position of j in row i sorted upwards; the view itself takes part (Q10); ties: lower index (Q12)."""
    nearest = nearest_first(cost)
    rank = np.empty(nearest.shape)
    np.put_along_axis(rank, nearest, np.arange(float(len(cost)))[None, :], axis=1)
    return rank


def released_thresholds(thresholds: Sequence[float], scene: Scene, count: int) -> tuple[float, ...]:
    """Q11: in COLMAP scenes the number of views is appended, as a last pass without a limit."""
    return (*thresholds, float(count)) if scene.kind != "blender" else tuple(thresholds)


def released_als(
    order: Float[np.ndarray, "N N"],
    gate: Float[np.ndarray, "N N"],
    thresholds: Sequence[float],
    longest: int,
    *,
    empty_calls: bool = False,
) -> list[Call]:
    """Adaptive-length subsequences as released.

    Parameters
    ----------
    thresholds : one pass each, in this order; passes whose limit equals the last one keep ends and single views (Q06).
    longest : walks are cut to their first `longest` views.
    empty_calls : also return the calls that save nothing, which the release makes (Q07).

    Notes
    -----
    Walks start from every view, saved or not. Before the final pass, walks of one or two views are dropped (Q05), and
    both ends are not saved, also where an end is the cut (Q04). The first call that could save a view does.
    """
    nearest = nearest_first(order)
    saved: set[int] = set()
    calls: list[Call] = []
    for limit in thresholds:
        if len(saved) == len(order):
            break
        final = limit == thresholds[-1]
        for start in range(len(order)):
            walk = greedy_path(nearest, start, gate, limit)
            if len(walk) <= 2 and not final:
                continue
            walk = walk[:longest]
            if saved.issuperset(walk):
                continue
            inner = range(len(walk)) if final else range(1, len(walk) - 1)
            save = tuple(k for k in inner if walk[k] not in saved)
            saved.update(walk[k] for k in save)
            if save or empty_calls:
                calls.append(Call(tuple(walk), save))
    return calls
