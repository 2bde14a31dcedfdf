"""What training changes: the Gaussians, Adam's moments, the densification statistics, and the one door that moves them.

Letters: N Gaussians before a change, M after it. A field is one of scene.gaussians.FIELDS.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from scene.gaussians import FIELDS, Gaussians
from training.adam import advance
from training.exposure import Exposures
from training.reserve import Reserve

FILTER = "filter_3d"  # of a checkpoint's tensors
STATISTICS = ("grad_norm_sum", "view_count", "max_radius")


@dataclass
class TrainState:
    """Everything that an optimisation step reads and writes in place.

    Attributes
    ----------
    gaussians : raw parameters, float32, contiguous.
    exp_avg, exp_avg_sq : Adam's moments by field, shapes as the parameters.
    steps : Adam's step count by field (a field that sits out an iteration falls behind, as in the original code).
    grad_norm_sum : [N] sum over views of the norm of dL/d(projected mean) in normalised device coordinates.
    view_count : [N] number of views in which the Gaussian was visible since the last densification.
    max_radius : [N] largest screen radius since then [px].
    filter_3d : [N] widths of training.smoothing, or None; those of other rows go with a change of the rows.
    exposures : of the training views, or None.
    reserve : memory for the next change of the rows; no part of the state's value.
    """

    gaussians: Gaussians
    exp_avg: dict[str, Tensor]
    exp_avg_sq: dict[str, Tensor]
    steps: dict[str, int]
    grad_norm_sum: Float[Tensor, " N"]
    view_count: Float[Tensor, " N"]
    max_radius: Float[Tensor, " N"]
    filter_3d: Float[Tensor, " N"] | None = None
    exposures: Exposures | None = None
    reserve: Reserve = field(init=False, default_factory=Reserve)

    @classmethod
    def start(cls, gaussians: Gaussians) -> "TrainState":
        """Moments and statistics at zero."""
        fields = {name: getattr(gaussians, name) for name in FIELDS}
        norms, counts, radii = (torch.zeros(gaussians.num, device=gaussians.means.device) for _ in STATISTICS)
        return cls(
            gaussians,
            {name: torch.zeros_like(value) for name, value in fields.items()},
            {name: torch.zeros_like(value) for name, value in fields.items()},
            dict.fromkeys(FIELDS, 0),
            norms,
            counts,
            radii,
        )

    def parameters(self) -> dict[str, Tensor]:
        """The six parameter tensors by field."""
        return {name: getattr(self.gaussians, name) for name in FIELDS}

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a flat name, for a checkpoint."""
        named = {f"param.{name}": value for name, value in self.parameters().items()}
        named |= {f"exp_avg.{name}": value for name, value in self.exp_avg.items()}
        named |= {f"exp_avg_sq.{name}": value for name, value in self.exp_avg_sq.items()}
        named |= {f"stat.{name}": getattr(self, name) for name in STATISTICS}
        named |= {} if self.filter_3d is None else {FILTER: self.filter_3d}
        return named | ({} if self.exposures is None else self.exposures.tensors())

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor], steps: dict[str, int], device: torch.device) -> "TrainState":
        """The inverse of `tensors`; `named` is copied, so that training in place leaves it as it is."""
        own = {name: value.to(device, copy=True) for name, value in named.items()}
        norms, counts, radii = (own[f"stat.{name}"] for name in STATISTICS)
        return cls(
            Gaussians(**{name: own[f"param.{name}"] for name in FIELDS}),
            {name: own[f"exp_avg.{name}"] for name in FIELDS},
            {name: own[f"exp_avg_sq.{name}"] for name in FIELDS},
            {name: int(steps[name]) for name in FIELDS},
            norms,
            counts,
            radii,
            filter_3d=own.get(FILTER),
        )

    def sums(self, thorough: bool = False) -> tuple[list[str], Tensor]:
        """Names, and the sum of each parameter (`thorough`: of any tensor), on the device.

        Notes
        -----
        A sum is NaN or Inf as soon as one term is, and reads memory once, so it can be made after every step. A
        gradient that is not finite shows at once: Adam's update carries it into the parameter.
        """
        named = self.tensors() if thorough else self.parameters()
        return list(named), torch.stack([value.sum() for value in named.values()])

    def first_broken(self, thorough: bool) -> str | None:
        """Name of the first parameter (`thorough`: of any tensor) that holds NaN or Inf, None if all are finite."""
        names, sums = self.sums(thorough)
        return first_broken(names, sums.tolist())


def first_broken(names: Sequence[str], sums: Sequence[float]) -> str | None:
    """Name of the first sum that is not finite."""
    return next((name for name, value in zip(names, sums, strict=True) if not math.isfinite(value)), None)


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
    advance(values, mean, square, gradient, rate, step)
    if visible is not None:
        for field, new in zip(fields, (mean, square, values), strict=True):
            field[visible] = new


@dataclass(frozen=True, eq=False)
class Change:
    """A new set of rows made from the old one: cloning, splitting, pruning and the opacity reset are all such.

    Attributes
    ----------
    source : [M] the old row that each new row starts as; None = the rows stay as they are.
    fresh : [M] rows whose moments start at zero; None = none.
    values : by field, (rows [R] or None for all, new values [R, ...]) that replace what was copied.
    forget : fields whose moments start at zero in every row.
    restart_statistics : whether the densification statistics start at zero.
    """

    source: Int64[Tensor, " M"] | None = None
    fresh: Bool[Tensor, " M"] | None = None
    values: dict[str, tuple[Int64[Tensor, " R"] | None, Tensor]] = field(default_factory=dict)
    forget: tuple[str, ...] = ()
    restart_statistics: bool = False


def apply(state: TrainState, change: Change) -> None:
    """Carry out `change` on parameters, both moments and statistics alike, so that none can be left behind."""
    source, fresh = change.source, change.fresh
    for name in FIELDS:
        parameter = _rows(state, getattr(state.gaussians, name), source)
        if name in change.values:
            rows, new = change.values[name]
            parameter[slice(None) if rows is None else rows] = new
        setattr(state.gaussians, name, parameter)
        for moments in (state.exp_avg, state.exp_avg_sq):
            moments[name] = _rows(state, moments[name], source)
            if name in change.forget:
                moments[name].zero_()
            elif fresh is not None:
                moments[name][fresh] = 0.0
    for name in STATISTICS:
        values = _rows(state, getattr(state, name), source)
        setattr(state, name, values.zero_() if change.restart_statistics else values)
    if source is not None:
        state.filter_3d = None


def _rows(state: TrainState, values: Tensor, source: Tensor | None) -> Tensor:
    return values if source is None else state.reserve.select(values, source)
