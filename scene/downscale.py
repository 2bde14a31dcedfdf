"""Make an LR scene from an HR scene: `python -m scene.downscale -s HR -o LR --scale 4`.

Every view that a network may see gets an LR image: the training views of NeRF-synthetic scenes, all views of COLMAP and
transforms scenes. HR images are referenced, never copied: NeRF-synthetic test views by transforms_test.json, all others
through `hr_root` in lr_kernel.json. That file is written last: with it the LR scene is complete. The source is only
read; a second call with the same source and settings does nothing; an interrupted one is continued.
"""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from arguments.downscale import DownscaleParams
from arguments.flags import parse_groups, settings
from arguments.next_step import next_step
from scene import Scene, load_scene
from scene.degradation_file import FILE_NAME as DEGRADED
from scene.files import scene_inputs
from scene.image_files import write_png
from scene.lr_images import cropped_size, lr_image, released_image
from scene.lr_kernel import FILE_NAME, LRKernel, LRKernelFile, Size
from scene.lr_scene import Sizes, check_pinhole, relative_to, write_lr_scene
from utils import errors
from utils.atomic import read_json, write_json
from utils.errors import UserError
from utils.locks import LOCK_NAME, locked
from utils.log import Progress, note, say, set_quiet
from utils.provenance import hash_files, package_versions

STARTED = ".downscale.started.json"
TRUTH_FOLDER = "images_gt"  # the paper's name
Make = Callable[[np.ndarray], np.ndarray]


def downscale(params: DownscaleParams) -> LRKernelFile:
    """Make the LR scene, or find it made.

    Returns
    -------
    What was written to lr_kernel.json.

    Raises
    ------
    UserError : bad source, an output folder in or around the source, or one that holds something else.
    """
    source, out = Path(params.source_path), Path(params.output_path)
    scene = load_scene(source, images=params.images, resolution=1, allow_missing=params.allow_missing)
    check_apart(scene, out)
    check_pinhole(scene)
    sizes = lr_sizes(scene, params)
    plan = _plan(scene, out, params, sizes)
    check_ours(out, params.overwrite, (STARTED, FILE_NAME))
    with locked(out):
        if _is_made(plan, out, sizes):
            note(f"{out}: up to date")
            return LRKernelFile.read(out / FILE_NAME)
        resume = _begin(plan, out, params.overwrite)
        _write_images(scene, out, params, sizes, resume)
        write_lr_scene(scene, source, out, sizes)
        plan.write(out / FILE_NAME)
        (out / STARTED).unlink()
    return plan


