"""Training without autograd: raw parameters in, image out, losses with their gradient, and backward + Adam in place.

Letters: C cameras, N Gaussians, H x W pixels, K = number of spherical-harmonics coefficients beyond the first that
`shN` holds (15 for degree 3). Images are float32 [3, H, W]. Everything is a contiguous float32 CPU tensor. The number
of threads is torch.get_num_threads() at each call; results are bit-equal for any number.

Order of the six parameters, everywhere: means [N, 3], log_scales [N, 3], quats [N, 4] (w x y z, any length),
logit_opacities [N, 1], sh0 [N, 1, 3], shN [N, K, 3].
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diff_gaussian_rasterization.cameras import RasterCamera, view_of
from diff_gaussian_rasterization.checks import check_range, size_of
from diff_gaussian_rasterization.step_ops import NAMES, render_raw
from diff_gaussian_rasterization.step_ops import train_step as _train_step
from diff_gaussian_rasterization.taps import Taps
from diff_gaussian_rasterization.workspace import Loss, Workspace

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


@dataclass(frozen=True, eq=False)
class L1SSIM:
    """(1 - lambda) L1 + lambda (1 - SSIM) of the image against target [3, H, W]; `weight` is its factor.

    Notes
    -----
    Kerbl et al. 2023, Eq. 7. SSIM: 11x11 Gaussian window, sigma 1.5, zero padding. The gradient of |x| at 0 is 0.
    """

    target: Tensor
    weight: float = 1.0
    lambda_dssim: float = 0.2

    def __post_init__(self) -> None:
        check_range("lambda_dssim", self.lambda_dssim, 0, 1)


@dataclass(frozen=True, eq=False)
class LowResolution:
    """The same of the shrunk image A image against lr_target [3, h, w].

    Parameters
    ----------
    taps_x, taps_y : the banded A along each axis as (start int32 [n_out], weight float32 [n_out, taps]); out[i] =
        sum_k weight[i, k] in[start[i] + k]; taps beyond the image must have weight 0. `Taps` are checked only once.
    """

    lr_target: Tensor
    taps_x: Taps | tuple[ArrayLike, ArrayLike]
    taps_y: Taps | tuple[ArrayLike, ArrayLike]
    weight: float = 1.0
    lambda_dssim: float = 0.2

    def __post_init__(self) -> None:
        check_range("lambda_dssim", self.lambda_dssim, 0, 1)


Term = L1SSIM | LowResolution


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


class StepResult(NamedTuple):
    """Of `train_step`: image and radii before the update; invalid = Gaussians culled for NaN, Inf or range.

    losses are floats, one Loss for each term as they were given (a list for each of several cameras); in a compiled
    function they and `invalid` are float64 tensors [].
    """

    image: Tensor
    radii: Tensor
    losses: list[Any]
    invalid: int


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
        Or float64 [6], NaN = rests: torch.compile then does not specialise on the values.
    step : 1 at the first call, for the bias correction; an integer, or a tensor [] for torch.compile.
    losses : terms of the objective (a list of them for each of several cameras). grad_image : a ready dL/dimage of the
        image's shape, instead of them or added to theirs.
    filter_3d : [N] or None, see the function of this name; it is held constant.
    sparse : leave Gaussians that no camera sees (radii = 0) and their moments as they are, bit for bit, as
        torch.optim.SparseAdam does; else dense: they move by their momentum, as in torch.optim.Adam.
    rendered : what `render` returned for the same camera, parameters and filter_3d: it is not rendered again.
    workspace : whose memory to use, in one thread at a time; None = a pooled one.

    Returns
    -------
    StepResult; with several cameras image and radii have a leading axis.

    Raises
    ------
    TypeError, ValueError : an argument does not fit; the message names it. MemoryError : no room for the tile lists.
    RuntimeError : the workspace is at work in another thread.

    Notes
    -----
    Arithmetic of torch.optim.Adam without weight decay. An operator that torch.compile can trace.
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
            [tap for _, t in terms for tap in _taps(t, view)],
            [float(v) for k, t in terms for v in (k, t.weight, t.lambda_dssim)],
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
    return _result(image, radii, report, [len(some) for some in per_camera] if several else None)


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
        return torch.empty(0, dtype=torch.float64)
    if isinstance(learning_rates, Tensor):
        at = torch.as_tensor(step, dtype=torch.float64).reshape(1)
        rest = torch.tensor(constants, dtype=torch.float64)
        return torch.cat([learning_rates.to(torch.float64), at, rest])
    rates = [math.nan if rate is None else float(rate) for rate in learning_rates]
    if len(rates) != 6:
        raise ValueError(f"learning_rates: expected six, got {len(rates)}")
    return torch.tensor([*rates, float(step), *constants], dtype=torch.float64)


def _given(tensors: Sequence[Tensor | None] | None, count: int) -> list[Tensor]:
    """As operators take them: an empty tensor for None."""
    return [torch.empty(0) if t is None else t for t in (tensors or (None,) * count)]


def _taps(term: Term, view: list[int]) -> list[Tensor]:
    if isinstance(term, L1SSIM):
        return [torch.empty(0) for _ in range(4)]
    lr_height, lr_width = size_of("lr_target", term.lr_target, 1), size_of("lr_target", term.lr_target, 2)
    x, y = Taps.of("taps_x", term.taps_x, lr_width, view[0]), Taps.of("taps_y", term.taps_y, lr_height, view[1])
    return [x.start, x.weight, y.start, y.weight]


def _result(image: Tensor, radii: Tensor, report: Tensor, counts: list[int] | None) -> StepResult:
    """`counts`: terms of each of several cameras."""
    values: Any = report.unbind() if torch.compiler.is_compiling() else report.tolist()
    losses: list[Any] = [Loss(*values[k : k + 3]) for k in range(0, len(values) - 1, 3)]
    if counts is not None:
        rest = iter(losses)
        losses = [[next(rest) for _ in range(n)] for n in counts]
    invalid = values[-1] if torch.compiler.is_compiling() else int(values[-1])
    return StepResult(image, radii, losses, invalid)


@torch.no_grad()
def filter_3d(cameras: Sequence[RasterCamera], means: Tensor) -> Tensor:
    """Standard deviation [world units] of each Gaussian's 3D smoothing filter, float32 [N].

    Parameters
    ----------
    cameras : all training cameras; means : [N, 3].

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
    for camera in cameras:
        pose = torch.as_tensor(camera.world_to_camera).detach().to(means)
        x, y, z = (means @ pose[:3, :3].T + pose[:3, 3]).unbind(-1)
        column = camera.fx * x / z + camera.cx
        row = camera.fy * y / z + camera.cy
        seen = z > NEAR_Z
        for at, size in ((column, camera.width), (row, camera.height)):
            seen &= (at >= -SEEN_MARGIN * size) & (at <= (1 + SEEN_MARGIN) * size)
        rate = torch.where(seen, torch.maximum(rate, max(camera.fx, camera.fy) / z), rate)
    width = math.sqrt(FILTER_VARIANCE) / rate  # inf where no camera sees the mean
    unseen = rate == 0
    largest = width[~unseen].max() if not bool(unseen.all()) else 0.0
    return torch.where(unseen, largest, width)
