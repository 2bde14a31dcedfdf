"""Files made to hurt: each is refused in under a second, within 1 GiB of address space above the start, in one line.

All attacks run in one child process, because importing torch alone takes seconds; the child limits itself before the
first attack and times each of them.
"""

import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scene import load_scene
from scene.image_files import read_image
from scene.ply import read_gaussians, read_points
from tests.scene_factory import write_blender, write_colmap, write_transforms
from utils.errors import UserError

LIMIT_BYTES = 1 << 30
LIMIT_S = 1.0
ATTACKS: dict[str, Callable[[Path], Callable[[], object]]] = {}


def attack(make: Callable[[Path], Callable[[], object]]) -> Callable[[Path], Callable[[], object]]:
    """Register `make(folder)`, which writes the file and returns the call that must refuse it."""
    ATTACKS[make.__name__] = make
    return make


class Payload:
    def __reduce__(self):
        return os.mkdir, ("attack-ran",)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bytes(width: int, height: int, inflated: int) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    squeeze, data, block = zlib.compressobj(9), [], bytes(1 << 20)
    for start in range(0, inflated, len(block)):
        data.append(squeeze.compress(block[: inflated - start]))
    body = chunk(b"IDAT", b"".join(data) + squeeze.flush())
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def ply_header(count: object, properties: str = "xyz") -> bytes:
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {count}"]
    return "\n".join([*lines, *(f"property float {p}" for p in properties), "end_header", ""]).encode()


def file(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@attack
def pickle_as_ply(folder):
    path = file(folder, "a.ply", pickle.dumps(Payload()))
    return lambda: read_gaussians(path)


@attack
def pickle_as_png(folder):
    path = file(folder, "a.png", pickle.dumps(Payload()))
    return lambda: read_image(path)


@attack
def ply_of_a_hundred_billion_vertices(folder):
    path = file(folder, "a.ply", ply_header(10**11) + bytes(64))
    return lambda: read_points(path)


@attack
def ply_ascii_of_a_hundred_billion_vertices(folder):
    path = file(folder, "a.ply", ply_header(10**11).replace(b"binary_little_endian", b"ascii") + b"1 2 3\n")
    return lambda: read_points(path)


@attack
def ply_count_beyond_64_bits(folder):
    path = file(folder, "a.ply", ply_header("9" * 5000))
    return lambda: read_points(path)


@attack
def ply_header_of_20_megabytes(folder):
    path = file(folder, "a.ply", b"ply\n" + b"comment x\n" * 2_000_000)
    return lambda: read_points(path)


@attack
def ply_header_in_one_line_of_20_megabytes(folder):
    path = file(folder, "a.ply", b"ply\n" + b"comment " * 2_500_000)
    return lambda: read_points(path)


@attack
def ply_ascii_row_of_20_megabytes(folder):
    path = file(folder, "a.ply", ply_header(1).replace(b"binary_little_endian", b"ascii") + b"1 " * 10_000_000)
    return lambda: read_points(path)


@attack
def ply_ascii_number_of_20_megabytes(folder):
    head = ply_header(100_000).replace(b"binary_little_endian", b"ascii")
    path = file(folder, "a.ply", head + b"1" * 20_000_000 + b" 2 3\n" + b"1 2 3\n" * 100_000)
    return lambda: read_points(path)


@attack
def ply_with_nan(folder):
    head = ply_header(2).replace(
        b"end_header", b"".join(b"property uchar " + c + b"\n" for c in COLOURS) + b"end_header"
    )
    path = file(folder, "a.ply", head + struct.pack("<3f3B3f3B", 0, 0, 0, 1, 2, 3, float("nan"), 0, 0, 1, 2, 3))
    return lambda: read_points(path)


COLOURS = (b"red", b"green", b"blue")


@attack
def png_bomb_by_its_header(folder):
    path = file(folder, "a.png", png_bytes(14000, 14000, 1000))
    return lambda: read_image(path)


@attack
def png_bomb_behind_a_small_header(folder):
    path = file(folder, "a.png", png_bytes(10, 10, 100_000_000))
    return lambda: read_image(path)


@attack
def png_that_claims_100_rows_and_holds_10(folder):
    path = file(folder, "a.png", png_bytes(10, 100, 310))
    return lambda: read_image(path)


@attack
def png_chunk_longer_than_the_file(folder):
    path = file(folder, "a.png", png_bytes(10, 10, 310)[:33] + b"\xff\xff\xff\xffIDAT")
    return lambda: read_image(path)


@attack
def jpeg_of_65535_squared(folder):
    path = file(folder, "a.jpg", b"\xff\xd8\xff\xc0\0\x11\x08\xff\xff\xff\xff\x03" + bytes(9))
    return lambda: read_image(path)


@attack
def tiff_called_png(folder):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "TIFF")
    path = file(folder, "a.png", buffer.getvalue())
    return lambda: read_image(path)


def with_file_path(folder: Path, value: str) -> Callable[[], object]:
    write_blender(folder)
    path = folder / "transforms_train.json"
    document = json.loads(path.read_text())
    document["frames"][1]["file_path"] = value
    path.write_text(json.dumps(document))
    return lambda: load_scene(folder)


@attack
def path_that_climbs_out(folder):
    return with_file_path(folder, "../../../../etc/hostname")


@attack
def path_that_is_absolute(folder):
    return with_file_path(folder, "/etc/hostname")


