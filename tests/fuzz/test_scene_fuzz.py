"""Seeded mutations of valid files: each reader answers with a value or a UserError, quickly, and nothing else.

300 mutations a reader by default; `-m fuzz` runs 100,000 each. A failure names its seed: the same seed makes it again.
"""

import contextlib
import io
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from PIL import Image

from arguments.cfg_args import read_cfg_args, write_cfg_args
from arguments.loading import ModelParams
from scene.blender import read_blender
from scene.colmap_model import read_model
from scene.image_files import read_image
from scene.lr_kernel import LRKernelFile
from scene.paths import Roots
from scene.ply import read_gaussians, read_points, write_gaussians, write_points
from scene.points import random_points
from scene.sequences import Sequences, Subsequence, read_sequences, write_sequences
from scene.transforms import read_transforms
from tests.scene.test_ply import foreign, some_gaussians
from tests.scene_factory import picture, write_blender, write_colmap, write_transforms
from utils.errors import UserError
from utils.state import load_state, save_state

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL.TiffImagePlugin")  # notices on EXIF, not on pixels
DEFAULT_RUNS, LONG_RUNS = 300, 100_000
LIMIT_S = 0.05  # mean; a single run may be interrupted by the machine
EXTRA_BYTES = 16 << 20

Reader = tuple[Path, Callable[[], object]]  # the file to mutate, and the call that reads it


def ply_binary(folder: Path) -> Reader:
    path = folder / "a.ply"
    write_gaussians(path, some_gaussians(3, degree=1))
    return path, lambda: read_gaussians(path)


def ply_ascii(folder: Path) -> Reader:
    path = folder / "a.ply"
    foreign(path, some_gaussians(3), "ascii")
    return path, lambda: read_gaussians(path)


def ply_points(folder: Path) -> Reader:
    path = folder / "a.ply"
    write_points(path, random_points(5))
    return path, lambda: read_points(path)


def png_rgba(folder: Path) -> Reader:
    path = folder / "a.png"
    Image.fromarray(picture(0, 12, 9)).save(path)
    return path, lambda: read_image(path)


def png_palette(folder: Path) -> Reader:
    path = folder / "a.png"
    Image.fromarray(picture(0, 12, 9)[..., :3].copy()).quantize(7).save(path, transparency=b"\0\x80", dpi=(72, 72))
    return path, lambda: read_image(path)


def jpeg(folder: Path) -> Reader:
    path = folder / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(picture(0, 24, 17)[..., :3].copy()).save(path, quality=60, exif=exif, progressive=True)
    return path, lambda: read_image(path)


def colmap_cameras(folder: Path) -> Reader:
    return _colmap(folder, "cameras.bin")


def colmap_images(folder: Path) -> Reader:
    return _colmap(folder, "images.bin")


def colmap_points(folder: Path) -> Reader:
    return _colmap(folder, "points3D.bin")


def _colmap(folder: Path, name: str) -> Reader:
    write_colmap(folder, views=3, size=(6, 4), points=4)
    return folder / "sparse/0" / name, lambda: read_model(folder / "sparse/0")


def colmap_cameras_text(folder: Path) -> Reader:
    return _colmap_text(folder, "cameras.txt")


def colmap_images_text(folder: Path) -> Reader:
    return _colmap_text(folder, "images.txt")


def colmap_points_text(folder: Path) -> Reader:
    return _colmap_text(folder, "points3D.txt")


def _colmap_text(folder: Path, name: str) -> Reader:
    (folder / "cameras.txt").write_text(
        "# ID MODEL\n7 PINHOLE 48 32 40.0 41.0 24.5 15.5\n9 OPENCV 8 8 1 1 1 1 0 0 0 0\n"
    )
    (folder / "images.txt").write_text("3 1 0 0 0 0 0 4 7 a b.png\n1.5 2.5 11 3 4 -1\n5 1 0 0 0 0 0 4 9 b.png\n\n")
    (folder / "points3D.txt").write_text("11 0.5 0.5 0.5 1 2 3 0.1 3 0\n12 0 0 0 255 0 9 1\n")
    return folder / name, lambda: read_model(folder)


def blender_json(folder: Path) -> Reader:
    write_blender(folder, views=2, test_views=1, size=4)
    call = lambda: read_blender(Roots(folder), evaluate=True, allow_missing=False)  # noqa: E731
    return folder / "transforms_train.json", call


def transforms_json(folder: Path) -> Reader:
    cloud = folder / "cloud.ply"
    write_points(cloud, random_points(2))
    write_transforms(folder, views=3, size=(4, 4), k1=0.01, ply_file_path="cloud.ply", train_filenames=["images/a.png"])
    path = folder / "transforms.json"
    call = lambda: read_transforms(Roots(folder), path, images="images", evaluate=True, allow_missing=True)  # noqa: E731
    return path, call


def lr_kernel_json(folder: Path) -> Reader:
    path = folder / "lr_kernel.json"
    LRKernelFile("area", scale=4.0, sizes=({"hr": [8, 8], "lr": [2, 2]},), made={"versions": {}}).write(path)
    return path, lambda: LRKernelFile.read(path)


