"""A small LR scene with its HR truth, and a model of a few splats, for tests of rendering, metrics and reports."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from arguments.cfg_args import write_cfg_args
from arguments.loading import CommonParams, ModelParams, PipelineParams
from arguments.render import RenderParams
from evaluation.run_render import render_model
from scene.gaussians import Gaussians
from scene.lr_kernel import LRKernelFile
from scene.ply import write_gaussians
from scene.points import random_points
from tests.scene_factory import picture, write_blender

HR_PX, LR_PX = 48, 12


def write_scenes(root: Path, test_views: int = 2) -> tuple[Path, Path]:
    """HR scene and LR scene (test images referenced in HR, as scene.downscale leaves them); returns (lr, hr)."""
    hr = write_blender(root / "toy" / "hr", views=4, test_views=test_views, size=HR_PX)
    lr = write_blender(root / "toy" / "lr", views=4, test_views=test_views, size=LR_PX)
    for path in (lr / "test").iterdir():
        path.unlink()
    (lr / "test").rmdir()
    document = json.loads((lr / "transforms_test.json").read_text())
    for frame in document["frames"]:
        frame["file_path"] = frame["file_path"].replace("./", "../hr/")
    LRKernelFile("bicubic", scale=4.0, alpha="straight", hr_root="../hr").write(lr / "lr_kernel.json")
    (lr / "transforms_test.json").write_text(json.dumps(document))
    return lr, hr


def write_model(out: Path, scene: Path, iteration: int = 7, **model: object) -> Path:
    """A model folder as train.py leaves it: cfg_args and a PLY of 60 splats."""
    torch.manual_seed(0)
    gaussians = Gaussians.from_points(random_points(60, seed=0), 1, torch.full((60,), 0.04))
    gaussians.logit_opacities += 5
    write_gaussians(out / f"point_cloud/iteration_{iteration}/point_cloud.ply", gaussians)
    write_cfg_args(out, ModelParams(source_path=str(scene), model_path=str(out), eval=True, **model))
    return out


def render(out: Path, scene: Path, **options: object) -> Path:
    """Render a model with the native rasterizer on the CPU; `options` are RenderParams or `overwrite`."""
    common = CommonParams(device="cpu", overwrite=bool(options.pop("overwrite", False)), quiet=True)
    model = ModelParams(source_path=str(scene), model_path=str(out), eval=True)
    return render_model(common, model, PipelineParams(), RenderParams(**options))


def write_frames(folder: Path, noise: float = 0.0) -> None:
    """Pseudo-HR frames of the train views: the truth with noise of the given amplitude in grey levels."""
    rng = np.random.default_rng(0)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    for i in range(4):
        image = picture(i, HR_PX, HR_PX).astype(float)
        image[..., :3] += noise * rng.choice([-1, 1], image[..., :3].shape)
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(folder / "train" / f"r_{i}.png")
