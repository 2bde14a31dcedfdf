"""The native calls of the rasterizer with tensors instead of addresses, for tests of the kernels themselves."""

import math
from collections.abc import Sequence

import torch
from diff_gaussian_rasterization import _native
from diff_gaussian_rasterization.checks import address
from torch import Tensor

from tests.submodules.rasterizer_scenes import Case

RATES = (1.6e-4, 5e-3, 1e-3, 0.05, 2.5e-3, 1.25e-4)
BETAS = (0.9, 0.999)
NOTHING = (None,) * 6
Six = Sequence[Tensor | None]


def addresses(tensors: Six, length: int = 6) -> list[int]:
    return [*map(address, tensors)] + [0] * (length - len(tensors))


class View:
    """One rendered view: the native calls with tensors instead of addresses."""

    def __init__(self, case: Case, six: Sequence[Tensor], filter_3d: Tensor | None = None, *, activated: bool = False):
        self.six, self.filter, self.native = six, filter_3d, _native.Rasterization()
        camera, n, row = case.camera, len(six[0]), case.raster_camera.row
        plane = (camera.height, camera.width)
        self.color, self.transmittance, self.inverse_depth = (
            torch.empty(3, *plane),
            torch.empty(plane),
            torch.empty(plane),
        )
        self.radii = torch.empty(n, dtype=torch.int32)
        self.native.forward(
            address(row),
            camera.width,
            camera.height,
            case.sh_degree,
            case.antialiasing,
            addresses(six, 8),
            address(filter_3d),
            n,
            3,
            45,
            15,
            activated,
            False,
            addresses((self.color, self.transmittance, self.inverse_depth), 5),
            address(self.radii),
            True,
            torch.get_num_threads(),
        )

    def backward(
        self, maps: Sequence[Tensor], *, added: Six = NOTHING, out: Six | None = None, statistics: Six = (None,) * 3
    ) -> tuple[list[Tensor], Tensor]:
        """Gradients of the six and of (rotation, translation, centre) from those of colour, T and inverse depth."""
        grads = [torch.full_like(p, math.nan) for p in self.six] if out is None else [*out]
        pose = torch.full((15,), math.nan, dtype=torch.float64)
        self.native.backward(
            addresses(self.six, 8),
            address(self.filter),
            address(self.transmittance),
            addresses(maps, 5),
            addresses(grads, 8),
            addresses(added, 8),
            0,
            0,
            address(pose),
            addresses(statistics, 4),
            [0, 0],
            torch.get_num_threads(),
        )
        return grads, pose

    def adam(
        self,
        maps: Sequence[Tensor],
        mean: Six,
        square: Six,
        *,
        step: int = 1,
        eps: float = 1e-15,
        added: Six = NOTHING,
        visible: Tensor | None = None,
        statistics: Six = (None,) * 3,
    ) -> None:
        self.native.backward_adam(
            addresses(self.six),
            address(self.filter),
            address(self.transmittance),
            addresses(maps, 5),
            addresses(added),
            addresses(mean),
            addresses(square),
            RATES,
            step,
            BETAS,
            eps,
            address(visible),
            0,
            addresses(statistics, 4),
            [0, 0],
            torch.get_num_threads(),
        )


def map_gradients(case: Case, seed: int = 0) -> list[Tensor]:
    """Random dL/dcolor, dL/dtransmittance, dL/dinverse_depth."""
    g = torch.Generator().manual_seed(seed)
    size = (case.camera.height, case.camera.width)
    return [torch.randn(*shape, generator=g) for shape in ((3, *size), size, size)]


def filter_of(case: Case, seed: int = 0) -> Tensor:
    """Standard deviations from much smaller to larger than the scales, some 0."""
    g = torch.Generator().manual_seed(seed)
    typical = case.gaussians["log_scales"].exp().mean()
    value = typical * torch.randn(len(case.gaussians["means"]), generator=g).exp() * 0.5
    value[::7] = 0
    return value
