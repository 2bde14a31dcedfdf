"""The engine of the native CPU kernels: no autograd, parameter gradients never reach memory, no PyTorch reduction.

Every sum is made by the kernels in an order that does not depend on the number of threads, so neither does a result.
"""

from functools import lru_cache

import numpy as np
import torch
from diff_gaussian_rasterization.fused import RasterCamera, Workspace
from torch import Tensor

from scene.gaussians import FIELDS
from scene.lr_kernel import LRKernel
from training.adam import BETAS, EPS, bias_correction
from training.objective import Terms, Weights
from training.state import TrainState
from training.step import Step
from training.views import Targets, View

Taps = tuple[np.ndarray, np.ndarray]


@lru_cache(maxsize=16)
def _taps(kernel: LRKernel) -> tuple[Taps, Taps]:
    return kernel.taps("x"), kernel.taps("y")


class FusedEngine:
    """Raw parameters in, image, losses with their gradient, then backward and Adam in one pass over the Gaussians.

    Parameters
    ----------
    antialiasing : opacity compensation. dilation : [px^2].
    """

    def __init__(self, antialiasing: bool, dilation: float) -> None:
        self.antialiasing, self.dilation = antialiasing, dilation
        self.workspace = Workspace()
        self.gradient = torch.empty(0)

    @property
    def culled(self) -> int:
        """Gaussians that the last step left out for NaN, Inf or values out of range."""
        return int(self.workspace.facts["invalid"])

    def step(self, state: TrainState, view: View, targets: Targets, step: Step) -> Terms:
        """See training.engines.Engine."""
        camera = view.camera
        raster = RasterCamera(
            camera.width,
            camera.height,
            camera.fx,
            camera.fy,
            camera.cx,
            camera.cy,
            camera.world_to_camera,
            step.background,
            step.sh_degree,
            antialiasing=self.antialiasing,
            dilation=self.dilation,
        )
        image, _, _ = self.workspace.forward(raster, *state.parameters().values())
        if self.gradient.shape != image.shape:
            self.gradient = torch.empty_like(image)
        terms = self._losses(image, view, targets, step.weights)
        if terms.finite:
            if step.learning_rates:
                self._update(state, step)
            elif step.statistics:
                self._gather(state)
        return terms

    def _losses(self, image: Tensor, view: View, targets: Targets, weights: Weights) -> Terms:
        """Evaluate the objective; its gradient is left in `self.gradient`."""
        hr_weight, lr_weight = weights.of(targets)
        loss, parts = 0.0, dict[str, float]()
        options = {"lambda_dssim": weights.dssim}
        if targets.hr is not None and hr_weight > 0:
            hr = self.workspace.l1_ssim(image, targets.hr, self.gradient, weight=hr_weight, **options)
            loss += hr_weight * hr.loss
            parts |= {"l1": hr.l1, "ssim": hr.ssim}
        if targets.lr is not None and lr_weight > 0:
            assert view.kernel is not None, "an LR target comes with its kernel"
            more = {"weight": lr_weight, "accumulate": bool(parts)} | options
            lr = self.workspace.lr_l1_ssim(image, targets.lr, self.gradient, *_taps(view.kernel), **more)
            loss += lr_weight * lr.loss
            parts |= {"lr_l1": lr.l1, "lr_ssim": lr.ssim}
        return Terms(loss, **parts)

    def _update(self, state: TrainState, step: Step) -> None:
        resting = [name for name in FIELDS if name not in step.learning_rates]
        kept = {name: _copies(state, name) for name in resting}
        for name in step.learning_rates:
            state.steps[name] += 1
        # The kernel has one step count; a field that is behind gets the ratio of the corrections into its rate.
        now = max(state.steps[name] for name in step.learning_rates)
        rates = [
            step.learning_rates.get(name, 0.0) * bias_correction(max(state.steps[name], 1)) / bias_correction(now)
            for name in FIELDS
        ]
        statistics = (state.grad_norm_sum, state.view_count, state.max_radius) if step.statistics else (None,) * 3
        self.workspace.backward_adam(
            self.gradient,
            list(state.parameters().values()),
            exp_avg=[state.exp_avg[name] for name in FIELDS],
            exp_avg_sq=[state.exp_avg_sq[name] for name in FIELDS],
            learning_rates=rates,
            step=now,
            betas=BETAS,
            eps=EPS,
            stats=statistics,
        )
        for name, copies in kept.items():
            for value, copy in zip(_tensors(state, name), copies, strict=True):
                value.copy_(copy)

    def _gather(self, state: TrainState) -> None:
        """Only the densification statistics, element by element: this iteration updates no parameter."""
        parameters = list(state.parameters().values())
        means2d = torch.empty(state.gaussians.num, 3)
        self.workspace.backward(
            self.gradient, parameters, [torch.empty_like(p) for p in parameters], grad_means2d=means2d
        )
        radii = self.workspace.radii
        visible = radii > 0
        norm = (means2d[:, 0] * means2d[:, 0] + means2d[:, 1] * means2d[:, 1]).sqrt()
        state.grad_norm_sum += torch.where(visible, norm, 0.0)
        state.view_count += visible
        torch.maximum(state.max_radius, radii.to(torch.float32), out=state.max_radius)


def _tensors(state: TrainState, name: str) -> tuple[Tensor, Tensor, Tensor]:
    return getattr(state.gaussians, name), state.exp_avg[name], state.exp_avg_sq[name]


def _copies(state: TrainState, name: str) -> list[Tensor]:
    return [value.clone() for value in _tensors(state, name)]
