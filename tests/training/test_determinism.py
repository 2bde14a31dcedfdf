"""Same bits for 1, 2 and 7 threads and when run twice: parameters, losses, and the PLY on disk."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from scene import load_scene
from scene.ply import write_points
from scene.points import PointCloud
from tests.scene_factory import picture, write_blender
from tests.training_factory import settings
from training.job import Job
from training.outputs import save_ply
from training.views import training_views

ITERATIONS, POINTS, LR, HR = 24, 3000, 24, 72


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """Large enough that the kernels have many tiles and chunks to hand out."""
    root = tmp_path_factory.mktemp("scene")
    write_blender(root / "lr", views=6, size=LR)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (POINTS, 3)).astype(np.float32)
    write_points(root / "lr" / "points3d.ply", PointCloud(xyz, rng.integers(0, 256, (POINTS, 3)).astype(np.uint8)))
    (root / "out/hr/train").mkdir(parents=True)
    for i in range(6):
        Image.fromarray(picture(i, HR, HR)).save(root / f"out/hr/train/r_{i}.png")
    return root


def trained(root: Path, threads: int, out: Path) -> tuple[bytes, list[float], int]:
    flags = {"iterations": ITERATIONS, "max_gaussians": 9000, "random_background": True, "sh_interval": 8}
    given = settings(root, **flags, densify_grad_threshold=1e-5)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        views = training_views(load_scene(root / "lr"), root / "out/hr", given.model, given.optimisation, 0, "cpu")
        run = Job(given, out, load_scene(root / "lr"), views, root / "out/hr", "cpu").trainer()
        losses = [terms.loss for _ in range(ITERATIONS) if (terms := run.step())]
        return save_ply(out, ITERATIONS, run.state.gaussians).read_bytes(), losses, run.state.gaussians.num
    finally:
        torch.set_num_threads(before)


def test_threads_change_no_bit(root, tmp_path):
    first = trained(root, 1, tmp_path / "1")
    assert first[2] > POINTS, "densification must have taken part"
    for name, threads in (("again", 1), ("2", 2), ("7", 7)):
        ply, losses, _ = trained(root, threads, tmp_path / name)
        assert losses == first[1], f"{name}: losses differ"
        assert ply == first[0], f"{name}: PLY differs"
