"""A process of its own that says what one training step takes beside parameters and moments.

    python -m tests.submodules.memory_probe SCENE LIMIT

SCENE is `random` (60,000 splats at 640x480) or a COLMAP folder (its points, 20 times each, at their images' size);
LIMIT [bytes], 0 = none. Prints JSON: extra (peak resident memory during the step less that before), bytes, bands,
instances, count.
"""

import contextlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diff_gaussian_rasterization.fused import RasterCamera, Workspace
from torch import Tensor

COPIES = 20


def resident_bytes(field: str) -> int:
    """VmRSS (now) or VmHWM (peak) of this process."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"no {field}")


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
    moments = [[torch.full_like(p, 1e-3) for p in six] for _ in range(2)]
    target = torch.full((3, camera.height, camera.width), 0.5)
    workspace = Workspace(limit)
    with contextlib.suppress(OSError):  # else the peak is that of the whole life: only more
        Path("/proc/self/clear_refs").write_text("5")
    before = resident_bytes("VmRSS")
    image, _, _ = workspace.forward(camera, *six)
    grad = torch.empty_like(image)
    workspace.l1_ssim(image, target, grad)
    workspace.backward_adam(grad, six, exp_avg=moments[0], exp_avg_sq=moments[1], learning_rates=[1e-3] * 6, step=1)
    extra = resident_bytes("VmHWM") - before
    facts = workspace.facts
    return {"extra": extra, "count": len(six[0])} | {k: facts[k] for k in ("bytes", "bands", "instances")}


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], int(sys.argv[2]))))
