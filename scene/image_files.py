"""PNG and JPEG files, read strictly: what is cut short, oversized, or would be converted in silence is refused.

Pillow decodes, but alone it is too kind: a PNG that claims 100 rows and holds 10 becomes 90 black rows without an
error. So headers are parsed here, and a PNG's inflated length is compared with its header before Pillow sees it.
"""

import io
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from utils import atomic
from utils.errors import UserError

MAX_PIXELS = 64 << 20
MAX_FILE_BYTES = 512 << 20
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_TAIL_BYTES = 4096  # some writers leave a few bytes behind the end marker
_PNG_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # colour type -> samples a pixel
_PNG_DEPTHS = {0: (1, 2, 4, 8), 2: (8,), 3: (1, 2, 4, 8), 4: (8,), 6: (8,)}
_ADAM7 = (
    (0, 0, 8, 8),
    (4, 0, 8, 8),
    (0, 4, 4, 8),
    (2, 0, 4, 4),
    (0, 2, 2, 4),
    (1, 0, 2, 2),
    (0, 1, 1, 2),
)  # x0 y0 dx dy
_INFLATE_BYTES = 1 << 20
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF})
_JPEG_CHANNELS = {1: 3, 3: 3}  # components -> channels after decoding; 4 is CMYK
# What Pillow raises on damaged files (measured by mutation): the decoders' own errors, not only OSError.
_PILLOW_ERRORS = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
_BOMBS = (Image.DecompressionBombError, Image.DecompressionBombWarning)


@dataclass(frozen=True)
class ImageHeader:
    """What the first bytes of an image file say: size in pixels and channels after decoding (3 or 4)."""

    width: int
    height: int
    channels: int


