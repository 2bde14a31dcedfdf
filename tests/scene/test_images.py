"""Image files read strictly, alpha, compositing, resizing, and the store."""

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from scene.images import (
    ImageStore,
    composite,
    premultiplied,
    read_image,
    resized,
    straight,
    working_size,
    write_png,
)
from tests.scene_factory import picture
from utils.errors import UserError

RGBA = hnp.arrays(np.uint8, st.tuples(st.integers(1, 5), st.integers(1, 5), st.just(4)))


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, rows: int, *, depth: int = 8, colour: int = 2, extra: bytes = b"") -> bytes:
    """A PNG that claims `height` rows and holds `rows`, otherwise valid."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    data = zlib.compress((b"\0" + b"\x55" * ((width * samples * depth + 7) // 8)) * rows)
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + chunk(b"IDAT", data) + chunk(b"IEND", b"")


KINDS = [(mode, "png") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")] + [("RGB", "jpg"), ("L", "jpg")]


@pytest.mark.parametrize(("mode", "suffix"), KINDS)
def test_pixels_are_those_that_pillow_converts(tmp_path, mode, suffix):
    source = Image.fromarray(picture(1, 20, 13)).convert("RGB" if mode == "P" else "RGBA").convert(mode)
    source.save(tmp_path / f"a.{suffix}")
    image = read_image(tmp_path / f"a.{suffix}")
    with Image.open(tmp_path / f"a.{suffix}") as opened:
        expected = np.array(opened.convert("RGBA" if mode in ("RGBA", "LA") else "RGB"))
    assert image.dtype == np.uint8
    assert np.array_equal(image, expected)


def test_palette_with_transparency_has_alpha(tmp_path):
    palette = Image.fromarray(picture(0, 8, 8)).convert("RGB").quantize(4)
    palette.save(tmp_path / "a.png", transparency=bytes([0, 255, 255, 255]))
    assert read_image(tmp_path / "a.png").shape == (8, 8, 4)
    assert ImageStore({"a": tmp_path / "a.png"}).has_alpha("a")


@given(RGBA)
def test_png_round_trip(tmp_path_factory, image):
    path = tmp_path_factory.mktemp("png") / "a.png"
    write_png(path, image)
    assert np.array_equal(read_image(path), image)


def test_interlaced_png_is_measured_correctly(tmp_path):
    # Adam7 by hand: Pillow cannot write it. 5x3 grey; passes in order, each row with filter byte 0.
    width, height, image = 5, 3, np.arange(15, dtype=np.uint8).reshape(3, 5)
    raw = b""
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        part = image[y0::dy, x0::dx]
        raw += b"".join(b"\0" + row.tobytes() for row in part) if part.size else b""
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 1)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw)) + chunk(b"IEND", b"")
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + body)
    assert np.array_equal(read_image(tmp_path / "a.png")[..., 0], image)


def jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(picture(0, 64, 64)[..., :3].copy()).save(buffer, "JPEG")
    return buffer.getvalue()


def cmyk() -> bytes:
    buffer = io.BytesIO()
    Image.new("CMYK", (8, 8)).save(buffer, "JPEG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"GIF89a", "neither PNG nor JPEG"),
        (png(4, 100, 10), "pixel data of 130 bytes, the header needs 1300"),
        (png(4, 10, 100), "more pixel data"),
        (png(4, 4, 4)[:-20], "cut short"),
        (png(4, 4, 4)[:20], "header cut short"),
        (png(0, 4, 4), "0x4 px"),
        (png(14000, 14000, 1), "more than 64 Mpx"),
        (png(4, 4, 4, depth=16), "16 bits"),
        (png(4, 4, 4).replace(b"IHDR\0\0\0\4", b"IHDR\0\0\0\5"), "checksum"),
        (jpeg()[:200], "cut short or damaged"),
        (jpeg()[:-200], "cut short or damaged"),
        (b"\xff\xd8\xff", "cut short or damaged"),
        (cmyk(), "4 components"),
    ],
)
def test_broken_images_have_one_message(tmp_path, data, message):
    path = tmp_path / "a.png"
    path.write_bytes(data)
    with pytest.raises(UserError, match=message) as caught:
        read_image(path)
    assert str(path) in str(caught.value)


def test_missing_image(tmp_path):
    with pytest.raises(UserError, match=r"none\.png: cannot be read"):
        read_image(tmp_path / "none.png")


@given(RGBA, st.tuples(*[st.sampled_from([0.0, 0.5, 1.0])] * 3))
def test_composite_is_the_definition_rounded(image, background):
    alpha = image[..., 3:] / 255.0
    exact = alpha * (image[..., :3] / 255.0) + (1 - alpha) * np.array(background)
    assert np.abs(composite(image, background, quantise=False) - exact).max() < 1e-6
    rounded = composite(image, background) * 255.0
    assert np.abs(rounded - np.rint(rounded)).max() < 1e-4
    assert np.abs(rounded - exact * 255.0).max() <= 0.5 + 1e-4
    floored = composite(image, background, truncate=True) * 255.0
    assert np.abs(floored - np.floor(exact * 255.0)).max() < 1e-3 + (exact * 255.0 % 1 > 1 - 1e-9).max()


def test_opaque_pixels_survive_every_way_of_compositing():
    image = np.zeros((1, 256, 4), np.uint8)
    image[0, :, :3] = np.arange(256)[:, None]
    image[..., 3] = 255
    for truncate in (False, True):
        got = composite(image, (1.0, 1.0, 1.0), truncate=truncate)
        assert np.array_equal(np.rint(got * 255), image[..., :3])


@given(RGBA)
def test_straight_undoes_premultiplied_where_alpha_says_anything(image):
    back = straight(premultiplied(image))
    seen = image[..., 3] > 0
    assert np.array_equal(back[..., 3], image[..., 3])
    assert np.array_equal(back[seen], image[seen])
    assert not back[~seen].any()


def test_resizing_ignores_colour_under_transparency():
    image = np.zeros((16, 16, 4), np.uint8)
    image[:, 8:] = (200, 100, 50, 255)
    hidden = image.copy()
    hidden[:, :8, :3] = 255
    assert np.array_equal(resized(image, 4, 4), resized(hidden, 4, 4))


def test_resizing_is_antialiased_and_keeps_constants():
    constant = np.full((12, 12, 3), 77, np.uint8)
    assert np.array_equal(resized(constant, 5, 4), np.full((4, 5, 3), 77))
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resized(stripes, 8, 8)[:, 2:-2].astype(int) - 127).max() <= 2


@pytest.mark.parametrize(
    ("size", "resolution", "expected"),
    [
        ((4946, 3286), 8, (618, 411)),
        ((4946, 3286), -1, (1600, 1063)),
        ((800, 800), -1, (800, 800)),
        ((800, 533), 4, (200, 133)),
        ((800, 600), 400, (400, 300)),
        ((3, 1), 8, (1, 1)),
    ],
)
def test_resolution_flag_is_that_of_3dgs(size, resolution, expected):
    assert working_size(*size, resolution) == expected


@pytest.mark.parametrize("resolution", [0, -2, 10_000])
def test_senseless_resolutions_are_refused(resolution):
    with pytest.raises(UserError, match="--resolution"):
        working_size(100, 100, resolution)


def some_store(tmp_path, n: int = 4, **kw) -> ImageStore:
    paths = {}
    for i in range(n):
        paths[f"v/{i}"] = tmp_path / f"{i}.png"
        write_png(paths[f"v/{i}"], picture(i, 20, 10))
    return ImageStore(paths, **kw)


def test_store_loads_on_both_backgrounds(tmp_path):
    store = some_store(tmp_path)
    image = picture(2, 20, 10)
    for background in ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)):
        got = store.load("v/2", background)
        assert got.shape == (3, 10, 20)
        assert got.dtype == torch.float32
        assert got.is_contiguous()
        assert np.array_equal(got.permute(1, 2, 0).numpy(), composite(image, background))
    assert store.has_alpha("v/2")
    assert store.size("v/2") == (20, 10)


def test_store_keeps_uint8_within_its_budget_and_forgets_the_oldest(tmp_path):
    store = some_store(tmp_path, budget_bytes=2 * 20 * 10 * 4)
    first = store.raw("v/0")
    store.raw("v/1")
    assert store.raw("v/0") is first  # used again: now the younger one
    store.raw("v/2")
    assert list(store._kept) == ["v/0", "v/2"]
    assert sum(image.nbytes for image in store._kept.values()) <= store.budget_bytes
    assert all(image.dtype == np.uint8 for image in store._kept.values())


def test_store_does_not_keep_what_is_larger_than_its_budget(tmp_path):
    store = some_store(tmp_path, budget_bytes=10)
    assert np.array_equal(store.raw("v/1"), store.raw("v/1"))
    assert not store._kept


def test_store_images_cannot_be_changed_by_accident(tmp_path):
    with pytest.raises(ValueError, match="read-only"):
        some_store(tmp_path).raw("v/0")[0, 0, 0] = 1


def test_store_resizes_to_the_asked_size(tmp_path):
    store = some_store(tmp_path, sizes={"v/1": (10, 5)})
    assert np.array_equal(store.raw("v/1"), resized(picture(1, 20, 10), 10, 5))
    assert store.load("v/0").shape == (3, 10, 20)


def test_unknown_view_lists_some(tmp_path):
    with pytest.raises(UserError, match=r"'x' is not in this scene; its views are v/0, v/1, v/2, \.\.\."):
        some_store(tmp_path).raw("x")
