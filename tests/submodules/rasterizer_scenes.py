"""Small scenes and the float64 reference for the tests of the native rasterizer."""

from dataclasses import dataclass

import numpy as np
import torch
from diff_gaussian_rasterization import RasterCamera
from torch import Tensor

from gaussian_renderer.reference import render_reference
from scene.cameras import Camera
from scene.gaussians import Gaussians

FIELDS = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")


@dataclass(frozen=True, eq=False)
class Case:
    """A scene and a camera, in the terms of both sides."""

    gaussians: dict[str, Tensor]  # float32
    camera: Camera
    background: tuple[float, float, float]
    sh_degree: int
    scale_modifier: float
    antialiasing: bool

    @property
    def raster_camera(self) -> RasterCamera:
        c = self.camera
        return RasterCamera(
            c.width,
            c.height,
            c.fx,
            c.fy,
            c.cx,
            c.cy,
            c.world_to_camera,
            self.background,
            self.sh_degree,
            self.scale_modifier,
            self.antialiasing,
        )

    @property
    def six(self) -> list[Tensor]:
        return [self.gaussians[name].clone() for name in FIELDS]

    def reference(self) -> tuple[Gaussians, object]:
        """Float64 leaves and what render_reference makes of them."""
        leaves = Gaussians(**{k: v.double().requires_grad_() for k, v in self.gaussians.items()})
        output = render_reference(
            self.camera,
            leaves,
            torch.tensor(self.background, dtype=torch.float64),
            sh_degree=self.sh_degree,
            scale_modifier=self.scale_modifier,
            antialiasing=self.antialiasing,
        )
        return leaves, output


def make_case(
    seed: int = 0,
    *,
    n: int = 300,
    width: int = 61,
    height: int = 45,
    sh_degree: int = 3,
    antialiasing: bool = False,
    scale_modifier: float = 1.0,
    sigma_px: float = 2.5,
) -> Case:
    """Overlapping splats; some are near the camera, behind it, and far outside the image."""
    r = np.random.default_rng(seed)
    focal = max(width, height) / 2 / np.tan(0.35)
    means = (r.random((n, 3)) * 2 - 1) * [1.35, 1.35, 1.0] + [0, 0, 4]
    means[: n // 12, 2] -= 2.6
    means[n // 12 : n // 8] *= [3, 3, 0.7]
    means[n // 8 : n // 6, 2] *= -1
    values = {
        "means": means,
        "log_scales": np.log(sigma_px * 4 / focal) + r.normal(0, 0.45, (n, 3)),
        "quats": r.normal(size=(n, 4)),
        "logit_opacities": r.normal(-0.4, 1.4, (n, 1)),
        "sh0": r.normal(0, 0.8, (n, 1, 3)),
        "shN": r.normal(0, 0.12, (n, 15, 3)),
    }
    angle = 0.1
    pose = np.eye(4)
    pose[:3, :3] = [[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]]
    pose[:3, 3] = [0.05, -0.1, 0.2]
    K = np.array([[focal, 0, width / 2 + 1.7], [0, 1.03 * focal, height / 2 - 2.2], [0, 0, 1]])
    return Case(
        {k: torch.tensor(v, dtype=torch.float32) for k, v in values.items()},
        Camera("view", width, height, K, pose),
        (0.3, 0.1, 0.7),
        sh_degree,
        scale_modifier,
        antialiasing,
    )


class Posed(Camera):
    """Its centre follows its pose, a tensor, for any 3x3 part, as RasterCamera's does."""

    @property
    def centre(self) -> Tensor:
        pose = self.world_to_camera
        return torch.linalg.solve(pose[:3, :3], -pose[:3, 3])


def posed(camera: Camera, pose: Tensor) -> Posed:
    """The camera with a pose that may require grad."""
    made = Posed(**vars(camera))
    object.__setattr__(made, "world_to_camera", pose)
    return made


def relative(a: Tensor, b: Tensor) -> float:
    """Relative L2 error of a against b."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))
