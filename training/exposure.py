"""Exposure compensation: an affine change of colour for each training view, learned with the Gaussians.

Letters: V views; E [3, 4] of a view, identity at first; a render's colour c (a row) becomes c E[:, :3] + E[:, 3].
What is kept of the run is the Gaussians alone: renders are made without it, as those of the released code are
(but for its `--train_test_exp`).

Kerbl et al., "A Hierarchical 3D Gaussian Representation", SIGGRAPH 2024, and the 3DGS code of that year.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from training.adam import advance
from utils.atomic import write_json

EPS = 1e-8  # of Adam in the released code
FILE_NAME = "exposure.json"
PREFIX = "exposure."  # of a checkpoint's tensors


@dataclass
class Exposures:
    """Exposures of all training views, with Adam's moments.

    Attributes
    ----------
    values, exp_avg, exp_avg_sq : [V, 3, 4] float32. steps : of Adam. rows : by the views' names.
    """

    values: Float[Tensor, "V 3 4"]
    exp_avg: Float[Tensor, "V 3 4"]
    exp_avg_sq: Float[Tensor, "V 3 4"]
    steps: int
    rows: dict[str, int]

    @classmethod
    def start(cls, names: list[str], device: torch.device) -> "Exposures":
        """Identity for every view."""
        values = torch.eye(3, 4, device=device).repeat(len(names), 1, 1)
        return cls(values, torch.zeros_like(values), torch.zeros_like(values), 0, rows_of(names))

    def leaf(self, name: str) -> Float[Tensor, "3 4"]:
        """A copy of a view's exposure that takes a gradient."""
        return self.values[self.rows[name]].clone().requires_grad_()

    def update(self, name: str, gradient: Float[Tensor, "3 4"], rate: float) -> None:
        """One step of Adam on all of them, where only view `name` has a gradient, as in the released code."""
        full = torch.zeros_like(self.values)
        full[self.rows[name]] = gradient
        self.steps += 1
        advance(self.values, self.exp_avg, self.exp_avg_sq, full, rate, self.steps, EPS)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by a flat name, for a checkpoint."""
        named = {f"{PREFIX}{name}": getattr(self, name) for name in ("values", "exp_avg", "exp_avg_sq")}
        return named | {f"{PREFIX}steps": self.values.new_tensor([self.steps])}

    @classmethod
    def from_tensors(cls, named: dict[str, Tensor], names: list[str], device: torch.device) -> "Exposures":
        """The inverse of `tensors`; copies."""
        values, mean, square = (
            named[f"{PREFIX}{name}"].to(device, copy=True) for name in ("values", "exp_avg", "exp_avg_sq")
        )
        return cls(values, mean, square, int(named[f"{PREFIX}steps"]), rows_of(names))

    def write(self, out: Path) -> Path:
        """Write OUT/exposure.json: by view, three rows of four."""
        path = out / FILE_NAME
        write_json(path, {name: self.values[row].tolist() for name, row in self.rows.items()}, indent=None)
        return path


def rows_of(names: list[str]) -> dict[str, int]:
    """Where each view's exposure lies."""
    return {name: row for row, name in enumerate(names)}


def exposed(image: Float[Tensor, "3 H W"], exposure: Float[Tensor, "3 4"]) -> Float[Tensor, "3 H W"]:
    """The image under an exposure; differentiable in both."""
    return torch.einsum("khw,kc->chw", image, exposure[:, :3]) + exposure[:, 3, None, None]
