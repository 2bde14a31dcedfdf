"""What each training view is compared with: pseudo-HR frames and LR views, LR views alone, or the scene's own images.

Letters: HR size = what is rendered, LR size = of the scene's images; they are equal when training on a scene's own
images. Everything is checked here before the first step: a missing or mis-sized image is an error that names the file.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from arguments.loading import ModelParams
from arguments.training import OptimizationParams
from scene import Scene
from scene.cameras import Camera
from scene.image_files import read_header
from scene.images import ImageStore
from scene.lr_kernel import LRKernel, resolve_kernel
from training.depth import inverse_depths
from training.images import DeviceImages, room_for_images
from utils.errors import UserError

SUBPIXEL = {"bicubic": "bicubic", "avg": "area"}  # the paper's words for our kernels
Background = tuple[float, float, float]


@dataclass(frozen=True, eq=False)
class View:
    """One training view.

    Attributes
    ----------
    camera : at the size that is rendered.
    kernel : HR -> LR operator of this view; None when there is no LR term.
    scale : the camera's size over that of the scene's image.
    """

    camera: Camera
    kernel: LRKernel | None
    scale: int = 1


@dataclass(frozen=True, eq=False)
class Targets:
    """The images of one step, [3, H, W] and [3, h, w] float32 in 0-1; None where the objective has no such term.

    weight : of the HR image's pixels, [1, H, W] in 0-1; None = 1 everywhere.
    inverse_depth : of the view, [h, w], 0 = not known; None = no such term. See training/depth.py.
    """

    hr: Float[Tensor, "3 H W"] | None
    lr: Float[Tensor, "3 h w"] | None
    weight: Float[Tensor, "1 H W"] | None = None
    inverse_depth: Float[Tensor, "h2 w2"] | None = None


@dataclass(frozen=True, eq=False)
class TrainingViews:
    """All training views with the stores of their images.

    Attributes
    ----------
    hr, lr : what the HR and the LR term compare with. confidence : grey maps, the weights of the HR images' pixels.
    inverse_depths : of training/depth.py, by view.
    device : where the images are delivered. stay : whether they may stay on it where it is a GPU.
    """

    views: dict[str, View]
    hr: ImageStore | None
    lr: ImageStore | None
    device: torch.device
    stay: bool = True
    confidence: ImageStore | None = None
    inverse_depths: dict[str, Tensor] | None = None
    _images: DeviceImages | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        if self.device.type == "cuda":
            images = DeviceImages(self.device, room_for_images(self.device) if self.stay else 0)
            object.__setattr__(self, "_images", images)

    def targets(self, name: str, background: Background) -> Targets:
        """Images of view `name`; where they have alpha, all are composed on the one `background` (RGB 0-1)."""
        maps = self._load(self.confidence, name, (0.0, 0.0, 0.0))
        weight = None if maps is None else maps[:1]
        depth = None if self.inverse_depths is None else self.inverse_depths[name]
        return Targets(self._load(self.hr, name, background), self._load(self.lr, name, background), weight, depth)

    def _load(self, store: ImageStore | None, name: str, background: Background) -> Tensor | None:
        if store is None or self._images is None:
            return None if store is None else store.load(name, background).to(self.device)
        return self._images.load(store, name, background)

    def trust(self, rate: str) -> Iterator[Float[Tensor, "h w"] | None]:
        """Which share of the rendered size's sampling rate each view is trusted to have, over its image; None = all.

        rate : "frames": all. "lr": 1 / scale. "confidence": from 1 / scale to all, as the weight of a pixel says.
        """
        for name, view in self.views.items():
            if rate == "frames":
                yield None
                continue
            sure = torch.full((1, 1), 1 / view.scale, device=self.device)
            maps = self._load(self.confidence, name, (0.0, 0.0, 0.0)) if rate == "confidence" else None
            yield sure if maps is None else sure + (1 - sure) * maps[0]

    @property
    def largest(self) -> Camera:
        """The camera with the most pixels, for estimates."""
        return max((view.camera for view in self.views.values()), key=lambda c: c.width * c.height)


def training_views(
    scene: Scene,
    frames: Path | None,
    model: ModelParams,
    optimisation: OptimizationParams,
    scale: int,
    device: str,
    confidence: Path | None = None,
) -> TrainingViews:
    """Decide what is trained on, and check every image's presence and size.

    Parameters
    ----------
    frames : folder of pseudo-HR frames NAME.png, or None.
    scale : HR size / LR size; 0 = what the frames say, 1 without frames.
    confidence : folder of the weights of the frames' pixels, NAME.png, or None.

    Raises
    ------
    UserError : a frame is missing or not `scale` times its LR view, no LR kernel is known where one is needed, no
        frames are there although the objective needs them, or a weight map does not fit its frame.
    """
    if not scene.train:
        raise UserError(f"{scene.root}: no training views")
    uses_frames, uses_lr = optimisation.uses_frames, optimisation.uses_lr
    place, stay = torch.device(device), model.data_device != "cpu"
    if confidence is not None and (frames is None or not uses_frames):
        raise UserError(f"--confidence {confidence}: weights of pseudo-HR frames, but none are used; leave it out")
    rate = optimisation.filter_3d_rate
    if rate == "confidence" and confidence is None:
        raise UserError("--filter_3d_rate confidence: needs the weights of the frames' pixels, --confidence DIR")
    if frames is None and scale in (0, 1):
        if rate == "lr":
            raise UserError("--filter_3d_rate lr: the views are trained at their own size, leave it out")
        return TrainingViews({n: View(scene.cameras[n], None) for n in scene.train}, scene.images, None, place, stay)
    if frames is None and uses_frames:
        raise UserError(
            f"--scale {scale} without pseudo-HR frames: make them with vsr_upsample.py, name them with --frames, "
            "or train on the LR views alone with --lambda_tex 0"
        )
    sizes = {n: _hr_size(scene.cameras[n], frames, n, scale) for n in scene.train}
    views = {}
    for name, (width, height) in sizes.items():
        camera = scene.cameras[name]
        kernel = _kernel(scene, model, optimisation, camera, (width, height)) if uses_lr else None
        views[name] = View(camera.resized(width, height), kernel, width // camera.width)
    paths = {} if frames is None or not uses_frames else {n: frame_path(frames, n) for n in scene.train}
    store = ImageStore(paths, truncate=scene.images.truncate) if paths else None
    maps = None if confidence is None else confidence_maps(confidence, sizes)
    return TrainingViews(views, store, scene.images if uses_lr else None, place, stay, maps)


def with_depths(views: TrainingViews, folder: str, optimisation: OptimizationParams) -> TrainingViews:
    """The views with the inverse depths of --depths, where it is given.

    Raises
    ------
    UserError : see `inverse_depths`; or a weight without depths.
    """
    first, last = optimisation.depth_l1_weight_init, optimisation.depth_l1_weight_final
    if folder:
        if not (first > 0 and last > 0):
            raise UserError(f"--depths {folder}: --depth_l1_weight_init and --depth_l1_weight_final must be above 0")
        cameras = {name: view.camera for name, view in views.views.items()}
        return replace(views, inverse_depths=inverse_depths(Path(folder), cameras, views.device))
    default = OptimizationParams()
    if (first, last) != (default.depth_l1_weight_init, default.depth_l1_weight_final):
        raise UserError("--depth_l1_weight_init, --depth_l1_weight_final: weights of depths, but --depths names none")
    return views


def frame_path(frames: Path, name: str) -> Path:
    """Where the pseudo-HR frame of view `name` lies."""
    return frames / f"{name}.png"


def confidence_maps(folder: Path, sizes: dict[str, tuple[int, int]]) -> ImageStore:
    """The weight maps NAME.png of all views, each decoded and checked.

    Parameters
    ----------
    sizes : width and height of the views' frames [px].

    Raises
    ------
    UserError : no such folder, or a map is missing, of another size than its frame, or not grey.
    """
    if not folder.is_dir():
        raise UserError(f"--confidence {folder}: no such folder")
    store = ImageStore({name: frame_path(folder, name) for name in sizes})
    for name, (width, height) in sizes.items():
        path = store.path(name)
        if not path.is_file():
            raise UserError(f"{path}: no such weight map; --confidence needs one for each training view")
        pixels = store.raw(name)
        if pixels.shape[:2] != (height, width):
            found = f"{pixels.shape[1]}x{pixels.shape[0]}"
            raise UserError(f"{path}: {found} px, but its frame has {width}x{height}; make the weight maps again")
        if pixels.shape[2] != 3 or (pixels != pixels[..., :1]).any():
            raise UserError(f"{path}: a grey image is expected, 8 bit without alpha, 255 = weight 1")
    return store


def _hr_size(camera: Camera, frames: Path | None, name: str, scale: int) -> tuple[int, int]:
    if frames is None:
        return camera.width * scale, camera.height * scale
    path = frame_path(frames, name)
    if not path.is_file():
        raise UserError(f"{path}: no such frame; run vsr_upsample.py again, it keeps the frames that are there")
    header = read_header(path)
    width, height = header.width, header.height
    found = scale or width // camera.width
    if found < 1 or (width, height) != (camera.width * found, camera.height * found):
        raise UserError(
            f"{path}: {width}x{height} px, but {found or 'a whole number of'} times its LR view of "
            f"{camera.width}x{camera.height} px is expected; remove it and run vsr_upsample.py again"
        )
    return width, height


def _kernel(
    scene: Scene, model: ModelParams, optimisation: OptimizationParams, camera: Camera, hr_size: tuple[int, int]
) -> LRKernel:
    if optimisation.subpixel:
        kernel, border = SUBPIXEL[optimisation.subpixel], "renormalise"
    else:
        kernel, border = resolve_kernel(scene, model.lr_kernel)
    return LRKernel(kernel, border, hr_size, (camera.width, camera.height))
