"""COLMAP scenes: SCENE/sparse/0 and an images folder, as the original 3DGS lays them out.

Names. A view is called `images/STEM` (STEM = COLMAP's image name without extension) whatever folder its image was
taken from, so that `-i images_4`, an LR copy of the scene, or the paper's `images_down` give the same names as the HR
scene. Where the extension differs from COLMAP's, the stem is matched: cut at the last dot, else at the first.

Lenses. SIMPLE_PINHOLE and PINHOLE are taken as they are; the radial, OPENCV and fisheye models of OpenCV become
pinholes when images are decoded (scene/undistort.py); others are refused with the advice to run COLMAP's undistorter.
"""

import os
from pathlib import Path

import numpy as np

from scene.cameras import intrinsics, rotation_from_quaternion, world_to_camera_from
from scene.colmap_model import ColmapCamera, ColmapModel, read_model
from scene.paths import CANONICAL_FOLDER, IMAGE_SUFFIXES, Missing, Roots, shown
from scene.points import PointCloud, Tracks, finite_points
from scene.undistort import Distortion
from scene.views import NO_DISTORTION, Capture, View, hold_out_every_eighth
from utils.errors import UserError

MODEL_FOLDERS = ("sparse/0", "sparse", "colmap/sparse/0")


def model_folder(root: Path) -> Path | None:
    """The folder of the sparse model, or None where the scene has none."""
    for folder in MODEL_FOLDERS:
        if any((root / folder / name).is_file() for name in ("images.bin", "images.txt")):
            return root / folder
    return None


def read_colmap(roots: Roots, folder: Path, *, images: str, evaluate: bool, allow_missing: bool) -> Capture:
    """Read a COLMAP scene.

    Parameters
    ----------
    roots : folders that images may come from.
    folder : the sparse model.
    images : folder of the images in the scene (-i).
    evaluate : hold out every 8th image by sorted name.
    allow_missing : skip registered images that are not there.

    Returns
    -------
    Capture in the order of sorted image names (plain code points, as 3DGS), with COLMAP's points and tracks. Points
    that are not finite are dropped and counted.

    Raises
    ------
    UserError : naming the file, the image or the camera.
    """
    model = read_model(folder)
    missing = Missing(allow_missing)
    lenses = {key: _lens(f"{folder}: camera {key}", camera) for key, camera in model.cameras.items()}
    views, view_of_image = [], {}
    for image_id in sorted(model.images, key=lambda key: model.images[key].name):
        image = model.images[image_id]
        where = f"{folder}: image {image_id} ({shown(image.name)})"
        path = _find_image(roots, images, image.name, where)
        if not missing.check(path, where, f"{images}/{shown(image.name)}") or path is None:
            continue
        camera, (K, distortion) = model.cameras[image.camera_id], lenses[image.camera_id]
        name = f"{CANONICAL_FOLDER}/{os.path.splitext(os.path.normpath(image.name))[0]}"
        pose = world_to_camera_from(rotation_from_quaternion(image.quaternion, where), np.array(image.translation))
        size = (camera.width, camera.height)
        views.append(View(name, path, where, size, K, pose, f"camera {image.camera_id}", distortion))
        view_of_image[name] = image_id
    missing.settle()
    train, test = hold_out_every_eighth([view.name for view in views], evaluate)
    points, tracks, dropped = _points_and_tracks(model, view_of_image)
    notes = [f"{folder}: {dropped} points are not finite and were dropped"] if dropped else []
    return Capture("colmap", views, train, test, points, tracks, notes)


def sparse_points(folder: Path) -> PointCloud:
    """The finite points of a model, for scenes whose poses come from elsewhere."""
    model = read_model(folder)
    return finite_points(model.xyz, model.rgb)[0]


def _find_image(roots: Roots, images: str, name: str, where: str) -> Path | None:
    stem, first_stem = (
        os.path.splitext(name)[0],
        os.path.join(os.path.dirname(name), os.path.basename(name).split(".")[0]),
    )
    candidates = [name] if name.endswith(IMAGE_SUFFIXES) else []
    for candidate in (*candidates, stem, first_stem):
        if os.path.basename(candidate):
            _, path = roots.find(candidate, where, base=images)
            if path is not None:
                return path
    return None


def _points_and_tracks(model: ColmapModel, view_of_image: dict[str, int]) -> tuple[PointCloud, Tracks, int]:
    points, keep = finite_points(model.xyz, model.rgb)
    kept_ids = model.point_ids[keep]
    order = np.argsort(kept_ids, kind="stable")
    sorted_ids = kept_ids[order]
    visible = {}
    for name, image_id in view_of_image.items():
        seen = np.unique(model.images[image_id].point_ids)
        at = np.searchsorted(sorted_ids, seen)
        known = at < len(sorted_ids)
        known[known] = sorted_ids[at[known]] == seen[known]  # -1 (no point) and points that were dropped are not there
        visible[name] = np.sort(order[at[known]]).astype(np.int64)
    return points, Tracks(visible), int((~keep).sum())


def _lens(where: str, camera: ColmapCamera) -> tuple[np.ndarray, Distortion]:
    """K and distortion of a camera; the parameter orders are COLMAP's."""
    p = camera.params
    match camera.model:
        case "SIMPLE_PINHOLE":
            K, distortion = intrinsics(p[0], p[0], p[1], p[2]), NO_DISTORTION
        case "PINHOLE":
            K, distortion = intrinsics(*p), NO_DISTORTION
        case "SIMPLE_RADIAL":
            K, distortion = intrinsics(p[0], p[0], p[1], p[2]), Distortion((p[3], 0.0, 0.0, 0.0))
        case "RADIAL":
            K, distortion = intrinsics(p[0], p[0], p[1], p[2]), Distortion((p[3], p[4], 0.0, 0.0))
        case "OPENCV" | "FULL_OPENCV":
            K, distortion = intrinsics(*p[:4]), Distortion(tuple(p[4:]))
        case "OPENCV_FISHEYE":
            K, distortion = intrinsics(*p[:4]), Distortion(tuple(p[4:]), fisheye=True)
        case "SIMPLE_RADIAL_FISHEYE":
            K, distortion = intrinsics(p[0], p[0], p[1], p[2]), Distortion((p[3], 0.0, 0.0, 0.0), fisheye=True)
        case "RADIAL_FISHEYE":
            K, distortion = intrinsics(p[0], p[0], p[1], p[2]), Distortion((p[3], p[4], 0.0, 0.0), fisheye=True)
        case other:
            raise UserError(f"{where}: {other} is not read; run `colmap image_undistorter` and use its output")
    if not (K[0, 0] > 0 and K[1, 1] > 0):
        raise UserError(f"{where}: focal lengths {K[0, 0]:g}, {K[1, 1]:g} must be positive")
    return K, distortion
