"""The prototype of the rasterizer as a second runner of the benchmark: its own Makefile, called by ctypes."""

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from benchmarks import gen

FLOAT, INT = ctypes.c_float, ctypes.c_int
FIELDS = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")
STAGES = ("preprocess", "sort_bin", "forward", "blend_backward", "geometry", "loss")  # in the library's order


class Camera(ctypes.Structure):
    """Pixel centres at integers; limits are 1.3 tan(fov / 2)."""

    _fields_ = [
        ("rotation", FLOAT * 9),
        ("translation", FLOAT * 3),
        ("centre", FLOAT * 3),
        ("pinhole", FLOAT * 4),
        ("limits", FLOAT * 2),
        ("background", FLOAT * 3),
        ("scale_modifier", FLOAT),
        ("width", INT),
        ("height", INT),
        ("sh_degree", INT),
        ("antialiasing", INT),
    ]


class Parameters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in FIELDS]


class Adam(ctypes.Structure):
    _fields_ = [
        ("rates", FLOAT * 6),
        ("beta1", FLOAT),
        ("beta2", FLOAT),
        ("eps", FLOAT),
        ("step", INT),
        ("sparse", INT),
    ]


def build(source: Path, folder: Path) -> Path:
    """Compile a copy of the prototype in `folder`; its own place is never written to."""
    copy = folder / "prototype"
    shutil.copytree(source, copy, ignore=shutil.ignore_patterns("*.o", "*.so"))
    for path in [copy, *copy.iterdir()]:
        path.chmod(0o755)
    subprocess.run(["make", "-s", "-j2", "librast.so"], cwd=copy, check=True, env={**os.environ, "MAKEFLAGS": ""})
    return copy / "librast.so"


class Prototype:
    """The same step as `Ours`, on copies of the same values."""

    def __init__(self, library: Path, values: gen.Arrays, target: np.ndarray, threads: int) -> None:
        self.native = ctypes.CDLL(str(library))
        self.native.r_create.restype = ctypes.c_void_p
        self.native.r_loss.restype = ctypes.c_double
        self.threads = threads
        self.context = ctypes.c_void_p(self.native.r_create())
        self.values = {k: v.copy() for k, v in values.items()}
        self.mean, self.square = ({k: np.zeros_like(v) for k, v in values.items()} for _ in range(2))
        self.target, self.gradient = target, np.zeros_like(target)
        self.image, self.transmittance = np.zeros_like(target), np.zeros_like(target[0])
        self.stats = [np.zeros(len(values["means"]), np.float32) for _ in range(3)]
        self.size = target.shape[1]
        self.camera = self._camera()
        self.adam = Adam((FLOAT * 6)(), 0.9, 0.999, 1e-15, 100, 0)

    def __del__(self) -> None:
        self.native.r_free(self.context)

    def _camera(self) -> Camera:
        size, focal = self.size, gen.focal_px(self.size)
        c = Camera()
        c.rotation[:] = np.eye(3).ravel()
        c.translation[:] = [0, 0, gen.DISTANCE]
        c.centre[:] = [0, 0, -gen.DISTANCE]
        c.pinhole[:] = [focal, focal, size / 2 - 0.5, size / 2 - 0.5]
        c.limits[:] = [1.3 * size / (2 * focal)] * 2
        c.scale_modifier = 1.0
        c.width = c.height = size
        c.sh_degree = 3
        return c

    def step(self) -> dict[str, float]:
        native, p = self.native, _parameters(self.values)
        native.r_threads(self.threads)
        start = time.perf_counter()
        native.r_forward(
            self.context,
            len(self.values["means"]),
            ctypes.byref(p),
            ctypes.byref(self.camera),
            _pointer(self.image),
            _pointer(self.transmittance),
            None,
        )
        native.r_loss(
            self.context,
            _pointer(self.image),
            _pointer(self.target),
            _pointer(self.gradient),
            self.size,
            self.size,
            FLOAT(0.2),
            None,
        )
        native.r_backward(
            self.context,
            ctypes.byref(p),
            _pointer(self.image),
            _pointer(self.transmittance),
            None,
            _pointer(self.gradient),
            None,
            None,
            ctypes.byref(self.adam),
            ctypes.byref(p),
            ctypes.byref(_parameters(self.mean)),
            ctypes.byref(_parameters(self.square)),
            None,
            *map(_pointer, self.stats),
        )
        whole = (time.perf_counter() - start) * 1e3
        facts = (ctypes.c_double * 16)()
        native.r_info(self.context, facts)
        return {**dict(zip(STAGES, facts[3:9], strict=True)), "whole": whole}


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _parameters(values: gen.Arrays) -> Parameters:
    return Parameters(*(values[name].ctypes.data for name in FIELDS))
