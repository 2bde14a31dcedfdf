"""What stands on the table: every object of the demo scene as textured meshes.

World units, z up, everything inside [-1.2, 1.2]^3. Print, weave and wires are sized so that a 400 x 400 view shows
them (138 px per unit at the centre) and a 100 x 100 view loses them. Objects reach a little *into* what they stand
on: faces that coincide would flicker.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float

from examples.demo_scene import textures
from examples.demo_scene.meshes import Mesh, box, disc, lathe, merge, rotation, sheet, sphere, translation, tube
from examples.demo_scene.textures import Colour, Texture

TABLE_TOP = -0.36  # z of the table's surface; the scene is centred on the origin
Placement = Float[np.ndarray, "4 4"]


@dataclass(frozen=True, eq=False)
class Part:
    """One mesh with one material.

    Parameters
    ----------
    name : unique in the scene.
    mesh : the surface.
    texture : uint8 sRGB [H, W, 3], row 0 at v = 1.
    roughness : 0.25 (glossy) to 1; less would give fireflies.
    metallic : whether the surface mirrors in its own colour.
    """

    name: str
    mesh: Mesh
    texture: Texture
    roughness: float = 0.6
    metallic: bool = False


def place(x: float, y: float, turn_deg: float = 0.0, lift: float = 0.0) -> Placement:
    """Stand an object at (x, y) on the table, turned about z."""
    return translation(x, y, TABLE_TOP + lift) @ rotation("z", turn_deg)


def _moved(parts: list[Part], where: Placement) -> list[Part]:
    return [replace(part, mesh=part.mesh.moved(where)) for part in parts]


def _slab(name: str, size: tuple[float, float, float], centre: tuple[float, float, float], colour: Colour) -> Part:
    """A plain box."""
    return Part(name, merge(box(*size).values()).moved(translation(*centre)), textures.plain(colour))


def table() -> list[Part]:
    """A round table top of planks with a turned rim."""
    rim = lathe(
        [(0.0, -0.07), (1.10, -0.07), (1.16, -0.045), (1.17, -0.02), (1.16, 0.006), (1.13, 0.01), (1.12, -0.004)], 128
    )
    return [
        Part("table", disc(1.125, 128), textures.wood(2048, planks=9, seed=1), 0.55),
        Part("rim", rim, textures.wood(512, planks=1, seed=5, dark=(58, 34, 20), light=(112, 72, 44)), 0.5),
    ]


def cloth() -> list[Part]:
    """A tartan cloth with a fringe of threads at both short ends."""
    width, depth = 1.5, 0.92

    def surface(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        x, y = width * (u - 0.5), depth * (v - 0.5)
        return np.stack([x, y, 0.009 + 0.003 * np.sin(9 * x + 4 * y) + 0.002 * np.cos(13 * y - 5 * x)], -1)

    rng = np.random.default_rng(2)
    fringe = []
    for end in (-1, 1):
        for y in np.linspace(-0.49, 0.49, 46) * depth:
            reach = np.linspace(-0.01, 0.075, 5)
            sway = np.cumsum(rng.normal(0, 0.0035, 5))
            fringe.append(tube(np.stack([end * (width / 2 + reach), y + sway, np.full(5, 0.009)], -1), 0.0036, 6))
    return [
        Part("cloth", sheet(surface, 90, 60), textures.tartan(2048, threads=132), 0.95),
        Part("fringe", merge(fringe), textures.plain((236, 228, 208)), 0.95),
    ]


def book(name: str, size: tuple[float, float, float], title: list[str], paper: Colour, ink: Colour) -> list[Part]:
    """A book lying on its back, spine towards the reader (-y); its base is at z = 0."""
    width, depth, height = size
    board, inset = 0.012, 0.018
    lid = box(width, depth - board, board)
    lid_at = translation(0, board / 2, height - board / 2)
    back = box(width, board, height)
    back_at = translation(0, -depth / 2 + board / 2, height / 2)
    block = box(width - 2 * inset, depth - 2 * inset, height - 2 * board)
    block_sides = merge(block[side] for side in ("back", "left", "right"))
    edges = [lid[s].moved(lid_at) for s in ("back", "left", "right", "bottom")]
    edges += [back[s].moved(back_at) for s in ("back", "left", "right", "top", "bottom")]
    edges.append(merge(lid.values()).moved(translation(0, board / 2, board / 2)))
    return [
        Part(f"{name}_cover", lid["top"].moved(lid_at), textures.cover(title, paper, ink)),
        Part(f"{name}_spine", back["front"].moved(back_at), textures.spine(" ".join(title), paper, ink)),
        Part(f"{name}_boards", merge(edges), textures.plain(paper)),
        Part(f"{name}_pages", block_sides.moved(translation(0, 0, height / 2)), textures.page_edges(9), 0.9),
    ]


def books() -> list[Part]:
    """Three books in a stack, each turned a little."""
    shelf = [
        ("atlas", (0.62, 0.47, 0.10), ["ATLAS OF", "SMALL THINGS"], (22, 54, 92), (240, 220, 160), 8.0),
        ("threads", (0.55, 0.42, 0.085), ["THREADS", "& WIRES"], (128, 28, 34), (250, 238, 214), -7.0),
        ("letters", (0.47, 0.36, 0.09), ["LOST", "LETTERS"], (240, 232, 208), (30, 74, 58), 16.0),
    ]
    parts, height = [], 0.004
    for name, size, title, paper, ink, turn_deg in shelf:
        parts += _moved(book(name, size, title, paper, ink), translation(0, 0, height) @ rotation("z", turn_deg))
        height += size[2] + 0.002
    return parts


def sign() -> list[Part]:
    """An A-shaped stand: an eye chart on one side, a timetable on the other."""
    width, height, thick, tilt_deg = 0.66, 0.80, 0.022, 12.0
    foot = 0.5 * height * np.sin(np.deg2rad(tilt_deg)) + 0.02
    parts = []
    for name, image, turn_deg in (("chart", textures.eye_chart(), 0), ("hours", textures.timetable(), 180)):
        upright = rotation("z", turn_deg) @ translation(0, -foot, 0.5 * height * np.cos(np.deg2rad(tilt_deg)))
        sides = box(width, thick, height)
        face = sides.pop("front").moved(upright @ rotation("x", -tilt_deg))
        rest = merge(sides.values()).moved(upright @ rotation("x", -tilt_deg))
        parts += [Part(name, face, image), Part(f"{name}_board", rest, textures.plain((132, 90, 54)))]
    return parts


def blocks() -> list[Part]:
    """Toy blocks with a letter on every side."""
    size = 0.17
    red, blue, green, orange = (186, 34, 40), (30, 74, 150), (34, 116, 62), (206, 110, 22)
    layout = [
        ("SPL", red, (-0.20, 0.0, 0.0), 10.0),
        ("PLA", blue, (0.0, 0.02, 0.0), -6.0),
        ("LAT", green, (0.20, -0.01, 0.0), 14.0),
        ("ATS", orange, (-0.09, 0.01, size + 0.001), -12.0),
        ("TSP", blue, (0.11, 0.0, size + 0.001), 6.0),
    ]
    parts = []
    for number, (letters, colour, (x, y, z), turn_deg) in enumerate(layout):
        where = translation(x, y, z + size / 2) @ rotation("z", turn_deg)
        sides = box(size, size, size)
        for letter, names in zip(letters, (("front", "back"), ("left", "right"), ("top", "bottom")), strict=True):
            mesh = merge(sides[side] for side in names).moved(where)
            parts.append(Part(f"block{number}_{names[0]}", mesh, textures.letter_block(letter, colour)))
    return parts


def magazine() -> list[Part]:
    """An open magazine whose pages bulge."""

    def surface(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        bulge = 0.016 + 0.03 * np.abs(np.sin(2 * np.pi * u)) ** 0.8 * (1 - 0.4 * np.abs(2 * u - 1))
        return np.stack([0.69 * (u - 0.5), 0.46 * (v - 0.5), bulge], -1)

    under = _slab("magazine_back", (0.685, 0.455, 0.02), (0, 0, 0.006), (206, 200, 186))
    return [Part("magazine", sheet(surface, 61, 3), textures.magazine(), 0.7), under]


def clock() -> list[Part]:
    """A desk clock, its face towards -y and leaning back."""
    radius, thick = 0.185, 0.07
    case = lathe(
        [
            (0, 0),
            (radius, 0),
            (radius + 0.008, thick / 2),
            (radius, thick),
            (radius - 0.02, thick),
            (radius - 0.024, thick - 0.016),
        ],
        72,
    )
    face = disc(radius - 0.02, 72).moved(translation(0, 0, thick - 0.012))
    upright = translation(0, 0.03, radius + 0.025) @ rotation("x", 82)
    foot = _slab("clock_foot", (0.2, 0.13, 0.036), (0, 0, 0.016), (60, 42, 30))
    brass = textures.plain((198, 158, 84))
    return [
        Part("clock_case", case.moved(upright), brass, 0.4, True),
        Part("clock_face", face.moved(upright), textures.dial()),
        foot,
    ]


def globe() -> list[Part]:
    """A globe on its stand, the axis tilted as the earth's."""
    radius, centre, tilt_deg = 0.26, 0.46, 23.4
    angle = np.deg2rad(np.linspace(-100, 100, 64))
    arc = (radius + 0.03) * np.stack([np.sin(angle), 0 * angle, -np.cos(angle)], -1)
    pins = [np.array([[0, 0, s * (radius - 0.01)], [0, 0, s * (radius + 0.035)]]) for s in (-1.0, 1.0)]
    tilt = translation(0, 0, centre) @ rotation("y", tilt_deg)
    ring = merge([tube(arc @ rotation("y", 90)[:3, :3].T, 0.012, 10), *(tube(pin, 0.008, 8) for pin in pins)])
    stand = [(0, -0.004), (0.19, -0.004), (0.19, 0.02), (0.07, 0.045), (0.03, 0.08), (0.024, 0.185), (0, 0.185)]
    return [
        Part("globe", sphere(radius, 96).moved(tilt), textures.globe_map(), 0.45),
        Part("globe_ring", ring.moved(tilt), textures.plain((200, 164, 86)), 0.4, True),
        Part("globe_stand", lathe(stand, 64), textures.wood(512, planks=1, seed=8), 0.5),
    ]


