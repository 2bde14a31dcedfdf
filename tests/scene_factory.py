"""Small synthetic scenes written into a test's own folder; the picture is analytic, a disc on transparent ground."""

import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image

ANGLE_X = 0.6911112070083618  # as in NeRF-synthetic
RADIUS = 4.0311


def opengl_poses(views: int, seed: int = 0) -> list[np.ndarray]:
    """Camera-to-world matrices (OpenGL axes) on a sphere around the origin, all looking at it."""
    rng = np.random.default_rng(seed)
    poses = []
    for i in range(views):
        azimuth, elevation = 2 * np.pi * i / views, 0.3 + 0.4 * rng.random()
        back = np.array([np.cos(azimuth) * np.cos(elevation), np.sin(azimuth) * np.cos(elevation), np.sin(elevation)])
        right = np.cross([0.0, 0.0, 1.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :4] = np.stack([right, np.cross(back, right), back, RADIUS * back], axis=1)
        poses.append(pose)
    return poses


def picture(index: int, width: int, height: int) -> np.ndarray:
    """RGBA uint8 [H, W, 4]: an opaque textured disc with a soft rim; colour is 0 where alpha is 0."""
    y, x = np.mgrid[:height, :width]
    u, v = (x + 0.5) / width - 0.5, (y + 0.5) / height - 0.5
    alpha = np.clip((0.36 - np.hypot(u, v)) * width / 2.0, 0.0, 1.0)
    waves = [0.5 + 0.4 * np.sin(2 * np.pi * (f * u + g * v) + index) for f, g in ((3, 1), (1, 4), (2, 2))]
    rgba = np.stack([*waves, alpha], axis=2)
    rgba[alpha < 0.5 / 255] = 0.0
    return np.rint(rgba * 255).astype(np.uint8)


def write_blender(root: Path, *, views: int = 8, test_views: int = 2, size: int = 32, rgba: bool = True) -> Path:
    """A NeRF-synthetic scene: transforms_{train,test}.json, {train,test}/r_N.png."""
    for seed, (split, count) in enumerate((("train", views), ("test", test_views))):
        (root / split).mkdir(parents=True, exist_ok=True)
        frames = []
        for i, pose in enumerate(opengl_poses(count, seed)):
            image = picture(i, size, size)
            Image.fromarray(image if rgba else image[..., :3].copy()).save(root / split / f"r_{i}.png")
            frames.append({"file_path": f"./{split}/r_{i}", "rotation": 0.0126, "transform_matrix": pose.tolist()})
        document = {"camera_angle_x": ANGLE_X, "frames": frames}
        (root / f"transforms_{split}.json").write_text(json.dumps(document))
    return root


def world_to_camera(opengl_pose: np.ndarray) -> np.ndarray:
    """OpenCV world-to-camera matrix of an OpenGL camera-to-world matrix, by the definition."""
    return np.linalg.inv(opengl_pose @ np.diag([1.0, -1.0, -1.0, 1.0]))


def quaternion(R: np.ndarray) -> np.ndarray:
    """(w, x, y, z) of a rotation matrix, from the eigenvector of its 4x4 form (Bar-Itzhack 2000)."""
    (a, b, c), (d, e, f), (g, h, i) = R
    K = np.array(
        [[a - e - i, 0, 0, 0], [d + b, e - a - i, 0, 0], [g + c, h + f, i - a - e, 0], [h - f, c - g, d - b, a + e + i]]
    )
    x, y, z, w = np.linalg.eigh(K / 3.0)[1][:, -1]
    return np.array([w, x, y, z])


def write_colmap(
    root: Path,
    *,
    views: int = 9,
    size: tuple[int, int] = (48, 32),
    model: tuple[int, tuple[float, ...]] = (1, (40.0, 41.0, 24.5, 15.5)),
    points: int = 20,
) -> Path:
    """A COLMAP scene, binary: one camera (id 7), image ids 3, 6, 9, ...; each view sees every second point."""
    width, height = size
    rng = np.random.default_rng(1)
    (root / "images").mkdir(parents=True, exist_ok=True)
    (root / "sparse/0").mkdir(parents=True, exist_ok=True)
    model_id, params = model
    camera = struct.pack(f"<QiiQQ{len(params)}d", 1, 7, model_id, width, height, *params)
    (root / "sparse/0/cameras.bin").write_bytes(camera)
    records = [struct.pack("<Q", views)]
    for i, pose in enumerate(opengl_poses(views)):
        w2c = world_to_camera(pose)
        Image.fromarray(picture(i, width, height)[..., :3].copy()).save(root / f"images/view_{i:03}.png")
        seen = [100 + 5 * p for p in range(i % 2, points, 2)]
        head = struct.pack("<i4d3di", 3 * (i + 1), *quaternion(w2c[:3, :3]), *w2c[:3, 3], 7)
        keypoints = b"".join(struct.pack("<ddq", 1.0, 2.0, point) for point in [*seen, -1])
        records += [head, f"view_{i:03}.png".encode() + b"\0", struct.pack("<Q", len(seen) + 1), keypoints]
    (root / "sparse/0/images.bin").write_bytes(b"".join(records))
    records = [struct.pack("<Q", points)]
    for p in range(points):
        xyz, rgb = rng.uniform(-1, 1, 3), rng.integers(0, 256, 3)
        records.append(struct.pack("<Q3d3BdQii", 100 + 5 * p, *xyz, *(int(c) for c in rgb), 0.5, 1, 3, 0))
    (root / "sparse/0/points3D.bin").write_bytes(b"".join(records))
    return root


def write_transforms(root: Path, *, views: int = 9, size: tuple[int, int] = (48, 32), **top: object) -> Path:
    """A nerfstudio scene: transforms.json and images/frame_NNN.png; `top` adds or replaces top-level fields."""
    width, height = size
    (root / "images").mkdir(parents=True, exist_ok=True)
    frames = []
    for i, pose in enumerate(opengl_poses(views)):
        Image.fromarray(picture(i, width, height)[..., :3].copy()).save(root / f"images/frame_{i:03}.png")
        frames.append({"file_path": f"images/frame_{i:03}.png", "transform_matrix": pose.tolist()})
    document = {"w": width, "h": height, "fl_x": 40.0, "fl_y": 41.0, "cx": 24.5, "cy": 15.5, "frames": frames, **top}
    (root / "transforms.json").write_text(json.dumps(document))
    return root
