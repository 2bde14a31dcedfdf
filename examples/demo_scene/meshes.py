"""Triangle meshes of the demo scene: boxes, tubes, turned shapes, curved sheets.

Letters: V vertices, F triangles. World units; z is up. A surface is seen from the side its triangles wind
counter-clockwise around; (u, v) = (0, 0) is the lower left of a texture for somebody who looks at that side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike
from scipy.sparse import coo_matrix


@dataclass(frozen=True, eq=False)
class Mesh:
    """Triangles with texture coordinates.

    Parameters
    ----------
    vertices : [V, 3] float64, world units.
    faces : [F, 3] int64, indices into the vertices, counter-clockwise seen from the front.
    uv : [V, 2] float64, (0, 0) lower left and (1, 1) upper right of the texture.
    """

    vertices: Float[np.ndarray, "V 3"]
    faces: Int[np.ndarray, "F 3"]
    uv: Float[np.ndarray, "V 2"]

    def moved(self, transform: Float[np.ndarray, "4 4"]) -> Mesh:
        """The mesh after a rigid motion."""
        return replace(self, vertices=self.vertices @ transform[:3, :3].T + transform[:3, 3])


def rotation(axis: str, angle_deg: float) -> Float[np.ndarray, "4 4"]:
    """Rotation about the world axis "x", "y" or "z", right-handed."""
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    angle = np.deg2rad(angle_deg)
    out = np.eye(4)
    out[[i, i, j, j], [i, j, i, j]] = np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle)
    return out


def translation(x: float, y: float, z: float) -> Float[np.ndarray, "4 4"]:
    """Shift by (x, y, z)."""
    out = np.eye(4)
    out[:3, 3] = x, y, z
    return out


def merge(meshes: Iterable[Mesh]) -> Mesh:
    """One mesh holding all of them."""
    parts = list(meshes)
    offsets = np.cumsum([0] + [len(m.vertices) for m in parts[:-1]])
    return Mesh(
        np.concatenate([m.vertices for m in parts]),
        np.concatenate([m.faces + offset for m, offset in zip(parts, offsets, strict=True)]),
        np.concatenate([m.uv for m in parts]),
    )


def rectangle(centre: ArrayLike, right: ArrayLike, up: ArrayLike) -> Mesh:
    """A flat rectangle; `right` and `up` are its full edges as its reader sees them."""
    corner = np.asarray(centre, float) - np.asarray(right, float) / 2 - np.asarray(up, float) / 2
    uv = np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    return Mesh(corner + uv @ np.array([right, up], float), np.array([[0, 1, 2], [0, 2, 3]]), uv)


def disc(radius: float, segments: int = 96) -> Mesh:
    """A flat disc in the plane z = 0, seen from above; its texture is the square around it."""
    angle = 2 * np.pi * np.arange(segments) / segments
    rim = np.stack([np.cos(angle), np.sin(angle)], -1)
    points = np.concatenate([np.zeros((1, 2)), rim])
    k = np.arange(segments)
    faces = np.stack([np.zeros_like(k), 1 + k, 1 + (k + 1) % segments], -1)
    return Mesh(radius * np.pad(points, ((0, 0), (0, 1))), faces, 0.5 + 0.5 * points)


def box(width: float, depth: float, height: float) -> dict[str, Mesh]:
    """The six sides of a box around the origin, each readable upright by who stands before it.

    Returns
    -------
    front (-y), back (+y), left (-x), right (+x), top (+z, read from the front), bottom.
    """
    x, y, z = np.diag([width, depth, height]).astype(float)
    return {
        "front": rectangle(-y / 2, x, z),
        "back": rectangle(y / 2, -x, z),
        "left": rectangle(-x / 2, -y, z),
        "right": rectangle(x / 2, y, z),
        "top": rectangle(z / 2, x, y),
        "bottom": rectangle(-z / 2, x, -y),
    }


def _grid_faces(rows: int, columns: int) -> Int[np.ndarray, "F 3"]:
    """Triangles of a rows x columns vertex grid, columns running right and rows running up."""
    index = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    return np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])


def sheet(surface: Callable[[np.ndarray, np.ndarray], np.ndarray], columns: int, rows: int) -> Mesh:
    """A curved sheet: surface(u, v) with u, v [rows, columns] in 0..1 returns points [rows, columns, 3]."""
    u, v = np.meshgrid(np.linspace(0, 1, columns), np.linspace(0, 1, rows))
    return Mesh(surface(u, v).reshape(-1, 3), _grid_faces(rows, columns), np.stack([u, v], -1).reshape(-1, 2))


def lathe(profile: Sequence[tuple[float, float]], segments: int = 64) -> Mesh:
    """Turn a profile of (radius, z) points about the z axis; listed upwards it is seen from outside."""
    radius, z = np.asarray(profile, float).T
    length = np.concatenate([[0.0], np.cumsum(np.hypot(np.diff(radius), np.diff(z)))])

    def surface(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        angle = 2 * np.pi * u
        return np.stack([radius[:, None] * np.cos(angle), radius[:, None] * np.sin(angle), z[:, None] + 0 * u], -1)

    turned = sheet(surface, segments + 1, len(radius))
    v = np.repeat(length / length[-1], segments + 1)  # texture by arc length, not by profile point
    return _without_slivers(replace(turned, uv=np.stack([turned.uv[:, 0], v], -1)))


def sphere(radius: float, segments: int = 64) -> Mesh:
    """A sphere about the origin, u = longitude, v = latitude from the south pole."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, segments // 2 + 1)
    rings = np.stack([radius * np.cos(latitude), radius * np.sin(latitude)], -1)
    rings[[0, -1], 0] = 0.0  # cos(pi/2) is 6e-17: the poles must be points
    return lathe([(r, z) for r, z in rings], segments)