def basket() -> list[Part]:
    """A basket of crossing wires and hoops, with fruit in it: the thin structure of the scene."""
    low, high, height = 0.19, 0.29, 0.27
    rise = np.linspace(0, 1, 12)
    wires = []
    for twist in (-0.55, 0.55):
        for start in np.linspace(0, 2 * np.pi, 26, endpoint=False):
            radius, angle = low + (high - low) * rise, start + twist * rise
            path = np.stack([radius * np.cos(angle), radius * np.sin(angle), 0.01 + height * rise], -1)
            wires.append(tube(path, 0.0055, 6))
    turn = np.linspace(0, 2 * np.pi, 72, endpoint=False)
    for level in (0.0, 0.36, 0.7, 1.0):
        reach = low + (high - low) * level
        hoop = np.stack([reach * np.cos(turn), reach * np.sin(turn), np.full(72, 0.01 + height * level)], -1)
        wires.append(tube(hoop, 0.009, 8, loop=True))
    fruit = [
        ((-0.08, 0.05, 0.11), 0.10, (232, 120, 26)),
        ((0.09, -0.04, 0.115), 0.105, (190, 34, 38)),
        ((0.05, 0.10, 0.24), 0.085, (228, 196, 44)),
        ((-0.06, -0.10, 0.20), 0.085, (116, 168, 60)),
    ]
    parts = [Part("basket", merge(wires), textures.plain((70, 74, 82)), 0.45, True)]
    for number, (centre, size, colour) in enumerate(fruit):
        mesh = sphere(size, 40).moved(translation(*centre) @ rotation("x", 40.0 * number))
        parts.append(Part(f"fruit{number}", mesh, textures.peel(colour, 20 + 2 * number), 0.5))
    return parts


