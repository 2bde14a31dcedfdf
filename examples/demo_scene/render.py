"""Path tracing of the demo scene with mitsuba 3 (requirements-demo.txt): RGBA pictures and exact z-depth.

`scalar_rgb` needs nothing but the wheel. `llvm_ad_rgb` is about twice as fast, but a libLLVM that it does not like
*aborts the process* instead of raising, so it is tried in a child process first (`usable_variant`).
"""

from __future__ import annotations

import glob
import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Float32, UInt8

from examples.demo_scene import meshes
from examples.demo_scene.poses import CAMERA_ANGLE_X
from examples.demo_scene.scene import Part, build
from utils.errors import UserError

NEAR, FAR = 0.1, 50.0
MATT = 0.6  # parts at least this rough reflect without gloss, which costs a fifth less time
PROBE = """
import mitsuba as mi
mi.set_variant("llvm_ad_rgb")
box = mi.load_dict({"type": "scene", "integrator": {"type": "path"}, "light": {"type": "constant"},
    "box": {"type": "cube", "bsdf": {"type": "principled"}},
    "sensor": {"type": "perspective", "to_world": mi.ScalarTransform4f().look_at([0, 0, 5], [0, 0, 0], [0, 1, 0]),
               "film": {"type": "hdrfilm", "width": 16, "height": 16}}})
assert float(mi.TensorXf(mi.render(box, spp=1)).array[0]) > 0
"""


class View(NamedTuple):
    """One rendered view.

    rgba : uint8 [H, W, 4], sRGB, straight alpha.
    depth : float32 [H, W], distance along the optical axis at the pixel's centre, world units, 0 = background.
    """

    rgba: UInt8[np.ndarray, "H W 4"]
    depth: Float32[np.ndarray, "H W"]


@dataclass(frozen=True)
class RenderSettings:
    """What the pictures depend on beside the scene and the poses.

    Parameters
    ----------
    size : side of the square picture, pixels.
    samples : light paths a pixel (a multijitter grid).
    bounces : longest light path, in segments.
    seed : of the samples; view k uses seed + k.
    """

    size: int = 400
    samples: int = 36
    bounces: int = 3
    seed: int = 0


