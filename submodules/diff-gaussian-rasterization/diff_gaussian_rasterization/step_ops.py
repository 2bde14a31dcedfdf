"""A whole training step in place, as a PyTorch operator.

Letters: C cameras, N Gaussians, H x W pixels, L loss terms; `parameters` are the six of `fused`, in its order. `rows`
is float64 [28] or [C, 28], see cameras.py; with [C, 28] images and radii have a leading axis C. An empty tensor in a
list stands for "not there".
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from diff_gaussian_rasterization.checks import (
    address,
    addresses,
    check_finite,
    check_range,
    check_tensor,
    check_written,
    size_of,
)
from diff_gaussian_rasterization.devices import Run, on
from diff_gaussian_rasterization.leases import Lease, claim, owned, release
from diff_gaussian_rasterization.operators import operator
from diff_gaussian_rasterization.raw import NAMES, Frame, checked, draw, outputs, render_raw

__all__ = ["STATISTICS", "render_raw", "train_step"]
STATISTICS = ("gradient_norm", "count", "max_radius", "absolute_norm")


def _train_step_fake(
    rows, parameters, exp_avg, exp_avg_sq, statistics, targets, taps, factors, pixel_weights, grad_image, filter_3d,
    rendered, workspace, schedule, sparse, view,
):  # fmt: skip
    frame = checked(rows, parameters, filter_3d, view)
    check_schedule(schedule)
    report = parameters[0].new_empty(3 * len(targets) + 1, dtype=torch.float64)
    if rendered:
        return rendered[0].new_empty(0), rendered[2].new_empty(0), report
    return *outputs(frame, parameters[0]), report


@operator(_train_step_fake, mutates_args=("parameters", "exp_avg", "exp_avg_sq", "statistics"))
def train_step(
    rows: Tensor,
    parameters: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    statistics: list[Tensor],
    targets: list[Tensor],
    taps: list[Tensor],
    factors: list[float],
    pixel_weights: list[Tensor],
    grad_image: Tensor | None,
    filter_3d: Tensor | None,
    rendered: list[Tensor],
    workspace: Tensor | None,
    schedule: Tensor,
    sparse: bool,
    view: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Render, compare, go back and update, unless a loss or `grad_image` is not finite.

    Parameters
    ----------
    statistics : the four of STATISTICS, [N] or empty.
    targets : one for each of the L terms; taps : four for each, x start, x weight, y start, y weight, all empty at full
        size; their values are trusted. factors : 3 L, index of the camera, weight and lambda of each.
    pixel_weights : L, [1, H, W] or empty.
    rendered : none, or what render_raw returned for the same arguments.
    schedule : float64 [10], six learning rates, the step, beta1, beta2 and eps; a rate NaN = that field rests and its
        moments may be empty. Or [0] = statistics only. A tensor, so that torch.compile does not specialise on it.

    Returns
    -------
    image and radii, both empty when `rendered` has them, and float64 [3 L + 1]: l1, ssim and loss of each term, then
    the number of Gaussians culled for NaN, Inf or range.
    """
    frame = checked(rows, parameters, filter_3d, view)
    moments = _moments(parameters, exp_avg, exp_avg_sq, check_schedule(schedule).tolist())
    stats = _statistics(parameters[0], statistics)
    ready = _ready(grad_image, frame, bool(targets))
    wanted = _Wanted(gradient=ready is None, update=moments is not None, back=moments is not None or any(stats))
    report = _Report(parameters[0].new_zeros(3 * len(targets) + 1 + (ready is not None), dtype=torch.float64))
    with on(frame.device) as run:
        report.guard(ready)
        drawn = _image(frame, parameters, filter_3d, rendered, workspace, wanted, run)
        try:
            terms = zip(targets, zip(*[iter(taps)] * 4, strict=True), pixel_weights, strict=True)
            gradients = _losses(drawn, frame, list(terms), factors, ready, report, run)
            natives, six, width = drawn.lease.natives, [*map(address, parameters)], address(filter_3d)
            back = _Back(natives, six, width, drawn.lights, gradients, drawn.sums, stats, report.guarded, run)
            if moments is not None:
                visible = drawn.radii.reshape(frame.cameras, -1).amax(0) > 0 if sparse and drawn.radii.numel() else None
                back.update([p.numel() for p in parameters], (*moments, address(visible)))
            elif any(stats):
                back.gather()
            torch.autograd.graph.increment_version([*parameters, *exp_avg, *exp_avg_sq, *statistics])
            for native in natives:
                native.add_invalid(report.at(len(targets)), run)
        finally:
            release(drawn.lease)
    values = report.values if ready is None else report.values[:-1]
    if rendered:
        return drawn.image.new_empty(0), drawn.radii.new_empty(0), values
    return drawn.image, drawn.radii, values


def check_schedule(schedule: Tensor) -> Tensor:
    """Return it, or raise if it is neither [10] nor [0]."""
    return check_tensor(
        "learning_rates and step", schedule, (10 if size_of("schedule", schedule, 0) else 0,), torch.float64
    )


