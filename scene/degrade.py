"""Make a degraded LR scene from an HR scene: `python -m scene.degrade -s HR -o LR --preset realesrgan --per scene`.

The same folder as scene.downscale makes, with views as cameras and the web deliver them: blurred, resized, noisy,
compressed. Cameras and poses stay exact. Two tracks: values drawn once for the scene (--per scene: one camera; W1 of
the benchmark), or for each view (--per view: photographs of many; W2).

How each view was made stands in degradation.json (scene.degradation_file), written last: with it the LR scene is
complete. There is no lr_kernel.json, as no linear operator describes such views: LR projection refuses them. The
source is only read; a second call with the same settings does nothing; an interrupted one is continued.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from arguments.degrade import DegradeParams
from arguments.downscale import DownscaleParams
from arguments.flags import parse_groups, settings
from arguments.next_step import next_step
from scene import Scene, load_scene
from scene.degradation_file import FILE_NAME, DegradationFile
from scene.degrade_presets import PRESETS, classical, drawn
from scene.degrade_steps import Step, degraded, from_json, to_json
from scene.downscale import begin, check_apart, check_inside, check_ours, lr_sizes
from scene.files import scene_inputs
from scene.image_files import write_png
from scene.lr_scene import Sizes, check_pinhole, relative_to, write_lr_scene
from utils import errors
from utils.locks import locked
from utils.log import Progress, note, say, set_quiet
from utils.provenance import hash_files, package_versions
from utils.rng import numpy_generator

STARTED = ".degrade.started.json"
FOR_ALL = ""  # key of the steps that all views share


def degrade(params: DegradeParams) -> DegradationFile:
    """Make the degraded LR scene, or find it made.

    Returns
    -------
    What was written to degradation.json.

    Raises
    ------
    UserError : bad source, an output folder in or around the source, or one that holds something else.
    """
    source, out = Path(params.source_path), Path(params.output_path)
    scene = load_scene(source, images=params.images, resolution=1, allow_missing=params.allow_missing)
    check_apart(scene, out)
    check_pinhole(scene)
    sizes = lr_sizes(scene, DownscaleParams(params.source_path, params.output_path, params.scale))
    plan = _plan(scene, out, params, sizes)
    check_ours(out, params.overwrite, (STARTED, FILE_NAME))
    with locked(out):
        if _is_made(plan, out, sizes):
            note(f"{out}: up to date")
            return DegradationFile.read(out / FILE_NAME)
        resume = begin(out, _facts(plan).made, params.overwrite, STARTED, FILE_NAME)
        _write_images(scene, out, plan, sizes, resume)
        write_lr_scene(scene, source, out, sizes)
        plan.write(out / FILE_NAME)
        (out / STARTED).unlink()
    return plan


def drawn_steps(params: DegradeParams, names: list[str]) -> dict[str, tuple[Step, ...]]:
    """The steps of every view, or those of all under FOR_ALL; the same whatever other views there are."""
    if params.preset == "classical":
        return {FOR_ALL: classical(params)}
    keys = [FOR_ALL] if params.per == "scene" else names
    return {key: drawn(PRESETS[params.preset], numpy_generator(params.seed, "degradation", key)) for key in keys}


def _plan(scene: Scene, out: Path, params: DegradeParams, sizes: Sizes) -> DegradationFile:
    """What degradation.json will say."""
    distinct = {((scene.cameras[n].width, scene.cameras[n].height), used, lr): None for n, (used, lr) in sizes.items()}
    hr_folder = scene.root / params.images if scene.kind == "colmap" else scene.root
    sources = [path for group in scene_inputs(scene, scene.cameras).values() for path in group]
    return DegradationFile(
        preset=params.preset,
        per=params.per,
        seed=params.seed,
        scale=params.scale,
        alpha="straight" if any(scene.images.has_alpha(name) for name in sizes) else "none",
        hr_root=relative_to(hr_folder, out),
        sizes=tuple({"hr": list(hr), "used": list(used), "lr": list(lr)} for hr, used, lr in distinct),
        steps={key: to_json(steps) for key, steps in drawn_steps(params, list(sizes)).items()},
        noise_seeds={name: int(numpy_generator(params.seed, "noise", name).integers(1 << 53)) for name in sizes},
        made={"settings": _listed(settings(params)), "source": hash_files(sources), "versions": package_versions()},
    )


def _listed(values: Mapping[str, Any]) -> dict[str, Any]:
    """As JSON gives it back, so that plans compare equal."""
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


def _write_images(scene: Scene, out: Path, plan: DegradationFile, sizes: Sizes, resume: bool) -> None:
    steps = {key: from_json(values, FILE_NAME) for key, values in plan.steps.items()}
    progress = Progress(f"degrade {scene.root.name}", len(sizes), "view")
    for done, (name, (used, lr)) in enumerate(sizes.items(), 1):
        path = out / f"{name}.png"
        check_inside(path, out)
        if not (resume and path.is_file()):
            of_view = steps.get(name) or steps[FOR_ALL]
            write_png(path, degraded(scene.images.raw(name), of_view, used, lr, plan.noise_seeds[name]))
        progress.update(done)
    progress.close()


def _facts(plan: DegradationFile) -> DegradationFile:
    """The plan without versions: a newer library does not make an LR scene wrong."""
    return replace(plan, made={k: v for k, v in plan.made.items() if k != "versions"})


def _is_made(plan: DegradationFile, out: Path, sizes: Sizes) -> bool:
    if not (out / FILE_NAME).is_file():
        return False
    return _facts(DegradationFile.read(out / FILE_NAME)) == _facts(plan) and all(
        (out / f"{n}.png").is_file() for n in sizes
    )


def main() -> None:
    """Parse, make, say what was written."""
    description = "Make a degraded LR scene from an HR scene, with the file that says how."
    (params,) = parse_groups("python -m scene.degrade", description, [DegradeParams])
    set_quiet(params.quiet)
    made = degrade(params)
    shown = ", ".join("{}x{} -> {}x{}".format(*entry["hr"], *entry["lr"]) for entry in made.sizes[:3])
    say(f"wrote {params.output_path}: {shown}, {made.describe()}; truth in {made.hr_root}")
    say(next_step("order", "OUT", {"source_path": params.output_path, "eval": True}))


if __name__ == "__main__":
    errors.run(main)
