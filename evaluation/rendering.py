"""Rendering a trained model: test and train views beside their truth, and geometry for the video networks.

A view with an HR truth is rendered at that truth's size, so the metrics never compare resized images.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from arguments.loading import ModelParams, PipelineParams
from arguments.render import RenderParams
from evaluation.method_folders import keep_only, method_folder
from evaluation.protocols import FLOORED, OPAQUE, ROUNDED, UNKNOWN, Protocol
from gaussian_renderer import RenderOutput
from gaussian_renderer import render as rasterize
from scene import Scene
from scene.cameras import Camera
from scene.gaussians import FIELDS, Gaussians
from scene.image_files import read_header, write_png
from scene.images import composite, straight
from scene.ply import read_gaussians
from scene.trained_model import find_model
from utils.atomic import writing
from utils.errors import UserError
from utils.log import Progress, warn

COLOURS = {"black": (0.0, 0.0, 0.0), "white": (1.0, 1.0, 1.0)}
GENERIC_FOLDER = re.compile(r"(lr|hr)(_?\d+)?")  # says nothing about the scene: its parent's name does


@dataclass(frozen=True, eq=False)
class Job:
    """A trained model, its scene, and how it is drawn.

    Parameters
    ----------
    background : "white" or "black".
    iteration : of the model; method = "ours_N" as the original names it.
    """

    scene: Scene
    gaussians: Gaussians
    iteration: int
    background: str
    pipeline: PipelineParams
    model: ModelParams
    scale_modifier: float = 1.0

    @property
    def half_sh(self) -> bool:
        """Whether colour coefficients are in half precision."""
        return self.gaussians.shN.dtype == torch.float16

    @property
    def method(self) -> str:
        return f"ours_{self.iteration}"

    @torch.no_grad()
    def draw(self, camera: Camera) -> RenderOutput:
        """Render one view."""
        return self.rasterize(camera)

    def rasterize(
        self,
        camera: Camera,
        colours: Float[Tensor, "N 3"] | None = None,
        background: tuple[float, float, float] | None = None,
    ) -> RenderOutput:
        """Render one view, differentiable; with `colours` of the Gaussians instead of their own."""
        return rasterize(
            camera,
            self.gaussians,
            background=COLOURS[self.background] if background is None else background,
            override_color=colours,
            rasterizer=self.pipeline.rasterizer,
            scale_modifier=self.scale_modifier,
            antialiasing=self.pipeline.antialiasing,
            dilation=self.pipeline.dilation,
            memory_bytes=self.pipeline.raster_memory_bytes,
            convert_SHs_python=self.pipeline.convert_SHs_python,
            compute_cov3D_python=self.pipeline.compute_cov3D_python,
        )


def load_job(scene: Scene, model: ModelParams, pipeline: PipelineParams, render: RenderParams, device: str) -> Job:
    """Read the model and put it where it is drawn.

    Raises
    ------
    UserError : no such model, its PLY is refused, or half precision is asked for where nothing draws it.
    """
    if render.half_sh and (device == "cpu" or pipeline.rasterizer != "native" or pipeline.convert_SHs_python):
        raise UserError(
            "--half_sh: only the native rasterizer's own kernels on a GPU draw half precision (--device cuda); "
            f"this is --rasterizer {pipeline.rasterizer} on {device}; leave it out"
        )
    path, iteration = find_model(Path(model.model_path), render.iteration)
    gaussians = read_gaussians(path)
    if device != "cpu":
        gaussians = Gaussians(**{name: getattr(gaussians, name).to(device) for name in FIELDS})
    if render.half_sh:
        gaussians.shN = gaussians.shN.half()
    background = render.background or ("white" if model.white_background else "black")
    return Job(scene, gaussians, iteration, background, pipeline, model, render.scale_modifier)


def comparable_views(scene: Scene, split: str) -> list[str]:
    """Name the views of a split that can be compared: where some have an HR truth, only those.

    Raises
    ------
    UserError : some test views lack their HR truth: a mean over a part of them would not be comparable.
    """
    names = scene.train if split == "train" else scene.test
    with_truth = [name for name in names if scene.hr_path(name) is not None]
    if not with_truth or len(with_truth) == len(names):
        return list(names)
    lacking = next(name for name in names if name not in set(with_truth))
    if split == "test":
        raise UserError(f"{scene.root}: test view {lacking} has no HR truth, others have; complete --hr_root")
    return with_truth


def view_camera(scene: Scene, name: str) -> Camera:
    """Return the camera of a view at the size of its truth."""
    size = scene.hr_size(name)
    return scene.cameras[name].resized(*size) if size else scene.cameras[name]


def lr_camera(scene: Scene, name: str) -> Camera:
    """Return the camera of a view at LR size, also of a test view that is known at HR size only."""
    camera = scene.cameras[name]
    scale = hr_scale(scene)
    size = scene.hr_size(name)
    if scale == 1 or size is None:
        return camera
    return camera.resized(round(size[0] / scale), round(size[1] / scale))


def hr_scale(scene: Scene) -> float:
    """HR size / LR size of the scene: truth's width over the width of the views that are trained on."""
    for name in [*scene.test, *scene.train]:
        size = scene.hr_size(name)
        if size:
            return round(size[0] / scene.cameras[scene.train[0]].width, 4)
    return 1.0