@dataclass(frozen=True)
class _PngLayout:
    width: int
    height: int
    bits_per_pixel: int
    interlaced: bool
    colour_type: int

    def inflated_bytes(self) -> int:
        """Length of the pixel data after inflation: each row one filter byte and its pixels, padded to whole bytes."""
        if not self.interlaced:
            return self.height * (1 + (self.width * self.bits_per_pixel + 7) // 8)
        total = 0
        for x0, y0, dx, dy in _ADAM7:
            columns, rows = -(-(self.width - x0) // dx), -(-(self.height - y0) // dy)
            if columns > 0 and rows > 0:
                total += rows * (1 + (columns * self.bits_per_pixel + 7) // 8)
        return total


def read_header(path: str | Path) -> ImageHeader:
    """Size and channels of a PNG or JPEG without decoding it.

    Raises
    ------
    UserError : missing, empty, not PNG or JPEG, 16 bits a sample, CMYK, no pixels, or more than 64 Mpx.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            start = file.read(33)
            if start.startswith(_PNG_SIGNATURE):
                return _png_header(path, file, start)
            if start.startswith(b"\xff\xd8"):
                return _jpeg_header(path, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    raise UserError(f"{path}: {'is empty' if not start else 'is neither PNG nor JPEG'}; only these two are read")


def read_image(path: str | Path) -> UInt8[np.ndarray, "H W C"]:
    """Decode a PNG or JPEG to uint8 [H, W, 3], or [H, W, 4] with straight alpha. Grey and palette files become colour.

    Raises
    ------
    UserError : as `read_header`, and when the pixel data are cut short or damaged.

    Notes
    -----
    EXIF orientation is ignored, as COLMAP and 3DGS do: the poses belong to the pixels as stored.
    """
    path = Path(path)
    header = read_header(path)
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise UserError(f"{path}: larger than {MAX_FILE_BYTES >> 20} MiB; no image needs that")
        data = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from error
    if data.startswith(_PNG_SIGNATURE):
        _check_png_data(path, data)
    try:
        with Image.open(io.BytesIO(data), formats=["PNG", "JPEG"]) as image:
            if image.size != (header.width, header.height):
                raise UserError(f"{path}: two headers of different size; the file is damaged")
            pixels = np.array(image.convert("RGBA" if header.channels == 4 else "RGB"))
    except _BOMBS as error:
        raise UserError(f"{path}: more pixels than its header says; the file is damaged") from error
    except _PILLOW_ERRORS as error:
        raise UserError(f"{path}: cannot be decoded, it is cut short or damaged ({error})") from error
    return pixels


def write_png(path: str | Path, image: UInt8[np.ndarray, "H W *C"], compress_level: int = 4) -> None:
    """Write uint8 [H, W, 3|4], or [H, W] in grey, as a PNG, atomically."""
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(image)).save(buffer, "PNG", compress_level=compress_level)
    atomic.write_bytes(path, buffer.getvalue())


def _check_size(path: Path, width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise UserError(f"{path}: says it is {width}x{height} px; an image needs at least one pixel")
    if width * height > MAX_PIXELS:
        raise UserError(f"{path}: {width}x{height} px is more than {MAX_PIXELS >> 20} Mpx; make it smaller first")


def _png_layout(path: Path, start: bytes) -> _PngLayout:
    if len(start) < 33 or start[8:16] != b"\0\0\0\x0dIHDR":
        raise UserError(f"{path}: PNG header cut short or damaged at byte 8")
    width, height, depth, colour, compression, filtering, interlace = struct.unpack(">IIBBBBB", start[16:29])
    if zlib.crc32(start[12:29]) != struct.unpack(">I", start[29:33])[0]:
        raise UserError(f"{path}: PNG header fails its checksum; the file is damaged")
    _check_size(path, width, height)
    if depth == 16:
        raise UserError(f"{path}: 16 bits a sample; convert it to 8 bits, so that the rounding is yours")
    if depth not in _PNG_DEPTHS.get(colour, ()) or compression or filtering or interlace > 1:
        raise UserError(f"{path}: PNG header with depth {depth}, colour type {colour} is not valid")
    return _PngLayout(width, height, depth * _PNG_SAMPLES[colour], interlace == 1, colour)


def _png_header(path: Path, file: io.BufferedReader, start: bytes) -> ImageHeader:
    layout = _png_layout(path, start)
    alpha = layout.colour_type in (4, 6)
    size, position = os.fstat(file.fileno()).st_size, len(start)
    while not alpha and layout.colour_type != 0 and position + 8 <= size:  # a key colour of a grey file is ignored
        file.seek(position)
        length, kind = struct.unpack(">I4s", file.read(8))
        if kind in (b"IDAT", b"IEND"):
            break
        alpha = kind == b"tRNS"
        position += 12 + length
    file.seek(max(0, size - PNG_TAIL_BYTES))
    if b"IEND" not in file.read():  # found here, before a long run meets it
        raise UserError(f"{path}: cut short at byte {size}: a PNG ends with an IEND chunk")
    return ImageHeader(layout.width, layout.height, 4 if alpha else 3)


def _check_png_data(path: Path, data: bytes) -> None:
    """Checksums of the chunks, the end marker, and that the pixel data inflate to exactly what the header says."""
    expected = _png_layout(path, data[:33]).inflated_bytes()
    inflater, inflated, position = zlib.decompressobj(), 0, 8
    view = memoryview(data)
    while True:
        if position + 12 > len(data):
            raise UserError(f"{path}: cut short at byte {len(data)}: a PNG ends with an IEND chunk")
        length, kind = struct.unpack(">I4s", view[position : position + 8])
        body = view[position + 8 : position + 8 + length]
        if position + 12 + length > len(data):
            raise UserError(f"{path}: cut short at byte {len(data)}: chunk {kind!r} needs {length} bytes")
        if zlib.crc32(view[position + 4 : position + 8 + length]) != int.from_bytes(
            view[position + 8 + length : position + 12 + length], "big"
        ):
            raise UserError(f"{path}: chunk {kind!r} at byte {position} fails its checksum; the file is damaged")
        if kind == b"IDAT":
            inflated = _inflate(path, inflater, body, inflated, expected)
        if kind == b"IEND":
            break
        position += 12 + length
    if inflated != expected or not inflater.eof:
        raise UserError(
            f"{path}: pixel data of {inflated} bytes, the header needs {expected}; it is cut short or damaged"
        )


def _inflate(path: Path, inflater: "zlib._Decompress", body: memoryview, inflated: int, expected: int) -> int:
    """Inflate one IDAT chunk piece by piece, counting and dropping the output; returns the new count."""
    pending: bytes | memoryview = body
    while pending and not inflater.eof:
        try:
            inflated += len(inflater.decompress(pending, _INFLATE_BYTES))
        except zlib.error as error:
            raise UserError(f"{path}: pixel data are damaged ({error})") from error
        if inflated > expected:
            raise UserError(f"{path}: more pixel data than the {expected} bytes of its header; the file is damaged")
        pending = inflater.unconsumed_tail
    return inflated


def _jpeg_header(path: Path, file: io.BufferedReader) -> ImageHeader:
    """Walk the segments to the frame header (SOFn); segment lengths only move forward, so the file bounds the walk."""
    size = os.fstat(file.fileno()).st_size
    position = 2
    while position + 4 <= size:
        file.seek(position)
        marker = file.read(4)
        if len(marker) < 4 or marker[0] != 0xFF:
            break
        if marker[1] == 0xFF:  # fill byte
            position += 1
            continue
        if marker[1] in _JPEG_FRAMES:
            frame = file.read(6)
            if len(frame) < 6:
                break
            depth, height, width, components = struct.unpack(">BHHB", frame)
            _check_size(path, width, height)
            if depth != 8 or components not in _JPEG_CHANNELS:
                raise UserError(f"{path}: JPEG with {components} components of {depth} bits; 8-bit grey or RGB is read")
            return ImageHeader(width, height, _JPEG_CHANNELS[components])
        if marker[1] in (0xD9, 0xDA):  # end of image, or scan without a frame header
            break
        position += 2 + struct.unpack(">H", marker[2:4])[0]
    raise UserError(
        f"{path}: JPEG without a frame header before byte {min(position, size)}; it is cut short or damaged"
    )
