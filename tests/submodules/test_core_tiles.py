"""Which tiles and blocks of pixels an ellipse meets (csrc/core/tiles.h): against every pixel, and against geometry.

Letters: S = screen covariance (xx, xy, yy) [px^2], E = log2(255 opacity), k = log2(e) / 2. The ellipse is where
k d^T S^-1 d <= E. A tile stands for the rectangle around the centres of its pixels.
"""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from tests.submodules.test_core_formulas import HEADERS

SOURCE = Path(__file__).with_name("core_tiles.cpp")
TILE, BLOCK_WIDTH, BLOCK_HEIGHT = 16, 8, 4
HALF_LOG2_E = 0.72134752
DTYPES = (np.float32, np.float64)
SIZES = ((1, 1), (16, 16), (17, 33), (61, 45), (300, 17), (200, 130))


class Tiles:
    """The compiled header."""

    def __init__(self, library: Path):
        self.native = ctypes.CDLL(str(library))

    def _call(self, name: str, splats: np.ndarray, sizes: tuple[int, ...], shape: tuple[int, ...]) -> list[np.ndarray]:
        out = [np.zeros((len(splats), *shape), np.uint8) for _ in range(2)]
        function = self.native[f"{name}_{'float' if splats.dtype == np.float32 else 'double'}"]
        data = np.ascontiguousarray(splats)
        function(len(data), pointer(data), *sizes, *map(pointer, out))
        return out

    def tiles(self, splats: np.ndarray, width: int, height: int) -> list[np.ndarray]:
        """[n, rows, columns]: how often a tile is listed; whether a pixel of it is reached."""
        return self._call("tiles", splats, (width, height), (-(-height // TILE), -(-width // TILE)))

    def blocks(self, splats: np.ndarray) -> list[np.ndarray]:
        """[n, 4, 2]: the same of the blocks of the tile at (0, 0)."""
        return self._call("blocks", splats, (), (4, 2))


def pointer(a: np.ndarray) -> ctypes.c_void_p:
    return a.ctypes.data_as(ctypes.c_void_p)


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Tiles:
    if not shutil.which("g++"):
        pytest.skip("g++ is needed")
    library = tmp_path_factory.mktemp("core") / "tiles.so"
    flags = ["-std=c++17", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    subprocess.run(["g++", *flags, f"-I{HEADERS}", SOURCE, "-o", library], check=True)
    return Tiles(library)


def random_splats(n: int, width: int, height: int, seed: int) -> np.ndarray:
    """[n, 7]: xx, xy, yy, det, opacity, x, y. From points to ellipses many times the image; a third are needles."""
    r = np.random.default_rng(seed)
    long = np.exp(r.uniform(np.log(0.5), np.log(3 * (width + height)), n))
    short = np.where(r.random(n) < 0.33, 0.55, np.exp(r.uniform(np.log(0.55), np.log(long + 0.6))))
    angle = r.uniform(0, np.pi, n)
    cos, sin = np.cos(angle), np.sin(angle)
    xx, yy = (long * cos) ** 2 + (short * sin) ** 2, (long * sin) ** 2 + (short * cos) ** 2
    xy = (long**2 - short**2) * cos * sin
    opacity = np.where(r.random(n) < 0.2, r.uniform(1 / 255, 1.02 / 255, n), r.uniform(1 / 255, 1, n))
    x, y = (r.uniform(-0.5, 1.5, n) * size + r.normal(size=n) * 0.3 * long for size in (width, height))
    return np.stack([xx, xy, yy, (long * short) ** 2, opacity, x, y], 1)


def hostile_splats(n: int, seed: int) -> np.ndarray:
    """The same where float32 has few digits left: thin as a millionth of a pixel, long as 10^8, and as far away."""
    r = np.random.default_rng(seed)
    long, short = np.exp(r.uniform(-6, 19, n)), np.exp(r.uniform(-6, 2, n))
    long = np.maximum(long, short)
    angle = r.choice([0, np.pi / 2, 1e-4, 1e-7], n) + r.choice([0, 1], n) * r.uniform(0, np.pi, n)
    cos, sin = np.cos(angle), np.sin(angle)
    xx, yy = (long * cos) ** 2 + (short * sin) ** 2, (long * sin) ** 2 + (short * cos) ** 2
    xy, along = (long**2 - short**2) * cos * sin, r.normal(size=n) * long
    x, y = (20 * r.normal(size=n) + along * part for part in (cos, sin))  # the image lies on the needle
    opacity = np.exp2(r.uniform(-7.99, 0, n))
    faint = r.random(n) < 0.3  # at the threshold, on a pixel's very centre
    opacity[faint] = (1 + r.integers(0, 4, faint.sum()) * 2.0**-23) / 255
    x[faint], y[faint] = r.integers(0, TILE, (2, faint.sum()))
    return np.stack([xx, xy, yy, (long * short) ** 2, opacity, x, y], 1)


def least_distance(splats: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """[n, m]: the least k d^T S^-1 d over boxes [m, 4] (left, right, top, bottom), by its minimum on each side."""
    xx, xy, yy, det, _, x, y = splats.T[:, :, None]
    left, right, top, bottom = boxes.T[:, None] - np.stack([x, x, y, y])

    def distance(dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
        return HALF_LOG2_E * (yy * dx * dx - 2 * xy * dx * dy + xx * dy * dy) / det

    vertical = [distance(dx, np.clip(xy / xx * dx, top, bottom)) for dx in (left, right)]
    horizontal = [distance(np.clip(xy / yy * dy, left, right), dy) for dy in (top, bottom)]
    inside = (left <= 0) & (right >= 0) & (top <= 0) & (bottom >= 0)
    return np.where(inside, 0.0, np.minimum.reduce([*vertical, *horizontal]))


def tile_boxes(width: int, height: int) -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(0, height, TILE), np.arange(0, width, TILE), indexing="ij")
    right, bottom = np.minimum(columns + TILE, width) - 1, np.minimum(rows + TILE, height) - 1
    return np.stack([columns, right, rows, bottom], -1).reshape(-1, 4).astype(float)


def block_boxes() -> np.ndarray:
    rows, columns = np.meshgrid(np.arange(0, TILE, BLOCK_HEIGHT), np.arange(0, TILE, BLOCK_WIDTH), indexing="ij")
    return (
        np.stack([columns, columns + BLOCK_WIDTH - 1, rows, rows + BLOCK_HEIGHT - 1], -1).reshape(-1, 4).astype(float)
    )


def not_met(splats: np.ndarray, boxes: np.ndarray, rounding_px: float) -> np.ndarray:
    """[n, m]: ellipses that even `rounding_px` wider would not meet the box."""
    extent = np.maximum(np.log2(255 * splats[:, 4:5]), 0) + 2e-5
    per_px = HALF_LOG2_E**0.5 * ((splats[:, :1] + splats[:, 2:3]) / splats[:, 3:4]) ** 0.5  # of sqrt(k d^T S^-1 d)
    return least_distance(splats, boxes) > (np.sqrt(extent) + rounding_px * per_px) ** 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", SIZES)
def test_tiles_are_those_that_the_ellipse_meets(native: Tiles, size: tuple[int, int], dtype: type):
    splats: np.ndarray = random_splats(1500, *size, seed=size[0]).astype(dtype)
    listed, reached = native.tiles(splats, *size)
    assert listed.max() == 1  # once, and within the image
    assert (listed >= reached).all()
    assert not listed.reshape(1500, -1)[not_met(splats.astype(float), tile_boxes(*size), 0.01)].any()
    assert reached.sum() > 0.9 * listed.sum()  # needles pass between the pixels


@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_are_those_that_the_ellipse_meets(native: Tiles, dtype: type):
    splats: np.ndarray = random_splats(20_000, TILE, TILE, seed=1).astype(dtype)
    listed, reached = native.blocks(splats)
    assert (listed >= reached).all()
    boxes, doubles = block_boxes(), splats.astype(float)
    assert not listed.reshape(-1, 8)[not_met(doubles, boxes, 0.001)].any()
    assert listed.reshape(-1, 8)[least_distance(doubles, boxes) < np.log2(255 * doubles[:, 4:5]) - 1e-5].all()
    assert reached.sum() > 0.9 * listed.sum()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("seed", range(3))
def test_no_pixel_is_left_out_where_digits_are_few(native: Tiles, seed: int, dtype: type):
    splats: np.ndarray = hostile_splats(20_000, seed).astype(dtype)
    for listed, reached in (native.blocks(splats), native.tiles(splats, 40, 40)):
        assert (listed >= reached).all()
        assert reached.sum() > 1000


def test_empty_images_have_no_tiles(native: Tiles):
    splats: np.ndarray = random_splats(100, 16, 16, seed=2)
    for size in ((0, 0), (0, 40), (40, 0)):
        assert native.tiles(splats, *size)[0].size == 0
