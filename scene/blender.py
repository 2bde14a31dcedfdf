"""NeRF-synthetic (Blender) scenes: transforms_{train,test}.json, PNGs, straight alpha, OpenGL axes."""

from math import pi, tan
from pathlib import Path
from typing import Any

from scene.cameras import intrinsics, world_to_camera_from_opengl
from scene.image_files import read_header
from scene.json_fields import as_object, list_field, number_field, text_field
from scene.paths import Missing, Roots, shown
from scene.ply import read_points
from scene.points import random_points
from scene.views import Capture, View
from utils.atomic import read_json
from utils.errors import UserError

TRAIN_FILE, TEST_FILE = "transforms_train.json", "transforms_test.json"
POINTS_FILE = "points3d.ply"
Optics = tuple[float, tuple[float, float]]  # horizontal angle in radians, principal point as fractions of the sides


def read_blender(roots: Roots, *, evaluate: bool, allow_missing: bool) -> Capture:
    """Read a NeRF-synthetic scene.

    Parameters
    ----------
    roots : folders that images may come from.
    evaluate : test views are held out; otherwise they join the training views.
    allow_missing : skip listed images that are not there.

    Returns
    -------
    Capture whose views are what the JSON files list, in their order, never a glob (the folders also hold depth and
    normal maps). Focal length from `camera_angle_x` and the width of the image in hand; principal point central.
    Points from `points3d.ply` where the scene has one, else 100,000 random ones.

    Raises
    ------
    UserError : naming the file and the frame.
    """
    missing = Missing(allow_missing)
    train = _read_split(roots, TRAIN_FILE, missing)
    test: list[View] = []
    if evaluate or (roots.scene / TEST_FILE).is_file():
        test = _read_split(roots, TEST_FILE, missing)
    missing.settle()
    points_path = roots.scene / POINTS_FILE
    points = read_points(points_path) if points_path.is_file() else random_points()
    train_names, test_names = [v.name for v in train], [v.name for v in test]
    if not evaluate:
        train_names, test_names = train_names + test_names, []
    return Capture("blender", train + test, train_names, test_names, points)


def _principal_point(document: dict[str, Any], where: str) -> tuple[float, float]:
    """Principal point as fractions of width and height: the centre, unless cx, cy, w, h say where a crop left it."""
    keys = ("cx", "w", "cy", "h")
    if not all(key in document for key in keys):
        return 0.5, 0.5
    cx, w, cy, h = (number_field(document, key, where) for key in keys)
    if not (w >= 1 and h >= 1):
        raise UserError(f"{where}: w, h = {w:g}, {h:g} is not a size in pixels")
    return cx / w, cy / h


def _read_split(roots: Roots, file_name: str, missing: Missing) -> list[View]:
    path = roots.scene / file_name
    document = as_object(read_json(path, constants=True), str(path))
    angle = number_field(document, "camera_angle_x", str(path))
    principal = _principal_point(document, str(path))
    if not 0.0 < angle < pi:
        raise UserError(f"{path}: camera_angle_x is {angle:g}; radians between 0 and pi are expected")
    views = []
    for index, frame in enumerate(list_field(document, "frames", str(path))):
        view = _read_frame(roots, path, index, frame, (angle, principal), missing)
        if view is not None:
            views.append(view)
    return views


def _read_frame(roots: Roots, path: Path, index: int, frame: Any, optics: Optics, missing: Missing) -> View | None:
    where = f"{path}: frame {index}"
    frame = as_object(frame, where)
    file_path = text_field(frame, "file_path", where)
    where = f"{where} ({shown(file_path)})"
    pose = world_to_camera_from_opengl(frame.get("transform_matrix"), where)
    name, image = roots.find(file_path, where)
    if not missing.check(image, where, f"{name}.png") or image is None:
        return None
    header = read_header(image)
    angle, (u, v) = optics
    focal = 0.5 * header.width / tan(0.5 * angle)
    K = intrinsics(focal, focal, header.width * u, header.height * v)
    return View(name, image, where, (header.width, header.height), K, pose, group=path.name)
