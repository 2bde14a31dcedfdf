"""Initial point clouds and which image sees which point (COLMAP's tracks)."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Int, Shaped, UInt8

RANDOM_POINTS = 100_000  # the number and box of the original 3DGS for scenes without a cloud
RANDOM_HALF_EXTENT = 1.3
SH_C0 = 0.28209479177387814  # the constant spherical harmonic, 1 / (2 sqrt(pi))


@dataclass(frozen=True, eq=False)
class PointCloud:
    """Coloured points: xyz [N, 3] float32 world, finite; rgb [N, 3] uint8 sRGB."""

    xyz: Float[np.ndarray, "N 3"]
    rgb: UInt8[np.ndarray, "N 3"]


@dataclass(frozen=True, eq=False)
class Tracks:
    """Point visibility per image: view name -> sorted int64 indices into the scene's PointCloud, each once."""

    visible: dict[str, Int[np.ndarray, "_"]]

    def covisibility(self, names: Sequence[str]) -> Int[np.ndarray, "V V"]:
        """Number of points that each pair of views shares.

        Parameters
        ----------
        names : V view names; a view without observations gets a zero row.

        Returns
        -------
        [V, V] int64, symmetric; the diagonal is the number of points of the view.

        Notes
        -----
        Sparse product of the V x P visibility matrix with its transpose: memory grows with the observations, not V * P.
        """
        from scipy.sparse import csr_matrix

        rows = [self.visible.get(name, np.zeros(0, np.int64)) for name in names]
        indices = np.concatenate([*rows, np.zeros(0, np.int64)])
        starts = np.cumsum([0, *(len(row) for row in rows)])
        width = int(indices.max()) + 1 if len(indices) else 1
        seen = csr_matrix((np.ones(len(indices), np.int64), indices, starts), shape=(len(names), width))
        return np.asarray((seen @ seen.T).todense(), dtype=np.int64)


def random_points(n: int = RANDOM_POINTS, half_extent: float = RANDOM_HALF_EXTENT, seed: int = 0) -> PointCloud:
    """Uniform points in [-half_extent, half_extent]^3, the start of a scene without a cloud.

    Notes
    -----
    Same draws as the original 3DGS (and the paper's release) from numpy's legacy generator: positions first, then the
    colour coefficients / 255; its conversion truncates, so every channel becomes 127.
    """
    draw = np.random.RandomState(seed)
    xyz = draw.random_sample((n, 3)) * (2.0 * half_extent) - half_extent
    rgb = (draw.random_sample((n, 3)) / 255.0 * SH_C0 + 0.5) * 255.0
    return PointCloud(xyz.astype(np.float32), rgb.astype(np.uint8))


def random_points_around(centres: Float[np.ndarray, "V 3"], n: int = RANDOM_POINTS, seed: int = 0) -> PointCloud:
    """Uniform points in the box of the cameras, for scenes that are neither synthetic nor from COLMAP."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    half = max(float((high - low).max()) / 2.0, 1e-3)  # a cube: a flat ring of cameras still gives a volume
    cloud = random_points(n, 1.0, seed)
    return PointCloud((cloud.xyz * half + (low + high) / 2.0).astype(np.float32), cloud.rgb)


def finite_points(xyz: Shaped[np.ndarray, "N 3"], rgb: UInt8[np.ndarray, "N 3"]) -> tuple[PointCloud, np.ndarray]:
    """The finite points as a cloud, and the boolean mask [N] of those kept (positions must also fit float32)."""
    with np.errstate(over="ignore"):
        xyz32 = xyz.astype(np.float32)
    keep = np.asarray(np.isfinite(xyz32).all(axis=1))
    return PointCloud(np.ascontiguousarray(xyz32[keep]), np.ascontiguousarray(rgb[keep])), keep
