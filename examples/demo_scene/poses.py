"""Cameras of the demo scene, by the conventions of NeRF-synthetic: z up, all looking at the origin from one radius."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

RADIUS = 4.0311289  # of the NeRF-synthetic cameras, world units
CAMERA_ANGLE_X = 0.6911112070083618  # horizontal field of view of the same, radians


def look_at_origin(azimuth_rad: float, elevation_rad: float, radius: float = RADIUS) -> Float[np.ndarray, "4 4"]:
    """Camera-to-world matrix of a camera on a sphere, OpenGL axes (x right, y up, z back)."""
    back = np.array(
        [
            np.cos(elevation_rad) * np.cos(azimuth_rad),
            np.cos(elevation_rad) * np.sin(azimuth_rad),
            np.sin(elevation_rad),
        ]
    )
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(back, right), back, radius * back], axis=1)
    return pose


def hemisphere_poses(count: int, seed: int) -> list[Float[np.ndarray, "4 4"]]:
    """Views drawn at random, uniformly over the upper hemisphere between 5 and 80 degrees of elevation, in no order."""
    rng = np.random.default_rng(seed)
    low, high = np.sin(np.deg2rad([5.0, 80.0]))
    return [
        look_at_origin(azimuth, np.arcsin(height))
        for azimuth, height in zip(rng.uniform(0, 2 * np.pi, count), rng.uniform(low, high, count), strict=True)
    ]


def orbit_poses(count: int) -> list[Float[np.ndarray, "4 4"]]:
    """A smooth closed orbit that rises and falls once, elevation 18 to 46 degrees."""
    phase = 2 * np.pi * (np.arange(count) + 0.5) / count
    return [look_at_origin(angle, np.deg2rad(32.0 + 14.0 * np.sin(angle))) for angle in phase]
