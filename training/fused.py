"""The engine of the native kernels: no autograd, no PyTorch reduction, no gradient of a parameter in memory (but of
opacities and scales where they have regularisers).

On the CPU every sum is made by the kernels in an order that does not depend on the number of threads, so neither does a
result. On a GPU the order is fixed with --deterministic; the step never waits for the device but to read one size.
"""

from functools import lru_cache, partial
from typing import Any, TypeAlias

import torch
from diff_gaussian_rasterization.fused import (
    L1SSIM,
    LowResolution,
    RasterCamera,
    Statistics,
    Taps,
    Workspace,
    render,
    train_step,
)
from jaxtyping import Float
from torch import Tensor

from arguments.loading import PipelineParams
from scene.gaussians import FIELDS
from scene.lr_kernel import LRKernel
from training.adam import BETAS, EPS, bias_correction
from training.mcmc import REGULARISED
from training.objective import Outcome, Terms, Weights
from training.reading import Reading
from training.state import TrainState, update
from training.step import Step
from training.views import Targets, View

Loss: TypeAlias = L1SSIM | LowResolution


@lru_cache(maxsize=16)
def _taps(kernel: LRKernel) -> tuple[Taps, Taps]:
    """The kernel along x and y, checked once."""
    (lr_width, lr_height), (width, height) = kernel.lr_size, kernel.hr_size
    return (
        Taps.of("taps_x", kernel.taps("x"), lr_width, width),
        Taps.of("taps_y", kernel.taps("y"), lr_height, height),
    )


class FusedEngine:
    """Raw parameters in; render, losses with their gradient, backward and Adam in one call of the kernels.

    Parameters
    ----------
    pipeline : how Gaussians are drawn, and within how much memory.

    Attributes
    ----------
    culled : Gaussians left out for NaN, Inf or values out of range in the last step whose outcome was read.
    """

    def __init__(self, pipeline: PipelineParams, device: str) -> None:
        self.pipeline = pipeline
        self.workspace = Workspace(memory_limit=pipeline.raster_memory_bytes, device=device)
        self.culled = 0

    def step(self, state: TrainState, view: View, targets: Targets, step: Step) -> Outcome:
        """See training.engines.Engine."""
        losses = _losses(view, targets, step.weights)
        norms = {"absolute_norm" if step.absolute else "gradient_norm": state.grad_norm_sum}
        statistics = Statistics(count=state.view_count, max_radius=state.max_radius, **norms)
        updates = bool(step.learning_rates)
        own = _held_back(state, step)
        camera, parameters = self._camera(view, step), list(state.parameters().values())
        drawn, gradient, size = None, None, None
        if step.guide is not None and step.looks_back:
            drawn = render(camera, parameters, filter_3d=state.filter_3d, workspace=self.workspace)
            gradient, size = step.guide(drawn.image)
        result = train_step(
            camera,
            parameters,
            exp_avg=[own.get(name, state.exp_avg[name]) for name in FIELDS],
            exp_avg_sq=[torch.zeros_like(own[name]) if name in own else state.exp_avg_sq[name] for name in FIELDS],
            learning_rates=_rates(state, step, own) if updates else None,
            step=_next(state, step) if updates else 1,
            betas=BETAS,
            eps=EPS,
            losses=list(losses.values()),
            grad_image=gradient,
            rendered=drawn,
            filter_3d=state.filter_3d,
            sparse=step.visible_only,
            stats=statistics if step.statistics else None,
            workspace=self.workspace,
        )
        for name in step.learning_rates.keys() - own.keys():  # also where a loss is not finite: the state is given up
            state.steps[name] += 1
        _regularised(state, step, own, result.radii)
        weights = {name: loss.weight for name, loss in losses.items()}
        report = result.report if size is None else torch.cat([size.double()[None], result.report])
        return partial(self._terms, weights, Reading(report), size is not None)

    def _terms(self, weights: dict[str, float], report: Reading, guided: bool) -> Terms:
        """Of a step: size of the guidance, l1, ssim and loss of each term, then the number of Gaussians left out."""
        values = report.values()
        sds = values.pop(0) if guided else None
        self.culled = int(values[-1])
        found = {name: values[3 * k : 3 * k + 3] for k, name in enumerate(weights)}
        parts = {f"{name}l1": value[0] for name, value in found.items()}
        parts |= {f"{name}ssim": value[1] for name, value in found.items()}
        return Terms(sum(weights[name] * value[2] for name, value in found.items()), **parts, sds=sds)

    def _camera(self, view: View, step: Step) -> RasterCamera:
        camera = view.camera
        return RasterCamera(
            camera.width,
            camera.height,
            camera.fx,
            camera.fy,
            camera.cx,
            camera.cy,
            camera.world_to_camera,
            step.background,
            step.sh_degree,
            antialiasing=self.pipeline.antialiasing,
            dilation=self.pipeline.dilation,
        )