@attack
def path_with_nul(folder):
    return with_file_path(folder, "train/r_0\0.png")


@attack
def path_of_a_megabyte(folder):
    return with_file_path(folder, "a/" * 500_000)


@attack
def link_that_leads_out(folder):
    call = with_file_path(folder, "./train/r_1")
    outside = Path(tempfile.mkdtemp()) / "secret.png"
    outside.write_bytes((folder / "train/r_1.png").read_bytes())
    (folder / "train/r_1.png").unlink()
    (folder / "train/r_1.png").symlink_to(outside)
    return call


@attack
def folder_link_that_leads_out(folder):
    call = with_file_path(folder, "./train/r_1")
    outside = Path(tempfile.mkdtemp()) / "train"
    (folder / "train").rename(outside)
    (folder / "train").symlink_to(outside)
    return call


@attack
def link_that_bites_its_tail(folder):
    call = with_file_path(folder, "./train/r_1")
    (folder / "train/r_1.png").unlink()
    (folder / "train/r_1.png").symlink_to(folder / "train/r_1.png")
    return call


@attack
def json_nested_without_end(folder):
    write_transforms(folder)
    (folder / "transforms.json").write_text("[" * 100_000)
    return lambda: load_scene(folder)


@attack
def json_with_a_number_of_5000_digits(folder):
    write_transforms(folder)
    (folder / "transforms.json").write_text('{"frames": [], "w": ' + "9" * 5000 + "}")
    return lambda: load_scene(folder)


@attack
def json_with_a_key_twice(folder):
    write_transforms(folder)
    (folder / "transforms.json").write_text('{"frames": [], "frames": []}')
    return lambda: load_scene(folder)


def colmap_with(folder: Path, name: str, offset: int, data: bytes) -> Callable[[], object]:
    write_colmap(folder)
    path = folder / "sparse/0" / name
    content = bytearray(path.read_bytes())
    content[offset : offset + len(data)] = data
    path.write_bytes(content)
    return lambda: load_scene(folder)


@attack
def colmap_of_a_hundred_billion_images(folder):
    return colmap_with(folder, "images.bin", 0, struct.pack("<Q", 10**11))


@attack
def colmap_of_2_to_63_points(folder):
    return colmap_with(folder, "points3D.bin", 0, struct.pack("<Q", 1 << 63))


@attack
def colmap_image_with_a_hundred_billion_keypoints(folder):
    return colmap_with(folder, "images.bin", 8 + 64 + len("view_000.png") + 1, struct.pack("<Q", 10**11))


@attack
def colmap_point_seen_by_2_to_60_images(folder):
    return colmap_with(folder, "points3D.bin", 8 + 43, struct.pack("<Q", 1 << 60))


@attack
def colmap_name_that_climbs_out(folder):
    return colmap_with(folder, "images.bin", 8 + 64, b"../../../a.b")


@attack
def colmap_name_that_is_absolute(folder):
    return colmap_with(folder, "images.bin", 8 + 64, b"/etc/hostnam")


@attack
def colmap_name_without_end(folder):
    write_colmap(folder)
    record = struct.pack("<Qi4d3di", 1, 1, 1, 0, 0, 0, 0, 0, 0, 7)
    (folder / "sparse/0/images.bin").write_bytes(record + b"a" * 20_000_000)
    return lambda: load_scene(folder)


def refuse_all(only: str = "") -> None:
    """In the child: run every attack, print one JSON object a line."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + LIMIT_BYTES, used + LIMIT_BYTES))
    for name, make in ATTACKS.items():
        folder = Path(tempfile.mkdtemp())
        call = make(folder)
        start = time.perf_counter()
        try:
            call()
            outcome = "accepted"
        except UserError as error:
            outcome = f"refused: {error}"
        except Exception as error:
            outcome = f"{type(error).__name__}: {error}"
        print(json.dumps({"name": name, "outcome": outcome, "seconds": time.perf_counter() - start}))
    print(json.dumps({"name": "payload", "outcome": str(Path("attack-ran").exists()), "seconds": 0}))


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    if not Path("/proc/self/statm").exists():
        pytest.skip("/proc is missing: the address space cannot be limited")
    folder = tmp_path_factory.mktemp("attacks")
    root = Path(__file__).resolve().parents[2]
    code = (
        "import importlib.util, sys; "
        f"spec = importlib.util.spec_from_file_location('attacks', {str(Path(__file__).resolve())!r}); "
        "module = importlib.util.module_from_spec(spec); sys.modules['attacks'] = module; "
        "spec.loader.exec_module(module); module.refuse_all()"
    )
    environment = {**os.environ, "PYTHONPATH": str(root), "TMPDIR": str(folder), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return {record["name"]: record for record in map(json.loads, done.stdout.splitlines())}


@pytest.mark.parametrize("name", list(ATTACKS))
def test_attack_is_refused_quickly_in_one_line(outcomes, name):
    record = outcomes[name]
    assert record["outcome"].startswith("refused: "), record["outcome"]
    assert record["seconds"] < LIMIT_S
    assert "\n" not in record["outcome"]
    assert len(record["outcome"]) < 1000


def test_no_payload_ran(outcomes):
    assert outcomes["payload"]["outcome"] == "False"


def test_the_sets_behind_the_attacks_are_fine_without_them(tmp_path):
    for write in (write_blender, write_colmap, write_transforms):
        scene = load_scene(write(tmp_path / write.__name__))
        assert np.isfinite(scene.extent)