def _moments(
    parameters: list[Tensor], exp_avg: list[Tensor], exp_avg_sq: list[Tensor], schedule: list[float]
) -> tuple[list[int], list[int], list[float], int, list[float], float] | None:
    """Addresses of both moments, 0 where a field rests, learning rates, step, betas, eps; None without an update."""
    if not schedule:
        return None
    rates, (step, beta1, beta2, eps) = schedule[:6], schedule[6:]
    check_range("step", step, 1, 1 << 53)
    found = []
    for what, tensors in (("exp_avg of ", exp_avg), ("exp_avg_sq of ", exp_avg_sq)):
        if len(tensors) != len(rates):
            raise ValueError(f"{what}parameters: expected six, got {len(tensors)}")
        of = zip(NAMES, parameters, tensors, rates, strict=True)
        found.append(
            [address(check_written(what + n, t, p.shape, device=p.device)) if r == r else 0 for n, p, t, r in of]
        )
    return found[0], found[1], [r if r == r else 0.0 for r in rates], int(step), [beta1, beta2], eps


def _statistics(means: Tensor, statistics: list[Tensor]) -> list[int]:
    """Their addresses, 0 for those that are not there."""
    if len(statistics) != len(STATISTICS):
        raise ValueError(f"stats: expected the four {STATISTICS}, got {len(statistics)}")
    shape = (means.shape[0],)
    return [
        address(check_written(name, value, shape, device=means.device)) if value.numel() else 0
        for name, value in zip(STATISTICS, statistics, strict=True)
    ]


class _Report(NamedTuple):
    """float64 [3 L + 1]: the terms, three numbers each, and the number of invalid Gaussians; beside a ready dL/dimage
    one more, that is 0 or NaN."""

    values: Tensor

    def at(self, term: int) -> int:
        """Address of the numbers of a term; of the number of invalid Gaussians after the last one."""
        return self.values.data_ptr() + 24 * term

    @property
    def guarded(self) -> list[int]:
        """What must be finite, or else nothing is updated: address and count."""
        return [self.values.data_ptr(), self.values.numel()]

    def guard(self, ready: Tensor | None) -> None:
        """Make the last number NaN where dL/dimage is not finite: NaN and Inf show in the extremes."""
        if ready is not None and ready.numel():
            low, high = ready.aminmax()
            self.values[-1] = (low - low) + (high - high)


class _Wanted(NamedTuple):
    """What a step needs beside the image: room for dL/dimage, an update, any way back at all."""

    gradient: bool
    update: bool
    back: bool


class _Drawn(NamedTuple):
    """Images and, by address, what goes with each of them; the lease is for this thread alone until it is released."""

    lease: Lease
    image: Tensor
    radii: Tensor
    lights: list[int]  # transmittances
    gradients: list[int]  # room for dL/dimage, 0 where none is needed
    sums: int  # room for gradients of all parameters, or 0


def _image(
    frame: Frame,
    parameters: list[Tensor],
    filter_3d: Tensor | None,
    rendered: list[Tensor],
    workspace: Tensor | None,
    wanted: _Wanted,
    run: Run,
) -> _Drawn:
    """Images, drawn now unless they are there."""
    pixels, cameras = frame.plane[0] * frame.plane[1], frame.cameras
    sums = sum(p.numel() for p in parameters) if wanted.update and cameras > 1 else 0
    sizes = [pixels, 3 * pixels if wanted.gradient else 0, sums]
    if rendered:
        image, transmittance, radii, state = rendered
        _check_rendered(frame, parameters[0].shape[0], image, transmittance, radii)
        found = claim(state, frame.drawn(parameters, filter_3d))
        if found is not None:
            try:
                _, gradients, sums_at = _reserve(found.natives, [0, *sizes[1:]], keep_image=True)
                return _Drawn(found, image, radii, addresses(transmittance, cameras), gradients, sums_at[-1])
            except MemoryError:  # no room beside this image: draw it once more, on the CPU in more bands
                release(found)
            except BaseException:
                release(found)
                raise
    image, radii = outputs(frame, parameters[0])
    drawn = owned(workspace, cameras, frame.device)
    try:
        lights, gradients, sums_at = _reserve(drawn.natives, sizes, keep_image=False)
        images = [[i, t, 0, 0, 0] for i, t in zip(addresses(image, cameras), lights, strict=True)]
        draw(drawn.natives, frame, parameters, filter_3d, images, radii, wanted.back, run)
    except BaseException:
        release(drawn)
        raise
    return _Drawn(drawn, image, radii, lights, gradients, sums_at[-1])


def _reserve(natives: list[Any], sizes: list[int], *, keep_image: bool) -> list[list[int]]:
    """Addresses of transmittances, dL/dimage and sums, one for each camera; only the last one has room for sums."""
    each = [n.reserve([*sizes[:2], sizes[2] if n is natives[-1] else 0], keep_image) for n in natives]
    return [list(column) for column in zip(*each, strict=True)]


