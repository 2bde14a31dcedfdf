"""The measurements of a run under way: a few training views as in the original code, and the held-out ones.

These are numbers to watch; results come from render.py and metrics.py, which work on 8-bit images.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from arguments.loading import PipelineParams
from gaussian_renderer import render
from scene import Scene
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.images import ImageStore
from training.exposure import Exposures, exposed
from training.loop import Measured
from training.views import Background, TrainingViews
from utils.psnr import psnr

TRAIN_INDICES = range(5, 30, 5)  # the training views that the original code measures, modulo their number


@dataclass(frozen=True, eq=False)
class Measurer:
    """Measures a model on up to four groups of views.

    "test" = held-out views against `truth`, "train" = a few training views against their targets, "frames" = all of
    them against their pseudo-HR frames: how far frames agree with each other in 3D, "lr" = all of them, reduced,
    against their LR views: the LR PSNR of the model.

    Parameters
    ----------
    frames : whether the views' targets are pseudo-HR frames.
    """

    views: TrainingViews
    cameras: dict[str, Camera]
    truth: ImageStore | None
    pipeline: PipelineParams
    background: Background
    frames: bool = False

    def __call__(self, gaussians: Gaussians, sh_degree: int, exposures: Exposures | None = None) -> list[Measured]:
        """Mean L1 and PSNR of each group, renders clamped to 0-1; those of training views under their exposures."""
        groups: dict[str, list[tuple[float, float]]] = {}
        with torch.no_grad():
            for group, rendered, target in self._pairs(gaussians, sh_degree, exposures):
                image = rendered.clamp(0, 1)
                groups.setdefault(group, []).append((float((image - target).abs().mean()), float(psnr(image, target))))
        return [
            Measured(group, sum(l1 for l1, _ in rows) / len(rows), sum(db for _, db in rows) / len(rows))
            for group, rows in groups.items()
        ]

    def _pairs(
        self, gaussians: Gaussians, sh_degree: int, exposures: Exposures | None
    ) -> Iterator[tuple[str, Tensor, Tensor]]:
        for name, camera in self.cameras.items():
            assert self.truth is not None, "cameras are given with their truth"
            target = self.truth.load(name, self.background).to(self.views.device)
            yield "test", self._render(gaussians, camera, sh_degree), target
        names = list(self.views.views)
        few = {names[i % len(names)] for i in TRAIN_INDICES}
        for name in names if self.frames or self.views.lr is not None else [n for n in names if n in few]:
            view, targets = self.views.views[name], self.views.targets(name, self.background)
            rendered = self._render(gaussians, view.camera, sh_degree)
            if exposures is not None:
                rendered = exposed(rendered, exposures.leaf(name))
            if targets.hr is not None and name in few:
                yield "train", rendered, targets.hr
            if targets.hr is not None and self.frames:
                yield "frames", rendered, targets.hr
            if targets.lr is not None and view.kernel is not None:
                yield "lr", view.kernel.down(rendered), targets.lr

    def _render(self, gaussians: Gaussians, camera: Camera, sh_degree: int) -> Tensor:
        return render(
            camera,
            gaussians,
            background=self.background,
            rasterizer=self.pipeline.rasterizer,
            sh_degree=sh_degree,
            antialiasing=self.pipeline.antialiasing,
            dilation=self.pipeline.dilation,
            memory_bytes=self.pipeline.raster_memory_bytes,
        ).color


def measurer(scene: Scene, views: TrainingViews, pipeline: PipelineParams, background: Background) -> Measurer:
    """Return the function that measures models of this scene; without HR truth it leaves held-out views out."""
    if views.lr is None and views.hr is scene.images:  # views are trained at their own size
        cameras = {name: scene.cameras[name] for name in scene.test}
        return Measurer(views, cameras, scene.images, pipeline, background)
    paths = {name: path for name in scene.test if (path := scene.hr_path(name)) is not None}
    truth = ImageStore(paths)
    cameras = {name: scene.cameras[name].resized(*truth.size(name)) for name in paths}
    return Measurer(views, cameras, truth, pipeline, background, frames=views.hr is not None)
