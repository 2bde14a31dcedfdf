"""What the tests of the rasterizer on a GPU share: scenes and gradients there, and runs that give the same bits."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diff_gaussian_rasterization.fused import Workspace
from torch import Tensor

from tests.submodules.rasterizer_scenes import Case

# As on the CPU (sums of about 40 splats in float32), and 2^x and 1 / x of one instruction each, good to 2e-7.
VALUE_TOLERANCE = 5e-6
GRADIENT_TOLERANCE = 2e-5


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def moved(tensors: Sequence[Tensor], device: Any) -> list[Tensor]:
    """Copies of them there."""
    return [t.detach().to(device, copy=True) for t in tensors]


def map_gradients(case: Case, seed: int = 0) -> list[Tensor]:
    """Random dL/dcolor, dL/dtransmittance, dL/dinverse_depth, on the CPU."""
    g = torch.Generator().manual_seed(seed)
    size = (case.camera.height, case.camera.width)
    return [torch.randn(*shape, generator=g) for shape in ((3, *size), size, size)]


def backward(
    case: Case,
    six: Sequence[Tensor],
    maps: Sequence[Tensor],
    device: Any,
    workspace: Workspace | None = None,
) -> list[Tensor]:
    """Forward and backward there; image, transmittance, inverse depth, radii, six gradients and dL/dmeans2D, here."""
    workspace = workspace or Workspace(device=device)
    six, maps = moved(six, device), moved(maps, device)
    images = workspace.forward(case.raster_camera, *six, aux=True)
    unwritten = [torch.full_like(p, torch.nan) for p in (*six, six[0])]  # every element must be written
    grads, means2d = unwritten[:6], unwritten[6]
    more = {"grad_transmittance": maps[1], "grad_inverse_depth": maps[2], "grad_means2d": means2d}
    workspace.backward(maps[0], six, grads, **more)
    results = [*images, workspace.radii, *grads, means2d]
    return [r.cpu() for r in results if r is not None]
