"""PLY files: the layout of the original 3DGS, and coloured point clouds.

The parser is ours, because the bytes left in the file must bound every allocation. It reads `binary_little_endian`,
`binary_big_endian` and `ascii`, any scalar types, properties by NAME (other writers reorder them, drop the normals, or
add their own, which are ignored). Elements other than `vertex` may follow it and are skipped.

Stored layout of a splat: x y z nx ny nz f_dc_0..2 f_rest_0..3K-1 opacity scale_0..2 rot_0..3, all float32; f_rest is
channel-major: f_rest[c * K + k] is coefficient k + 1 of channel c.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from jaxtyping import Bool

from scene.gaussians import Gaussians
from scene.points import PointCloud, finite_points
from utils import atomic, log
from utils.errors import UserError

MAX_HEADER_BYTES = 64 * 1024
_TYPES = {
    **dict.fromkeys(("char", "int8"), "i1"),
    **dict.fromkeys(("uchar", "uint8"), "u1"),
    **dict.fromkeys(("short", "int16"), "i2"),
    **dict.fromkeys(("ushort", "uint16"), "u2"),
    **dict.fromkeys(("int", "int32"), "i4"),
    **dict.fromkeys(("uint", "uint32"), "u4"),
    **dict.fromkeys(("float", "float32"), "f4"),
    **dict.fromkeys(("double", "float64"), "f8"),
}
_COLOURS = ("red", "green", "blue")
_FORMATS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_ASCII_BLOCK_BYTES = 1 << 17
_ASCII_MAX_DIGITS = 64


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[tuple[str, str], ...]  # (name, numpy type); type "list" for list properties

    @property
    def has_list(self) -> bool:
        return any(kind == "list" for _, kind in self.properties)

    def stride_bytes(self) -> int:
        return sum(int(kind[1]) for _, kind in self.properties)


def write_gaussians(path: str | Path, gaussians: Gaussians) -> None:
    """Write splats in the layout that every 3DGS viewer opens (binary little-endian, normals zero), atomically."""
    n, degree_terms = gaussians.num, gaussians.shN.shape[1]
    names = _gaussian_properties(degree_terms)
    table = np.zeros((n, len(names)), dtype="<f4")
    with torch.no_grad():
        columns = (
            (0, gaussians.means),
            (6, gaussians.sh0.reshape(n, 3)),
            (9, gaussians.shN.transpose(1, 2).reshape(n, 3 * degree_terms)),  # [N, K, 3] -> channel-major
            (9 + 3 * degree_terms, gaussians.logit_opacities),
            (10 + 3 * degree_terms, gaussians.log_scales),
            (13 + 3 * degree_terms, gaussians.quats),
        )
        for start, values in columns:
            table[:, start : start + values.shape[1]] = values.detach().cpu().numpy()
    header = _header(n, [("float", name) for name in names])
    with atomic.writing(path) as temporary, open(temporary, "wb") as file:
        file.write(header)
        file.write(table.data)


def read_gaussians(path: str | Path, drop_invalid: bool = False) -> Gaussians:
    """Read splats; the SH degree comes from the number of f_rest properties.

    Parameters
    ----------
    path : a PLY in the 3DGS layout, in any order and number type, normals and unknown properties optional.
    drop_invalid : remove splats with NaN, Inf or a zero quaternion (with a warning) instead of refusing the file.

    Raises
    ------
    UserError : not a PLY, cut short, properties missing, or invalid values; names the first bad splat.
    """
    path = Path(path)
    columns = _read_vertices(path)
    rest = sum(1 for name in columns if name.startswith("f_rest_"))
    if rest not in (0, 9, 24, 45):
        raise UserError(f"{path}: {rest} f_rest properties; 0, 9, 24 or 45 are known (SH degree 0 to 3)")
    k = rest // 3

    def gather(*names: str) -> torch.Tensor:
        missing = [name for name in names if name not in columns]
        if missing:
            raise UserError(f"{path}: property {missing[0]} is missing; this is not a 3DGS point_cloud.ply")
        out = np.empty((len(columns["x"]), len(names)), np.float32)
        with np.errstate(over="ignore"):  # a double beyond float32 becomes Inf and is refused below
            for i, name in enumerate(names):
                out[:, i] = columns[name]
        return torch.from_numpy(out)

    means = gather("x", "y", "z")
    n = len(means)
    gaussians = Gaussians(
        means=means,
        log_scales=gather("scale_0", "scale_1", "scale_2"),
        quats=gather("rot_0", "rot_1", "rot_2", "rot_3"),
        logit_opacities=gather("opacity"),
        sh0=gather("f_dc_0", "f_dc_1", "f_dc_2").reshape(n, 1, 3),
        shN=gather(*(f"f_rest_{i}" for i in range(rest))).reshape(n, 3, k).transpose(1, 2).contiguous(),
    )
    return _without_invalid(path, gaussians, drop_invalid)


def write_points(path: str | Path, points: PointCloud) -> None:
    """Write a cloud as x y z nx ny nz (float, normals zero) red green blue (uchar), atomically."""
    kinds = [*((name, "float") for name in ("x", "y", "z", "nx", "ny", "nz")), *((name, "uchar") for name in _COLOURS)]
    table = np.zeros(len(points.xyz), dtype=[(name, "<" + _TYPES[kind]) for name, kind in kinds])
    for axis, name in enumerate("xyz"):
        table[name] = points.xyz[:, axis]
    for channel, name in enumerate(_COLOURS):
        table[name] = points.rgb[:, channel]
    atomic.write_bytes(path, _header(len(table), [(kind, name) for name, kind in kinds]) + table.tobytes())


def read_points(path: str | Path, drop_invalid: bool = False) -> PointCloud:
    """Read a coloured point cloud (x y z in any type, red green blue as 8-bit integers).

    Raises
    ------
    UserError : not a PLY, cut short, no positions or 8-bit colours, or non-finite points (unless drop_invalid).
    """
    path = Path(path)
    columns = _read_vertices(path)
    for name in ("x", "y", "z", *_COLOURS):
        if name not in columns:
            raise UserError(f"{path}: property {name} is missing; a point cloud needs x y z red green blue")
        if name in _COLOURS and columns[name].dtype != np.uint8:
            raise UserError(f"{path}: property {name} is {columns[name].dtype}; colours must be 8 bit (uchar)")
    xyz = np.stack([columns[name] for name in "xyz"], axis=1)
    rgb = np.stack([columns[name] for name in _COLOURS], axis=1)
    points, kept = finite_points(xyz, rgb)
    _refuse_or_warn(path, ~kept, drop_invalid, "points")
    return points


def _gaussian_properties(degree_terms: int) -> list[str]:
    rest = [f"f_rest_{i}" for i in range(3 * degree_terms)]
    tail = ["opacity", "scale_0", "scale_1", "scale_2", "rot_0", "rot_1", "rot_2", "rot_3"]
    return ["x", "y", "z", "nx", "ny", "nz", "f_dc_0", "f_dc_1", "f_dc_2", *rest, *tail]


def _header(count: int, properties: list[tuple[str, str]]) -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    lines += [f"property {kind} {name}" for kind, name in properties]
    return ("\n".join([*lines, "end_header"]) + "\n").encode("ascii")


def _without_invalid(path: Path, gaussians: Gaussians, drop_invalid: bool) -> Gaussians:
    parts = (
        gaussians.means,
        gaussians.log_scales,
        gaussians.quats,
        gaussians.logit_opacities,
        gaussians.sh0,
        gaussians.shN,
    )
    bad = torch.zeros(gaussians.num, dtype=torch.bool)
    for part in parts:
        bad |= ~torch.isfinite(part).flatten(1).all(dim=1)
    bad |= (gaussians.quats == 0).all(dim=1)
    if not bad.any():
        return gaussians
    _refuse_or_warn(path, bad.numpy(), drop_invalid, "splats")
    return Gaussians(*(part[~bad].contiguous() for part in parts))


def _refuse_or_warn(path: Path, bad: Bool[np.ndarray, "N"], drop_invalid: bool, what: str) -> None:
    if not bad.any():
        return
    first = int(bad.argmax())
    found = f"{path}: {int(bad.sum())} of {len(bad)} {what} hold NaN, Inf or no rotation, the first is number {first}"
    if not drop_invalid:
        raise UserError(f"{found}; export the file again without them")
    log.warn(f"{found}; dropped")


def _read_vertices(path: Path) -> dict[str, np.ndarray]:
    """The scalar columns of element `vertex` by name, in the types of the file."""
    try:
        with open(path, "rb") as file:
            left = os.fstat(file.fileno()).st_size
            order, elements = _read_header(path, file)
            left -= file.tell()
            vertex = _vertex_element(path, elements)
            if order == "":
                return _read_ascii(path, file, vertex, left)
            return _read_binary(path, file, vertex, elements, order, left)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error


def _vertex_element(path: Path, elements: list[_Element]) -> _Element:
    if not elements or elements[0].name != "vertex":
        raise UserError(
            f"{path}: the first element must be `vertex`, found {elements[0].name[:40] if elements else 'none'!r}"
        )
    vertex = elements[0]
    if vertex.has_list:
        raise UserError(f"{path}: element vertex has a list property; only scalar ones are read")
    if not vertex.properties:
        raise UserError(f"{path}: element vertex has no properties")
    return vertex


def _read_header(path: Path, file: BinaryIO) -> tuple[str, list[_Element]]:
    """(byte order, elements) of a header of at most 64 KiB; the file stands at the first data byte after."""
    if file.readline(8).rstrip(b"\r\n") != b"ply":
        raise UserError(f"{path}: not a PLY file (it does not begin with `ply`)")
    order: str | None = None
    elements: list[tuple[str, int, list[tuple[str, str]]]] = []
    while True:
        line = file.readline(MAX_HEADER_BYTES + 1 - min(file.tell(), MAX_HEADER_BYTES))
        if file.tell() > MAX_HEADER_BYTES:
            raise UserError(f"{path}: the PLY header is longer than {MAX_HEADER_BYTES // 1024} KiB")
        if not line.endswith(b"\n"):
            raise UserError(f"{path}: the PLY header ends at byte {file.tell()} without end_header")
        words = line.decode("latin-1").split()
        match words:
            case [] | ["comment", *_] | ["obj_info", *_]:
                continue
            case ["end_header"]:
                break
            case ["format", name, "1.0"] if name in _FORMATS and order is None:
                order = _FORMATS[name]
            case ["element", name, count] if count.isascii() and count.isdigit() and len(count) <= 19:
                elements.append((name, int(count), []))
            case ["property", "list", size, kind, name] if elements and size in _TYPES and kind in _TYPES:
                elements[-1][2].append((name, "list"))
            case ["property", kind, name] if elements and kind in _TYPES:
                elements[-1][2].append((name, _TYPES[kind]))
            case _:
                raise UserError(f"{path}: PLY header line not understood: {' '.join(words)[:60]!r}")
    if order is None:
        raise UserError(f"{path}: the PLY header has no format line")
    for name, _, properties in elements:
        names = [p for p, _ in properties]
        if len(set(names)) != len(names):
            twice = next(p for p in names if names.count(p) > 1)
            raise UserError(f"{path}: property {twice[:40]!r} stands twice in element {name[:40]!r}")
    return order, [_Element(name, count, tuple(properties)) for name, count, properties in elements]


def _read_binary(
    path: Path, file: BinaryIO, vertex: _Element, elements: list[_Element], order: str, left: int
) -> dict[str, np.ndarray]:
    need = vertex.count * vertex.stride_bytes()
    scalar_only = not any(element.has_list for element in elements)
    total = sum(element.count * element.stride_bytes() for element in elements) if scalar_only else need
    if need > left or (scalar_only and total != left):
        raise UserError(
            f"{path}: {vertex.count} vertices need {total} bytes, the file has {left}; it is cut short or damaged"
        )
    table = np.fromfile(file, dtype=[(name, order + kind) for name, kind in vertex.properties], count=vertex.count)
    if len(table) != vertex.count:
        raise UserError(f"{path}: ended after {len(table)} of {vertex.count} vertices")
    return {name: table[name] for name, _ in vertex.properties}


def _read_ascii(path: Path, file: BinaryIO, vertex: _Element, left: int) -> dict[str, np.ndarray]:
    width = len(vertex.properties)
    if vertex.count * width * 2 > left + 1:  # each value takes a digit and a separator
        raise UserError(
            f"{path}: {vertex.count} vertices cannot stand in {left} bytes of text; it is cut short or damaged"
        )
    columns = {name: np.empty(vertex.count, kind) for name, kind in vertex.properties}
    done = 0
    while done < vertex.count:
        lines = [line.split(None, width) for line in file.readlines(_ASCII_BLOCK_BYTES)]  # at most width + 1 pieces
        if not lines:
            raise UserError(f"{path}: ended after {done} of {vertex.count} vertices")
        rows = [line for line in lines if line][: vertex.count - done]
        for i, row in enumerate(rows):
            if len(row) != width or max(map(len, row)) > _ASCII_MAX_DIGITS:
                raise UserError(
                    f"{path}: vertex {done + i} has not {width} values of at most {_ASCII_MAX_DIGITS} characters"
                )
        try:
            values = np.array(rows, dtype="S").astype(np.float64).reshape(len(rows), width)
        except ValueError as error:
            raise UserError(f"{path}: vertex {done} or one soon after holds something that is not a number") from error
        for (name, kind), column in zip(vertex.properties, values.T, strict=True):
            if kind[0] != "f" and not ((column >= np.iinfo(kind).min) & (column <= np.iinfo(kind).max)).all():
                raise UserError(f"{path}: property {name[:40]} holds a value outside the range of its type {kind}")
            with np.errstate(over="ignore"):
                columns[name][done : done + len(rows)] = column
        done += len(rows)
    return columns
