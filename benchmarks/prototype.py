"""The prototype of the rasterizer as a second runner of the benchmark: its own Makefile, called by ctypes."""

import ctypes
import os
import shutil
import subprocess
import time
from pathlib import Path

import numpy as np

from benchmarks import gen
from benchmarks.cases import Case, Times

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
    """The same step as `Fused`, on copies of the same values; without `adam` the gradients are written instead."""

    def __init__(self, library: Path, case: Case, threads: int, *, adam: bool = True) -> None:
        self.native = ctypes.CDLL(str(library))
        self.native.r_create.restype = ctypes.c_void_p
        self.native.r_loss.restype = ctypes.c_double
        self.case, self.threads = case, threads
        self.context = ctypes.c_void_p(self.native.r_create())
        self.values = {k: v.copy() for k, v in case.values.items()}
        self.mean, self.square, self.written = ({k: np.zeros_like(v) for k, v in case.values.items()} for _ in range(3))
        self.target, self.gradient = case.target, np.zeros_like(case.target)
        self.image, self.transmittance = np.zeros_like(case.target), np.zeros_like(case.target[0])
        self.stats = [np.zeros(case.n, np.float32) for _ in range(3)]
        self.camera = self._camera()
        self.adam = Adam((FLOAT * 6)(), 0.9, 0.999, 1e-15, 100, 0) if adam else None

    def __del__(self) -> None:
        self.native.r_free(self.context)

    def _camera(self) -> Camera:
        size, focal = self.case.size, gen.focal_px(self.case.size)
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

    def step(self) -> Times:
        self.native.r_threads(self.threads)
        start = time.perf_counter()
        self._forward_and_loss()
        self._backward()
        whole = (time.perf_counter() - start) * 1e3
        facts = (ctypes.c_double * 16)()
        self.native.r_info(self.context, facts)
        return {**dict(zip(STAGES, facts[3:9], strict=True)), "whole": whole}

    def _forward_and_loss(self) -> None:
        image, size = _pointer(self.image), self.case.size
        self.native.r_forward(
            self.context,
            self.case.n,
            ctypes.byref(_parameters(self.values)),
            ctypes.byref(self.camera),
            image,
            _pointer(self.transmittance),
            None,
        )
        target, gradient = _pointer(self.target), _pointer(self.gradient)
        self.native.r_loss(self.context, image, target, gradient, size, size, FLOAT(0.2), None)

    def _backward(self) -> None:
        parameters = _parameters(self.values)
        self.native.r_backward(
            self.context,
            ctypes.byref(parameters),
            _pointer(self.image),
            _pointer(self.transmittance),
            None,
            _pointer(self.gradient),
            None,
            None,
            ctypes.byref(self.adam) if self.adam else None,
            ctypes.byref(parameters if self.adam else _parameters(self.written)),
            ctypes.byref(_parameters(self.mean)) if self.adam else None,
            ctypes.byref(_parameters(self.square)) if self.adam else None,
            None,
            *map(_pointer, self.stats),
        )


def _pointer(array: np.ndarray) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _parameters(values: gen.Arrays) -> Parameters:
    return Parameters(*(values[name].ctypes.data for name in FIELDS))
