"""Part of a NeRF-synthetic scene in a folder of its own: `python -m scene.subset -s SCENE -o OUT --azimuth 0 180`.

Half an orbit with half of its views is as dense as the whole one: small studies stay like large ones. All that is
kept, test views and points too, is copied or shrunk into OUT, which then needs nothing else; transforms_train.json
comes last.
"""

from pathlib import Path

import numpy as np

from arguments.flags import parse_groups
from arguments.subset import SubsetParams
from scene import Scene, load_scene
from scene.blender import POINTS_FILE, TEST_FILE, TRAIN_FILE
from scene.image_files import write_png
from scene.lr_images import cropped_size, lr_image
from scene.lr_kernel import LRKernel
from scene.lr_scene import finite
from scene.paths import Roots
from utils import errors
from utils.atomic import read_json, write_bytes, write_json
from utils.errors import UserError
from utils.log import Progress, note, say


def azimuth_deg(scene: Scene, name: str) -> float:
    """Angle of a view's camera about the z axis, from the x axis: 0 <= angle < 360."""
    x, y, _ = scene.cameras[name].centre
    return float(np.degrees(np.arctan2(y, x)) % 360.0)


def write_subset(params: SubsetParams) -> dict[str, int]:
    """Write the smaller scene, or find it written.

    Returns
    -------
    {transforms file: number of its views}.

    Raises
    ------
    UserError : not a NeRF-synthetic scene, no training view is left, a size that the scale does not divide, or OUT
        holds something else.
    """
    source, out = Path(params.source_path), Path(params.output_path)
    scene = load_scene(source, eval=True, hr_root=params.hr_root or None)
    if scene.kind != "blender":
        raise UserError(f"{source}: a NeRF-synthetic scene is expected (transforms_train.json)")
    documents = {name: _document(scene, name, params) for name in (TEST_FILE, TRAIN_FILE)}
    counts = {name: len(document["frames"]) for name, document in documents.items()}
    if not counts[TRAIN_FILE]:
        raise UserError(f"{source}: no training view stands between {params.azimuth} degrees")
    if (out / TRAIN_FILE).is_file():
        if any(read_json(out / name) != document for name, document in documents.items()):
            raise UserError(f"{out} holds another scene; name another folder")
        note(f"{out}: up to date")
        return counts
    names = [frame["file_path"].removeprefix("./") for document in documents.values() for frame in document["frames"]]
    progress = Progress(f"subset {source.name}", len(names), "view")
    for done, name in enumerate(names, 1):
        _write_view(scene, name, out, params.scale)
        progress.update(done)
    progress.close()
    if (scene.root / POINTS_FILE).is_file():
        write_bytes(out / POINTS_FILE, (scene.root / POINTS_FILE).read_bytes())
    for name, document in documents.items():
        write_json(out / name, document)
    return counts


def _document(scene: Scene, file_name: str, params: SubsetParams) -> dict:
    """A transforms file with the views that are kept."""
    path = scene.root / file_name
    document, frames = finite(read_json(path, constants=True)), []
    low, high = params.azimuth
    for index, frame in enumerate(document["frames"]):
        name, _ = Roots(scene.root, scene.hr_root).find(frame["file_path"], f"{path}: frame {index}")
        if name in scene.cameras and low <= azimuth_deg(scene, name) < high:
            frames.append(frame | {"file_path": f"./{name}"})
    return document | {"frames": frames}


def _write_view(scene: Scene, name: str, out: Path, scale: int) -> None:
    source, target = scene.images.path(name), out / f"{name}.png"
    if scale == 1 and source.suffix == ".png":
        write_bytes(target, source.read_bytes())
        return
    image = scene.images.raw(name)
    full = (image.shape[1], image.shape[0])
    used, small = cropped_size(full, scale)
    if used != full:
        raise UserError(f"{source}: {full[0]}x{full[1]} px is no multiple of --scale {scale}")
    write_png(target, image if scale == 1 else lr_image(image, LRKernel("bicubic", "renormalise", full, small)))


def main() -> None:
    """Parse, write, say what was written."""
    description = "Part of a NeRF-synthetic scene in a folder of its own."
    (params,) = parse_groups("python -m scene.subset", description, [SubsetParams])
    counts = write_subset(params)
    say(f"wrote {params.output_path}: {counts[TRAIN_FILE]} training and {counts[TEST_FILE]} test views")


if __name__ == "__main__":
    errors.run(main)
