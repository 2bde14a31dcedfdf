"""COLMAP sparse models (cameras, images, points3D), binary and text, into plain arrays keyed by COLMAP's ids.

Ids are arbitrary, unsorted and have gaps. Little-endian, no padding. Every count in a file is compared with the bytes
that are left before anything is allocated; `rigs` and `frames` of new COLMAP versions are not needed and not read.
"""

import struct
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from scene.paths import MAX_NAME_BYTES, check_relative, shown
from utils.errors import UserError

MODELS = (  # COLMAP's model id is the position: (name, number of parameters)
    ("SIMPLE_PINHOLE", 3),
    ("PINHOLE", 4),
    ("SIMPLE_RADIAL", 4),
    ("RADIAL", 5),
    ("OPENCV", 8),
    ("OPENCV_FISHEYE", 8),
    ("FULL_OPENCV", 12),
    ("FOV", 5),
    ("SIMPLE_RADIAL_FISHEYE", 4),
    ("RADIAL_FISHEYE", 5),
    ("THIN_PRISM_FISHEYE", 12),
    ("RAD_TAN_THIN_PRISM_FISHEYE", 16),
    ("SIMPLE_DIVISION", 4),
    ("DIVISION", 5),
    ("SIMPLE_FISHEYE", 3),
    ("FISHEYE", 4),
    ("EUCM", 6),
    ("EQUIRECTANGULAR", 2),
)
_PARAMETERS = dict(MODELS)
_CAMERA_MIN, _IMAGE_MIN, _POINT_MIN = 24 + 8 * 2, 64 + 1 + 8, 51  # bytes of the shortest possible records
_MAX_SIDE = 1 << 20
_KEYPOINT = np.dtype([("x", "<f8"), ("y", "<f8"), ("point", "<i8")])


@dataclass(frozen=True)
class ColmapCamera:
    """Model name, image size in px, parameters in COLMAP's order."""

    model: str
    width: int
    height: int
    params: tuple[float, ...]


@dataclass(frozen=True, eq=False)
class ColmapImage:
    """World-to-camera rotation (w, x, y, z) and translation, camera id, file name; keypoints [M, 2] px and what each
    of them sees: point ids [M], -1 = no point."""

    quaternion: tuple[float, float, float, float]
    translation: tuple[float, float, float]
    camera_id: int
    name: str
    keypoints: Float[np.ndarray, "M 2"]
    point_ids: Int[np.ndarray, "M"]


@dataclass(frozen=True, eq=False)
class ColmapModel:
    """Cameras and images by id; points in file order: ids [P], positions [P, 3] float64, colours [P, 3]."""

    folder: Path
    cameras: dict[int, ColmapCamera]
    images: dict[int, ColmapImage]
    point_ids: Int[np.ndarray, "P"]
    xyz: Float[np.ndarray, "P 3"]
    rgb: UInt8[np.ndarray, "P 3"]


def read_model(folder: Path) -> ColmapModel:
    """Read a sparse model, binary where it is there, else text.

    Raises
    ------
    UserError : files missing, cut short or damaged, unknown camera model, a camera that an image names but nobody
        defines, an id twice, image names that climb out; names file, byte or line.
    """
    binary = (folder / "images.bin").is_file()
    suffix = "bin" if binary else "txt"
    read = (_cameras_binary, _images_binary, _points_binary) if binary else (_cameras_text, _images_text, _points_text)
    cameras: dict[int, ColmapCamera] = read[0](folder / f"cameras.{suffix}")
    images: dict[int, ColmapImage] = read[1](folder / f"images.{suffix}")
    point_ids, xyz, rgb = read[2](folder / f"points3D.{suffix}")
    for image_id, image in images.items():
        if image.camera_id not in cameras:
            raise UserError(
                f"{folder}/images.{suffix}: image {image_id} ({shown(image.name)}) names camera {image.camera_id}, "
                f"which cameras.{suffix} does not define"
            )
    if not images:
        raise UserError(f"{folder}/images.{suffix}: no images are registered")
    return ColmapModel(folder, cameras, images, point_ids, xyz, rgb)


