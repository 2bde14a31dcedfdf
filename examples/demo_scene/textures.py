"""Procedural textures of the demo scene: print, weave, wood, maps. No asset files; letters are Pillow's own font.

Every function returns uint8 sRGB [H, W, 3], row 0 at the top, and is a pure function of its arguments.
Sizes are chosen so that one pixel of a 400 x 400 view covers four to ten texels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Texture = UInt8[np.ndarray, "H W 3"]

INK: Colour = (28, 26, 30)
PAPER: Colour = (244, 240, 228)
PROSE = (
    "a frame remembers its neighbours and a letter that one view has lost may still stand in the next so we walk "
    "from view to view by the shortest way and carry along every thread rivet leaf and comma until the page can be "
    "read again 0123456789 seven wires five spokes and a woven hem were counted on the table before noon"
)
TOWNS = "Arlen Boro Cavi Dunes Elba Faro Gant Hollis Isen Jura Kepa Lorn Mira Nauta Orso Pella Quill Rhone Sava"
NAMES = TOWNS.split()


def plain(colour: Colour) -> Texture:
    """One colour."""
    return np.full((4, 4, 3), colour, np.uint8)


def noise(height: int, width: int, cells: Sequence[tuple[int, int]], seed: int) -> Float[np.ndarray, "H W"]:
    """Smooth noise in 0..1: a sum of random grids of (rows, columns) cells, each half as strong as the last."""
    rng = np.random.default_rng(seed)
    total = np.zeros((height, width))
    for octave, (rows, columns) in enumerate(cells):
        grid = Image.fromarray(rng.random((rows, columns)).astype(np.float32))
        total += 0.5**octave * np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC))
    total -= total.min()
    return total / total.max()


def blend(first: Colour, second: Colour, amount: Float[np.ndarray, "H W"]) -> Texture:
    """Mix two colours, amount 0 (first) to 1 (second)."""
    mix = np.clip(amount, 0, 1)[..., None]
    return (np.asarray(first) * (1 - mix) + np.asarray(second) * mix + 0.5).astype(np.uint8)


def wood(size: int, planks: int, seed: int, dark: Colour = (96, 58, 30), light: Colour = (184, 128, 76)) -> Texture:
    """Planks side by side along x, each with its own rings, fibres and a dark joint."""
    y, x = np.mgrid[0:size, 0:size] / size
    plank = np.floor(y * planks)
    warp = noise(size, size, [(3 * planks, 4), (6 * planks, 8)], seed)
    rings = 0.5 + 0.5 * np.sin(2 * np.pi * (7 * planks * y + 3.0 * warp + 0.37 * plank + 0.6 * x))
    fibres = noise(size, size, [(size // 2, 24), (size, 60)], seed + 1)
    tone = 0.16 * np.sin(7.1 * plank + seed)
    image = blend(dark, light, 0.45 * rings + 0.45 * fibres + 0.08 + tone)
    joint = np.abs(y * planks - np.round(y * planks)) < 0.02
    image[joint & (y > 1 / size)] = np.asarray(dark) // 2
    return image


def tartan(size: int, threads: int) -> Texture:
    """A 2/2 twill weave in a tartan sett; each thread is shaded round, so that the weave shows close by."""
    position = np.arange(size) / size * threads
    across, along = np.meshgrid(position, position)
    palette = np.array([(146, 30, 40), (238, 230, 210), (28, 54, 92), (34, 92, 66)], float)
    sett = np.array([0] * 9 + [1] * 2 + [2] * 6 + [1] * 2 + [0] * 9 + [3] * 3 + [1] + [3] * 3)
    warp, weft = (palette[sett[axis.astype(int) % len(sett)]] for axis in (across, along))
    warp_on_top = (across.astype(int) + along.astype(int)) % 4 < 2
    round_warp, round_weft = (np.sqrt(np.clip(1 - (2 * (axis % 1) - 1) ** 2, 0, 1)) for axis in (across, along))
    shade = np.where(warp_on_top, round_warp, round_weft)
    colour = np.where(warp_on_top[..., None], warp, weft)
    return (colour * (0.45 + 0.55 * shade[..., None])).astype(np.uint8)


def _font(size: float) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _canvas(width: int, height: int, paper: Colour) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (width, height), paper)
    return image, ImageDraw.Draw(image)


def _column(draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], size: int, ink: Colour, skip: int = 0) -> None:
    """Fill the box (left, top, right, bottom) with prose, starting at word `skip`."""
    left, top, right, bottom = box
    words = PROSE.split()
    font, word, y = _font(size), skip, top
    while y + size <= bottom:
        line = words[word % len(words)]
        while draw.textlength(f"{line} {words[(word + 1) % len(words)]}", font=font) <= right - left:
            word += 1
            line += " " + words[word % len(words)]
        word += 1
        draw.text((left, y), line, fill=ink, font=font)
        y += round(1.3 * size)


def cover(title: Sequence[str], paper: Colour, ink: Colour, width: int = 1024, height: int = 768) -> Texture:
    """A book cover: double frame, title in large letters, four lines of small print."""
    image, draw = _canvas(width, height, paper)
    for inset, line in ((28, 10), (52, 4)):
        draw.rectangle((inset, inset, width - inset, height - inset), outline=ink, width=line)
    size = 0.62 * (height - 330) / len(title)
    size = min(size, 0.8 * size * (width - 180) / max(draw.textlength(t, font=_font(0.8 * size)) for t in title))
    for row, text in enumerate(title):
        draw.text((width / 2, 110 + 1.25 * size * (row + 0.5)), text, fill=ink, font=_font(size), anchor="mm")
    _column(draw, (110, height - 230, width - 100, height - 70), 32, ink, skip=3 * len(title[0]))
    return np.asarray(image)


def spine(text: str, paper: Colour, ink: Colour) -> Texture:
    """The back of a book, 8 : 1."""
    image, draw = _canvas(1024, 128, paper)
    draw.text((512, 64), text, fill=ink, font=_font(88), anchor="mm")
    for x in (24, 44, 974, 994):
        draw.line((x, 0, x, 128), fill=ink, width=6)
    return np.asarray(image)


def page_edges(seed: int) -> Texture:
    """The cut edge of a book block: many thin horizontal sheets."""
    rng = np.random.default_rng(seed)
    rows = 190 + 50 * rng.random(96) - 60 * (np.arange(96) % 6 == 0)
    return (np.broadcast_to(rows[:, None, None], (96, 64, 3)) * [1.0, 0.96, 0.86]).astype(np.uint8)


def magazine() -> Texture:
    """An open double page: headline, three columns of print, a framed bar chart, a ruled table."""
    image, draw = _canvas(1536, 1024, PAPER)
    draw.line((768, 0, 768, 1024), fill=(196, 190, 176), width=10)
    draw.text((60, 50), "FINE PRINT", fill=(150, 24, 32), font=_font(112))
    draw.line((60, 190, 710, 190), fill=INK, width=8)
    _column(draw, (60, 220, 370, 980), 30, INK)
    _column(draw, (410, 220, 720, 600), 30, INK, skip=21)
    draw.rectangle((410, 630, 720, 970), outline=INK, width=6)
    for bar, height in enumerate((90, 150, 120, 210, 260, 180, 290)):
        colour = ((28, 84, 140), (206, 120, 30), (60, 120, 66))[bar % 3]
        draw.rectangle((430 + 40 * bar, 960 - height, 460 + 40 * bar, 960), fill=colour)
    draw.text((830, 50), "No. 27", fill=INK, font=_font(112))
    for row in range(11):
        y = 210 + 68 * row
        draw.line((830, y, 1480, y), fill=(120, 112, 100), width=3)
        draw.text((840, y + 8), NAMES[row], fill=INK, font=_font(46))
        draw.text(
            (1470, y + 8), f"{(37 * row + 11) % 100:02d}.{(53 * row) % 10}", fill=INK, font=_font(46), anchor="ra"
        )
    return np.asarray(image)


def eye_chart() -> Texture:
    """Lines of capitals from large to tiny above a fan of black wedges: what resolution means."""
    image, draw = _canvas(1000, 1200, (246, 246, 244))
    draw.rectangle((14, 14, 985, 1185), outline=INK, width=12)
    y = 50
    for text, size in (
        ("E", 190),
        ("F P", 140),
        ("T O Z", 104),
        ("L P E D", 78),
        ("P E C F D", 58),
        ("E D F C Z P", 44),
    ):
        draw.text((500, y), text, fill=INK, font=_font(size), anchor="ma")
        y += round(1.08 * size)
    angles = np.linspace(180, 360, 61)
    for left, right in zip(angles[::2], angles[1::2], strict=False):
        draw.pieslice((190, 800, 810, 1420), left, right, fill=INK)
    draw.rectangle((26, 1112, 973, 1174), fill=(246, 246, 244))
    draw.text((500, 1116), "0 1 2 3 4 5 6 7 8 9", fill=INK, font=_font(50), anchor="ma")
    return np.asarray(image)


def timetable() -> Texture:
    """White on blue: places and hours in two sizes."""
    paper, ink = (24, 62, 116), (242, 242, 236)
    image, draw = _canvas(1000, 1200, paper)
    draw.rectangle((14, 14, 985, 1185), outline=ink, width=12)
    draw.text((500, 44), "DEPARTURES", fill=(250, 214, 92), font=_font(138), anchor="ma")
    for row in range(11):
        y = 222 + 86 * row
        draw.line((40, y - 6, 960, y - 6), fill=(110, 140, 180), width=4)
        draw.text((56, y), NAMES[row + 4], fill=ink, font=_font(66))
        draw.text((944, y), f"{6 + row:02d}:{(17 * row + 5) % 60:02d}", fill=ink, font=_font(66), anchor="ra")
    return np.asarray(image)


def letter_block(letter: str, colour: Colour) -> Texture:
    """One side of a toy block: a frame and a capital."""
    image, draw = _canvas(256, 256, (240, 226, 196))
    draw.rectangle((10, 10, 245, 245), outline=colour, width=20)
    draw.rectangle((40, 40, 215, 215), outline=colour, width=4)
    draw.text((128, 132), letter, fill=colour, font=_font(170), anchor="mm", stroke_width=5, stroke_fill=colour)
    return np.asarray(image)


def globe_map() -> Texture:
    """Land and sea with a 15 degree graticule, its figures, and the names of towns."""
    width, height = 2048, 1024
    relief = noise(height, width // 2, [(4, 5), (9, 10), (18, 20), (40, 44)], 11)
    relief = np.concatenate([relief, relief[:, ::-1]], axis=1)  # mirrored, so that it closes at the date line
    land = blend((84, 134, 66), (214, 188, 128), 4.5 * (relief - 0.5))
    image = Image.fromarray(
        np.where((relief > 0.5)[..., None], land, blend((22, 70, 124), (60, 134, 182), relief / 0.5))
    )
    draw = ImageDraw.Draw(image)
    for k in range(24):
        x = k * width // 24
        draw.line((x, 0, x, height), fill=(238, 238, 230), width=4)
        draw.text((x + 8, height // 2 + 6), str(15 * k), fill=(255, 250, 226), font=_font(40))
    for k in range(1, 12):
        draw.line((0, k * height // 12, width, k * height // 12), fill=(238, 238, 230), width=4)
    rng = np.random.default_rng(5)
    for k in range(48):
        x, y = (k % 8) * 256 + int(rng.integers(10, 120)), 170 + (k // 8) * 120 + int(rng.integers(0, 60))
        draw.ellipse((x - 8, y - 8, x + 8, y + 8), fill=(190, 24, 24))
        draw.text((x + 12, y - 26), NAMES[k % len(NAMES)], fill=INK, font=_font(44))
    return np.asarray(image)


def checker(squares: int, size: int, light: Colour, dark: Colour) -> Texture:
    """A chess board."""
    cell = np.arange(size) * squares // size
    return np.where(((cell[:, None] + cell[None]) % 2 == 0)[..., None], dark, light).astype(np.uint8)


def ceramic_band() -> Texture:
    """Painted pottery, wrapped round: zigzags, diamonds and dots between lines."""
    image, draw = _canvas(1536, 512, (226, 218, 200))
    blue, red = (34, 70, 136), (158, 52, 38)
    for y in (60, 84, 428, 452):
        draw.line((0, y, 1536, y), fill=blue, width=8)
    for k in range(24):
        x = 64 * k
        draw.polygon([(x, 176), (x + 32, 104), (x + 64, 176)], fill=blue)
        draw.polygon([(x, 336), (x + 32, 408), (x + 64, 336)], fill=blue)
        draw.polygon([(x + 4, 256), (x + 32, 200), (x + 60, 256), (x + 32, 312)], outline=red, width=9)
        draw.ellipse((x + 24, 248, x + 40, 264), fill=red)
    return np.asarray(image)


def dial() -> Texture:
    """A clock face: minute marks, numerals, hands at ten past ten."""
    image, draw = _canvas(1024, 1024, (248, 246, 238))
    centre = np.array([512.0, 512.0])

    def at(angle_deg: float, radius: float) -> tuple[float, float]:
        angle = np.deg2rad(angle_deg)
        x, y = centre + radius * np.array([np.sin(angle), -np.cos(angle)])
        return float(x), float(y)

    for minute in range(60):
        inner, line = (430, 14) if minute % 5 == 0 else (456, 6)
        draw.line((*at(6 * minute, inner), *at(6 * minute, 490)), fill=INK, width=line)
    for hour in range(1, 13):
        draw.text(at(30 * hour, 358), str(hour), fill=INK, font=_font(124), anchor="mm")
    for angle, length, line in ((305.0, 230.0, 34), (60.0, 330.0, 22)):
        draw.line((*at(angle + 180, 60), *at(angle, length)), fill=(140, 20, 28), width=line)
    draw.ellipse((482, 482, 542, 542), fill=INK)
    return np.asarray(image)


def leaf(seed: int) -> Texture:
    """A leaf blade along y: light midrib, side veins, mottled green."""
    y, x = np.mgrid[0:256, 0:64] / np.array([256, 64]).reshape(2, 1, 1)
    image = blend((30, 84, 34), (104, 160, 62), noise(256, 64, [(8, 3), (40, 10)], seed)).astype(float)
    veins = np.sin(2 * np.pi * (14 * y + 3 * np.abs(x - 0.5))) > 0.86
    image[veins] += 26
    image[np.abs(x - 0.5) < 0.06] = (168, 204, 122)
    return np.clip(image, 0, 255).astype(np.uint8)


def peel(colour: Colour, seed: int) -> Texture:
    """Fruit skin: pores on a slowly changing tone."""
    amount = 0.6 * noise(256, 512, [(4, 8), (90, 180)], seed) + 0.4 * noise(256, 512, [(120, 240)], seed + 1)
    dark = (colour[0] * 6 // 10, colour[1] * 6 // 10, colour[2] * 6 // 10)
    return blend(dark, colour, 1.6 * amount - 0.2)
