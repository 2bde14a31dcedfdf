"""Everything of an LR scene but its pixels: camera files, and references to the HR images.

Intrinsics follow the actual sizes. NeRF-synthetic: one angle, and cx, cy only where a crop moved the principal point.
COLMAP: the model is copied byte for byte and stays in HR pixels (so its keypoints stay right, as in Mip-NeRF 360's
images_4 beside a full-size model) and readers scale it by image size / camera size; where a crop changed the
proportion, cameras.* is rewritten for the cropped HR image. transforms.json: intrinsics of each frame at LR size.
"""

import math
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from scene import Scene
from scene.blender import POINTS_FILE, TEST_FILE, TRAIN_FILE
from scene.cameras import Camera
from scene.colmap import model_folder
from scene.colmap_model import read_model
from scene.lr_kernel import Size
from scene.paths import Roots, without_image_suffix
from scene.ply import write_points
from scene.transforms import FILE_NAME as TRANSFORMS_FILE
from utils.atomic import read_json, write_bytes, write_json, write_text
from utils.errors import UserError

PINHOLE_ID = 1
Sizes = Mapping[str, tuple[Size, Size]]  # view name -> (used part of the HR image, LR size), px


def write_lr_scene(scene: Scene, source: Path, out: Path, sizes: Sizes) -> None:
    """Write the camera files of the LR scene.

    Parameters
    ----------
    scene : the HR scene. source : what the user named, the folder or its transforms.json.
    sizes : of every view that gets an LR image; the others are referenced where they are.

    Raises
    ------
    UserError : a file cannot be read or written.
    """
    writers: dict[str, Callable[[], None]] = {
        "blender": lambda: _write_blender(scene, out, sizes),
        "colmap": lambda: _write_colmap(scene, out, sizes),
        "transforms": lambda: _write_transforms(scene, source, out, sizes),
    }
    writers[scene.kind]()


def relative_to(path: Path, start: Path) -> str:
    """`path` seen from `start`, links followed, with forward slashes."""
    return Path(os.path.relpath(path.resolve(), start.resolve())).as_posix()


def _write_blender(scene: Scene, out: Path, sizes: Sizes) -> None:
    for file_name in (TRAIN_FILE, TEST_FILE):
        path = scene.root / file_name
        if not path.is_file():
            continue
        document = finite(read_json(path, constants=True))
        frames = []
        for index, frame in enumerate(document["frames"]):
            name, image = Roots(scene.root, scene.hr_root).find(frame["file_path"], f"{path}: frame {index}")
            if name in sizes:
                frames.append(frame | {"file_path": f"./{name}"})
            elif name in scene.cameras and image is not None:
                frames.append(frame | {"file_path": without_image_suffix(relative_to(image, out))})
        if file_name == TRAIN_FILE:
            document |= _blender_intrinsics(scene, sizes)
        write_json(out / file_name, document | {"frames": frames})
    if (scene.root / POINTS_FILE).is_file():
        write_bytes(out / POINTS_FILE, (scene.root / POINTS_FILE).read_bytes())


def _blender_intrinsics(scene: Scene, sizes: Sizes) -> dict[str, float]:
    """camera_angle_x of the LR image, and its principal point where a crop put it off the centre."""
    name = next(iter(sizes))
    camera = lr_camera(scene.cameras[name], *sizes[name])
    if sizes[name][0] == (scene.cameras[name].width, scene.cameras[name].height):
        return {}
    angle = 2.0 * math.atan(0.5 * camera.width / camera.fx)
    return {"camera_angle_x": angle, "w": camera.width, "h": camera.height, "cx": camera.cx, "cy": camera.cy}


def lr_camera(camera: Camera, used: Size, lr: Size) -> Camera:
    """The camera of the LR image: the HR camera, cropped right and below to `used`, at `lr` px."""
    return Camera(camera.name, *used, camera.K, camera.world_to_camera).resized(*lr)


