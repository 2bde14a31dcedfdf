"""Raw parameters: what the fused interface draws, checked; and rendering them as an operator.

Letters: C cameras, N Gaussians, H x W pixels; `parameters` are the six of `fused`, in its order. `rows` is float64 [28]
or [C, 28], see cameras.py; with [C, 28] images and radii have a leading axis C.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization.checks import address, addresses, check_written, device_of, size_of
from diff_gaussian_rasterization.devices import Run, on
from diff_gaussian_rasterization.leases import empty_handle, handle, owned, release
from diff_gaussian_rasterization.operators import operator
from diff_gaussian_rasterization.ops import checked_view

NAMES = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")


class Frame(NamedTuple):
    """Of one call: contiguous rows [C, 28] or [28], leading axes of the images, the view that all cameras share, and
    the device that the call runs on."""

    rows: Tensor
    lead: tuple[int, ...]
    view: list[int]
    device: torch.device

    @property
    def plane(self) -> tuple[int, int]:
        """Height and width."""
        return self.view[1], self.view[0]

    @property
    def cameras(self) -> int:
        return self.lead[0] if self.lead else 1

    def drawn(self, parameters: list[Tensor], filter_3d: Tensor | None) -> tuple[Any, ...]:
        """What a forward pass and its backward pass must have in common, for `claim`."""
        rest = parameters[5]
        return ("raw", self.device, rest.dtype, self.lead, *self.view, *rest.shape, filter_3d is not None)


class Drawing(NamedTuple):
    """What the backward pass of a `Workspace` needs of the forward pass."""

    num: int
    rest: int
    image: Tensor
    transmittance: Tensor
    inverse_depth: Tensor | None
    filter_3d: Tensor | None
    serial: int

    def gradients(
        self, image: Tensor, transmittance: Tensor | None = None, inverse_depth: Tensor | None = None
    ) -> list[int]:
        """Addresses of the images' gradients, checked."""
        plane, device = tuple(self.transmittance.shape), self.image.device
        check_written("grad_image", image, tuple(self.image.shape), device=device)
        if transmittance is not None:
            check_written("grad_transmittance", transmittance, plane, device=device)
        if inverse_depth is not None:
            if self.inverse_depth is None:
                raise ValueError("grad_inverse_depth: the forward pass was without aux=True")
            check_written("grad_inverse_depth", inverse_depth, plane, device=device)
        return [*map(address, (image, transmittance, inverse_depth)), 0, 0]


def check_six(
    tensors: list[Tensor], count: int, rest: int, device: torch.device, what: str = "", *, half: bool = False
) -> None:
    """Raise unless these are six contiguous tensors of `count` Gaussians with `rest` coefficients in shN.

    half : shN may be float16, on CUDA.
    """
    if len(tensors) != 6:
        raise ValueError(f"{what}parameters: expected the six {NAMES}, got {len(tensors)}")
    shapes = ((count, 3), (count, 3), (count, 4), (count, 1), (count, 1, 3), (count, rest, 3))
    types = [torch.float32] * 6
    if half and device.type == "cuda" and isinstance(tensors[5], Tensor) and tensors[5].dtype == torch.float16:
        types[5] = torch.float16
    for name, tensor, shape, dtype in zip(NAMES, tensors, shapes, types, strict=True):
        check_written(what + name, tensor, shape, dtype, device)


def check_parameters(
    parameters: list[Tensor], sh_degree: int, device: torch.device | None = None, *, half: bool = False
) -> tuple[int, int]:
    """Return the number of Gaussians and of coefficients in shN, or raise what does not fit.

    device : where they must be; None = where the means are.
    """
    count, rest = (size_of("means", parameters[0], 0), size_of("shN", parameters[-1], 1)) if parameters else (0, 0)
    if device is None:
        device = device_of("means", parameters[0]) if parameters else torch.device("cpu")
    check_six(parameters, count, rest, device, half=half)
    if not (sh_degree + 1) ** 2 - 1 <= rest <= 15:
        raise ValueError(f"shN: degree {sh_degree} needs {(sh_degree + 1) ** 2 - 1} to 15 coefficients, got {rest}")
    return count, rest


def checked(
    rows: Tensor, parameters: list[Tensor], filter_3d: Tensor | None, view: list[int], *, half: bool = False
) -> Frame:
    """The frame of a call, or what does not fit."""
    rows, lead = checked_view(rows, view)
    count, _ = check_parameters(parameters, view[2], half=half)
    device = parameters[0].device
    if filter_3d is not None:
        check_written("filter_3d", filter_3d, (count,), device=device)
    return Frame(rows, lead, view, device)


def draw(
    natives: list[Any],
    frame: Frame,
    parameters: list[Tensor],
    filter_3d: Tensor | None,
    images: list[list[int]],
    radii: Tensor,
    keep: bool,
    run: Run,
) -> None:
    """Forward pass of every camera; `images` holds the five addresses of each. keep : for a backward pass."""
    rest = parameters[5].shape[1]
    six = [*map(address, parameters), 0, 0]
    cameras = frame.cameras
    for native, row, image, radius in zip(
        natives, addresses(frame.rows, cameras), images, addresses(radii, cameras), strict=True
    ):
        native.forward(
            row,
            *frame.view,
            six,
            address(filter_3d),
            parameters[0].shape[0],
            3,
            3 * rest,
            rest,
            False,
            parameters[5].dtype == torch.float16,
            image,
            radius,
            keep,
            run,
        )


def outputs(frame: Frame, means: Tensor) -> tuple[Tensor, Tensor]:
    """Empty images and radii."""
    image = means.new_empty((*frame.lead, 3, *frame.plane))
    return image, means.new_empty((*frame.lead, means.shape[0]), dtype=torch.int32)


def _render_raw_fake(rows, parameters, filter_3d, workspace, view):
    frame = checked(rows, parameters, filter_3d, view, half=True)
    image, radii = outputs(frame, parameters[0])
    return image, parameters[0].new_empty((*frame.lead, *frame.plane)), radii, empty_handle()


@operator(_render_raw_fake)
def render_raw(
    rows: Tensor,
    parameters: list[Tensor],
    filter_3d: Tensor | None,
    workspace: Tensor | None,
    view: list[int],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return image, transmittance, radii int32 and a handle with which train_step need not draw again.

    workspace : the handle of a `Workspace`, or None. shN may be float16 on CUDA; train_step does not take it.
    """
    frame = checked(rows, parameters, filter_3d, view, half=True)
    image, radii = outputs(frame, parameters[0])
    transmittance = parameters[0].new_empty((*frame.lead, *frame.plane))
    lights = addresses(transmittance, frame.cameras)
    images = [[i, t, 0, 0, 0] for i, t in zip(addresses(image, frame.cameras), lights, strict=True)]
    keep = parameters[5].dtype == torch.float32
    with on(frame.device) as run:
        drawn = owned(workspace, frame.cameras, frame.device)
        try:
            draw(drawn.natives, frame, parameters, filter_3d, images, radii, keep, run)
            state = handle(drawn, frame.drawn(parameters, filter_3d))
        finally:
            release(drawn)
    return image, transmittance, radii, state
