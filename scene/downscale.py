"""Make an LR scene from an HR scene: `python -m scene.downscale -s HR -o LR --scale 4`.

Every view that a network may see gets an LR image: the training views of NeRF-synthetic scenes, all views of COLMAP and
transforms scenes. HR images are referenced, never copied: NeRF-synthetic test views by transforms_test.json, all others
through `hr_root` in lr_kernel.json. That file is written last: with it the LR scene is complete (scene.lr_folder).
"""

from functools import partial
from pathlib import Path
from typing import Any

from arguments.downscale import DownscaleParams
from arguments.flags import parse_groups
from arguments.lr_scene import LRSceneParams
from scene import Scene
from scene.lr_folder import Outputs, facts, lr_sizes, make_lr_scene, open_hr, say_made
from scene.lr_images import cropped_size, lr_image, released_image
from scene.lr_kernel import LRKernel, LRKernelFile, Size
from scene.lr_scene import Sizes
from utils import errors
from utils.errors import UserError
from utils.log import set_quiet

TRUTH_FOLDER = "images_gt"  # the paper's name


def downscale(lr: LRSceneParams, params: DownscaleParams) -> LRKernelFile:
    """Make the LR scene, or find it made.

    Returns
    -------
    What was written to lr_kernel.json.

    Raises
    ------
    UserError : bad source, an output folder in or around the source, or one that holds something else.
    """
    scene = open_hr(lr)
    sizes = lr_sizes(scene, lr.scale, partial(released_size, kind=scene.kind) if params.compat else cropped_size)
    plan = _plan(scene, lr, params, sizes)
    return make_lr_scene("downscale", scene, lr, sizes, plan, _outputs(scene.kind, lr, params, sizes))


def released_size(full: Size, scale: int, kind: str) -> tuple[Size, Size]:
    """(used part of the HR image, LR size) in the paper's release, which crops nothing (Q24).

    NeRF-synthetic sizes are floored, Mip-NeRF 360 sizes are round(full / (2 scale)), so the two axes may shrink by
    slightly different factors.
    """
    if kind == "blender":
        return full, (full[0] // scale, full[1] // scale)
    return full, (round(full[0] / (2 * scale)), round(full[1] / (2 * scale)))


def _plan(scene: Scene, lr: LRSceneParams, params: DownscaleParams, sizes: Sizes) -> LRKernelFile:
    """What lr_kernel.json will say."""
    if params.compat and scene.kind == "transforms":
        raise UserError(f"{scene.root}: --compat {params.compat} knows NeRF-synthetic and COLMAP scenes only")
    found: dict[str, Any] = facts(scene, lr, params, sizes)
    if params.compat:
        found["rounding"] = "truncate"
        if found["alpha"] != "none":
            found |= {"alpha": "composited", "background": _background(params)}
        if scene.kind == "colmap":
            found["hr_root"] = TRUTH_FOLDER
    return LRKernelFile(kernel=params.kernel, border=params.border, scale=float(lr.scale), **found)


def _background(params: DownscaleParams) -> tuple[float, float, float]:
    return (1.0, 1.0, 1.0) if params.white_background else (0.0, 0.0, 0.0)


def _outputs(kind: str, lr: LRSceneParams, params: DownscaleParams, sizes: Sizes) -> Outputs:
    """Of each view its LR image, and in the paper's COLMAP layout the truth at scale x LR."""
    out, released = Path(lr.output_path), partial(released_image, background=_background(params))

    def outputs(name: str) -> list[tuple[Path, Any]]:
        path, (used, small) = out / f"{name}.png", sizes[name]
        if not params.compat:
            kernel = LRKernel(params.kernel, params.border, used, small)
            return [(path, lambda image: lr_image(image, kernel))]
        if kind == "blender":
            return [(path, partial(released, factor=lr.scale))]
        truth = out / TRUTH_FOLDER / f"{name.partition('/')[2]}.png"
        target = (small[0] * lr.scale, small[1] * lr.scale)
        return [(path, partial(released, size=small)), (truth, partial(released, size=target))]

    return outputs


def main() -> None:
    """Parse, make, say what was written."""
    description = "Make an LR scene from an HR scene, with the file that says how."
    lr, params = parse_groups("python -m scene.downscale", description, [LRSceneParams, DownscaleParams])
    set_quiet(lr.quiet)
    made = downscale(lr, params)
    say_made(lr, made, f"{made.kernel}, {made.border}", **({"compat": params.compat} if params.compat else {}))


if __name__ == "__main__":
    errors.run(main)