class _Cursor:
    """A position in the bytes of one file; reading past its end is a UserError with the offset."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.data = _file_bytes(path)
        self.position = 0

    def take(self, layout: struct.Struct) -> tuple[Any, ...]:
        self.need(layout.size)
        values = layout.unpack_from(self.data, self.position)
        self.position += layout.size
        return values

    def need(self, size: int) -> None:
        if self.position + size > len(self.data):
            raise UserError(
                f"{self.path}: cut short: {size} bytes are expected at byte {self.position}, "
                f"the file ends at {len(self.data)}"
            )

    def count(self, record_bytes: int, what: str) -> int:
        (number,) = self.take(_U64)
        left = len(self.data) - self.position
        if number * record_bytes > left:
            raise UserError(
                f"{self.path}: {number} {what} at byte {self.position - 8} cannot stand in the {left} bytes left; "
                "it is cut short or damaged"
            )
        return int(number)

    def text(self) -> str:
        end = self.data.find(b"\0", self.position, self.position + MAX_NAME_BYTES + 1)
        if end < 0:
            raise UserError(f"{self.path}: image name at byte {self.position} does not end within 4096 bytes")
        raw = self.data[self.position : end]
        self.position = end + 1
        try:
            return raw.decode()
        except UnicodeDecodeError as error:
            raise UserError(f"{self.path}: image name at byte {end} is not UTF-8") from error

    def end(self) -> None:
        if self.position != len(self.data):
            raise UserError(
                f"{self.path}: {len(self.data) - self.position} bytes follow the last record; it is damaged"
            )


_U64 = struct.Struct("<Q")
_CAMERA = struct.Struct("<iiQQ")
_IMAGE = struct.Struct("<i4d3di")
_POINT = struct.Struct("<Q3d3BdQ")


def _cameras_binary(path: Path) -> dict[int, ColmapCamera]:
    cursor = _Cursor(path)
    cameras: dict[int, ColmapCamera] = {}
    for _ in range(cursor.count(_CAMERA_MIN, "cameras")):
        start = cursor.position
        camera_id, model_id, width, height = cursor.take(_CAMERA)
        if not 0 <= model_id < len(MODELS):
            raise UserError(f"{path}: camera {camera_id} at byte {start} has the unknown model id {model_id}")
        model, number = MODELS[model_id]
        params = cursor.take(struct.Struct(f"<{number}d"))
        _add(cameras, camera_id, _camera(path, camera_id, model, width, height, params), f"{path}: camera")
    cursor.end()
    return cameras


def _camera(path: Path, camera_id: int, model: str, width: int, height: int, params: tuple[float, ...]) -> ColmapCamera:
    if not (0 < width <= _MAX_SIDE and 0 < height <= _MAX_SIDE):
        raise UserError(f"{path}: camera {camera_id} has the size {width}x{height}")
    if not all(isfinite(p) and abs(p) < 1e30 for p in params):
        raise UserError(f"{path}: camera {camera_id} has parameters that are not finite")
    return ColmapCamera(model, width, height, params)


def _images_binary(path: Path) -> dict[int, ColmapImage]:
    cursor = _Cursor(path)
    images: dict[int, ColmapImage] = {}
    for _ in range(cursor.count(_IMAGE_MIN, "images")):
        image_id, qw, qx, qy, qz, tx, ty, tz, camera_id = cursor.take(_IMAGE)
        name = cursor.text()
        number = cursor.count(_KEYPOINT.itemsize, f"keypoints of image {image_id}")
        table = np.frombuffer(cursor.data, _KEYPOINT, number, cursor.position)
        cursor.position += number * _KEYPOINT.itemsize
        keypoints = np.stack([table["x"], table["y"]], axis=1)
        where = f"{path}: image"
        image = _image(
            where, image_id, (qw, qx, qy, qz), (tx, ty, tz), camera_id, name, keypoints, table["point"].copy()
        )
        _add(images, image_id, image, where)
    cursor.end()
    return images


def _image(
    where: str,
    image_id: int,
    quaternion: tuple[float, float, float, float],
    translation: tuple[float, float, float],
    camera_id: int,
    name: str,
    keypoints: np.ndarray,
    point_ids: np.ndarray,
) -> ColmapImage:
    where = f"{where} {image_id}"
    check_relative(name, where)
    if ".." in Path(name).parts:
        raise UserError(f"{where}: name {name[:200]!r} climbs out of the images folder")
    if not all(isfinite(v) and abs(v) < 1e30 for v in (*quaternion, *translation)):
        raise UserError(f"{where} ({shown(name)}): the pose is not finite; remove the image from the model")
    return ColmapImage(quaternion, translation, camera_id, name, keypoints, point_ids)


def _points_binary(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    cursor = _Cursor(path)
    number = cursor.count(_POINT_MIN, "points")
    ids, xyz, rgb = np.empty(number, np.int64), np.empty((number, 3)), np.empty((number, 3), np.uint8)
    for i in range(number):
        point_id, x, y, z, red, green, blue, _, track = cursor.take(_POINT)
        ids[i] = _point_id(point_id)
        xyz[i] = x, y, z
        rgb[i] = red, green, blue
        cursor.need(8 * track)
        cursor.position += 8 * track
    cursor.end()
    return _unique_points(path, ids), xyz, rgb


def _point_id(value: int) -> int:
    """Old C++ versions wrote -1 (no point) as 2^64 - 1."""
    return value if value < 1 << 63 else value - (1 << 64)


def _unique_points(path: Path, ids: np.ndarray) -> np.ndarray:
    if len(np.unique(ids)) != len(ids):
        raise UserError(f"{path}: a point id occurs twice; it is damaged")
    return ids


def _add(table: dict[int, Any], key: int, value: Any, where: str) -> None:
    if key in table:
        raise UserError(f"{where} {key} occurs twice; the file is damaged")
    table[key] = value


def _file_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(number, line) one by one; only \\n ends a line, names may hold other separators."""
    try:
        with open(path, encoding="utf-8", newline="\n") as file:
            yield from enumerate(file, 1)
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _cameras_text(path: Path) -> dict[int, ColmapCamera]:
    cameras: dict[int, ColmapCamera] = {}
    for number, line in _text_lines(path):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        try:
            camera_id, model, width, height = int(words[0]), words[1], int(words[2]), int(words[3])
            params = tuple(float(word) for word in words[4:])
        except (ValueError, IndexError) as error:
            raise UserError(f"{path}: line {number} is not `ID MODEL WIDTH HEIGHT PARAMS...`") from error
        if model not in _PARAMETERS:
            raise UserError(f"{path}: line {number}: camera {camera_id} has the unknown model {model[:40]!r}")
        if len(params) != _PARAMETERS[model]:
            raise UserError(f"{path}: line {number}: {model} has {_PARAMETERS[model]} parameters, found {len(params)}")
        _add(cameras, camera_id, _camera(path, camera_id, model, width, height, params), f"{path}: camera")
    return cameras


