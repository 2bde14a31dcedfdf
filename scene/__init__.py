"""Scenes: cameras by name, images on demand, initial points; read from NeRF-synthetic, COLMAP or transforms.json.

`load_scene` finds out which of the three a folder holds (a COLMAP model first, then transforms_train.json, then
transforms.json, as the original 3DGS), reads it, and checks every image's header against its camera.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8

from arguments.loading import ModelParams
from scene.blender import TEST_FILE, TRAIN_FILE, read_blender
from scene.cameras import Camera, scaled_intrinsics
from scene.colmap import MODEL_FOLDERS, model_folder, read_colmap
from scene.degradation_file import FILE_NAME as DEGRADATION_FILE
from scene.degradation_file import DegradationFile
from scene.image_files import read_header, read_image
from scene.images import ImageStore, working_size
from scene.lr_kernel import FILE_NAME as KERNEL_FILE
from scene.lr_kernel import LRKernelFile
from scene.paths import Roots
from scene.points import PointCloud, Tracks
from scene.transforms import FILE_NAME as TRANSFORMS_FILE
from scene.transforms import read_transforms
from scene.undistort import Undistortion, undistortion
from scene.views import Capture, View
from utils import log
from utils.errors import UserError

SEQUENCE_MATTERS = "sequence_matters"
MAX_ASPECT_ERROR = 0.01  # images made at 1/8 differ from the camera's aspect by up to 0.6 %
MAX_ASPECT_ERROR_PX = 1.5  # of small images, where half a pixel is more than that


@dataclass(eq=False)
class Scene:
    """A scene in memory: cameras and names; pixels stay on disk until used.

    Attributes
    ----------
    root : folder of the scene.
    kind : "blender", "colmap" or "transforms".
    cameras : by view name; each has the size at which `images` delivers its view.
    train, test : view names, in the order of the scene's files.
    images : the pixels.
    points : initial cloud, or None.
    tracks : which view sees which point, where COLMAP says so.
    kernel_file : how the LR views were made, where lr_kernel.json says so.
    degradation : how they were degraded, where degradation.json says so; there is no linear LR operator then.
    hr_root : folder of the HR truth, or None.
    """

    root: Path
    kind: str
    cameras: dict[str, Camera]
    train: list[str]
    test: list[str]
    images: ImageStore
    points: PointCloud | None = None
    tracks: Tracks | None = None
    kernel_file: LRKernelFile | None = None
    degradation: DegradationFile | None = None
    hr_root: Path | None = None

    @property
    def extent(self) -> float:
        """1.1 x the largest distance of a training camera from their mean (`cameras_extent` of the original 3DGS)."""
        centres = np.array([self.cameras[name].centre for name in self.train])
        return 1.1 * float(np.linalg.norm(centres - centres.mean(axis=0), axis=1).max())

    def hr_path(self, name: str) -> Path | None:
        """The HR truth of a view: its image in `hr_root`, or None where there is none.

        Raises
        ------
        UserError : the image is a link that leads out of `hr_root` and the scene.
        """
        return Roots(self.root, self.hr_root).hr_image(name)

    def hr_size(self, name: str) -> tuple[int, int] | None:
        """Width and height of the part of the HR truth that the view was made from; None where there is no truth.

        `scene.downscale` and `scene.degrade` crop sides that the scale does not divide; their files say how far.
        """
        path = self.hr_path(name)
        if path is None:
            return None
        header = read_header(path)
        own = [self.cameras[name].width, self.cameras[name].height]
        made = self.kernel_file or self.degradation
        for size in made.sizes if made else ():
            if size["lr"] == own and size["hr"] == [header.width, header.height]:
                return size["used"][0], size["used"][1]
        return header.width, header.height

    def hr_image(self, name: str) -> UInt8[np.ndarray, "H W C"] | None:
        """The HR truth of a view at `hr_size`, or None.

        Raises
        ------
        UserError : as `hr_path`, or the image cannot be read.
        """
        path, size = self.hr_path(name), self.hr_size(name)
        return None if path is None or size is None else read_image(path)[: size[1], : size[0]]


def open_scene(model: ModelParams, compat: str = "") -> Scene:
    """The scene that a script's loading flags name. Raises UserError as `load_scene`."""
    return load_scene(
        model.source_path,
        images=model.images,
        eval=model.eval,
        hr_root=model.hr_root or None,
        resolution=model.resolution,
        allow_missing=model.allow_missing,
        compat=compat,
    )


def load_scene(
    root: str | Path,
    *,
    images: str = "images",
    eval: bool = True,
    hr_root: str | Path | None = None,
    resolution: int = -1,
    allow_missing: bool = False,
    compat: str = "",
) -> Scene:
    """Read a scene without decoding an image.

    Parameters
    ----------
    root : folder of the scene, or its transforms.json.
    images : folder of the images in COLMAP scenes (-i).
    eval : hold out the test views; otherwise they join the training views.
    hr_root : folder of the HR truth; None or "" = what the scene's lr_kernel.json records.
    resolution : -r, see `working_size`.
    allow_missing : skip listed images that are not there.
    compat : "sequence_matters": central principal points and truncated compositing, as the paper's release.

    Raises
    ------
    UserError : no scene there, or anything wrong with it; one line naming the file and the frame.
    """
    given = Path(root)
    json_path = given if given.suffix == ".json" and given.is_file() else None
    root = json_path.parent if json_path else given
    if not root.is_dir():
        raise UserError(f"{given}: no such folder; give the folder of a scene with -s")
    if compat not in ("", SEQUENCE_MATTERS):
        raise UserError(f"--compat {compat}: only {SEQUENCE_MATTERS} is known")
    roots, kernel_file = scene_roots(root, hr_root)
    degradation = _degradation(root)
    capture = _read(roots, json_path, images, eval, allow_missing)
    for text in capture.notes:
        log.note(text)
    cameras, store = _check_images(capture.views, resolution, compat == SEQUENCE_MATTERS)
    if not capture.train:
        raise UserError(f"{root}: no training views ({len(capture.views)} views, {len(capture.test)} held out)")
    return Scene(
        root=root,
        kind=capture.kind,
        cameras=cameras,
        train=capture.train,
        test=capture.test,
        images=store,
        points=capture.points,
        tracks=capture.tracks,
        kernel_file=kernel_file,
        degradation=degradation,
        hr_root=roots.hr_root,
    )


