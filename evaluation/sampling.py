"""Where the LR views themselves hold the detail: SplatSuRe's weights of the frames' pixels, from an LR-trained model.

Letters: r a Gaussian's radius in an LR view that it contributes to, rho = max r / min r over such views, f fidelity.
A Gaussian that some view sees from much closer than others (rho large) is known well from that view, so the frames of
the *other* views are not needed there; one that all views see from the same distance is known at LR only.

    r = 3 sqrt(larger eigenvalue of S without dilation),   S the covariance on the screen [px^2]
    f = sigmoid((rho - threshold) / 0.05),   0 where fewer than 3 views see it
    W = clip(1 - image of f + image of [this view has its largest r], 0, 1)      images of one value a Gaussian, on 0

The images are drawn at LR size, at which the model was trained, and enlarged bilinearly to the frames' size.

Asthana et al., "SplatSuRe: Selective Super-Resolution for Multi-view Consistent 3D Gaussian Splatting", CVPR 2026,
section 3. Their released code also stretches a map whose largest value is under 0.9; that is left out here.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn.functional import interpolate

from evaluation.rendering import Job, lr_camera
from gaussian_renderer import RenderSettings, reference
from gaussian_renderer.splats import activated
from scene import Scene
from scene.cameras import Camera
from scene.gaussians import Gaussians
from scene.image_files import write_png
from utils.log import Progress

SOFTNESS = 0.05
MIN_VIEWS = 3  # fewer say nothing about a ratio
MIN_DISCRIMINANT_PX4 = 0.1  # of the eigenvalues, as in the paper's formula and in the original's radii
FOLDER = "sampling"


@dataclass(frozen=True, eq=False)
class Sampling:
    """How the views see each Gaussian.

    count : [N] views that it contributes to. ratio : [N] rho, 1 where nobody sees it.
    closest : [N] index of the view with its largest radius, the first of equals; -1 where nobody sees it.
    """

    count: Int64[Tensor, " N"]
    ratio: Float[Tensor, " N"]
    closest: Int64[Tensor, " N"]


def screen_radii(camera: Camera, gaussians: Gaussians) -> Float[Tensor, " N"]:
    """Three standard deviations of each Gaussian's long axis on the screen [px], without dilation, not rounded."""
    black = gaussians.means.new_zeros(3)
    screen = reference.project(camera, activated(gaussians), RenderSettings(black, dilation=0.0))
    middle = 0.5 * (screen.xx + screen.yy)
    return 3 * (middle + (middle * middle - screen.det).clamp(min=MIN_DISCRIMINANT_PX4).sqrt()).sqrt()


def contributes(job: Job, camera: Camera) -> Bool[Tensor, " N"]:
    """Which Gaussians are blended into a pixel of this view.

    Notes
    -----
    The sum of a Gaussian's weights over the pixels is the derivative of the image's sum to its colour.
    """
    colours = torch.zeros_like(job.gaussians.means, requires_grad=True)
    job.rasterize(camera, colours).color[0].sum().backward()
    assert colours.grad is not None
    return colours.grad[:, 0] > 0


@torch.no_grad()
def measure_sampling(job: Job, cameras: Iterable[Camera]) -> Sampling:
    """Find how the views, at LR size, see the Gaussians of a model."""
    count = torch.zeros_like(job.gaussians.means[:, 0], dtype=torch.int64)
    closest = torch.full_like(count, -1)
    smallest = torch.full_like(job.gaussians.means[:, 0], torch.inf)
    largest = torch.zeros_like(smallest)
    for i, camera in enumerate(cameras):
        with torch.enable_grad():
            seen = contributes(job, camera)
        radii = screen_radii(camera, job.gaussians)
        closest[seen & (radii > largest)] = i
        largest = torch.where(seen, torch.maximum(largest, radii), largest)
        smallest = torch.where(seen, torch.minimum(smallest, radii), smallest)
        count += seen
    return Sampling(count, torch.where(count > 0, largest / smallest, 1.0), closest)


def fidelity(sampling: Sampling, threshold: float) -> Float[Tensor, " N"]:
    """How well the LR views know each Gaussian, 0-1."""
    known = torch.sigmoid((sampling.ratio - threshold) / SOFTNESS)
    return torch.where(sampling.count >= MIN_VIEWS, known, 0.0)


def weight_map(
    job: Job, camera: Camera, known: Float[Tensor, " N"], closest: Bool[Tensor, " N"]
) -> Float[Tensor, "H W"]:
    """Weights of the pixels of one view, 0-1; 1 where there is no Gaussian.

    Parameters
    ----------
    known : fidelities. closest : whether this view has a Gaussian's largest radius.
    """
    values = torch.stack([known, closest.to(known), torch.zeros_like(known)], dim=1)  # [N, 3]
    with torch.no_grad():
        images = job.rasterize(camera, values, background=(0.0, 0.0, 0.0)).color
    return (1 - images[0] + images[1]).clamp(0, 1)


def enlarged(weights: Float[Tensor, "h w"], scale: int) -> Float[Tensor, "H W"]:
    """The same map at `scale` times its size, bilinear between the centres of its pixels."""
    return interpolate(weights[None, None], scale_factor=scale, mode="bilinear", align_corners=False)[0, 0]


def sampling_paths(scene: Scene, out: Path) -> dict[str, Path]:
    """Files of `render_sampling_weights` by the names of their views."""
    return {name: out / FOLDER / f"{name}.png" for name in scene.train}


def render_sampling_weights(job: Job, out: Path, scale: int, threshold: float, notes: dict[str, Any]) -> Iterator[Path]:
    """Write OUT/sampling/NAME.png for every training view, 8-bit grey, 255 = weight 1: what --confidence reads.

    Parameters
    ----------
    scale : size of the maps / size of the LR views. threshold : of rho.
    notes : gets what was found, for the step's record.

    Yields
    ------
    Each path, written.
    """
    cameras = [lr_camera(job.scene, name) for name in job.scene.train]
    sampling = measure_sampling(job, cameras)
    known = fidelity(sampling, threshold)
    progress, total = Progress("sampling weights", len(cameras), "view"), 0.0
    for i, (camera, path) in enumerate(zip(cameras, sampling_paths(job.scene, out).values(), strict=True)):
        weights = enlarged(weight_map(job, camera, known, sampling.closest == i), scale)
        total += float(weights.mean())
        write_png(path, (weights * 255 + 0.5).to(torch.uint8).cpu().numpy())
        yield path
        progress.update(i + 1)
    progress.close()
    seen = sampling.count >= MIN_VIEWS
    notes["sampling"] = {
        "gaussians_seen": int(seen.sum()),
        "median_ratio": float(sampling.ratio[seen].median()) if seen.any() else 1.0,
        "mean_fidelity": float(known.mean()) if len(known) else 0.0,
        "mean_weight": total / len(cameras),
    }
