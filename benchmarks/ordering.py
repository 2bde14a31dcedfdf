"""Seconds of ordering many views from poses or shared points, without an image.

    python -m benchmarks.ordering [--views 1000] [--json FILE]

Views stand at random on the upper half of a sphere and look at its centre; each sees the surface points around its own
direction. The seconds are those of `ordering.build` from a scene in memory, all threads' CPU time beside the wall
clock; ORB costs read images and are not among them (about 1 ms a pair).
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from arguments.flags import Parser, underscored
from arguments.ordering import OrderingParams
from benchmarks import report
from ordering import build
from scene import Scene
from scene.cameras import Camera
from scene.images import ImageStore
from scene.points import Tracks
from utils import errors
from utils.atomic import write_text
from utils.errors import UserError

RADIUS = 4.0
POINTS, SEEN_DEG = 20_000, 25.0  # a view sees the points within this angle of its own direction: about 900
CASES: dict[str, dict[str, Any]] = {
    "greedy, pose": {"ordering": "greedy", "cost": "pose"},
    "greedy, covisibility": {"ordering": "greedy", "cost": "covisibility"},
    "als, pose, gate pose": {"ordering": "als", "cost": "pose", "gate": "pose"},
    "als, covisibility": {"ordering": "als", "cost": "covisibility"},
    "tour, pose": {"ordering": "tour", "cost": "pose"},
    "tour, covisibility": {"ordering": "tour", "cost": "covisibility"},
}


def hemisphere_scene(views: int, seed: int = 0) -> Scene:
    """Cameras at random on a hemisphere, looking at its centre, and which surface points each sees; no image exists."""
    rng = np.random.default_rng(seed)
    back = rng.normal(size=(views, 3))
    back[:, 2] = np.abs(back[:, 2])
    back /= np.linalg.norm(back, axis=1, keepdims=True)
    normals = rng.normal(size=(POINTS, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    cameras = {f"train/r_{i}": _looking_at_origin(f"train/r_{i}", direction) for i, direction in enumerate(back)}
    names = list(cameras)
    seen = {n: np.flatnonzero(normals @ d > np.cos(np.radians(SEEN_DEG))) for n, d in zip(names, back, strict=True)}
    nowhere = Path("no-such-folder")
    images = ImageStore({name: nowhere / f"{name}.png" for name in names})
    return Scene(nowhere, "colmap", cameras, names, [], images, tracks=Tracks(seen))


def _looking_at_origin(name: str, back: np.ndarray) -> Camera:
    right = np.cross(back, [0.0, 0.0, 1.0])  # OpenCV: x right, y down, z forward
    right /= max(float(np.linalg.norm(right)), 1e-12)
    pose = np.eye(4)
    pose[:3, :3] = np.stack([right, np.cross(-back, right), -back])
    pose[2, 3] = RADIUS
    return Camera(name, 200, 200, np.array([[280.0, 0, 100], [0, 280, 100], [0, 0, 1]]), pose)


def measure(scene: Scene, settings: dict[str, Any]) -> dict[str, float]:
    """Seconds of ordering a scene, and how far the views of a step are apart."""
    wall, cpu = time.perf_counter(), time.process_time()
    sequences = build(scene, OrderingParams(**settings))
    times = {"wall_s": time.perf_counter() - wall, "cpu_s": time.process_time() - cpu}
    angles = sequences.step_angles_deg()
    calls = {"calls": len(sequences.subsequences), "frames": sequences.summary()["frames_upsampled"]}
    return times | calls | {"mean_deg": float(np.mean(angles)), "worst_deg": max(angles)}


def parse(words: list[str]) -> argparse.Namespace:
    """Flags of the command line."""
    description = (__doc__ or "").splitlines()[0]
    parser = Parser(prog="python -m benchmarks.ordering", description=description, allow_abbrev=False)
    parser.add_argument("--views", type=int, nargs="+", default=[1000], help="(default: 1000)")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    args = parser.parse_args(underscored(words))
    if min(args.views) < 3:
        raise UserError("--views must be at least 3")
    return args


def main() -> None:
    args = parse(sys.argv[1:])
    machine = report.machine()
    print(report.machine_line(machine))
    print("| views | ordering | wall s | CPU s | calls | frames upsampled | mean step [deg] | worst step [deg] |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    rows = []
    for views in args.views:
        scene = hemisphere_scene(views)
        for name, settings in CASES.items():
            r = measure(scene, settings)
            rows.append({"views": views, "ordering": name, **r})
            counts = f"{r['calls']} | {r['frames']} | {r['mean_deg']:.1f} | {r['worst_deg']:.1f}"
            print(f"| {views} | {name} | {r['wall_s']:.2f} | {r['cpu_s']:.2f} | {counts} |", flush=True)
    if args.json:
        found = {"command": report.command("benchmarks.ordering"), "machine": machine, "rows": rows}
        write_text(args.json, report.json_text(found) + "\n")


if __name__ == "__main__":
    errors.run(main)
