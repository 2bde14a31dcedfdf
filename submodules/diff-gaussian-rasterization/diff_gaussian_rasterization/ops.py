"""The autograd interface as PyTorch operators: activated Gaussians in, images out, and the way back.

Letters: C cameras, N Gaussians, H x W pixels. `rows` is float64 [28] or [C, 28], see cameras.py; with [C, 28] every
image, the radii and means2d have a leading axis C. `view` is width, height, SH degree, antialiasing (0 or 1). `maps`:
0 = colour and transmittance, 1 = and inverse depth, 2 = and depth and normals; the maps beyond are empty.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization.cameras import MAX_SIDE_PX, ROW
from diff_gaussian_rasterization.checks import (
    SH_COUNTS,
    address,
    addresses,
    check_range,
    check_tensor,
    check_written,
    device_of,
    size_of,
)
from diff_gaussian_rasterization.devices import Run, on
from diff_gaussian_rasterization.leases import Lease, claim, empty_handle, handle, lease, occupy, release
from diff_gaussian_rasterization.operators import NAMESPACE, differentiable, operator

INPUTS = ("means", "opacities", "sh", "colors", "scales", "quats", "covariances")
# Bits of `wanted`, the gradients that render_backward returns, in this order.
WANTED = ("rows", *INPUTS, "means2d", "means2d_abs")
Maps = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


class Splats(NamedTuple):
    """Activated Gaussians: either sh or colors, and either scales and quats or covariances; float32 on one device.

    means [N, 3]; opacities [N, 1], 0-1; sh [N, K, 3] with K = 1, 4, 9, 16; colors [N, 3]; scales [N, 3], > 0;
    quats [N, 4], w x y z, any length; covariances [N, 6], xx xy xz yy yz zz; filter_3d [N], standard deviations.
    """

    means: Tensor
    opacities: Tensor
    sh: Tensor | None
    colors: Tensor | None
    scales: Tensor | None
    quats: Tensor | None
    covariances: Tensor | None
    filter_3d: Tensor | None

    def checked(self, sh_degree: int, *, half: bool = False) -> "Splats":
        """Contiguous copies where needed, or a TypeError or ValueError that names the argument.

        half : sh may be float16, on CUDA.
        """
        if (self.sh is None) == (self.colors is None):
            raise ValueError("provide exactly one of spherical harmonics and precomputed colors")
        pair = (self.scales is None, self.quats is None)
        if pair != (self.covariances is not None,) * 2:
            raise ValueError("provide exactly one of the pair scales and rotations, and the precomputed 3D covariance")
        if self.filter_3d is not None and self.covariances is not None:
            raise ValueError("filter_3d: needs scales and rotations, not precomputed 3D covariances")
        device, n = device_of("means", self.means), size_of("means", self.means, 0)
        stored = 0 if self.sh is None else size_of("sh", self.sh, 1)
        shapes = ((n, 3), (n, 1), (n, stored, 3), (n, 3), (n, 3), (n, 4), (n, 6), (n,))
        types = [torch.float32] * len(shapes)
        if half and device.type == "cuda" and self.sh is not None and self.sh.dtype == torch.float16:
            types[2] = torch.float16
        tensors = [
            None if t is None else check_tensor(name, t, shape, dtype, device).contiguous()
            for name, t, shape, dtype in zip(self._fields, self, shapes, types, strict=True)
        ]
        if self.sh is not None and (stored not in SH_COUNTS or stored < (sh_degree + 1) ** 2):
            raise ValueError(f"sh: degree {sh_degree} needs one of {SH_COUNTS} coefficients, got {stored}")
        return Splats(*tensors)  # type: ignore[arg-type]

    @property
    def is_half(self) -> bool:
        return self.sh is not None and self.sh.dtype == torch.float16

    def addresses(self) -> list[int]:
        """In the order of the native parameters; the rest of sh starts three numbers after its first coefficient."""
        sh = address(self.sh)
        rest = sh + 3 * self.sh.element_size() if self.sh is not None and sh and self.sh.shape[1] > 1 else 0
        first = [address(t) for t in (self.means, self.scales, self.quats, self.opacities)]
        return [*first, sh, rest, address(self.colors), address(self.covariances)]


def checked_view(rows: Tensor, view: list[int]) -> tuple[Tensor, tuple[int, ...]]:
    """Contiguous rows, and the leading axes of the images: () or (C,)."""
    width, height, sh_degree, _ = view
    check_range("width", width, 0, MAX_SIDE_PX)
    check_range("height", height, 0, MAX_SIDE_PX)
    check_range("sh_degree", sh_degree, 0, 3)
    lead = (size_of("rows", rows, 0),) if rows.ndim == 2 else ()
    if lead and lead[0] == 0:
        raise ValueError("rows: expected at least one camera")
    return check_tensor("rows", rows, (*lead, ROW), torch.float64).contiguous(), lead  # on the CPU, always


def _map_shapes(lead: tuple[int, ...], view: list[int], maps: int) -> list[tuple[int, ...]]:
    width, height = view[:2]
    plane, color, nothing = (*lead, height, width), (*lead, 3, height, width), (0,)
    return [color, plane, plane if maps > 0 else nothing, *((plane, color) if maps > 1 else (nothing, nothing))]


def _drawn(lead: tuple[int, ...], splats: Splats, view: list[int], maps: int) -> tuple[Any, ...]:
    """What a forward pass and its backward pass must have in common, for `claim`."""
    shapes = (None if t is None else tuple(t.shape) for t in splats)
    return ("activated", splats.means.device, lead, maps, *view, *shapes)


def _empty_maps(means: Tensor, lead: tuple[int, ...], view: list[int], maps: int) -> Maps:
    return tuple(means.new_empty(s) for s in _map_shapes(lead, view, maps))  # type: ignore[return-value]


def _forward(
    natives: list[Any],
    rows: Tensor,
    splats: Splats,
    view: list[int],
    maps: Maps,
    radii: Tensor,
    keep: bool,
    run: Run,
) -> None:
    """Draw every camera with its workspace. keep : for a backward pass, which else blends once more."""
    count, stored = splats.means.shape[0], 1 if splats.sh is None else splats.sh.shape[1]
    cameras, sources, filter_3d = len(natives), splats.addresses(), address(splats.filter_3d)
    sh0_stride = 3 * stored
    if splats.is_half:  # the kernels take the first coefficients as float32
        assert splats.sh is not None
        first = splats.sh[:, :1].float().contiguous()
        sources[4], sh0_stride = address(first), 3
    images = zip(*(addresses(m, cameras) for m in maps), strict=True)
    for native, row, image, radius in zip(
        natives, addresses(rows, cameras), images, addresses(radii, cameras), strict=True
    ):
        native.forward(
            row,
            *view,
            sources,
            filter_3d,
            count,
            sh0_stride,
            3 * stored,
            stored - 1,
            True,
            splats.is_half,
            image,
            radius,
            keep,
            run,
        )


def _render_fake(
    rows, means, opacities, sh, colors, scales, quats, covariances, filter_3d, means2d, means2d_abs,
    view, maps, memory_limit, keep=True,
):  # fmt: skip
    _, lead = checked_view(rows, view)
    Splats(means, opacities, sh, colors, scales, quats, covariances, filter_3d).checked(view[2], half=not keep)
    _check_outputs(means, covariances, lead, means2d, means2d_abs, maps)
    out = _empty_maps(means, lead, view, maps)
    return *out, means.new_empty((*lead, means.shape[0]), dtype=torch.int32), empty_handle()


@operator(_render_fake)
def render(
    rows: Tensor,
    means: Tensor,
    opacities: Tensor,
    sh: Tensor | None,
    colors: Tensor | None,
    scales: Tensor | None,
    quats: Tensor | None,
    covariances: Tensor | None,
    filter_3d: Tensor | None,
    means2d: Tensor | None,
    means2d_abs: Tensor | None,
    view: list[int],
    maps: int,
    memory_limit: int | None,
    keep: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return color, transmittance, inverse depth, sum of T alpha z, normals, radii int32, a handle for the way back.

    The values of means2d and means2d_abs are not read; they only receive gradients. memory_limit [bytes] of each
    camera, 0 = none; None = that of `set_memory_limit`. keep : a backward pass will follow; without, sh may be float16
    on CUDA.
    """
    rows, lead = checked_view(rows, view)
    splats = Splats(means, opacities, sh, colors, scales, quats, covariances, filter_3d).checked(view[2], half=not keep)
    _check_outputs(means, covariances, lead, means2d, means2d_abs, maps)
    out = _empty_maps(means, lead, view, maps)
    radii = means.new_empty((*lead, means.shape[0]), dtype=torch.int32)
    with on(means.device) as run:
        drawn = lease(lead[0] if lead else 1, means.device, memory_limit=memory_limit)
        _forward(drawn.natives, rows, splats, view, out, radii, keep, run)
    return *out, radii, handle(drawn, _drawn(lead, splats, view, maps))


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a backward pass can follow from these inputs."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _check_outputs(
    means: Tensor,
    covariances: Tensor | None,
    lead: tuple[int, ...],
    means2d: Tensor | None,
    means2d_abs: Tensor | None,
    maps: int,
) -> None:
    check_range("maps", maps, 0, 2)
    if maps == 2 and covariances is not None:
        raise ValueError("maps: normals need scales and rotations, not precomputed 3D covariances")
    shape = (*lead, means.shape[0], 3)
    if means2d is not None:
        check_tensor("means2D", means2d, shape, device=means.device)
    if means2d_abs is not None:
        check_tensor("means2d_abs", means2d_abs, shape, device=means.device)


