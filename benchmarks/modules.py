"""Runners for anything with the API of the original rasterizer, and for this project's plain PyTorch reference.

`Training` is a step as 3DGS code writes it: activations, rendering, loss and Adam in PyTorch. `Rasterization` is the
module alone: forward and backward on activated inputs, with a gradient of the image that is given. All on the CPU.
"""

import importlib
import os
import time
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import gen
from benchmarks.cases import Case, Times
from benchmarks.torch_loss import torch_loss
from gaussian_renderer import reference
from gaussian_renderer.splats import RenderSettings, Splats
from scene.cameras import Camera, intrinsics
from utils.errors import UserError

NEAR, FAR = 0.01, 100.0  # of the projection matrix; they do not change an image
BYTES_PER_PAIR = 100  # what autograd keeps of the reference for each pixel and Gaussian
MEMORY_SHARE = 0.5  # of the free memory that the reference may take
Render = Callable[[dict[str, Tensor]], Tensor]  # activated inputs -> image [3, S, S]


def import_original(package: str) -> ModuleType:
    """The module of that name.

    Raises
    ------
    UserError : it cannot be imported, or does not have the original's API.
    """
    try:
        module = importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"--against module:{package}: cannot be imported ({error})") from error
    missing = [n for n in ("GaussianRasterizationSettings", "GaussianRasterizer") if not hasattr(module, n)]
    if missing:
        raise UserError(f"--against module:{package}: has no {' and no '.join(missing)}; it needs the original's API")
    return module


def settings_of(module: Any, case: Case) -> Any:
    """The benchmark's camera in the original's terms, every setting that has no default.

    Raises
    ------
    UserError : the module asks for a setting that the original does not have.
    """
    view = torch.eye(4)
    view[3, 2] = gen.DISTANCE  # transposed, as the original wants it
    slope = float(np.tan(gen.FIELD_OF_VIEW / 2))
    projection = torch.zeros(4, 4)
    projection[0, 0] = projection[1, 1] = 1 / slope
    projection[2, 2], projection[2, 3] = FAR / (FAR - NEAR), 1.0
    projection[3, 2] = -FAR * NEAR / (FAR - NEAR)
    values = {
        "image_height": case.size,
        "image_width": case.size,
        "tanfovx": slope,
        "tanfovy": slope,
        "bg": torch.zeros(3),
        "scale_modifier": 1.0,
        "viewmatrix": view,
        "projmatrix": view @ projection,
        "sh_degree": 3,
        "campos": torch.tensor([0.0, 0.0, -gen.DISTANCE]),
        "prefiltered": False,
        "debug": False,
        "antialiasing": False,
    }
    kind = module.GaussianRasterizationSettings
    required = [name for name in kind._fields if name not in kind._field_defaults]
    unknown = set(required) - set(values)
    if unknown:
        raise UserError(f"{module.__name__}: settings without a default that are not the original's: {sorted(unknown)}")
    return kind(**{name: values[name] for name in required})


def original_render(module: Any, case: Case) -> Render:
    """Rendering by a module with the original's API, its screen-space gradients included."""
    settings = settings_of(module, case)

    def render(inputs: dict[str, Tensor]) -> Tensor:
        screen = torch.zeros_like(inputs["means3D"], requires_grad=True)
        return module.GaussianRasterizer(settings)(means2D=screen, **inputs)[0]

    return render


def reference_render(case: Case) -> Render:
    """Rendering by `gaussian_renderer.reference`.

    Raises
    ------
    UserError : it would need more memory than there is.
    """
    needed, free = BYTES_PER_PAIR * case.n * case.size**2, os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if needed > MEMORY_SHARE * free:
        raise UserError(
            f"--against reference: {case} evaluates every pixel against every Gaussian and needs about "
            f"{needed / 1e9:.0f} GB; {free / 1e9:.0f} GB are free: use a smaller case, as --n 1000 --size 64"
        )
    focal, half = gen.focal_px(case.size), case.size / 2
    pose = np.eye(4)
    pose[2, 3] = gen.DISTANCE
    camera = Camera("benchmark", case.size, case.size, intrinsics(focal, focal, half, half), pose)

    def render(i: dict[str, Tensor]) -> Tensor:
        splats = Splats(i["means3D"], i["opacities"], scales=i["scales"], quats=i["rotations"], sh=i["shs"])
        return reference.rasterize(camera, splats, RenderSettings(torch.zeros(3))).color

    return render


def activated(raw: dict[str, Tensor]) -> dict[str, Tensor]:
    """The original's inputs from stored parameters, as 3DGS code makes them."""
    return {
        "means3D": raw["means"],
        "opacities": raw["logit_opacities"].sigmoid(),
        "scales": raw["log_scales"].exp(),
        "rotations": torch.nn.functional.normalize(raw["quats"]),
        "shs": torch.cat([raw["sh0"], raw["shN"]], dim=1),
    }


def tensors(case: Case) -> dict[str, Tensor]:
    """The stored parameters, copied."""
    return {k: torch.from_numpy(v.copy()) for k, v in case.values.items()}


class Training:
    """A whole step with PyTorch's loss and optimizer around a rendering function."""

    def __init__(self, render: Render, case: Case, threads: int) -> None:
        self.render, self.threads = render, threads
        self.raw = {k: v.requires_grad_() for k, v in tensors(case).items()}
        self.optimizer = torch.optim.Adam(list(self.raw.values()), lr=0.0, eps=1e-15)
        self.target = torch.from_numpy(case.target)

    def step(self) -> Times:
        torch.set_num_threads(self.threads)
        ticks = [time.perf_counter()]
        image = self.render(activated(self.raw))
        ticks.append(time.perf_counter())
        gradient = self._loss_gradient(image)
        ticks.append(time.perf_counter())
        image.backward(gradient)
        ticks.append(time.perf_counter())
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        ticks.append(time.perf_counter())
        names = ("render", "loss", "backward", "adam")
        return {**_milliseconds(names, ticks), "whole": (ticks[-1] - ticks[0]) * 1e3}

    def _loss_gradient(self, image: Tensor) -> Tensor:
        """The loss with its own backward, so that the two can be told apart; the sum is what users wait for."""
        leaf = image.detach().requires_grad_()
        torch_loss(leaf, self.target).backward()
        assert leaf.grad is not None
        return leaf.grad


class Rasterization:
    """Forward and backward of a module with the original's API, no loss and no optimizer."""

    def __init__(self, module: Any, case: Case, threads: int) -> None:
        self.render, self.threads = original_render(module, case), threads
        self.inputs = {k: v.requires_grad_() for k, v in activated(tensors(case)).items()}
        image = self.render(self.inputs).detach().requires_grad_()
        torch_loss(image, torch.from_numpy(case.target)).backward()
        self.gradient = image.grad

    def step(self) -> Times:
        torch.set_num_threads(self.threads)
        for value in self.inputs.values():
            value.grad = None
        ticks = [time.perf_counter()]
        image = self.render(self.inputs)
        ticks.append(time.perf_counter())
        image.backward(self.gradient)
        ticks.append(time.perf_counter())
        return _milliseconds(("render", "backward"), ticks)


def _milliseconds(names: tuple[str, ...], ticks: list[float]) -> Times:
    return {name: (b - a) * 1e3 for name, a, b in zip(names, ticks[:-1], ticks[1:], strict=True)}
