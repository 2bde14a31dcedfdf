"""Views of a ball on a table, known exactly, and flow between them written down a second time: plain loops, float64."""

import math

import numpy as np

from scene.cameras import Camera

RADIUS = 0.5  # of the ball about the origin
TABLE = -0.5  # height of the table, a disc of radius 1.2


def look_at(
    name: str, azimuth_deg: float, elevation_deg: float, size: tuple[int, int], distance: float = 3.0
) -> Camera:
    """A camera on a sphere about the origin, z up, with an off-centre principal point."""
    w, h = size
    a, e = math.radians(azimuth_deg), math.radians(elevation_deg)
    centre = distance * np.array([math.cos(e) * math.cos(a), math.cos(e) * math.sin(a), math.sin(e)])
    forward = -centre / distance
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    R = np.stack([right, np.cross(forward, right), forward])
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = R, -R @ centre
    K = np.array([[1.1 * w, 0, w / 2 + 0.7], [0, 1.2 * w, h / 2 - 0.4], [0, 0, 1]])
    return Camera(name, w, h, K, pose)


def rays(camera: Camera) -> tuple[np.ndarray, np.ndarray]:
    """Centre of the camera, and per pixel the world direction of unit depth [h, w, 3]."""
    v, u = np.mgrid[0 : camera.height, 0 : camera.width] + 0.5
    local = np.stack([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, np.ones_like(u)], -1)
    return camera.centre, local @ camera.world_to_camera[:3, :3]


def depth(camera: Camera, ball: bool = True, table: bool = True) -> np.ndarray:
    """Exact z [h, w], 0 = background."""
    centre, ray = rays(camera)
    z = np.full(ray.shape[:2], np.inf)
    if table:
        t = (TABLE - centre[2]) / ray[..., 2]
        hit = centre + t[..., None] * ray
        z = np.where((t > 0) & (np.hypot(hit[..., 0], hit[..., 1]) < 1.2), t, z)
    if ball:
        a, b = (ray**2).sum(-1), 2 * ray @ centre
        root = b**2 - 4 * a * (centre @ centre - RADIUS**2)
        t = (-b - np.sqrt(np.maximum(root, 0))) / (2 * a)
        z = np.where((root > 0) & (t < z), t, z)
    return np.where(np.isfinite(z), z, 0.0)


def colour(camera: Camera) -> np.ndarray:
    """Smooth colours of the surfaces [3, h, w] in 0-1, 0 = background."""
    z = depth(camera)
    centre, ray = rays(camera)
    point = centre + z[..., None] * ray
    waves = [0.5 + 0.25 * np.sin(5 * point[..., k] + k) + 0.25 * np.cos(4 * point[..., k - 1]) for k in range(3)]
    return np.stack(waves) * (z > 0)


def slow_flow(
    z: np.ndarray, camera: Camera, z_support: np.ndarray, support: Camera, tolerance: float, steps: int = 3
) -> tuple[np.ndarray, np.ndarray]:
    """(flow [2, h, w], visible [h, w]), pixel by pixel through world space."""
    h, w = z.shape
    flow, known, visible = np.zeros((2, h, w)), np.zeros((h, w), bool), np.ones((h, w), bool)
    for row in range(h):
        for col in range(w):
            if z[row, col] > 0:
                u, v = col + 0.5, row + 0.5
                local = z[row, col] * np.array([(u - camera.cx) / camera.fx, (v - camera.cy) / camera.fy, 1.0])
                R, t = camera.world_to_camera[:3, :3], camera.world_to_camera[:3, 3]
                world = R.T @ (local - t)
                x, y, depth_there = support.world_to_camera[:3, :3] @ world + support.world_to_camera[:3, 3]
                visible[row, col] = False
                if depth_there > 0:
                    at_x = support.fx * x / depth_there + support.cx
                    at_y = support.fy * y / depth_there + support.cy
                    flow[:, row, col] = at_x - u, at_y - v
                    known[row, col] = True
                    visible[row, col] = _sees(z_support, at_x, at_y, depth_there, tolerance)
    for _ in range(steps):
        before, reached = flow.copy(), known.copy()
        for row in range(h):
            for col in range(w):
                near = [
                    (r, c)
                    for r in range(max(row - 1, 0), min(row + 2, h))
                    for c in range(max(col - 1, 0), min(col + 2, w))
                    if reached[r, c]
                ]
                if not reached[row, col] and near:
                    flow[:, row, col] = np.mean([before[:, r, c] for r, c in near], axis=0)
                    known[row, col] = True
    return flow, visible


def _sees(z: np.ndarray, at_x: float, at_y: float, depth_there: float, tolerance: float) -> bool:
    h, w = z.shape
    if not (0 < at_x < w and 0 < at_y < h):
        return False
    left, top = math.floor(at_x - 0.5), math.floor(at_y - 0.5)
    around, inverse = [], 0.0
    for row in (top, top + 1):
        for col in (left, left + 1):
            d = z[min(max(row, 0), h - 1), min(max(col, 0), w - 1)]
            around.append(d)
            weight = (1 - abs(at_x - 0.5 - col)) * (1 - abs(at_y - 0.5 - row))
            inverse += weight / d if d > 0 else 0.0
    close = [d > 0 and abs(d - depth_there) < tolerance * depth_there for d in around]
    between = all(d > 0 for d in around) and abs(1 / inverse - depth_there) < tolerance * depth_there
    return any(close) or between
