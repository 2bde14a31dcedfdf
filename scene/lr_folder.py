"""The folder of an LR scene while it is made: refused where it is another's, filled view by view, complete at the end.

What scene.downscale and scene.degrade share; each says how its views are made (its *plan*, which becomes the file that
is written last) and which files a view becomes. The source is only read; a second call with the same plan does nothing,
and an interrupted one is continued.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from arguments.flags import settings
from arguments.lr_scene import LRSceneParams
from arguments.next_step import next_step
from scene import Scene, load_scene
from scene.degradation_file import FILE_NAME as DEGRADATION
from scene.degradation_file import DegradationFile
from scene.files import scene_inputs
from scene.image_files import write_png
from scene.lr_images import cropped_size
from scene.lr_kernel import FILE_NAME as KERNEL
from scene.lr_kernel import LRKernelFile, Size
from scene.lr_scene import Sizes, check_pinhole, relative_to, write_lr_scene
from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.locks import LOCK_NAME, locked
from utils.log import Progress, note, say
from utils.provenance import hash_files, package_versions

FILES = {"downscale": KERNEL, "degrade": DEGRADATION}  # by tool: what says how the views were made
Plan = TypeVar("Plan", LRKernelFile, DegradationFile)
Outputs = Callable[[str], list[tuple[Path, Callable[[np.ndarray], np.ndarray]]]]


def open_hr(lr: LRSceneParams) -> Scene:
    """The HR scene at its full size.

    Raises
    ------
    UserError : it cannot be read or its lenses distort, the LR scene would lie in it or around it, or it is itself an
        LR scene whose test views are those of another.
    """
    scene = load_scene(lr.source_path, images=lr.images, resolution=1, allow_missing=lr.allow_missing)
    here, there = Path(lr.output_path).resolve(), scene.root.resolve()
    for source in filter(None, (scene.root, scene.hr_root)):  # of an LR scene its truth, too
        held = source.resolve()
        if here.is_relative_to(held) or held.is_relative_to(here):
            raise UserError(
                f"-o {lr.output_path} lies in or around the HR scene {source}, which is never written to; choose "
                "another"
            )
    check_pinhole(scene)
    for name in scene.test:
        if not scene.images.path(name).resolve().is_relative_to(there):
            raise UserError(
                f"{scene.root} is an LR scene, and its test views are those of {scene.hr_root}, at that size; "
                "make the smaller LR scene from there, with a larger --scale"
            )
    return scene


def lr_sizes(scene: Scene, scale: int, size_of: Callable[[Size, int], tuple[Size, Size]] = cropped_size) -> Sizes:
    """(used part of the HR image, LR size) of every view that gets an LR image.

    Parameters
    ----------
    size_of : both sizes of an image of (width, height) at a scale.

    Raises
    ------
    UserError : an image smaller than the scale.
    """
    sizes: dict[str, tuple[Size, Size]] = {}
    for name in scene.train if scene.kind == "blender" else scene.cameras:
        width, height = scene.cameras[name].width, scene.cameras[name].height
        used, lr = size_of((width, height), scale)
        if min(lr) < 1:
            raise UserError(f"{scene.images.path(name)}: {width}x{height} px is too small for --scale {scale}")
        sizes[name] = (used, lr)
    return sizes


def facts(scene: Scene, lr: LRSceneParams, params: Any, sizes: Sizes) -> dict[str, Any]:
    """Fields that every plan has: alpha as it is, where the truth is, sizes, and what the views are made from."""
    distinct = {((scene.cameras[n].width, scene.cameras[n].height), used, lr): None for n, (used, lr) in sizes.items()}
    hr_folder = scene.root / lr.images if scene.kind == "colmap" else scene.root
    sources = [path for group in scene_inputs(scene, scene.cameras).values() for path in group]
    values = {k: list(v) if isinstance(v, tuple) else v for k, v in settings(lr, params).items()}  # as JSON has them
    return {
        "alpha": "straight" if any(scene.images.has_alpha(name) for name in sizes) else "none",
        "hr_root": relative_to(hr_folder, Path(lr.output_path)),
        "sizes": tuple({"hr": list(hr), "used": list(used), "lr": list(small)} for hr, used, small in distinct),
        "made": {"settings": values, "source": hash_files(sources), "versions": package_versions()},
    }


def make_lr_scene(tool: str, scene: Scene, lr: LRSceneParams, sizes: Sizes, plan: Plan, outputs: Outputs) -> Plan:
    """Make the LR scene, or find it made.

    Parameters
    ----------
    tool : one of FILES. outputs : the files that a view becomes, and how each is made from its HR image.

    Returns
    -------
    What its file says.

    Raises
    ------
    UserError : the folder holds something else, or a file cannot be written.
    """
    out = Path(lr.output_path)
    started, file = _started(out, tool), out / FILES[tool]
    _check_ours(out, lr.overwrite, {started.name, file.name})
    with locked(out):
        if _is_made(plan, file, [path for name in sizes for path, _ in outputs(name)]):
            note(f"{out}: up to date")
            return plan.read(file)
        resume = _begin(_lasting(plan).made, file, started, lr.overwrite)
        progress = Progress(f"{tool} {scene.root.name}", len(sizes), "view")
        for done, name in enumerate(sizes, 1):
            for path, make in outputs(name):
                _check_inside(path, out)
                if not (resume and path.is_file()):
                    write_png(path, make(scene.images.raw(name)))
            progress.update(done)
        progress.close()
        write_lr_scene(scene, Path(lr.source_path), out, sizes)
        plan.write(file)
        started.unlink()
    return plan


def say_made(lr: LRSceneParams, made: Plan, how: str, **given: Any) -> None:
    """The results of a tool: what was written, and the next step with the flags `given`."""
    shown = ", ".join("{}x{} -> {}x{}".format(*entry["hr"], *entry["lr"]) for entry in made.sizes[:3])
    say(f"wrote {lr.output_path}: {shown}, {how}; truth in {made.hr_root}")
    say(next_step("order", "OUT", {"source_path": lr.output_path, "eval": True} | given))


def _started(out: Path, tool: str) -> Path:
    """The mark of a folder that the tool has begun and not finished."""
    return out / f".{tool}.started.json"


def _check_ours(out: Path, overwrite: bool, marks: set[str]) -> None:
    """Refuse a folder with files and none of the tool's marks among them, before anything is written to it."""
    found = set(os.listdir(out)) - {LOCK_NAME} if out.is_dir() else set()
    if found and not found & marks and not overwrite:
        raise UserError(
            f"{out} holds {min(found)!r} and was not made by this tool; choose an empty folder, or --overwrite"
        )