def _images_text(path: Path) -> dict[int, ColmapImage]:
    images: dict[int, ColmapImage] = {}
    lines = _text_lines(path)
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        words = line.strip().split(maxsplit=9)
        _, keypoint_line = next(lines, (0, ""))  # the second line of an image may be empty, never absent in between
        try:
            image_id, camera_id, name = int(words[0]), int(words[8]), words[9]
            qw, qx, qy, qz, tx, ty, tz = (float(word) for word in words[1:8])
            pieces = keypoint_line.split()
            xy = np.array([float(word) for i, word in enumerate(pieces) if i % 3 < 2]).reshape(len(pieces) // 3, 2)
            ids = np.array([_point_id(int(word)) for word in pieces[2::3]], np.int64).reshape(len(pieces) // 3)
        except (ValueError, IndexError, OverflowError) as error:
            raise UserError(
                f"{path}: lines {number}-{number + 1} are not `ID QW QX QY QZ TX TY TZ CAMERA_ID NAME` "
                "and its `X Y POINT3D_ID ...`"
            ) from error
        where = f"{path}: image"
        _add(images, image_id, _image(where, image_id, (qw, qx, qy, qz), (tx, ty, tz), camera_id, name, xy, ids), where)
    return images


def _points_text(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    ids, xyz, rgb = array("q"), array("d"), array("B")  # compact, and they refuse what is out of range
    for number, line in _text_lines(path):
        words = line.split(maxsplit=7)
        if not words or words[0].startswith("#"):
            continue
        try:
            ids.append(_point_id(int(words[0])))
            xyz.extend(float(word) for word in words[1:4])
            rgb.extend(int(word) for word in words[4:7])
            float(words[7].split(maxsplit=1)[0])
        except (ValueError, IndexError, OverflowError) as error:
            raise UserError(f"{path}: line {number} is not `ID X Y Z R G B ERROR ...`") from error
    n = len(ids)
    points = np.frombuffer(xyz).reshape(n, 3) if n else np.zeros((0, 3))
    colours = np.frombuffer(rgb, np.uint8).reshape(n, 3) if n else np.zeros((0, 3), np.uint8)
    return _unique_points(path, np.array(ids, np.int64)), points, colours