def _read(roots: Roots, json_path: Path | None, images: str, evaluate: bool, allow_missing: bool) -> Capture:
    folder = model_folder(roots.scene)
    if json_path is None and folder is not None:
        return read_colmap(roots, folder, images=images, evaluate=evaluate, allow_missing=allow_missing)
    if json_path is None and (roots.scene / TRAIN_FILE).is_file():
        return read_blender(roots, evaluate=evaluate, allow_missing=allow_missing)
    json_path = json_path or roots.scene / TRANSFORMS_FILE
    if json_path.is_file():
        return read_transforms(roots, json_path, images=images, evaluate=evaluate, allow_missing=allow_missing)
    raise UserError(
        f"{roots.scene}: no scene found; looked for {MODEL_FOLDERS[0]}/images.bin or .txt, {TRAIN_FILE} "
        f"(with {TEST_FILE}) and {TRANSFORMS_FILE}"
    )


def scene_roots(root: Path, hr_root: str | Path | None) -> tuple[Roots, LRKernelFile | None]:
    """The folders that images of a scene may come from, and its lr_kernel.json where it has one.

    `hr_root` wins over what lr_kernel.json or degradation.json records (absolute, or relative to the scene). Raises
    UserError for an `hr_root` that is no folder, and where such a file is damaged.
    """
    kernel_file = LRKernelFile.read(root / KERNEL_FILE) if (root / KERNEL_FILE).is_file() else None
    if hr_root:
        if not Path(hr_root).is_dir():
            raise UserError(f"--hr_root {hr_root}: no such folder")
        return Roots(root, Path(hr_root)), kernel_file
    made, name = (kernel_file, KERNEL_FILE) if kernel_file else (_degradation(root), DEGRADATION_FILE)
    if made is None or not made.hr_root:
        return Roots(root), kernel_file
    recorded = root / made.hr_root
    if not recorded.is_dir():
        log.note(f"{root / name}: the HR scene {made.hr_root} is not there; --hr_root DIR names it")
        return Roots(root), kernel_file
    return Roots(root, recorded), kernel_file


def _degradation(root: Path) -> DegradationFile | None:
    path = root / DEGRADATION_FILE
    return DegradationFile.read(path) if path.is_file() else None


def _check_images(views: list[View], resolution: int, centred: bool) -> tuple[dict[str, Camera], ImageStore]:
    """Cameras at the size in which their images are delivered, and the store that delivers them."""
    paths: dict[str, Path] = {}
    for view in views:
        if view.name in paths:
            raise UserError(f"{view.where}: a second view is called {view.name}, the first is {paths[view.name]}")
        paths[view.name] = view.path
    headers = ImageStore(paths)
    groups: dict[str, View] = {}
    lenses: dict[tuple[bytes, tuple[int, int]], Undistortion] = {}
    cameras, sizes, undistortions = {}, {}, {}
    for view in views:
        header = headers.header(view.name)
        _check_group(view, groups.setdefault(view.group, view), headers)
        width, height = header.width, header.height
        _check_aspect(view, width, height)
        K = scaled_intrinsics(view.K, width / view.size[0], height / view.size[1])
        if not view.distortion.is_none:
            key = (K.tobytes() + repr(view.distortion).encode(), (width, height))
            if key not in lenses:
                lenses[key] = undistortion(K, (width, height), view.distortion, view.where)
            undistortions[view.name] = lenses[key]
            K = lenses[key].K_pinhole
        if centred:
            K = K.copy()
            K[:2, 2] = width / 2.0, height / 2.0
        size = working_size(width, height, resolution)
        camera = Camera(view.name, width, height, K, view.world_to_camera)
        cameras[view.name] = camera.resized(*size)
        sizes[view.name] = size
    return cameras, ImageStore(paths, sizes, undistortions=undistortions, truncate=centred)


def _check_group(view: View, first: View, headers: ImageStore) -> None:
    """Images of one split or camera must agree: one odd file among them is a mistake, not a choice."""
    header, expected = headers.header(view.name), headers.header(first.name)
    if (header.width, header.height) != (expected.width, expected.height):
        raise UserError(
            f"{view.where}: {view.path} is {header.width}x{header.height} px, but {first.path} of the same set is "
            f"{expected.width}x{expected.height}; they must all be of one size"
        )
    if header.channels != expected.channels:
        kinds = {3: "RGB", 4: "RGBA"}
        raise UserError(
            f"{view.where}: {view.path} is {kinds[header.channels]}, but {first.path} of the same set is "
            f"{kinds[expected.channels]}; they must be of one kind"
        )


def _check_aspect(view: View, width: int, height: int) -> None:
    wanted = view.size[1] * width / view.size[0]
    if abs(height - wanted) > max(MAX_ASPECT_ERROR * wanted, MAX_ASPECT_ERROR_PX):
        raise UserError(
            f"{view.where}: {view.path} is {width}x{height} px, which is not the {view.size[0]}x{view.size[1]} of its "
            "camera in another size"
        )