def sequences_json(folder: Path) -> Reader:
    path = folder / "sequences.json"
    names = tuple(f"train/r_{i}" for i in range(4))
    first = Subsequence(names[:3], (0, 1), True, (1.5, None), (10.0, 20.0))
    write_sequences(path, Sequences((first, Subsequence(names[2:], (0, 1))), "als", {"seed": 1}, "orb", "bits"))
    return path, lambda: read_sequences(path, names)


def cfg_args(folder: Path) -> Reader:
    return write_cfg_args(folder, ModelParams(source_path="scene", eval=True)), lambda: read_cfg_args(folder)


def checkpoint(folder: Path) -> Reader:
    path = folder / "iteration_1.safetensors"
    save_state(path, {"means": torch.zeros(2, 3), "random": torch.zeros(8, dtype=torch.uint8)}, {"iteration": 1})
    return path, lambda: load_state(path)


READERS = [
    *(ply_binary, ply_ascii, ply_points, png_rgba, png_palette, jpeg),
    *(colmap_cameras, colmap_images, colmap_points, colmap_cameras_text, colmap_images_text, colmap_points_text),
    *(blender_json, transforms_json, lr_kernel_json, sequences_json, cfg_args, checkpoint),
]
WORDS = [
    b"\0",
    b"\n",
    b" ",
    b"-1",
    b"nan",
    b"inf",
    b"1e999",
    b"99999999999999999999",
    b"[[[[",
    b"../",
    b"vertex",
    b"\xff\xfe",
]
NUMBERS = [0, 1, -1, 255, 1 << 31, (1 << 31) - 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, 10**11]


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """One to four edits: flips, cuts, repeats, words, and 8-byte counts; PNG checksums are mended half of the time."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(0, len(out) + 1))
        length = int(rng.integers(1, 17))
        match int(rng.integers(0, 7)):
            case 0 if at < len(out):
                out[at] ^= 1 << int(rng.integers(0, 8))
            case 1:
                del out[at : at + length]
            case 2:
                out[at:at] = out[at : at + length]
            case 3:
                out[at:at] = WORDS[int(rng.integers(0, len(WORDS)))]
            case 4:
                word = WORDS[int(rng.integers(0, len(WORDS)))]
                out[at : at + len(word)] = word
            case 5:
                number = NUMBERS[int(rng.integers(0, len(NUMBERS)))]
                out[at : at + 8] = struct.pack("<Q", number % (1 << 64))
            case _:
                del out[int(rng.integers(0, len(out) + 1)) :]
    return mended_png(bytes(out)) if rng.random() < 0.5 else bytes(out)


def mended_png(data: bytes) -> bytes:
    """Set the checksums of a damaged PNG right, so that mutations get past them."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    out, position = bytearray(data), 8
    while position + 12 <= len(out):
        (length,) = struct.unpack_from(">I", out, position)
        end = position + 8 + length
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[position + 4 : end]))
        position = end + 4
    return bytes(out)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder in memory where the system has one: the runs are bound by writing files."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as name:
        yield Path(name)


def fuzz(reader: Callable[[Path], Reader], folder: Path, runs: int) -> None:
    path, call = reader(folder)
    valid = path.read_bytes()
    call()  # the file is fine before it is spoiled
    refused = 0
    start = time.process_time()
    for seed in range(runs):
        path.write_bytes(mutated(valid, np.random.default_rng(seed)))
        try:
            call()
        except UserError:
            refused += 1
        except Exception as error:
            raise AssertionError(f"{reader.__name__}, seed {seed}: {type(error).__name__}: {error}") from error
    assert (time.process_time() - start) / runs < LIMIT_S
    assert refused > runs // 10, "the mutations are too tame to test anything"


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_mutations_are_refused_or_read(reader, folder):
    fuzz(reader, folder, DEFAULT_RUNS)


@pytest.mark.fuzz
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
def test_many_mutations_are_refused_or_read(reader, folder):
    fuzz(reader, folder, LONG_RUNS)


@pytest.mark.parametrize(
    "reader", [ply_binary, ply_ascii, colmap_images, colmap_points, png_rgba], ids=lambda r: r.__name__
)
def test_mutations_do_not_allocate_beyond_the_file(reader, folder):
    path, call = reader(folder)
    valid = path.read_bytes()
    tracemalloc.start()
    try:
        for seed in range(60):
            data = mutated(valid, np.random.default_rng(seed))
            path.write_bytes(data)
            tracemalloc.reset_peak()
            before = tracemalloc.get_traced_memory()[0]
            with contextlib.suppress(UserError):
                call()
            assert tracemalloc.get_traced_memory()[1] - before <= 4 * len(data) + EXTRA_BYTES, f"seed {seed}"
    finally:
        tracemalloc.stop()


def test_mended_checksums_are_right():
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 5, 5)).save(buffer, "PNG")
    data = buffer.getvalue()
    spoiled = data.replace(b"IDAT", b"IDOT")
    assert mended_png(spoiled) != spoiled
    assert mended_png(data) == data
