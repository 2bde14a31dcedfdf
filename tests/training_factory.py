"""A tiny super-resolution scene and ready-made pieces of training on it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.training import OptimizationParams, TrainingParams
from scene.gaussians import Gaussians
from scene.ply import write_points
from scene.points import PointCloud
from tests.scene_factory import picture, write_blender
from training.checkpoint import Checkpoints, load
from training.job import Settings
from training.state import TrainState
from training.trainer import Trainer

LR_SIZE, SCALE, VIEWS, POINTS = 16, 2, 8, 120
# Densification, opacity reset, and a new SH band all happen within a few dozen iterations.
SHORT = {
    "iterations": 60,
    "densify_from_iter": 5,
    "densification_interval": 7,
    "densify_until_iter": 50,
    "opacity_reset_interval": 20,
    "sh_interval": 15,
    "max_gaussians": 300,
}


def write_scene(root: Path) -> Path:
    """An LR scene of 8 views with a cloud, in root/lr; pseudo-HR frames of twice the size in root/out/hr."""
    write_blender(root / "lr", views=VIEWS, size=LR_SIZE)
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (POINTS, 3)).astype(np.float32)
    write_points(root / "lr" / "points3d.ply", PointCloud(xyz, rng.integers(0, 256, (POINTS, 3)).astype(np.uint8)))
    write_frames(root / "out" / "hr")
    return root


def write_frames(folder: Path) -> None:
    """Frames that belong to the views of `write_scene`."""
    (folder / "train").mkdir(parents=True)
    for i in range(VIEWS):
        Image.fromarray(picture(i, LR_SIZE * SCALE, LR_SIZE * SCALE)).save(folder / "train" / f"r_{i}.png")


def command(root: Path, out: Path | None = None, **flags: Any) -> list[str]:
    """Words of a short training command on `write_scene`'s scene; on the CPU, whose bits are the same each time."""
    run = {"checkpoint_interval": 10, "log_interval": 1, "test_iterations": -1, "lr_kernel": "bicubic", "eval": True}
    run |= {"device": "cpu"}
    known = SHORT | run | flags
    words = ["-s", str(root / "lr"), "-m", str(out or root / "out"), "--frames", str(root / "out" / "hr")]
    return words + [f"--{name}={value}" if value is not True else f"--{name}" for name, value in known.items()]


def settings(root: Path, rasterizer: str = "native", **optimisation: Any) -> Settings:
    """The same as an object."""
    return Settings(
        CommonParams(),
        ModelParams(source_path=str(root / "lr"), model_path=str(root / "out"), lr_kernel="bicubic", eval=True),
        PipelineParams(rasterizer=rasterizer),
        OptimizationParams(**SHORT | optimisation),
        TrainingParams(),
    )


def random_state(n: int, seed: int = 0, sh_degree: int = 1) -> TrainState:
    """A state whose parameters, moments and statistics are all different numbers."""
    g = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    shN = draw(n, (sh_degree + 1) ** 2 - 1, 3)
    state = TrainState.start(Gaussians(draw(n, 3), draw(n, 3), draw(n, 4), 3 * draw(n, 1), draw(n, 1, 3), shN))
    for moments in (state.exp_avg, state.exp_avg_sq):
        for name, value in moments.items():
            moments[name] = draw(*value.shape)
    state.grad_norm_sum, state.max_radius = draw(n).abs(), 30 * draw(n).abs()
    state.view_count = torch.randint(0, 4, (n,), generator=g).float()
    return state


def whole_and_resumed(make: Callable[[], Trainer], folder: Path) -> tuple[Trainer, Trainer, Path]:
    """A run of 40 iterations, one that went through a checkpoint file after 23 of them, and that file."""
    whole, first, second = make(), make(), make()
    for run, last in ((whole, 40), (first, 23)):
        while run.iteration < last:
            run.step()
    tensors, info = first.capture()
    path = Checkpoints(folder, frozenset(), {}).write(tensors, info | {"log_bytes": 0, "rollbacks": 0})
    second.restore(*load(path))
    while second.iteration < 40:
        second.step()
    return whole, second, path
