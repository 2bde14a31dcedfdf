"""Adam (Kingma & Ba, ICLR 2015, algorithm 1) with the constants of the original 3DGS code."""

import math

from torch import Tensor

BETAS = (0.9, 0.999)
EPS = 1e-15


def bias_correction(step: int) -> float:
    """Factor sqrt(1 - beta2^t) / (1 - beta1^t) on the learning rate at step t >= 1."""
    return math.sqrt(1 - BETAS[1] ** step) / (1 - BETAS[0] ** step)


def advance(
    values: Tensor, mean: Tensor, square: Tensor, gradient: Tensor, rate: float, step: int, eps: float = EPS
) -> None:
    """Carry out step number `step` >= 1 on values and both moments, in place."""
    mean.lerp_(gradient, 1 - BETAS[0])
    square.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
    denominator = square.sqrt().div_(math.sqrt(1 - BETAS[1] ** step)).add_(eps)
    values.addcdiv_(mean, denominator, value=-rate / (1 - BETAS[0] ** step))