def wheel() -> list[Part]:
    """A spoked wheel upright in the xz plane on two feet."""
    radius, height = 0.33, 0.37
    turn = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    circle = np.stack([np.cos(turn), 0 * turn, np.sin(turn)], -1)
    spokes = []
    for k in range(28):
        rim_angle = 2 * np.pi * k / 28
        hub_angle = rim_angle + (0.9 if k % 2 else -0.9)
        hub_side = 0.035 if k % 4 < 2 else -0.035
        start = np.array([0.035 * np.cos(hub_angle), hub_side, 0.035 * np.sin(hub_angle)])
        end = 0.95 * radius * np.array([np.cos(rim_angle), 0, np.sin(rim_angle)])
        spokes.append(tube(np.linspace(start, end, 3), 0.0042, 6))
    hub = tube(np.array([[0, -0.06, 0], [0, 0, 0], [0, 0.06, 0]]), 0.03, 20)
    centre = translation(0, 0, height)
    steel = merge([tube(0.95 * radius * circle, 0.011, 8, loop=True), hub, *spokes]).moved(centre)
    feet = merge(
        tube(np.array([[0, 0.055 * s, height], [0.14 * t, 0.16 * s, 0.0]]), 0.01, 8) for s in (-1, 1) for t in (-1, 1)
    )
    return [
        Part("tyre", tube(radius * circle, 0.024, 14, loop=True).moved(centre), textures.plain((38, 38, 40)), 0.85),
        Part("spokes", steel, textures.plain((206, 208, 212)), 0.4, True),
        Part("wheel_feet", feet, textures.plain((160, 40, 36)), 0.5),
    ]