def _empty_gradients(rows: Tensor, splats: Splats, lead: tuple[int, ...], wanted: int) -> list[Tensor | None]:
    """One tensor for each bit of `wanted`, in the order of WANTED."""
    screen = (*lead, splats.means.shape[0], 3)
    like: list[Tensor | None] = [rows, *splats[:7]]
    out = [None if t is None or not wanted >> k & 1 else torch.empty_like(t) for k, t in enumerate(like)]
    return out + [splats.means.new_empty(screen) if wanted >> k & 1 else None for k in (8, 9)]


def _render_backward_fake(
    rows, means, opacities, sh, colors, scales, quats, covariances, filter_3d, transmittance, state,
    grad_color, grad_transmittance, grad_inverse_depth, grad_depth, grad_normal,
    view, maps, memory_limit, wanted,
):  # fmt: skip
    _, lead = checked_view(rows, view)
    splats = Splats(means, opacities, sh, colors, scales, quats, covariances, filter_3d).checked(view[2])
    return [t for t in _empty_gradients(rows, splats, lead, wanted) if t is not None]


@operator(_render_backward_fake)
def render_backward(
    rows: Tensor,
    means: Tensor,
    opacities: Tensor,
    sh: Tensor | None,
    colors: Tensor | None,
    scales: Tensor | None,
    quats: Tensor | None,
    covariances: Tensor | None,
    filter_3d: Tensor | None,
    transmittance: Tensor,
    state: Tensor,
    grad_color: Tensor | None,
    grad_transmittance: Tensor | None,
    grad_inverse_depth: Tensor | None,
    grad_depth: Tensor | None,
    grad_normal: Tensor | None,
    view: list[int],
    maps: int,
    memory_limit: int | None,
    wanted: int,
) -> list[Tensor]:
    """Return the gradients that the bits of `wanted` ask for, in the order of WANTED; the cameras' are added up."""
    rows, lead = checked_view(rows, view)
    splats = Splats(means, opacities, sh, colors, scales, quats, covariances, filter_3d).checked(view[2])
    shapes, device = _map_shapes(lead, view, maps), means.device
    check_written("transmittance", transmittance, shapes[1], device=device)
    given = (grad_color, grad_transmittance, grad_inverse_depth, grad_depth, grad_normal)
    gradients = [
        None if t is None else check_tensor("gradient", t, shape, device=device).contiguous()
        for t, shape in zip(given, shapes, strict=True)
    ]
    if gradients[0] is None:
        gradients[0] = means.new_zeros(shapes[0])
    out = _empty_gradients(rows, splats, lead, wanted)
    with on(device) as run:
        drawn = claim(state, _drawn(lead, splats, view, maps))
        if drawn is None:  # a copy of the handle, or another thread is at work with it: render once more
            drawn = lease(lead[0] if lead else 1, device, memory_limit=memory_limit)
            radii = means.new_empty((*lead, means.shape[0]), dtype=torch.int32)
            again = _empty_maps(means, lead, view, maps)
            _forward(drawn.natives, rows, splats, view, again, radii, True, run)
            occupy(drawn)
        try:
            _backward(drawn, splats, transmittance, gradients, out, run)
        finally:
            release(drawn)
    return [t for t in out if t is not None]