def lr_sizes(scene: Scene, params: DownscaleParams) -> Sizes:
    """(used part of the HR image, LR size) of every view that gets an LR image.

    Raises
    ------
    UserError : an image smaller than the scale.

    Notes
    -----
    See `cropped_size` for the crop rule. The paper's release crops nothing: NeRF-synthetic sizes are floored, Mip-NeRF
    360 sizes are round(full / 8) (Q24), so the two axes may shrink by slightly different factors.
    """
    names = scene.train if scene.kind == "blender" else list(scene.cameras)
    sizes: dict[str, tuple[Size, Size]] = {}
    for name in names:
        full = (scene.cameras[name].width, scene.cameras[name].height)
        if params.compat and scene.kind == "blender":
            used, lr = full, (full[0] // params.scale, full[1] // params.scale)
        elif params.compat:
            used, lr = full, (round(full[0] / (2 * params.scale)), round(full[1] / (2 * params.scale)))
        else:
            used, lr = cropped_size(full, params.scale)
        if min(lr) < 1:
            raise UserError(
                f"{scene.images.path(name)}: {full[0]}x{full[1]} px is too small for --scale {params.scale}"
            )
        sizes[name] = (used, lr)
    return sizes


def _plan(scene: Scene, out: Path, params: DownscaleParams, sizes: Sizes) -> LRKernelFile:
    """What lr_kernel.json will say."""
    has_alpha = any(scene.images.has_alpha(name) for name in sizes)
    if params.compat and scene.kind == "transforms":
        raise UserError(f"{scene.root}: --compat {params.compat} knows NeRF-synthetic and COLMAP scenes only")
    distinct = {((scene.cameras[n].width, scene.cameras[n].height), used, lr): None for n, (used, lr) in sizes.items()}
    hr_folder = scene.root / params.images if scene.kind == "colmap" else scene.root
    sources = [path for group in scene_inputs(scene, scene.cameras).values() for path in group]
    return LRKernelFile(
        kernel=params.kernel,
        border=params.border,
        scale=float(params.scale),
        rounding="truncate" if params.compat else "round",
        alpha="none" if not has_alpha else "composited" if params.compat else "straight",
        background=_background(params) if has_alpha and params.compat else (),
        hr_root=TRUTH_FOLDER if params.compat and scene.kind == "colmap" else relative_to(hr_folder, out),
        sizes=tuple({"hr": list(hr), "used": list(used), "lr": list(lr)} for hr, used, lr in distinct),
        made={"settings": settings(params), "source": hash_files(sources), "versions": package_versions()},
    )


def _background(params: DownscaleParams) -> tuple[float, float, float]:
    return (1.0, 1.0, 1.0) if params.white_background else (0.0, 0.0, 0.0)


def _write_images(scene: Scene, out: Path, params: DownscaleParams, sizes: Sizes, resume: bool) -> None:
    progress = Progress(f"downscale {scene.root.name}", len(sizes), "view")
    for done, (name, (used, lr)) in enumerate(sizes.items(), 1):
        for path, make in _outputs(name, out, scene.kind, params, used, lr):
            check_inside(path, out)
            if not (resume and path.is_file()):
                write_png(path, make(scene.images.raw(name)))
        progress.update(done)
    progress.close()


def _outputs(name: str, out: Path, kind: str, params: DownscaleParams, used: Size, lr: Size) -> list[tuple[Path, Make]]:
    """Files made from a view, and how: its LR image, and in the paper's COLMAP layout the truth at scale x LR."""
    path, background = out / f"{name}.png", _background(params)
    if not params.compat:
        kernel = LRKernel(params.kernel, params.border, used, lr)
        return [(path, lambda image: lr_image(image, kernel))]
    if kind == "blender":
        return [(path, lambda image: released_image(image, background, factor=params.scale))]
    target = (lr[0] * params.scale, lr[1] * params.scale)
    truth = out / TRUTH_FOLDER / f"{name.partition('/')[2]}.png"
    return [
        (path, lambda image: released_image(image, background, size=lr)),
        (truth, lambda image: released_image(image, background, size=target)),
    ]


def check_apart(scene: Scene, out: Path) -> None:
    """The LR scene lies beside the HR scene, never in it or around it."""
    here, there = out.resolve(), scene.root.resolve()
    if here.is_relative_to(there) or there.is_relative_to(here):
        raise UserError(
            f"-o {out} lies in or around the HR scene {scene.root}, which is never written to; choose another"
        )


def check_ours(out: Path, overwrite: bool, marks: tuple[str, ...]) -> None:
    """Refuse a folder with files and none of the tool's marks among them, before anything is written to it."""
    found = set(os.listdir(out)) - {LOCK_NAME} if out.is_dir() else set()
    if found and not found & {*marks} and not overwrite:
        raise UserError(
            f"{out} holds {min(found)!r} and was not made by this tool; choose an empty folder, or --overwrite"
        )


def check_inside(path: Path, out: Path) -> None:
    if not path.parent.resolve().is_relative_to(out.resolve()):
        raise UserError(f"{path} leads out of {out} through a link; remove the link")


def _facts(plan: LRKernelFile) -> LRKernelFile:
    """The plan without versions: a newer library does not make an LR scene wrong."""
    return replace(plan, made={k: v for k, v in plan.made.items() if k != "versions"})


def _is_made(plan: LRKernelFile, out: Path, sizes: Iterable[str]) -> bool:
    if not (out / FILE_NAME).is_file():
        return False
    return _facts(LRKernelFile.read(out / FILE_NAME)) == _facts(plan) and all(
        (out / f"{n}.png").is_file() for n in sizes
    )


def _begin(plan: LRKernelFile, out: Path, overwrite: bool) -> bool:
    facts = _facts(plan)
    key = {"plan": [facts.kernel, facts.border, facts.scale, facts.rounding, facts.alpha, facts.hr_root], **facts.made}
    return begin(out, key, overwrite, STARTED, FILE_NAME)


def begin(out: Path, key: dict[str, Any], overwrite: bool, started_name: str, marker_name: str) -> bool:
    """Mark the folder as ours and incomplete; True where an interrupted call of the same key is continued.

    Raises
    ------
    UserError : the folder holds another LR scene, and no --overwrite.
    """
    started = out / started_name
    unfinished = read_json(started) if started.is_file() else None
    if (out / marker_name).is_file() and not overwrite:
        raise UserError(
            f"{out} holds an LR scene made with other settings or from another source, or parts of it are missing; "
            "--overwrite makes it anew"
        )
    for name in (FILE_NAME, DEGRADED):  # whichever tool made it before
        (out / name).unlink(missing_ok=True)
    write_json(started, key)
    return unfinished == key


def main() -> None:
    """Parse, make, say what was written."""
    description = "Make an LR scene from an HR scene, with the file that says how."
    (params,) = parse_groups("python -m scene.downscale", description, [DownscaleParams])
    set_quiet(params.quiet)
    made = downscale(params)
    shown = ", ".join("{}x{} -> {}x{}".format(*entry["hr"], *entry["lr"]) for entry in made.sizes[:3])
    say(f"wrote {params.output_path}: {shown}, {made.kernel}, {made.border}; truth in {made.hr_root}")
    given = {"source_path": params.output_path, "eval": True} | ({"compat": params.compat} if params.compat else {})
    say(next_step("order", "OUT", given))


if __name__ == "__main__":
    errors.run(main)
