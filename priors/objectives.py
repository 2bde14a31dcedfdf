"""What a small prior learns: noised views and targets of one step, for all three objectives.

Letters as in `interfaces`; a, b, s differ from sample to sample here, so they are [B, 1, 1, 1] in formulas.
"sr3": VP noise at a level between two neighbouring times, as drawn by Saharia et al. 2021 (section 2.4).
"resshift": x_t between x0 and u (Yue et al. 2023, equation 3). "regression": no x_t at all.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from priors.denoisers.tiny import RESIDUAL, TinyNet
from priors.frame_data import Batch
from priors.interfaces import Process


@dataclass(frozen=True, eq=False)
class Levels:
    """Draws noise levels of a process whose times are 1, 2, ..., T steps above clean.

    Parameters
    ----------
    table : a, b, s and the network's scale of T + 1 times, clean first. continuous : also between two times.
    """

    table: Float[Tensor, "T1 4"]
    continuous: bool

    def draw(self, count: int, generator: torch.Generator) -> Float[Tensor, "{count} 4"]:
        """a, b, s and scale of `count` samples, their times uniform; float64.

        Between two times a is uniform and s = sqrt(1 - a^2).
        """
        t = torch.randint(1, len(self.table), (count,), generator=generator)
        if not self.continuous:
            return self.table[t]
        low, high = self.table[t, 0], self.table[t - 1, 0]
        a = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
        return torch.stack([a, torch.zeros_like(a), (1 - a * a).clamp_min(0).sqrt(), torch.ones_like(a)], 1)


def levels_of(process: Process) -> Levels:
    """The levels that a network for `process` (VP or ResShift) is trained at."""
    times = [process.clean + k for k in range(round(process.last - process.clean) + 1)]
    rows = [(*process.coefficients(t), process.network_scale(t)) for t in times]
    return Levels(torch.tensor(rows, dtype=torch.float64), continuous=not process.uses_up)


def loss_of(
    net: TinyNet, batch: Batch, levels: Levels | None, kind: str, generator: torch.Generator
) -> Float[Tensor, ""]:
    """Mean error of what the network predicts, in the unit of its prediction.

    Parameters
    ----------
    levels : None for a regressor. kind : "l1" or "l2". generator : on the CPU; draws times, then noise.
    """
    target, seen, level = targets(net.config.prediction, batch, levels, generator)
    error = net(seen, batch.lr, batch.up, level) - target
    return error.abs().mean() if kind == "l1" else error.square().mean()


def targets(
    prediction: str, batch: Batch, levels: Levels | None, generator: torch.Generator
) -> tuple[Float[Tensor, "B 3 H W"], Float[Tensor, "B 3 H W"] | None, Float[Tensor, "B"]]:
    """(what should be predicted, x_t times its scale or None, a) of one step, on the batch's device."""
    x0, u = 2 * batch.hr - 1, 2 * batch.up - 1
    if levels is None:
        return (x0 - u) / RESIDUAL, None, torch.zeros(len(x0), device=x0.device)
    drawn = levels.draw(len(x0), generator).to(x0)
    a, b, s, scale = (drawn[:, k].view(-1, 1, 1, 1) for k in range(4))
    eps = torch.randn(x0.shape, generator=generator).to(x0)
    seen = scale * (a * x0 + b * u + s * eps)
    if prediction == "x0":
        return (x0 - u) / RESIDUAL, seen, drawn[:, 0]
    return (eps if prediction == "eps" else a * eps - s * x0), seen, drawn[:, 0]