def _backward(
    drawn: Lease,
    splats: Splats,
    transmittance: Tensor,
    gradients: list[Tensor | None],
    out: list[Tensor | None],
    run: Run,
) -> None:
    """Camera after camera; from the second on, each adds to what the earlier ones left in `out`."""
    cameras, sources, filter_3d = len(drawn.natives), splats.addresses(), address(splats.filter_3d)
    pose_wanted, means2d, means2d_abs = out[0] is not None, out[8], out[9]
    pose = splats.means.new_zeros((cameras, ROW), dtype=torch.float64) if pose_wanted else None
    results = Splats._make([*out[1:8], None]).addresses()
    images = zip(*(addresses(g, cameras) for g in gradients), strict=True)
    screens = zip(addresses(means2d, cameras), addresses(means2d_abs, cameras), addresses(pose, cameras), strict=True)
    added = [0] * 8
    for native, light, image, screen in zip(
        drawn.natives, addresses(transmittance, cameras), images, screens, strict=True
    ):
        native.backward(
            sources,
            filter_3d,
            light,
            image,
            results,
            added,
            *screen,
            [0] * 4,
            [0, 0],
            run,
        )
        added = results
    if pose is not None:
        assert out[0] is not None
        out[0] = pose.to("cpu").reshape(out[0].shape)


def _save_for_backward(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.save_for_backward(*inputs[:9], output[1], output[6])
    ctx.settings = inputs[11:14]
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
    needed = ctx.needs_input_grad
    order = (*range(8), 9, 10)  # WANTED as positions among the inputs of render; filter_3d has no gradient
    wanted = sum(1 << k for k, at in enumerate(order) if needed[at])
    found = iter(render_backward(*ctx.saved_tensors, *gradients[:5], *ctx.settings, wanted))
    out: list[Tensor | None] = [None] * len(needed)
    for at in order:
        if needed[at]:
            out[at] = next(found)
    return tuple(out)


def _no_second_derivative(ctx: Any, *gradients: Any) -> None:
    raise NotImplementedError(f"{NAMESPACE}: second derivatives are not implemented; only first-order gradients are")


differentiable("render", _differentiate, _save_for_backward)
differentiable("render_backward", _no_second_derivative)
