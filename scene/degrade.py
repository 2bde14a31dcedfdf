"""Make a degraded LR scene from an HR scene: `python -m scene.degrade -s HR -o LR --preset realesrgan --per scene`.

The same folder as scene.downscale makes, with views as cameras and the web deliver them: blurred, resized, noisy,
compressed. Cameras and poses stay exact. Two tracks: values drawn once for the scene (--per scene: one camera; W1 of
the benchmark), or for each view (--per view: photographs of many; W2).

How each view was made stands in degradation.json (scene.degradation_file), written last: with it the LR scene is
complete (scene.lr_folder). There is no lr_kernel.json, as no linear operator describes such views: LR projection
refuses them.
"""

from pathlib import Path
from typing import Any

from arguments.degrade import DegradeParams
from arguments.flags import parse_groups
from arguments.lr_scene import LRSceneParams
from scene.degradation_file import FILE_NAME, DegradationFile
from scene.degrade_presets import PRESETS, classical, drawn
from scene.degrade_steps import Step, degraded, from_json, to_json
from scene.lr_folder import Outputs, facts, lr_sizes, make_lr_scene, open_hr, say_made
from scene.lr_scene import Sizes
from utils import errors
from utils.log import set_quiet
from utils.rng import numpy_generator

FOR_ALL = ""  # key of the steps that all views share


def degrade(lr: LRSceneParams, params: DegradeParams) -> DegradationFile:
    """Make the degraded LR scene, or find it made.

    Returns
    -------
    What was written to degradation.json.

    Raises
    ------
    UserError : bad source, an output folder in or around the source, or one that holds something else.
    """
    scene = open_hr(lr)
    sizes = lr_sizes(scene, lr.scale)
    plan = DegradationFile(
        preset=params.preset,
        per=params.per,
        seed=params.seed,
        scale=lr.scale,
        steps={key: to_json(steps) for key, steps in drawn_steps(params, list(sizes)).items()},
        noise_seeds={name: int(numpy_generator(params.seed, "noise", name).integers(1 << 53)) for name in sizes},
        **facts(scene, lr, params, sizes),
    )
    return make_lr_scene("degrade", scene, lr, sizes, plan, _outputs(Path(lr.output_path), plan, sizes))


def drawn_steps(params: DegradeParams, names: list[str]) -> dict[str, tuple[Step, ...]]:
    """The steps of every view, or those of all under FOR_ALL; the same whatever other views there are."""
    if params.preset == "classical":
        return {FOR_ALL: classical(params)}
    keys = [FOR_ALL] if params.per == "scene" else names
    return {key: drawn(PRESETS[params.preset], numpy_generator(params.seed, "degradation", key)) for key in keys}


def _outputs(out: Path, plan: DegradationFile, sizes: Sizes) -> Outputs:
    steps = {key: from_json(values, FILE_NAME) for key, values in plan.steps.items()}

    def outputs(name: str) -> list[tuple[Path, Any]]:
        of_view, (used, small), seed = steps.get(name) or steps[FOR_ALL], sizes[name], plan.noise_seeds[name]
        return [(out / f"{name}.png", lambda image: degraded(image, of_view, used, small, seed))]

    return outputs


def main() -> None:
    """Parse, make, say what was written."""
    description = "Make a degraded LR scene from an HR scene, with the file that says how."
    lr, params = parse_groups("python -m scene.degrade", description, [LRSceneParams, DegradeParams])
    set_quiet(lr.quiet)
    made = degrade(lr, params)
    say_made(lr, made, made.describe())


if __name__ == "__main__":
    errors.run(main)
