"""Where cameras stand and look: viewing axes, the point that they look at, and angles between them about it."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from scene import Scene


def viewing_axes(scene: Scene, names: Sequence[str]) -> tuple[Float[np.ndarray, "N 3"], Float[np.ndarray, "N 3"]]:
    """Camera centres (world units) and unit viewing directions."""
    centres = np.stack([scene.cameras[name].centre for name in names])
    forward = np.stack([scene.cameras[name].world_to_camera[2, :3] for name in names])
    return centres, forward / np.linalg.norm(forward, axis=1, keepdims=True)


def scene_centre(centres: Float[np.ndarray, "N 3"], forward: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "3"] | None:
    """The point that the cameras look at: the least-squares meeting point of the optical axes.

    Returns
    -------
    The point p of least sum |(I - f f^T)(p - c)|^2, when it lies in front of most cameras. Where the axes do not meet
    (nearly parallel, or the cameras look outwards): a point ahead of the cameras' mean, at twice their spread, when
    they share a direction; None when they do not.

    Notes
    -----
    Independent of the world's origin, which COLMAP chooses freely. A few stray cameras are outvoted: the fit is
    repeated 10 times with weights 1 / distance of the axis (iterated least squares towards the L1 fit).
    """
    across = np.eye(3) - forward[:, :, None] * forward[:, None, :]  # [N, 3, 3] projects off the axis
    weights = np.ones(len(centres))
    spread = float(np.linalg.norm(centres - centres.mean(0), axis=1).max())
    for _ in range(10):
        normal = np.einsum("n,nij->ij", weights, across)
        if np.linalg.eigvalsh(normal)[0] < 1e-3 * weights.sum():
            break  # nearly parallel axes fix no point
        point = np.linalg.solve(normal, np.einsum("n,nij,nj->i", weights, across, centres))
        off_axis = np.linalg.norm(np.einsum("nij,nj->ni", across, point - centres), axis=1)
        weights = 1.0 / np.maximum(off_axis, 1e-3 * max(spread, 1e-12))
    else:
        if np.mean(np.einsum("ni,ni->n", forward, point - centres) > 0) > 0.5:
            return point
    shared = forward.mean(0)
    return centres.mean(0) + 2 * spread * shared if np.linalg.norm(shared) > 0.5 else None


def angles_deg(directions: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N N"]:
    """Angles between vectors, degrees; +inf where one of them is zero, diagonal 0."""
    length = np.linalg.norm(directions, axis=1, keepdims=True)
    unit = np.divide(directions, length, out=np.zeros_like(directions), where=length > 0)
    angles = np.degrees(np.arccos(np.clip(unit @ unit.T, -1.0, 1.0)))
    nowhere = length[:, 0] == 0
    angles[nowhere, :] = angles[:, nowhere] = np.inf
    np.fill_diagonal(angles, 0.0)
    return (angles + angles.T) / 2  # exactly symmetric whatever the matrix product does


def pose_angles(centres: Float[np.ndarray, "N 3"], forward: Float[np.ndarray, "N 3"]) -> Float[np.ndarray, "N N"]:
    """Angle between two cameras as seen from the scene's own centre, degrees; see `scene_centre`.

    Without a centre (cameras that look outwards) it is the angle between their viewing directions.
    """
    centre = scene_centre(centres, forward)
    return angles_deg(forward if centre is None else centres - centre)
