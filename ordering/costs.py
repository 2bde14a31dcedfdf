"""How far apart two views are: N x N matrices, smaller = more alike, diagonal 0, +inf = not measurable, never NaN.

Each cost is a function of a scene, registered by name with its unit; the measure itself stands in a pure function
beside it. A cost of the user's own is a function of the same signature, named MODULE:NAME.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, UInt8

from scene import Scene
from scene.angles import pose_angles, viewing_axes
from utils.errors import UserError
from utils.log import Progress
from utils.matrices import square
from utils.plugins import check_name, imported

Background = tuple[float, float, float]
CostFunction = Callable[[Scene, Sequence[str], Background], Float[np.ndarray, "N N"]]
DESCRIPTOR_BITS = 256
_KEY_SHIFT = 13  # room for two indices of up to 4095 keypoints below the distance in one int32


@dataclass(frozen=True)
class Cost:
    """A registered cost and the unit of its numbers."""

    name: str
    unit: str
    measure: CostFunction


COSTS: dict[str, Cost] = {}


def cost(name: str, unit: str) -> Callable[[CostFunction], CostFunction]:
    """Make `measure(scene, names, background) -> [N, N]` selectable as --cost NAME."""

    def add(measure: CostFunction) -> CostFunction:
        if name in COSTS:
            raise ValueError(f"cost {name!r} registered twice")
        COSTS[name] = Cost(name, unit, measure)
        return measure

    return add


def find_cost(name: str) -> Cost:
    """A registered cost, or MODULE:NAME: a function of the same signature, with its unit as attribute `unit`.

    Raises
    ------
    UserError : neither known nor importable.
    """
    if ":" in name:
        measure = imported("--cost", name)
        return Cost(name, str(getattr(measure, "unit", "")), measure)
    check_name("--cost", name, COSTS)
    return COSTS[name]


def measured(name: str, scene: Scene, names: Sequence[str], background: Background) -> Float[np.ndarray, "N N"]:
    """The cost `name` of all pairs of views.

    Raises
    ------
    UserError : an unknown name, or a result that is not N x N numbers without NaN.
    """
    return square(f"--cost {name}", find_cost(name).measure(scene, names, background), len(names))


# --- where the cameras are ---


def distances(centres: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N N"]:
    """Distance between camera centres, world units."""
    return np.linalg.norm(centres[:, None] - centres[None], axis=2)


@cost("pose", unit="deg")
def _pose(scene: Scene, names: Sequence[str], background: Background) -> Float[np.ndarray, "N N"]:
    return pose_angles(*viewing_axes(scene, names))


@cost("distance", unit="world units")
def _distance(scene: Scene, names: Sequence[str], background: Background) -> Float[np.ndarray, "N N"]:
    return distances(viewing_axes(scene, names)[0])


# --- what the images show ---


def orb_descriptors(image: UInt8[np.ndarray, "H W 3"]) -> UInt8[np.ndarray, "K 32"]:
    """256-bit ORB descriptors of an RGB image with OpenCV's defaults (500 features), on OpenCV's grey."""
    import cv2

    _, found = cv2.ORB_create().detectAndCompute(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), None)  # type: ignore[attr-defined]
    return np.zeros((0, DESCRIPTOR_BITS // 8), np.uint8) if found is None else found


def mutual_mean_hamming(words: Sequence[np.ndarray], progress: Progress | None = None) -> Float[np.ndarray, "N N"]:
    """Mean Hamming distance of all mutual nearest matches between each pair of views, bits.

    Parameters
    ----------
    words : for each view its descriptors as uint64 [K, 4], K <= 4095, K may be 0.

    Returns
    -------
    [N, N], exactly symmetric, diagonal 0; +inf where a view has no descriptors.

    Notes
    -----
    Ko et al., "Sequence Matters", appendix G: brute force with cross-check, no ratio test, the number of matches does
    not count. Ties go to the lowest index in both directions, as in OpenCV's matcher. Each pair is matched once:
    the relation is symmetric. Counting bits beats a +-1 matrix product (3.5 against 7.5 CPU-seconds for 100 x 390).
    """
    n = len(words)
    result = np.full((n, n), np.inf)
    np.fill_diagonal(result, 0.0)
    for i in range(n - 1):
        for j in range(i + 1, n):
            result[i, j] = result[j, i] = _mutual_mean(words[i], words[j])
        if progress:
            progress.update((i + 1) * (2 * n - i - 2) // 2)
    return result


def _mutual_mean(a: np.ndarray, b: np.ndarray) -> float:
    """Mean distance of mutual nearest neighbours; rows and columns share one key: distance, then index, ascending."""
    if not len(a) or not len(b):
        return float("inf")
    distance = np.zeros((len(a), len(b)), np.int32)
    for w in range(a.shape[1]):
        distance += np.bitwise_count(a[:, w, None] ^ b[None, :, w])
    # Along a row the row's index is constant, along a column the column's: adding both breaks ties in both directions.
    key = (distance << _KEY_SHIFT) + np.arange(len(a), dtype=np.int32)[:, None] + np.arange(len(b), dtype=np.int32)
    of_row, of_column = key.min(axis=1), key.min(axis=0)
    column = (of_row & ((1 << _KEY_SHIFT) - 1)) - np.arange(len(a))
    row = (of_column & ((1 << _KEY_SHIFT) - 1)) - np.arange(len(b))
    mutual = row[column] == np.arange(len(a))
    return float((of_row[mutual] >> _KEY_SHIFT).mean())  # never empty: the closest pair of all is mutual


@cost("orb", unit="bits")
def _orb(scene: Scene, names: Sequence[str], background: Background) -> Float[np.ndarray, "N N"]:
    words = []
    progress = Progress("ORB features", len(names), "view")
    for i, name in enumerate(names):
        image = scene.images.load(name, background).numpy().transpose(1, 2, 0)
        found = orb_descriptors(np.rint(image * 255).astype(np.uint8))
        words.append(np.ascontiguousarray(found).view(np.uint64))  # [K, 32] uint8 -> [K, 4]
        progress.update(i + 1)
    progress.close()
    progress = Progress("ORB matches", len(names) * (len(names) - 1) // 2, "pair")
    result = mutual_mean_hamming(words, progress)
    progress.close()
    return result


def unshared(shared: Int[np.ndarray, "N N"]) -> Float[np.ndarray, "N N"]:
    """1 - |i and j| / |i or j| of the points that two views see; 1 where they share none, +inf where a view sees none.

    Parameters
    ----------
    shared : number of points that both see; the diagonal holds what each view sees.
    """
    seen = np.diag(shared).astype(float)
    either = seen[:, None] + seen[None, :] - shared
    result = 1.0 - np.divide(shared, either, out=np.zeros_like(either), where=either > 0)
    blind = seen == 0
    result[blind, :] = result[:, blind] = np.inf
    np.fill_diagonal(result, 0.0)
    return result


@cost("covisibility", unit="unshared fraction")
def _covisibility(scene: Scene, names: Sequence[str], background: Background) -> Float[np.ndarray, "N N"]:
    if scene.tracks is None:
        raise UserError(f"{scene.root}: --cost covisibility needs COLMAP tracks, this scene has none; use --cost pose")
    return unshared(scene.tracks.covisibility(names))