def _check_rendered(frame: Frame, count: int, image: Tensor, transmittance: Tensor, radii: Tensor) -> None:
    device = frame.device
    check_written("rendered.image", image, (*frame.lead, 3, *frame.plane), device=device)
    check_written("rendered.transmittance", transmittance, (*frame.lead, *frame.plane), device=device)
    check_written("rendered.radii", radii, (*frame.lead, count), torch.int32, device)


def _ready(grad_image: Tensor | None, frame: Frame, more: bool) -> Tensor | None:
    """The given dL/dimage; a copy where `more` is to be added to it."""
    if grad_image is None:
        return None
    check_tensor("grad_image", grad_image, (*frame.lead, 3, *frame.plane), device=frame.device)
    return grad_image.contiguous().clone() if more else grad_image.contiguous()


def _losses(
    drawn: _Drawn,
    frame: Frame,
    terms: list[tuple[Tensor, tuple[Tensor, ...], Tensor]],
    factors: list[float],
    ready: Tensor | None,
    report: _Report,
    run: Run,
) -> list[int]:
    """Write all terms to the report; the address of each camera's dL/dimage: `ready`, or in its workspace.

    terms : target, taps and weights of pixels of each.
    """
    cameras, (height, width) = frame.cameras, frame.plane
    filled = [ready is not None] * cameras
    gradients = drawn.gradients if ready is None else addresses(ready, cameras)
    images = addresses(drawn.image, cameras)
    for k, term in enumerate(terms):
        which, weight, lambda_dssim = factors[3 * k : 3 * k + 3]
        camera = int(check_range("index of the camera", which, 0, cameras - 1))
        options = (check_finite("weight", weight), lambda_dssim, filled[camera], report.at(k), run)
        place = (drawn.lease.natives[camera], images[camera], gradients[camera], (width, height))
        _term(place, *term, frame.device, options)
        filled[camera] = True
    if not all(filled):
        raise ValueError(f"losses: camera {filled.index(False)} has neither a loss nor grad_image")
    return gradients


def _term(
    place: tuple[Any, int, int, tuple[int, int]],
    target: Tensor,
    taps: tuple[Tensor, ...],
    pixel_weights: Tensor,
    device: torch.device,
    options: tuple[Any, ...],
) -> None:
    """One loss of one image; its gradient is written or added."""
    native, image, gradient, (width, height) = place
    if not taps[0].numel():
        check_written("target", target, (3, height, width), device=device)
        if pixel_weights.numel():
            check_written("pixel_weights", pixel_weights, (1, height, width), device=device)
        native.l1_ssim(image, address(target), address(pixel_weights), gradient, width, height, *options)
        return
    lr_height, lr_width = size_of("lr_target", target, 1), size_of("lr_target", target, 2)
    check_written("lr_target", target, (3, lr_height, lr_width), device=device)
    axes = list[Any]()
    sizes = (("taps_x", lr_width, width), ("taps_y", lr_height, height))
    for (name, count, inputs), start, weight in zip(sizes, taps[::2], taps[1::2], strict=True):
        check_written(name, start, (count,), torch.int32, device)
        check_written(name, weight, (count, size_of(name, weight, 1)), device=device)
        axes += [[address(start), address(weight)], [count, inputs, weight.shape[1]]]
    native.lr_l1_ssim(image, address(target), gradient, *axes, *options)


class _Back(NamedTuple):
    """The way back of one call: addresses only."""

    natives: list[Any]
    parameters: list[int]
    filter_3d: int
    lights: list[int]
    gradients: list[int]
    sums: int
    statistics: list[int]
    guard: list[int]
    run: Run

    def gather(self, cameras: slice = slice(None), sums: list[int] | None = None) -> None:
        """Statistics of some cameras, and the sums of their gradients where `sums` points to."""
        out, added = [*(sums or [0] * 6), 0, 0], [0] * 8
        views = list(zip(self.natives, self.lights, self.gradients, strict=True))[cameras]
        for native, light, gradient in views:
            images = [gradient, 0, 0, 0, 0]
            more = (out, added, 0, 0, 0, self.statistics, self.guard, self.run)
            native.backward([*self.parameters, 0, 0], self.filter_3d, light, images, *more)
            added = out

    def update(self, sizes: list[int], adam: tuple[Any, ...]) -> None:
        """Adam on the gradients of all cameras: sums of all but the last, which updates as it adds its own.

        sizes : floats of the six parameters; adam : moments, rates, step, betas, eps and whom to update.
        """
        last, sums = self.natives[-1], [0] * 6
        if len(self.natives) > 1:
            sums = [self.sums + 4 * sum(sizes[:k]) if size else 0 for k, size in enumerate(sizes)]
            self.gather(slice(0, -1), sums)
        images = [self.gradients[-1], 0, 0, 0, 0]
        more = (sums, *adam, 0, self.statistics, self.guard, self.run)
        last.backward_adam(self.parameters, self.filter_3d, self.lights[-1], images, *more)