def _write_colmap(scene: Scene, out: Path, sizes: Sizes) -> None:
    folder = model_folder(scene.root)
    assert folder is not None
    kind = "bin" if (folder / "images.bin").is_file() else "txt"
    target = out / folder.relative_to(scene.root)
    cropped = any(used != (scene.cameras[n].width, scene.cameras[n].height) for n, (used, _) in sizes.items())
    for stem in ("images", "points3D"):
        write_bytes(target / f"{stem}.{kind}", (folder / f"{stem}.{kind}").read_bytes())
    if cropped:
        _write_colmap_cameras(scene, folder, target / f"cameras.{kind}", sizes)
    else:
        write_bytes(target / f"cameras.{kind}", (folder / f"cameras.{kind}").read_bytes())


def _write_colmap_cameras(scene: Scene, folder: Path, path: Path, sizes: Sizes) -> None:
    """cameras.* as PINHOLE cameras of the cropped HR images; cameras without an LR view are left out."""
    cameras: dict[int, tuple[Size, Camera]] = {}
    for image in read_model(folder).images.values():
        name = f"images/{os.path.splitext(os.path.normpath(image.name))[0]}"
        if name in sizes:
            cameras[image.camera_id] = (sizes[name][0], scene.cameras[name])
    if path.suffix == ".txt":
        rows = [f"{i} PINHOLE {w} {h} {c.fx!r} {c.fy!r} {c.cx!r} {c.cy!r}" for i, ((w, h), c) in cameras.items()]
        write_text(path, "\n".join(["# CAMERA_ID MODEL WIDTH HEIGHT PARAMS", *rows]) + "\n")
        return
    records = [struct.pack("<Q", len(cameras))]
    for camera_id, ((width, height), c) in cameras.items():
        records.append(struct.pack("<iiQQ4d", camera_id, PINHOLE_ID, width, height, c.fx, c.fy, c.cx, c.cy))
    write_bytes(path, b"".join(records))


def _write_transforms(scene: Scene, source: Path, out: Path, sizes: Sizes) -> None:
    path = source if source.suffix == ".json" else scene.root / TRANSFORMS_FILE
    document = finite(read_json(path, constants=True))
    frames, renamed = [], {}
    for index, frame in enumerate(document["frames"]):
        name, _ = Roots(scene.root, scene.hr_root).find(frame["file_path"], f"{path}: frame {index}")
        if name not in sizes:
            continue
        camera = lr_camera(scene.cameras[name], *sizes[name])
        fields: dict[str, float] = {"w": camera.width, "h": camera.height}
        fields |= {"fl_x": camera.fx, "fl_y": camera.fy, "cx": camera.cx, "cy": camera.cy}
        renamed[os.path.normpath(frame["file_path"])] = f"{name}.png"
        frames.append(frame | {"file_path": f"{name}.png"} | fields)
    for key in ("train_filenames", "val_filenames", "test_filenames"):
        if key in document:
            document[key] = [renamed[n] for n in map(os.path.normpath, document[key]) if n in renamed]
    dropped = ("w", "h", "fl_x", "fl_y", "cx", "cy", "camera_angle_x", "camera_angle_y")
    document = {k: v for k, v in document.items() if k not in dropped} | {"frames": frames}
    if scene.points is not None:  # the points lie in the world of the poses, also where they came from a COLMAP model
        write_points(out / POINTS_FILE, scene.points)
        document["ply_file_path"] = POINTS_FILE
    write_json(out / TRANSFORMS_FILE, document)


def finite(value: Any) -> Any:
    """A JSON value with NaN and infinities, which exporters write into fields that no one reads, replaced by null."""
    if isinstance(value, dict):
        return {k: finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_pinhole(scene: Scene) -> None:
    """Refuse scenes whose lenses still distort: their LR views could not be compared with the HR files.

    Raises
    ------
    UserError : naming the first view.
    """
    for name in scene.cameras:
        if scene.images.undistorts(name):
            raise UserError(
                f"{scene.root}: {name} was taken through a distorting lens; undistort the HR scene first "
                "(`colmap image_undistorter`), so that LR views and HR truth are the same picture"
            )
