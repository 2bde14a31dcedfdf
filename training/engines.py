"""One optimisation step, two ways: fused native kernels, or PyTorch's autograd around any rasterizer.

The loop sees only `Engine`. Both evaluate the same objective, update with the same Adam, and gather the same
densification statistics; they agree to rounding.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from arguments.loading import PipelineParams
from gaussian_renderer import backends, render
from scene.gaussians import Gaussians
from training.depth import depth_loss
from training.exposure import exposed
from training.mcmc import REGULARISED
from training.objective import Outcome, Terms, Weights, objective
from training.smoothing import baked
from training.state import TrainState, update
from training.step import Step
from training.views import Targets, View
from utils.errors import UserError

Objective = Callable[[Tensor, View, Targets, Weights], tuple[Tensor, Terms]]  # see training.objective.objective


@runtime_checkable
class Engine(Protocol):
    """Carries out one step in place."""

    @property
    def culled(self) -> int:
        """Gaussians that were left out for NaN, Inf or values out of range in the last step whose outcome was read."""
        ...

    def step(self, state: TrainState, view: View, targets: Targets, step: Step) -> Outcome:
        """Render, compare, and update `state`; without any update when a term of the loss is not finite."""
        ...


def choose(pipeline: PipelineParams, device: str, absolute: bool = False, extended: bool = False) -> Engine:
    """Return the engine for a rasterizer and a device: the fused kernels wherever they apply.

    Parameters
    ----------
    absolute : steps will ask for absolute gradients. extended : for what the native kernels' steps have not (exposures,
        depths).

    Raises
    ------
    UserError : the native kernels are asked for and not built, or absolute gradients where only those have them.
    """
    if pipeline.rasterizer == "native":
        backends.instruction_set()  # a UserError where there is none
    if _fuses(pipeline, extended):
        from training.fused import FusedEngine

        return FusedEngine(pipeline, device)
    if absolute:
        raise UserError(
            "--abs_grad: only the native rasterizer's own kernels sum absolute gradients; leave away "
            f"--exposure_lr_init, --depths, --rasterizer {pipeline.rasterizer}, --convert_SHs_python and "
            "--compute_cov3D_python"
        )
    return AutogradEngine(pipeline, device)


def _fuses(pipeline: PipelineParams, extended: bool) -> bool:
    in_python = pipeline.convert_SHs_python or pipeline.compute_cov3D_python
    return pipeline.rasterizer == "native" and not in_python and not extended


def instruction_set(pipeline: PipelineParams, device: str) -> str:
    """Return what a result's last bits depend on beside the code: the kernels' instruction set, or who renders."""
    if device != "cpu" or pipeline.rasterizer != "native":  # the kernels also render where autograd goes around them
        return f"{pipeline.rasterizer} {device.partition(':')[0]}"
    return backends.instruction_set()


def render_options(pipeline: PipelineParams) -> dict[str, Any]:
    """Keyword arguments of `gaussian_renderer.render` that say how Gaussians are drawn."""
    return {
        "rasterizer": pipeline.rasterizer,
        "antialiasing": pipeline.antialiasing,
        "dilation": pipeline.dilation,
        "memory_bytes": pipeline.raster_memory_bytes,
        "convert_SHs_python": pipeline.convert_SHs_python,
        "compute_cov3D_python": pipeline.compute_cov3D_python,
    }


class AutogradEngine:
    """PyTorch's autograd around `gaussian_renderer.render`: any rasterizer, any device.

    Parameters
    ----------
    pipeline : which rasterizer, and its options. device : where the native kernels evaluate the objective too.
    """

    def __init__(self, pipeline: PipelineParams, device: str) -> None:
        self.options = render_options(pipeline)
        self.objective: Objective = objective
        if pipeline.rasterizer == "native":
            from training.fused import NativeObjective

            self.objective = NativeObjective(device)

    @property
    def culled(self) -> int:
        """Not counted by these rasterizers."""
        return 0

    def step(self, state: TrainState, view: View, targets: Targets, step: Step) -> Outcome:
        """See Engine. The terms are read before the way back, which is not taken when one is not finite."""
        leaves = {name: value.detach().requires_grad_() for name, value in state.parameters().items()}
        drawn = Gaussians(**leaves)
        if state.filter_3d is not None:
            drawn = baked(drawn, state.filter_3d)
        output = render(view.camera, drawn, background=step.background, sh_degree=step.sh_degree, **self.options)
        exposure = None if state.exposures is None else state.exposures.leaf(view.camera.name)
        color = output.color if exposure is None else exposed(output.color, exposure)
        loss, terms = self.objective(color, view, targets, step.weights)
        if targets.inverse_depth is not None and step.depth_weight > 0:
            term = depth_loss(output.inverse_depth, targets.inverse_depth)
            loss, depth_l1 = loss + step.depth_weight * term, float(term.detach())
            terms = replace(terms, loss=terms.loss + step.depth_weight * depth_l1, depth_l1=depth_l1)
        if not terms.finite or not step.looks_back:
            return lambda: terms
        if step.guide is not None:
            gradient, size = step.guide(output.color.detach())
            loss, terms = loss + (gradient * output.color).sum(), replace(terms, sds=float(size))
            if not terms.finite:
                return lambda: terms
        loss.backward()
        with torch.no_grad():
            if step.statistics:
                _gather(state, output.radii, output.means2d)
            _update(state, leaves, output.radii, step)
            if state.exposures is not None and exposure is not None and step.exposure_rate > 0:
                assert exposure.grad is not None
                state.exposures.update(view.camera.name, exposure.grad, step.exposure_rate)
        return lambda: terms


def _update(state: TrainState, leaves: dict[str, Tensor], radii: Tensor, step: Step) -> None:
    visible = radii > 0 if step.visible_only else None
    for name, rate in step.learning_rates.items():
        gradient = leaves[name].grad
        gradient = torch.zeros_like(leaves[name]) if gradient is None else gradient
        if step.regularisers and name in REGULARISED:
            gradient = gradient + step.regularisers.gradient(name, getattr(state.gaussians, name))
        update(state, name, gradient, rate, visible)


def _gather(state: TrainState, radii: Tensor, means2d: Tensor) -> None:
    visible = radii > 0
    if means2d.grad is not None:
        state.grad_norm_sum += torch.where(visible, means2d.grad[:, :2].norm(dim=1), 0.0)
    state.view_count += visible
    torch.maximum(state.max_radius, radii.to(state.max_radius.dtype), out=state.max_radius)
