"""Adam (Kingma & Ba, ICLR 2015, algorithm 1) with the constants of the original 3DGS code."""

import math

from jaxtyping import Bool
from torch import Tensor

from training.state import TrainState

BETAS = (0.9, 0.999)
EPS = 1e-15


def bias_correction(step: int) -> float:
    """Factor sqrt(1 - beta2^t) / (1 - beta1^t) on the learning rate at step t >= 1."""
    return math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)


def update(
    state: TrainState, name: str, gradient: Tensor, rate: float, visible: Bool[Tensor, " N"] | None = None
) -> None:
    """Update one field in place as torch.optim.Adam does, and count the step.

    visible : rows that are updated; the others and their moments stay as they are, as in torch.optim.SparseAdam.
    """
    state.steps[name] += 1
    step = state.steps[name]
    fields = [state.exp_avg[name], state.exp_avg_sq[name], getattr(state.gaussians, name)]
    mean, square, values = fields if visible is None else [field[visible] for field in fields]
    if visible is not None:
        gradient = gradient[visible]
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = square.sqrt().div_(math.sqrt(1 - BETAS[1] ** step)).add_(EPS)
    values.addcdiv_(mean, denominator, value=-rate / (1 - BETAS[0] ** step))
    if visible is not None:
        for field, new in zip(fields, (mean, square, values), strict=True):
            field[visible] = new