class NativeObjective:
    """`training.objective.objective` by the kernels, ten times as fast, for an image that autograd knows.

    Parameters
    ----------
    device : of the images.
    """

    def __init__(self, device: torch.device | str) -> None:
        self.workspace = Workspace(device=device)

    def __call__(
        self, render: Float[Tensor, "3 H W"], view: View, targets: Targets, weights: Weights
    ) -> tuple[Float[Tensor, ""], Terms]:
        """Return a scalar that has the objective's gradient (not its value), and the terms."""
        image = render.detach().contiguous()
        gradient, total, parts = torch.zeros_like(image), 0.0, dict[str, float]()
        for name, loss in _losses(view, targets, weights).items():
            weight, dssim = loss.weight, loss.lambda_dssim
            options: dict[str, Any] = {"weight": weight, "lambda_dssim": dssim, "accumulate": True}
            if isinstance(loss, L1SSIM):
                options["pixel_weights"] = loss.pixel_weights
                found = self.workspace.l1_ssim(image, loss.target, gradient, **options)
            else:
                x, y = loss.taps_x, loss.taps_y
                found = self.workspace.lr_l1_ssim(image, loss.lr_target, gradient, x, y, **options)
            parts |= {f"{name}l1": float(found.l1), f"{name}ssim": float(found.ssim)}
            total += weight * float(found.loss)
        return (render * gradient).sum(), Terms(total, **parts)


def _losses(view: View, targets: Targets, weights: Weights) -> dict[str, Loss]:
    """Terms of the objective by the beginning of their names in Terms."""
    hr_weight, lr_weight = weights.of(targets)
    losses: dict[str, Loss] = {}
    if targets.hr is not None and hr_weight > 0:
        losses[""] = L1SSIM(targets.hr, hr_weight, weights.dssim, targets.weight)
    if targets.lr is not None and lr_weight > 0:
        assert view.kernel is not None, "an LR target comes with its kernel"
        losses["lr_"] = LowResolution(targets.lr, *_taps(view.kernel), lr_weight, weights.dssim)
    return losses


def _next(state: TrainState, step: Step) -> int:
    """The count that the kernels are given for all fields: that of the field which is ahead."""
    return 1 + max(state.steps[name] for name in step.learning_rates)


def _rates(state: TrainState, step: Step, own: dict[str, Tensor]) -> list[float | None]:
    """Learning rates, None where a field rests; one that is behind gets the ratio of the bias corrections."""
    now = bias_correction(_next(state, step))
    rates: dict[str, float | None] = dict.fromkeys(FIELDS)
    for name, rate in step.learning_rates.items():
        rates[name] = 0.0 if name in own else rate * bias_correction(state.steps[name] + 1) / now
    return list(rates.values())


def _held_back(state: TrainState, step: Step) -> dict[str, Tensor]:
    """Zeros for the fields that get a regulariser's gradient too.

    The kernels update their fields at once and give out no gradient. But with empty moments and a rate of zero all
    that they do to a field is to leave (1 - beta_1) times its gradient in the first moment.
    """
    if step.regularisers is None:
        return {}
    return {name: torch.zeros_like(state.exp_avg[name]) for name in REGULARISED if name in step.learning_rates}


def _regularised(state: TrainState, step: Step, own: dict[str, Tensor], radii: Tensor) -> None:
    """Update the fields that were held back."""
    visible = radii > 0 if step.visible_only else None
    for name, first_moment in own.items():
        assert step.regularisers is not None
        gradient = first_moment / (1 - BETAS[0]) + step.regularisers.gradient(name, getattr(state.gaussians, name))
        update(state, name, gradient, step.learning_rates[name], visible)
