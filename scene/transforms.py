"""nerfstudio and instant-ngp scenes: one transforms.json, OpenGL axes, intrinsics at the top or in the frame.

The world is kept as the exporter stored it (`applied_transform`, `applied_scale` included). Points in `ply_file_path`
live in that world; points of a COLMAP model beside the file do not, and are brought into it.
"""

import os
from math import pi, tan
from pathlib import Path
from typing import Any

import numpy as np

from scene.cameras import intrinsics, matrix_from_json, world_to_camera_from_opengl
from scene.colmap import model_folder, sparse_points
from scene.image_files import read_header
from scene.json_fields import as_object, list_field, number_field, text_field
from scene.paths import CANONICAL_FOLDER, Missing, Roots, check_relative, resolved, shown
from scene.ply import read_points
from scene.points import PointCloud, random_points_around
from scene.undistort import Distortion
from scene.views import NO_DISTORTION, Capture, View, hold_out_every_eighth
from utils.atomic import read_json
from utils.errors import UserError

FILE_NAME = "transforms.json"
_SPLITS = ("train_filenames", "val_filenames", "test_filenames")
_OPENCV_KEYS, _FISHEYE_KEYS = ("k1", "k2", "p1", "p2", "k3", "k4"), ("k1", "k2", "k3", "k4")


def read_transforms(roots: Roots, path: Path, *, images: str, evaluate: bool, allow_missing: bool) -> Capture:
    """Read a nerfstudio or instant-ngp scene.

    Parameters
    ----------
    roots : folders that images may come from.
    path : the transforms.json.
    images : folder that takes the place of a leading `images/` (names keep `images/`, as for COLMAP scenes).
    evaluate : hold out test_filenames (or val_filenames where that is the only list), else every 8th by sorted name.
    allow_missing : skip listed images that are not there.

    Raises
    ------
    UserError : naming the file and the frame.
    """
    document = as_object(read_json(path, constants=True), str(path))
    missing = Missing(allow_missing)
    views, file_paths = [], {}
    for index, frame in enumerate(list_field(document, "frames", str(path))):
        found = _read_frame(roots, path, index, as_object(frame, f"{path}: frame {index}"), document, images, missing)
        if found is not None:
            views.append(found[0])
            file_paths[os.path.normpath(found[1])] = found[0].name
    missing.settle()
    train, test = _split(path, document, views, file_paths, evaluate)
    return Capture("transforms", views, train, test, _points(roots, path, document, views))


def _read_frame(
    roots: Roots, path: Path, index: int, frame: dict[str, Any], top: dict[str, Any], images: str, missing: Missing
) -> tuple[View, str] | None:
    file_path = text_field(frame, "file_path", f"{path}: frame {index}")
    where = f"{path}: frame {index} ({shown(file_path)})"
    pose = world_to_camera_from_opengl(frame.get("transform_matrix"), where, allow_3x4=True)
    name, image = _find(roots, file_path, where, images)
    if not missing.check(image, where, shown(file_path)) or image is None:
        return None
    header = read_header(image)
    fields = {**top, **frame}  # the frame wins
    width = number_field(fields, "w", where, header.width)
    height = number_field(fields, "h", where, header.height)
    if not (width >= 1 and height >= 1 and width == int(width) and height == int(height)):
        raise UserError(f"{where}: w, h = {width:g}, {height:g} is not a size in pixels")
    K = _intrinsics(fields, where, width, height)
    size = (int(width), int(height))
    group = f"camera of {size[0]}x{size[1]} px with focal length {K[0, 0]:.9g}"
    return View(name, image, where, size, K, pose, group, _distortion(fields, where)), file_path


def _find(roots: Roots, file_path: str, where: str, images: str) -> tuple[str, Path | None]:
    """As Roots.find, reading a leading `images/` as the folder that -i names."""
    head, _, tail = os.path.normpath(file_path).partition("/")
    if images != CANONICAL_FOLDER and head == CANONICAL_FOLDER and tail:
        name, _ = roots.find(file_path, where)
        _, image = roots.find(os.path.splitext(tail)[0], where, base=images)
        return name, image
    return roots.find(file_path, where)