def to_8bit(image: Float[Tensor, "3 H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Round a rendered image to 8 bit, as torchvision's save_image does for the original code."""
    return (image * 255 + 0.5).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()


def truth_8bit(scene: Scene, name: str, background: str) -> UInt8[np.ndarray, "H W 3"]:
    """Return the truth of a view (HR where there is one) as 8-bit RGB, composed on the background.

    Rounded after composing; under --compat sequence_matters the fraction of a grey level is dropped, as in its release.
    """
    truth = scene.hr_image(name)
    image = scene.images.raw(name) if truth is None else truth
    composed = composite(image, COLOURS[background], truncate=scene.images.truncate)
    return np.rint(composed * 255).astype(np.uint8)


def file_names(names: Sequence[str], keep_names: bool) -> list[str]:
    """PNG names of views: 00000.png by 3DGS's numbering, or the last part of the views' own names.

    Raises
    ------
    UserError : two views would get one file name.
    """
    files = [f"{Path(name).name if keep_names else f'{i:05d}'}.png" for i, name in enumerate(names)]
    if len(set(files)) < len(files):
        raise UserError("--keep_names: two views have the same image name in different folders; leave it out")
    return files


def render_split(job: Job, split: str, out: Path, render: RenderParams, keep: bool = False) -> Iterator[Path]:
    """Render the views of one split into OUT/{split}/ours_N/{renders,gt[,depth]}.

    Parameters
    ----------
    keep : leave files that are there (an interrupted run with the same settings goes on).

    Yields
    ------
    Each path, written. After the last one, what else lies there is removed.
    """
    names = comparable_views(job.scene, split)
    if split == "train" and len(names) < len(job.scene.train):
        warn(f"{len(names)} of {len(job.scene.train)} train views have an HR truth, only these are rendered")
    folder = method_folder(out, split, job.iteration)
    written: list[Path] = []
    progress = Progress(f"render {split}", len(names), "view")
    for i, (name, file) in enumerate(zip(names, file_names(names, render.keep_names), strict=True)):
        image, truth = folder / "renders" / file, folder / "gt" / file
        depth = [folder / "depth" / f"{Path(file).stem}{suffix}" for suffix in (".npy", ".png")] if render.depth else []
        if not (keep and all(p.is_file() for p in (image, truth, *depth))):
            write_png(truth, truth_8bit(job.scene, name, job.background))
            output = job.draw(view_camera(job.scene, name))
            write_png(image, to_8bit(output.color))
            if depth:
                _write_depth(depth[0], depth[1], output.depth.cpu().numpy())
        written += (image, truth, *depth)
        yield from (image, truth, *depth)
        progress.update(i + 1)
    keep_only(folder, written)  # metrics.py measures all that lies there
    progress.close()


def _write_depth(raw: Path, picture: Path, depth: Float[np.ndarray, "H W"]) -> None:
    with writing(raw) as tmp, open(tmp, "xb") as file:
        np.save(file, depth.astype(np.float32))
    write_png(picture, depth_picture(depth))


def depth_picture(depth: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """Show z-depth as grey: near = bright, 0 (background) = black; linear in 1 / z between 2nd and 98th percentile."""
    solid = depth > 0
    grey = np.zeros(depth.shape)
    if solid.any():
        inverse = 1 / depth[solid]
        low, high = np.percentile(inverse, [2, 98])
        grey[solid] = 55 + 200 * np.clip((inverse - low) / max(high - low, 1e-12), 0, 1)
    return np.repeat(np.rint(grey).astype(np.uint8)[..., None], 3, axis=2)


def geometry_paths(scene: Scene, out: Path) -> dict[str, Path]:
    """Files of `render_geometry` by the names of their views."""
    return {name: out / "geometry" / f"{name}.npz" for name in [*scene.train, *scene.test]}


def render_geometry(job: Job, out: Path, keep: bool = False) -> Iterator[Path]:
    """Write OUT/geometry/NAME.npz for every view at LR size: `z` (0 = background) and `alpha`, float32 [h, w].

    Yields
    ------
    Each path, written.
    """
    paths = geometry_paths(job.scene, out)
    progress = Progress("geometry", len(paths), "view")
    for i, (name, path) in enumerate(paths.items()):
        if not (keep and path.is_file()):
            output = job.draw(lr_camera(job.scene, name))
            with writing(path) as tmp, open(tmp, "xb") as file:
                z, alpha = (x.cpu().numpy().astype(np.float32) for x in (output.depth, output.alpha))
                np.savez_compressed(file, z=z, alpha=alpha)
        yield path
        progress.update(i + 1)
    progress.close()


def hr_frame_paths(scene: Scene, out: Path) -> dict[str, Path]:
    """Files of `render_hr_frames` by the names of their views."""
    return {name: out / "hr_frames" / f"{name}.png" for name in scene.train}


def render_hr_frames(job: Job, out: Path, scale: int, keep: bool = False) -> Iterator[Path]:
    """Write OUT/hr_frames/NAME.png for every train view at `scale` times its LR size, as pseudo-HR frames are stored.

    Views with alpha are drawn on black, whatever the background: that is their premultiplied colour.

    Yields
    ------
    Each path, written.
    """
    paths = hr_frame_paths(job.scene, out)
    on_black = replace(job, background="black")
    progress = Progress("hr_frames", len(paths), "view")
    for i, (name, path) in enumerate(paths.items()):
        if not (keep and path.is_file()):
            lr = job.scene.cameras[name]
            camera = lr.resized(scale * lr.width, scale * lr.height)
            if job.scene.images.has_alpha(name):
                output = on_black.draw(camera)
                planes = torch.cat([output.color, output.alpha[None]])
                write_png(path, straight(planes.permute(1, 2, 0).cpu().numpy()))
            else:
                write_png(path, to_8bit(job.draw(camera).color))
        yield path
        progress.update(i + 1)
    progress.close()


def describe(job: Job, split: str, render: RenderParams) -> dict[str, Any]:
    """Say what metrics.py must know of a rendered split: iteration, splats, file -> view name, protocol."""
    names = comparable_views(job.scene, split)
    views = dict(zip(file_names(names, render.keep_names), names, strict=True))
    protocol = render_protocol(job, names)
    return {"iteration": job.iteration, "splats": job.gaussians.num, "views": views, "protocol": protocol.to_json()}


def render_protocol(job: Job, names: Sequence[str]) -> Protocol:
    """Write down how a split is rendered; metrics.py adds the sizes, the view set and the truth's hash."""
    scene, scale = job.scene, hr_scale(job.scene)
    kernel, rounding = "none", "none"
    if scale != 1:
        made = scene.kernel_file
        kernel, rounding = job.model.lr_kernel or UNKNOWN, UNKNOWN
        if made is not None and not job.model.lr_kernel:
            kernel, rounding = f"{made.kernel}, {made.border}", made.rounding
        elif made is None and scene.degradation is not None:  # whatever training took for an approximation of it
            kernel, rounding = scene.degradation.describe(), "round"
    paths = {name: scene.hr_path(name) for name in names}
    alpha = any(read_header(p).channels == 4 if p else scene.images.has_alpha(name) for name, p in paths.items())
    return Protocol(
        scene=scene_name(scene.root),
        background=job.background,
        compositing=(FLOORED if scene.images.truncate else ROUNDED) if alpha else OPAQUE,
        lr_kernel=kernel,
        lr_rounding=rounding,
        scale=scale,
        rasterizer=job.pipeline.rasterizer + (", half-precision colours" if job.half_sh else ""),
        antialiasing=job.pipeline.antialiasing,
        dilation=job.pipeline.dilation,
    )


def scene_name(root: Path) -> str:
    """Name a scene after its folder, or after the parent of a folder called lr, lr_200, hr, ..."""
    root = root.resolve()
    return root.parent.name if GENERIC_FOLDER.fullmatch(root.name) and root.parent.name else root.name
