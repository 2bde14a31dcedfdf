"""One optimisation step, two ways: fused native kernels on the CPU, or PyTorch's autograd around any rasterizer.

The loop sees only `Engine`. Both evaluate the same objective, update with the same Adam, and gather the same
densification statistics; they agree to rounding. Adam (Kingma & Ba 2015): betas 0.9, 0.999, eps 1e-15 as in 3DGS.
"""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from arguments.loading import PipelineParams
from gaussian_renderer import render
from scene.gaussians import Gaussians
from training.objective import Terms, Weights, objective
from training.state import TrainState
from training.views import Background, Targets, View

BETAS = (0.9, 0.999)
EPS = 1e-15


@dataclass(frozen=True)
class Step:
    """What one step uses beside the images.

    Attributes
    ----------
    background : RGB 0-1. sh_degree : bands in use. weights : of the objective.
    learning_rates : by field; a field that is not in it is not updated, and nothing is when it is empty.
    statistics : whether densification statistics are gathered.
    """

    background: Background
    sh_degree: int
    weights: Weights
    learning_rates: dict[str, float]
    statistics: bool


class Engine(Protocol):
    """Carries out one step in place."""

    def step(self, state: TrainState, view: View, targets: Targets, step: Step) -> Terms:
        """Render, compare, and update `state`; without any update when a term of the loss is not finite."""
        ...


def choose(pipeline: PipelineParams, device: str) -> Engine:
    """Return the engine for a rasterizer and a device."""
    return AutogradEngine(pipeline)


def instruction_set(pipeline: PipelineParams) -> str:
    return pipeline.rasterizer


class AutogradEngine:
    """PyTorch's autograd around `gaussian_renderer.render`: any rasterizer, any device.

    Parameters
    ----------
    pipeline : which rasterizer, and its options.
    """

    def __init__(self, pipeline: PipelineParams) -> None:
        self.options = {
            "rasterizer": pipeline.rasterizer,
            "antialiasing": pipeline.antialiasing,
            "convert_SHs_python": pipeline.convert_SHs_python,
            "compute_cov3D_python": pipeline.compute_cov3D_python,
        }

    def step(self, state: TrainState, view: View, targets: Targets, step: Step) -> Terms:
        """See Engine."""
        leaves = {name: value.detach().requires_grad_() for name, value in state.parameters().items()}
        output = render(
            view.camera, Gaussians(**leaves), background=step.background, sh_degree=step.sh_degree, **self.options
        )
        loss, terms = objective(output.color, view, targets, step.weights)
        if not terms.finite:
            return terms
        if not (step.learning_rates or step.statistics):
            return terms
        loss.backward()
        with torch.no_grad():
            if step.statistics:
                _gather(state, output.radii, output.means2d)
            for name, rate in step.learning_rates.items():
                gradient = leaves[name].grad
                adam(state, name, torch.zeros_like(leaves[name]) if gradient is None else gradient, rate)
        return terms


def _gather(state: TrainState, radii: Tensor, means2d: Tensor) -> None:
    visible = radii > 0
    if means2d.grad is not None:
        state.grad_norm_sum += torch.where(visible, means2d.grad[:, :2].norm(dim=1), 0.0)
    state.view_count += visible
    torch.maximum(state.max_radius, radii.to(state.max_radius.dtype), out=state.max_radius)


def adam(state: TrainState, name: str, gradient: Tensor, rate: float) -> None:
    """Update one field in place as torch.optim.Adam does, and count the step."""
    state.steps[name] += 1
    step = state.steps[name]
    mean, square = state.exp_avg[name], state.exp_avg_sq[name]
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = square.sqrt().div_((1 - BETAS[1] ** step) ** 0.5).add_(EPS)
    getattr(state.gaussians, name).addcdiv_(mean, denominator, value=-rate / (1 - BETAS[0] ** step))