def usable_variant() -> str:
    """The fastest mitsuba variant that works here, found without risk to this process.

    Returns
    -------
    "llvm_ad_rgb", with DRJIT_LIBLLVM_PATH set to the library that worked, or "scalar_rgb".

    Raises
    ------
    UserError : mitsuba is not installed.
    """
    if importlib.util.find_spec("mitsuba") is None:
        raise UserError(
            "the demo scene is rendered with mitsuba: pip install -r requirements-demo.txt (`make demo` does it)"
        )
    for library in _llvm_libraries():
        env = os.environ | ({"DRJIT_LIBLLVM_PATH": library} if library else {})
        try:
            done = subprocess.run([sys.executable, "-c", PROBE], env=env, capture_output=True, timeout=60, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0:
            os.environ.update(env)
            return "llvm_ad_rgb"
    return "scalar_rgb"


def _llvm_libraries() -> list[str]:
    """Candidates for libLLVM, newest first, at most three; "" = where drjit looks by itself."""
    if "DRJIT_LIBLLVM_PATH" in os.environ:
        return [os.environ["DRJIT_LIBLLVM_PATH"]]
    found = glob.glob("/usr/lib/*-linux-gnu/libLLVM*.so*") + glob.glob("/usr/lib/llvm-*/lib/libLLVM*.so*")
    by_version: dict[int, str] = {}
    for path in sorted(found):
        digits = "".join(c if c.isdigit() else " " for c in os.path.basename(path)).split()
        if digits and digits[0] != "1":
            by_version.setdefault(int(digits[0]), path)
    return [by_version[v] for v in sorted(by_version, reverse=True)][:3]


class Renderer:
    """The scene loaded into mitsuba, ready to be seen from any pose."""

    def __init__(self, settings: RenderSettings, variant: str | None = None) -> None:
        self.variant = variant or usable_variant()
        import mitsuba  # optional and heavy: only here

        mitsuba.set_variant(self.variant)
        self.mi: Any = mitsuba
        self.settings = settings
        self.scene = self.mi.load_dict(_lights(self.mi) | {p.name: _shape(self.mi, p) for p in build()})
        path = {"type": "path", "max_depth": settings.bounces, "hide_emitters": True}
        self.path = self.mi.load_dict(path)
        self.range = self.mi.load_dict({"type": "depth"})  # the aov integrator gives the same bits 70 times slower

    def __call__(self, camera_to_world: Float[np.ndarray, "4 4"], number: int) -> View:
        """See the scene from an OpenGL camera-to-world pose; `number` selects the samples."""
        size, spp = self.settings.size, self.settings.samples
        seed = self.settings.seed + number
        sensor = self._sensor(camera_to_world, "multijitter", "gaussian", "rgba", spp)
        colour = np.asarray(self.mi.render(self.scene, sensor=sensor, integrator=self.path, spp=spp, seed=seed))
        sensor = self._sensor(camera_to_world, "stratified", "box", "rgb", 1)
        ranges = np.asarray(self.mi.render(self.scene, sensor=sensor, integrator=self.range, spp=1))
        return View(to_srgb(colour), axial_depth(ranges[..., 0], size))

    def _sensor(self, pose: np.ndarray, sampler: str, rfilter: str, pixels: str, spp: int) -> Any:
        to_world = pose.copy()
        to_world[:, [0, 2]] *= -1  # OpenGL to mitsuba, which looks along +z with x to the left
        samples: dict[str, Any] = {"type": sampler, "sample_count": spp}
        if sampler == "stratified":
            samples["jitter"] = False  # one ray through the centre of the pixel
        film = {"type": "hdrfilm", "width": self.settings.size, "height": self.settings.size, "pixel_format": pixels}
        film |= {"component_format": "float32", "rfilter": {"type": rfilter}}
        if rfilter == "gaussian":
            film["rfilter"] = {"type": rfilter, "stddev": 0.45}
        return self.mi.load_dict(
            {
                "type": "perspective",
                "fov": math.degrees(CAMERA_ANGLE_X),
                "fov_axis": "x",
                "near_clip": NEAR,
                "far_clip": FAR,
                "to_world": self.mi.ScalarTransform4f(to_world),
                "film": film,
                "sampler": samples,
            }
        )


def _lights(mi: Any) -> dict[str, Any]:
    """A soft sky from everywhere and a warm lamp that casts soft shadows."""
    lamp = mi.ScalarTransform4f().look_at(origin=[2.6, -3.6, 5.2], target=[0, 0, 0], up=[0, 0, 1]).scale(0.8)
    return {
        "type": "scene",
        "sky": {"type": "constant", "radiance": {"type": "rgb", "value": [0.56, 0.60, 0.66]}},
        "lamp": {
            "type": "rectangle",
            "to_world": lamp,
            "emitter": {"type": "area", "radiance": {"type": "rgb", "value": [35.0, 32.6, 28.2]}},
        },
    }


def _shape(mi: Any, part: Part) -> Any:
    """A mitsuba mesh with its own material; corners are not shared, so that creases can be sharp."""
    bitmap = mi.Bitmap(np.array(part.texture, order="C"))  # a copy: it must be writable
    colour = {"type": "bitmap", "bitmap": bitmap, "raw": False, "filter_type": "bilinear"}
    if part.roughness >= MATT:
        material: dict[str, Any] = {"type": "diffuse", "reflectance": colour}
    else:
        material = {"type": "principled", "base_color": colour, "roughness": part.roughness}
        material |= {"metallic": 0.7} if part.metallic else {"specular": 0.2}
    properties = mi.Properties()
    properties["mesh_bsdf"] = mi.load_dict({"type": "twosided", "bsdf": material})
    corners = part.mesh.faces.reshape(-1)
    shape = mi.Mesh(part.name, len(corners), len(corners) // 3, properties, True, True)
    uv = part.mesh.uv[corners] * [1.0, -1.0] + [0.0, 1.0]  # mitsuba: row 0 of a bitmap is v = 0
    fields = mi.traverse(shape)
    fields["vertex_positions"] = part.mesh.vertices[corners].astype(np.float32).ravel()
    fields["vertex_normals"] = meshes.corner_normals(part.mesh).astype(np.float32).ravel()
    fields["vertex_texcoords"] = uv.astype(np.float32).ravel()
    fields["faces"] = np.arange(len(corners), dtype=np.uint32)
    fields.update()
    return shape


def to_srgb(colour: Float[np.ndarray, "H W 4"]) -> UInt8[np.ndarray, "H W 4"]:
    """Linear premultiplied RGBA, any range, to 8-bit sRGB with straight alpha (RGB 0 where alpha rounds to 0)."""
    alpha = np.clip(colour[..., 3:], 0, 1)
    straight = np.clip(colour[..., :3] / np.maximum(alpha, 1e-6), 0, 1)
    encoded = np.where(straight <= 0.0031308, 12.92 * straight, 1.055 * straight ** (1 / 2.4) - 0.055)
    rgba = (np.concatenate([encoded, alpha], -1) * 255 + 0.5).astype(np.uint8)
    rgba[rgba[..., 3] == 0] = 0
    return rgba


def axial_depth(ranges: Float[np.ndarray, "H W"], size: int) -> Float32[np.ndarray, "H W"]:
    """Distances along the rays, counted from the near plane (0 = miss), to distances along the optical axis."""
    focal_px = 0.5 * size / math.tan(0.5 * CAMERA_ANGLE_X)
    offset = (np.arange(size) + 0.5 - size / 2) / focal_px
    slant = np.sqrt(1 + offset[None] ** 2 + offset[:, None] ** 2)
    ranges = np.asarray(ranges, np.float64)
    return np.where(ranges > 0, ranges / slant + NEAR, 0).astype(np.float32)
