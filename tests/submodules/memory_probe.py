"""A process of its own that says what training steps take beside parameters and moments: benchmarks.memory's probe.

    python -m tests.submodules.memory_probe SCENE LIMIT

SCENE is `random` (60,000 splats at 640x480) or a COLMAP folder (its points, 20 times each, at their images' size);
LIMIT [bytes], 0 = none. Prints the probe's JSON.
"""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diff_gaussian_rasterization import RasterCamera
from torch import Tensor

from benchmarks.memory import probe

COPIES = 20


def random_scene() -> tuple[RasterCamera, list[Tensor]]:
    r = np.random.default_rng(0)
    n, focal = 60_000, 900.0
    values = [
        (r.random((n, 3)) * 2 - 1) * [1.4, 1.0, 0.8] + [0, 0, 4],
        np.log(0.07) + r.normal(0, 0.4, (n, 3)),
        r.normal(size=(n, 4)),
        r.normal(-1, 1, (n, 1)),
        r.normal(0, 0.8, (n, 1, 3)),
        r.normal(0, 0.1, (n, 15, 3)),
    ]
    return RasterCamera(640, 480, focal, focal, 320.0, 240.0, np.eye(4)), [torch.tensor(v).float() for v in values]


def colmap_scene(folder: Path) -> tuple[RasterCamera, list[Tensor]]:
    """The initial splats of a capture, each thrice as wide, seen by its first test view."""
    from simple_knn._C import distCUDA2

    from scene import load_scene
    from scene.gaussians import FIELDS, Gaussians

    scene = load_scene(folder)
    if scene.points is None:
        raise ValueError(f"{folder}: no points")
    points = torch.from_numpy(scene.points.xyz).float()
    start = Gaussians.from_points(scene.points, 3, distCUDA2(points))
    six = [getattr(start, name).repeat_interleave(COPIES, 0) for name in FIELDS]
    generator = torch.Generator().manual_seed(0)
    six[0] += torch.randn(six[0].shape, generator=generator) * six[1].exp()
    six[1] += np.log(3)
    c = scene.cameras[scene.test[0]]
    return RasterCamera(c.width, c.height, c.fx, c.fy, c.cx, c.cy, c.world_to_camera), [p.contiguous() for p in six]


def main(name: str, limit: int) -> dict[str, Any]:
    camera, six = random_scene() if name == "random" else colmap_scene(Path(name))
    return probe([camera], [torch.full((3, camera.height, camera.width), 0.5)], six, limit)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