def tube(path: Float[np.ndarray, "P 3"], radius: float, sides: int = 8, loop: bool = False) -> Mesh:
    """A round wire along a path with rounded-off (conical) ends, or closed into a ring.

    The frame is carried along the path by parallel transport, so that the wire does not twist at bends.
    """
    path = np.asarray(path, float)
    tangents = np.roll(path, -1, 0) - np.roll(path, 1, 0) if loop else np.gradient(path, axis=0)
    tangents /= np.linalg.norm(tangents, axis=1, keepdims=True)
    side = np.cross(tangents[0], np.eye(3)[np.argmin(np.abs(tangents[0]))])
    angle = np.linspace(0, 2 * np.pi, sides + 1)
    rings = []
    for point, tangent in zip(path, tangents, strict=True):
        side = side - tangent * (side @ tangent)
        side /= np.linalg.norm(side)
        ring = np.outer(np.cos(angle), side) + np.outer(np.sin(angle), np.cross(tangent, side))
        ring[-1] = ring[0]  # the seam must close exactly
        rings.append(point + radius * ring)
    if loop:
        rings.append(rings[0])
    else:
        tips = [path[0] - 0.5 * radius * tangents[0], path[-1] + 0.5 * radius * tangents[-1]]
        rings = [np.tile(tips[0], (sides + 1, 1)), *rings, np.tile(tips[1], (sides + 1, 1))]
    points = np.stack(rings)  # [rings, sides + 1, 3]
    uv = np.stack(np.meshgrid(np.linspace(0, 1, sides + 1), np.linspace(0, 1, len(rings))), -1)
    return _without_slivers(Mesh(points.reshape(-1, 3), _grid_faces(len(rings), sides + 1), uv.reshape(-1, 2)))


def _without_slivers(mesh: Mesh) -> Mesh:
    """Drop the triangles of zero area that poles and tips leave behind."""
    return replace(mesh, faces=mesh.faces[np.linalg.norm(face_normals(mesh), axis=1) > 1e-14])


def face_normals(mesh: Mesh) -> Float[np.ndarray, "F 3"]:
    """Normals of the triangles, as long as twice their area."""
    a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
    return np.cross(b - a, c - a)


def welded(mesh: Mesh) -> tuple[Int[np.ndarray, "F 3"], int]:
    """Faces by distinct position (seams closed) and the number of positions."""
    unique, index = np.unique(np.round(mesh.vertices, 7) + 0.0, axis=0, return_inverse=True)
    return index.reshape(-1)[mesh.faces], len(unique)


def boundary_edges(mesh: Mesh) -> int:
    """Number of directed edges without their opposite: 0 for a closed surface."""
    faces, n = welded(mesh)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    codes = edges[:, 0] * n + edges[:, 1]
    return int((~np.isin(edges[:, 1] * n + edges[:, 0], codes)).sum())


def corner_normals(mesh: Mesh, crease_deg: float = 35.0) -> Float[np.ndarray, "F 3 3"]:
    """Unit shading normal of each triangle corner: smooth over gentle bends, sharp over creases.

    A corner averages (by area) the triangles that share its position and lie within `crease_deg` of its own.
    """
    normals = face_normals(mesh)
    units = normals / np.linalg.norm(normals, axis=1, keepdims=True)
    faces, positions = welded(mesh)
    n_faces = len(faces)
    touches = coo_matrix(
        (np.ones(3 * n_faces), (np.arange(3 * n_faces), faces.reshape(-1))), shape=(3 * n_faces, positions)
    ).tocsr()  # corner -> position
    at = coo_matrix(
        (np.ones(3 * n_faces), (faces.reshape(-1), np.repeat(np.arange(n_faces), 3))), shape=(positions, n_faces)
    ).tocsr()  # position -> triangles around it
    pairs = (touches @ at).tocoo()  # (corner, triangle) at the same position
    smooth = (units[pairs.row // 3] * units[pairs.col]).sum(1) > np.cos(np.deg2rad(crease_deg))
    total = np.zeros((3 * n_faces, 3))
    np.add.at(total, pairs.row[smooth], normals[pairs.col[smooth]])
    return (total / np.linalg.norm(total, axis=1, keepdims=True)).reshape(n_faces, 3, 3)
