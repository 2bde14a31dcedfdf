"""What a run works on: the ordered views of a scene, or a plain folder of frames."""

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from arguments.loading import ModelParams
from arguments.lr_kernel import kernel_files
from arguments.upsampling import UNALIGNED, UpsamplingParams
from scene import Scene, open_scene
from scene.files import scene_inputs
from scene.image_files import read_header, read_image
from scene.lr_kernel import KERNELS, LRKernelFile, resolve_kernel
from scene.sequences import FILE_NAME, Sequences, Subsequence, read_sequences
from upsampling.geometry import FOLDER, depth_path
from upsampling.neighbours import NEIGHBOUR_COSTS
from utils.errors import UserError
from utils.plugins import imported, source_files

SUFFIXES = (".png", ".jpg", ".jpeg")


@runtime_checkable
class Views(Protocol):
    """Where LR frames come from: `scene.images.ImageStore` is one."""

    def raw(self, name: str) -> UInt8[np.ndarray, "h w c"]: ...
    def size(self, name: str) -> tuple[int, int]: ...
    def has_alpha(self, name: str) -> bool: ...


class FolderViews:
    """The frames of one folder, by file name without extension, in the order of their names."""

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UserError(f"--frames {folder}: no such folder")
        files = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES and p.is_file())
        self.paths: dict[str, Path] = {}
        for path in files:
            if path.stem in self.paths:
                raise UserError(f"{path}: {self.paths[path.stem].name} has the same name; results would collide")
            self.paths[path.stem] = path
        if not files:
            raise UserError(f"--frames {folder}: holds no PNG or JPEG file")

    def raw(self, name: str) -> UInt8[np.ndarray, "h w c"]:
        return read_image(self.paths[name])

    def size(self, name: str) -> tuple[int, int]:
        header = read_header(self.paths[name])
        return header.width, header.height

    def has_alpha(self, name: str) -> bool:
        return read_header(self.paths[name]).channels == 4


@dataclass(frozen=True)
class Source:
    """What is upsampled: frames, calls, the step's input files, how the LR views were made (see `known_kernel`).

    hr_root : folder of the HR truth, where there is one.
    scene : the scene, None for a plain folder.
    geometry : folder of its views' depths, where flow is computed from them.
    """

    views: Views
    sequences: Sequences
    inputs: dict[str, list[Path]]
    kernel: tuple[str, str] | None
    hr_root: Path | None = None
    scene: Scene | None = None
    geometry: Path | None = None

    @property
    def flow(self) -> str:
        """What --flow "auto" came to."""
        return "learned" if self.geometry is None else "geometry"

    @property
    def degraded(self) -> bool:
        """Whether the views were, so that no linear operator made them."""
        return self.scene is not None and self.scene.degradation is not None


def folder_source(folder: str | Path, lr_kernel: str) -> Source:
    """All frames of a folder as one clip; `lr_kernel` is the flag."""
    views = FolderViews(Path(folder))
    names = tuple(views.paths)
    clip = Sequences((Subsequence(names, tuple(range(len(names)))),), "file")
    kernel = (lr_kernel, "renormalise") if lr_kernel in KERNELS else None
    if lr_kernel and not kernel:
        found = LRKernelFile.read(lr_kernel)
        kernel = (found.kernel, found.border)
    return Source(views, clip, {"views": list(views.paths.values())} | kernel_files(lr_kernel), kernel)


def scene_source(model: ModelParams, settings: UpsamplingParams, out: Path, compat: str) -> Source:
    """The views of a scene in the order of --sequences or OUT/sequences.json, with their depths where flow needs them.

    Raises
    ------
    UserError : no scene, no schedule or no depths there (says how to make them), what does not fit together, or an
        neighbour cost that cannot be imported.
    """
    if settings.neighbour_cost not in NEIGHBOUR_COSTS:
        imported("--neighbour_cost", settings.neighbour_cost)  # also where nothing asks for it
    path = Path(settings.sequences or out / FILE_NAME)
    if not path.is_file():
        raise UserError(f"{path}: no {FILE_NAME}; make it with align_sequence.py, or name one with --sequences")
    scene = open_scene(model, compat)
    sequences = read_sequences(path, required=scene.train, known=scene.test)
    used = dict.fromkeys(name for s in sequences.subsequences for name in s.frames)
    kernel = known_kernel(scene, model.lr_kernel)
    plugins = source_files(settings.upsampler, settings.neighbour_cost)
    inputs = {"sequences": [path], **scene_inputs(scene, used), "plugins": plugins, **kernel_files(model.lr_kernel)}
    geometry = geometry_folder(settings, out, compat)
    if geometry is not None:
        inputs["geometry"] = [depth_path(geometry, name) for name in used]
        for name, file in zip(used, inputs["geometry"], strict=True):
            if not file.is_file():
                raise UserError(f"{file}: view {name} has no depth; make all anew with render.py --geometry")
    return Source(scene.images, sequences, inputs, kernel, scene.hr_root, scene, geometry)


def known_kernel(scene: Scene, flag: str) -> tuple[str, str] | None:
    """(kernel, border) of the LR views; None where nothing says how they were made, or they were degraded.

    Raises
    ------
    UserError : --lr_kernel names none.
    """
    found = resolve_kernel(scene, flag) if flag or scene.kernel_file else None
    return None if scene.degradation else found


def geometry_folder(settings: UpsamplingParams, out: Path, compat: str) -> Path | None:
    """Folder of depths that the flow is computed from; None = the flow is learned, or nothing propagates.

    Raises
    ------
    UserError : --flow geometry, and there is no such folder.
    """
    folder = Path(settings.geometry or out / FOLDER)
    unused = settings.upsampler in UNALIGNED or settings.propagation == "none"
    automatic = settings.flow == "auto" and not compat and folder.is_dir()
    if unused or not (automatic or settings.flow == "geometry"):
        return None
    if not folder.is_dir():
        raise UserError(
            f"--flow geometry: there is no {folder}; run.py makes it (its steps lr_model and geometry), or render.py "
            "--geometry from a model of the LR views"
        )
    return folder