def _check_inside(path: Path, out: Path) -> None:
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{path} leads out of {out} through a link; remove the link")


def _lasting(plan: Plan) -> Plan:
    """The plan without versions: a newer library does not make an LR scene wrong."""
    return replace(plan, made={k: v for k, v in plan.made.items() if k != "versions"})


def _is_made(plan: Plan, file: Path, paths: Iterable[Path]) -> bool:
    same = file.is_file() and _lasting(plan.read(file)) == _lasting(plan)
    return same and all(path.is_file() for path in paths)


def _begin(key: dict[str, Any], file: Path, started: Path, overwrite: bool) -> bool:
    """Mark the folder as ours and incomplete; True where an interrupted call of the same key is continued.

    Raises
    ------
    UserError : the folder holds another LR scene, and no --overwrite.
    """
    unfinished = read_json(started) if started.is_file() else None
    if file.is_file() and not overwrite:
        raise UserError(
            f"{file.parent} holds an LR scene made with other settings or from another source, or parts of it are "
            "missing; --overwrite makes it anew"
        )
    for tool, name in FILES.items():  # whichever made it before, or began: it must not take our views for its own
        (file.parent / name).unlink(missing_ok=True)
        if (mark := _started(file.parent, tool)) != started:
            mark.unlink(missing_ok=True)
    write_json(started, key)
    return unfinished == key