def _intrinsics(fields: dict[str, Any], where: str, width: float, height: float) -> np.ndarray:
    def from_angle(key: str, side: float) -> float | None:
        if key not in fields:
            return None
        angle = number_field(fields, key, where)
        if not 0.0 < angle < pi:
            raise UserError(f"{where}: {key} is {angle:g}; radians between 0 and pi are expected")
        return 0.5 * side / tan(0.5 * angle)

    fx = number_field(fields, "fl_x", where, from_angle("camera_angle_x", width))
    fy = number_field(fields, "fl_y", where, fx)
    if not (fx > 0 and fy > 0):
        raise UserError(f"{where}: focal lengths {fx:g}, {fy:g} must be positive")
    return intrinsics(
        fx, fy, number_field(fields, "cx", where, width / 2.0), number_field(fields, "cy", where, height / 2.0)
    )


def _distortion(fields: dict[str, Any], where: str) -> Distortion:
    model = fields.get("camera_model", "OPENCV")
    fisheye = model == "OPENCV_FISHEYE" or fields.get("is_fisheye") is True
    if not fisheye and model not in ("OPENCV", "PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "FULL_OPENCV"):
        raise UserError(f"{where}: camera_model {model!r:.40} is not read; undistort the images first")
    if fisheye:
        return Distortion(tuple(number_field(fields, key, where, 0.0) for key in _FISHEYE_KEYS), fisheye=True)
    k1, k2, p1, p2, k3, k4 = (number_field(fields, key, where, 0.0) for key in _OPENCV_KEYS)
    if not any((k1, k2, p1, p2, k3, k4)):
        return NO_DISTORTION
    if k4:
        raise UserError(f"{where}: k4 = {k4:g} belongs to a fisheye, but camera_model is {model}; say OPENCV_FISHEYE")
    return Distortion((k1, k2, p1, p2, k3) if k3 else (k1, k2, p1, p2))


def _split(
    path: Path, document: dict[str, Any], views: list[View], file_paths: dict[str, str], evaluate: bool
) -> tuple[list[str], list[str]]:
    """(train, test) names; lists in the file win over the hold-out rule."""
    names = [view.name for view in views]
    if not any(key in document for key in _SPLITS):
        _, test = hold_out_every_eighth(sorted(names), evaluate)
        held_out = set(test)
        return [name for name in names if name not in held_out], [name for name in names if name in held_out]
    listed: dict[str, list[str]] = {}
    for key in _SPLITS:
        entries = list_field(document, key, str(path)) if key in document else []
        if not all(isinstance(entry, str) for entry in entries):
            raise UserError(f"{path}: `{key}` must hold file paths")
        listed[key] = [file_paths[os.path.normpath(e)] for e in entries if os.path.normpath(e) in file_paths]
    test = listed["test_filenames"] or listed["val_filenames"]
    if not evaluate:
        return list(dict.fromkeys([*listed["train_filenames"], *test])), []
    return listed["train_filenames"], test


def _points(roots: Roots, path: Path, document: dict[str, Any], views: list[View]) -> PointCloud:
    if "ply_file_path" in document:
        relative = text_field(document, "ply_file_path", str(path))
        check_relative(relative, f"{path}: ply_file_path")
        ply = roots.scene / relative
        if not resolved(ply, str(path)).is_relative_to(resolved(roots.scene, str(path))):
            raise UserError(f"{path}: ply_file_path {relative[:200]!r} leads out of the scene")
        return read_points(ply)
    folder = model_folder(roots.scene)
    if folder is not None:
        points = sparse_points(folder)
        return PointCloud(_to_stored_world(document, str(path), points.xyz), points.rgb)
    centres = np.array([-v.world_to_camera[:3, :3].T @ v.world_to_camera[:3, 3] for v in views]).reshape(len(views), 3)
    return random_points_around(centres if len(views) else np.zeros((1, 3)))


def _to_stored_world(document: dict[str, Any], where: str, xyz: np.ndarray) -> np.ndarray:
    """COLMAP's world -> the world of the poses: x' = applied_scale * (applied_transform x)."""
    matrix = np.eye(4)
    if "applied_transform" in document:
        matrix = matrix_from_json(document["applied_transform"], f"{where}: applied_transform", allow_3x4=True)
    scale = number_field(document, "applied_scale", where, 1.0)
    return (scale * (xyz.astype(np.float64) @ matrix[:3, :3].T + matrix[:3, 3])).astype(np.float32)