def plant() -> list[Part]:
    """Long thin leaves in a painted pot."""
    rng = np.random.default_rng(3)
    leaves = []
    for _ in range(42):
        azimuth, climb = rng.uniform(0, 2 * np.pi), rng.uniform(0.75, 1.4)
        length, half_width = rng.uniform(0.28, 0.55), rng.uniform(0.013, 0.024)
        leaves.append(sheet(_leaf(azimuth, climb, length, half_width), 5, 20).moved(translation(0, 0, 0.22)))
    wall = [
        (0, -0.004),
        (0.10, -0.004),
        (0.125, 0.06),
        (0.14, 0.16),
        (0.13, 0.23),
        (0.148, 0.25),
        (0.13, 0.25),
        (0.12, 0.21),
        (0, 0.21),
    ]
    return [
        Part("pot", lathe(wall, 72), textures.ceramic_band(), 0.45),
        Part("leaves", merge(leaves), textures.leaf(31), 0.7),
    ]


def _leaf(azimuth: float, climb: float, length: float, half_width: float) -> Callable[..., np.ndarray]:
    """A blade that rises at `climb` radians and bends over under its weight."""
    outward = np.array([np.cos(azimuth), np.sin(azimuth), 0.0])
    across = np.array([-np.sin(azimuth), np.cos(azimuth), 0.0])

    def surface(u: np.ndarray, v: np.ndarray) -> np.ndarray:
        s = length * v
        out = s * np.cos(climb) + 0.5 * s**2
        up = s * np.sin(climb) - 0.9 * s**2
        width = (2 * u - 1) * half_width * np.sin(np.pi * np.clip(v, 0.03, 0.99)) ** 0.6
        fold = 0.3 * np.abs(width)
        return out[..., None] * outward + width[..., None] * across + (up + fold)[..., None] * [0.0, 0.0, 1.0]

    return surface


def chess() -> list[Part]:
    """A chess board with a few pawns."""
    size, high = 0.42, 0.045
    sides = box(size, size, high)
    at = translation(0, 0, high / 2)
    top = sides.pop("top").moved(at)
    parts = [
        Part("board", top, textures.checker(8, 512, (232, 214, 176), (86, 48, 30))),
        Part("board_sides", merge(sides.values()).moved(at), textures.plain((70, 40, 26))),
    ]
    profile = [(0, 0), (0.02, 0), (0.02, 0.008), (0.009, 0.02), (0.007, 0.042), (0.014, 0.046), (0.007, 0.05)]
    profile += [(0.0155 * np.sin(a), 0.063 - 0.0155 * np.cos(a)) for a in np.linspace(0.6, np.pi, 7)]
    profile[-1] = (0.0, profile[-1][1])
    for side, colour, squares in (
        ("white", (236, 230, 214), ((0, 1), (2, 1), (3, 3), (5, 1), (6, 2))),
        ("black", (36, 32, 34), ((1, 6), (3, 4), (4, 6), (6, 5), (7, 6))),
    ):
        pawns = [
            lathe(profile, 20).moved(translation((x - 3.5) * size / 8, (y - 3.5) * size / 8, high - 0.001))
            for x, y in squares
        ]
        parts.append(Part(f"{side}_pawns", merge(pawns), textures.plain(colour), 0.5))
    return parts


def build() -> list[Part]:
    """The whole scene, names unique, inside [-1.2, 1.2]^3."""
    layout = [
        (table(), place(0, 0)),
        (cloth(), place(0.02, -0.06, 18)),
        (sign(), place(0.02, 0.36, -10)),
        (books(), place(-0.66, 0.0, 6)),
        (blocks(), place(-0.02, -0.13, 8)),
        (magazine(), place(-0.10, -0.66, 10)),
        (clock(), place(-0.74, -0.52, -52)),
        (globe(), place(0.68, 0.30, 20)),
        (basket(), place(0.62, -0.44)),
        (wheel(), place(-0.58, 0.60, 38)),
        (plant(), place(0.50, 0.78)),
        (chess(), place(-0.06, 0.82, 4)),
    ]
    return [part for parts, where in layout for part in _moved(parts, where)]
