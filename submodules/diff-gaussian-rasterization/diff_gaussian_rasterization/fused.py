"""Training without autograd: raw parameters in, image out, losses with their gradient, and backward + Adam in place.

Letters: C cameras, N Gaussians, H x W pixels, K = number of spherical-harmonics coefficients beyond the first that
`shN` holds (15 for degree 3). Images are float32 [3, H, W]. Everything is a contiguous float32 tensor, all of a call
on one device; cameras and learning rates stay on the CPU. There the number of threads is torch.get_num_threads() at
each call; results are bit-equal for any number. On CUDA everything is queued on the current stream, and bits are equal
in every run where torch.use_deterministic_algorithms(True) is on.

Order of the six parameters, everywhere: means [N, 3], log_scales [N, 3], quats [N, 4] (w x y z, any length),
logit_opacities [N, 1], sh0 [N, 1, 3], shN [N, K, 3].
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import repeat
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from diff_gaussian_rasterization.cameras import RasterCamera, view_of
from diff_gaussian_rasterization.checks import CPU
from diff_gaussian_rasterization.losses import L1SSIM, Loss, LowResolution, Term, taps_of
from diff_gaussian_rasterization.raw import NAMES, render_raw
from diff_gaussian_rasterization.step_ops import train_step as _train_step
from diff_gaussian_rasterization.taps import Taps
from diff_gaussian_rasterization.workspace import Workspace

__all__ = [
    "L1SSIM",
    "NAMES",
    "Loss",
    "LowResolution",
    "RasterCamera",
    "Rendered",
    "Statistics",
    "StepResult",
    "Taps",
    "Workspace",
    "filter_3d",
    "render",
    "train_step",
]
NEAR_Z = 0.2  # [world units], means nearer than this are not seen
SEEN_MARGIN = 0.15  # of the image's sides, by which a mean may lie outside and still be seen
FILTER_VARIANCE = 0.2  # [px^2] of the 3D smoothing filter at the highest sampling rate


class Statistics(NamedTuple):
    """Densification statistics, float32 [N] or None, changed in place; several cameras count one after the other.

    gradient_norm : plus the norm of dL/dmeans2D, (dL/dx W/2, dL/dy H/2); count : plus 1 where the Gaussian is visible
    (radii > 0); max_radius : the maximum with the radius [px]; absolute_norm : plus the norm of the sums over pixels of
    |dL/dx| W/2 and |dL/dy| H/2 (AbsGS, Ye et al. 2024).
    """

    gradient_norm: Tensor | None = None
    count: Tensor | None = None  # type: ignore[assignment]
    max_radius: Tensor | None = None
    absolute_norm: Tensor | None = None


@dataclass(frozen=True, eq=False)
class StepResult:
    """Of `train_step`.

    Attributes
    ----------
    image, radii : before the update; with several cameras they have a leading axis.
    report : float64 [3 L + 1], l1, ssim and loss of each of L terms, then the number of invalid Gaussians; on the
        parameters' device. Whoever needs the values later keeps this and reads them then: it waits for no GPU.
    losses : floats, one Loss for each term as they were given (a list for each of several cameras). invalid : Gaussians
        culled for NaN, Inf or range. Both are read from the device when first asked for; in a compiled function they
        are float64 tensors [].
    """

    image: Tensor
    radii: Tensor
    report: Tensor
    _counts: list[int] | None  # terms of each of several cameras
    _found: list[Any] = field(default_factory=list, init=False, repr=False)  # values of the report, once they are read

    @property
    def losses(self) -> list[Any]:
        values = self._values()
        losses = [Loss(*values[k : k + 3]) for k in range(0, len(values) - 1, 3)]
        if self._counts is None:
            return losses
        rest = iter(losses)
        return [[next(rest) for _ in range(n)] for n in self._counts]

    @property
    def invalid(self) -> int:
        last = self._values()[-1]
        return last if torch.compiler.is_compiling() else int(last)

    def _values(self) -> list[Any]:
        if torch.compiler.is_compiling():
            return [*self.report.unbind()]
        if not self._found:
            self._found.extend(self.report.tolist())
        return self._found


class Rendered(NamedTuple):
    """Of `render`: image [3, H, W], transmittance [H, W] = 1 - alpha, radii int32 [N], and a handle for train_step."""

    image: Tensor
    transmittance: Tensor
    radii: Tensor
    state: Tensor


def render(
    camera: RasterCamera | Sequence[RasterCamera],
    parameters: Sequence[Tensor],
    *,
    filter_3d: Tensor | None = None,
    workspace: Workspace | None = None,
) -> Rendered:
    """Render raw parameters without autograd, for `train_step(..., rendered=...)` with a gradient of one's own.

    Parameters
    ----------
    camera : one, or C of one size; the results then have a leading axis C. parameters : the six.
    filter_3d : [N] or None, see the function of this name.
    workspace : whose memory to use; None = a pooled one, which the result keeps.

    Raises
    ------
    TypeError, ValueError : an argument does not fit; the message names it. MemoryError : no room for the tile lists.
    """
    with torch.no_grad():
        rows, view = view_of(camera)
        own = None if workspace is None else workspace.handle
        return Rendered(*render_raw(rows, list(parameters), filter_3d, own, view))


def train_step(
    camera: RasterCamera | Sequence[RasterCamera],
    parameters: Sequence[Tensor],
    *,
    exp_avg: Sequence[Tensor | None] | None = None,
    exp_avg_sq: Sequence[Tensor | None] | None = None,
    learning_rates: Sequence[float | None] | Tensor | None,
    step: int | Tensor = 1,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-15,
    losses: Sequence[Term] | Sequence[Sequence[Term]] = (),
    grad_image: Tensor | None = None,
    filter_3d: Tensor | None = None,
    sparse: bool = False,
    stats: Statistics | None = None,
    workspace: Workspace | None = None,
    rendered: Rendered | None = None,
) -> StepResult:
    """Render, compare, go back, and update in place; nothing changes if a loss or grad_image is not finite.

    Parameters
    ----------
    camera : one, or C of one size, whose gradients are added up.
    parameters, exp_avg, exp_avg_sq : six tensors each; moments of a resting field may be None.
    learning_rates : six; None in a place = that field and its moments rest; None as a whole = statistics only.
        Or float64 [6] on the CPU, NaN = rests: torch.compile then does not specialise on the values.
    step : 1 at the first call, for the bias correction; an integer, or a tensor [] for torch.compile.
    losses : terms of the objective (a list of them for each of several cameras). grad_image : a ready dL/dimage of the
        image's shape, instead of them or added to theirs.
    filter_3d : [N] or None, see the function of this name; it is held constant.
    sparse : leave Gaussians that no camera sees (radii = 0) and their moments as they are, bit for bit, as
        torch.optim.SparseAdam does; else dense: they move by their momentum, as in torch.optim.Adam.
    rendered : what `render` returned for the same camera, parameters and filter_3d: it is not rendered again.
    workspace : whose memory to use, in one thread at a time, made for the device of the parameters; None = a pooled
        one.

    Returns
    -------
    StepResult. On CUDA the host waits once, for the number of (Gaussian, tile) pairs; not at all with a workspace of
    fixed capacity.

    Raises
    ------
    TypeError, ValueError : an argument does not fit; the message names it. MemoryError : no room for the tile lists.
    RuntimeError : the workspace is at work in another thread.

    Notes
    -----
    Arithmetic of torch.optim.Adam without weight decay. An operator that torch.compile can trace. Losses and grad_image
    are looked at on the device: one that is not finite keeps the update from being written.
    """
    with torch.no_grad():
        rows, view = view_of(camera)
        several = rows.ndim == 2
        per_camera = _per_camera(losses, len(rows) if several else None)
        terms = [(k, term) for k, some in enumerate(per_camera) for term in some]
        image, radii, report = _train_step(
            rows,
            list(parameters),
            _given(exp_avg, 6),
            _given(exp_avg_sq, 6),
            _given(stats, 4),
            [t.target if isinstance(t, L1SSIM) else t.lr_target for _, t in terms],
            [tap for _, t in terms for tap in taps_of(t, view)],
            [float(v) for k, t in terms for v in (k, t.weight, t.lambda_dssim)],
            _given([t.pixel_weights if isinstance(t, L1SSIM) else None for _, t in terms], len(terms)),
            grad_image,
            filter_3d,
            [] if rendered is None else list(rendered),
            None if workspace is None else workspace.handle,
            _schedule(learning_rates, step, (*betas, eps)),
            sparse,
            view,
        )
    if rendered is not None:
        image, radii = rendered.image, rendered.radii
    return StepResult(image, radii, report, [len(some) for some in per_camera] if several else None)


def _per_camera(losses: Sequence[Term] | Sequence[Sequence[Term]], cameras: int | None) -> Sequence[Sequence[Term]]:
    """Terms of each camera; `cameras` None = one, without a list of lists."""
    flat = [isinstance(term, Term) for term in losses]
    if cameras is None:
        if not all(flat):
            raise ValueError("losses: expected L1SSIM and LowResolution terms for a single camera")
        return [cast(Sequence[Term], losses)]
    if any(flat) or len(flat) not in (0, cameras):
        what = "terms of no camera" if any(flat) else str(len(flat))
        raise ValueError(f"losses: expected a list for each of {cameras} cameras, got {what}")
    return cast(Sequence[Sequence[Term]], losses)


def _schedule(
    learning_rates: Sequence[float | None] | Tensor | None, step: int | Tensor, constants: Sequence[float]
) -> Tensor:
    """float64 [10]: rates, NaN for resting fields, then the step and `constants`; or [0]."""
    if learning_rates is None:
        return torch.empty(0, dtype=torch.float64, device=CPU)
    if isinstance(learning_rates, Tensor):
        at = torch.as_tensor(step, dtype=torch.float64, device=CPU).reshape(1)
        rest = torch.tensor(constants, dtype=torch.float64, device=CPU)
        return torch.cat([learning_rates.to("cpu", torch.float64), at, rest])
    rates = [math.nan if rate is None else float(rate) for rate in learning_rates]
    if len(rates) != 6:
        raise ValueError(f"learning_rates: expected six, got {len(rates)}")
    return torch.tensor([*rates, float(step), *constants], dtype=torch.float64, device=CPU)


def _given(tensors: Sequence[Tensor | None] | None, count: int) -> list[Tensor]:
    """As operators take them: an empty tensor for None."""
    return [torch.empty(0, device=CPU) if t is None else t for t in (tensors or (None,) * count)]


@torch.no_grad()
def filter_3d(cameras: Sequence[RasterCamera], means: Tensor, trust: Iterable[Tensor | None] | None = None) -> Tensor:
    """Standard deviation [world units] of each Gaussian's 3D smoothing filter, float32 [N].

    Parameters
    ----------
    cameras : all training cameras; means : [N, 3].
    trust : for each camera the share of its sampling rate that is trusted, [h, w] over the whole image, above 0; None =
        all of it. A mean has the share of the pixel that it falls on, or of the nearest.

    Returns
    -------
    sqrt(0.2) / (largest sampling rate), rate = focal length [px] / depth, over the cameras that see the mean: beyond
    z = 0.2 and inside the image or up to 15 % of its sides beyond. A mean that no camera sees gets the largest of the
    others' (0 if no camera sees any).

    Notes
    -----
    Yu et al., "Mip-Splatting", CVPR 2024, section 5.1; the 15 % and the rule for unseen means are of its released code.
    """
    rate = means.new_zeros(len(means))
    for camera, share in zip(cameras, repeat(None, len(cameras)) if trust is None else trust, strict=True):
        pose = torch.as_tensor(camera.world_to_camera).detach().to(means)
        x, y, z = ((means[:, None] * pose[:3, :3]).sum(dim=-1) + pose[:3, 3]).unbind(-1)  # each [N]
        column = camera.fx * x / z + camera.cx
        row = camera.fy * y / z + camera.cy
        seen = z > NEAR_Z
        for at, size in ((column, camera.width), (row, camera.height)):
            seen &= (at >= -SEEN_MARGIN * size) & (at <= (1 + SEEN_MARGIN) * size)
        of_camera = max(camera.fx, camera.fy) / z
        if share is not None:
            of_camera *= _under(share, column / camera.width, row / camera.height)
        rate = torch.where(seen, torch.maximum(rate, of_camera), rate)
    width = math.sqrt(FILTER_VARIANCE) / rate  # inf where no camera sees the mean
    unseen = rate == 0
    largest = width[~unseen].max() if not bool(unseen.all()) else 0.0
    return torch.where(unseen, largest, width)


def _under(values: Tensor, x: Tensor, y: Tensor) -> Tensor:
    """Value of [h, w] at each point of 0-1; beyond the borders, and of points that are no number, that of a border."""
    places = [
        torch.nan_to_num(at * size).clamp(0, size - 1).to(torch.int64)
        for at, size in ((y, values.shape[0]), (x, values.shape[1]))
    ]
    return values[places[0], places[1]]
