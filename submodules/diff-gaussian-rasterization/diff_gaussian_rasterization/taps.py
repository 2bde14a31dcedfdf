"""Banded matrices that shrink one axis of an image: out[i] = sum_k weight[i, k] in[start[i] + k]."""

from dataclasses import dataclass, field
from typing import Union

import torch
from numpy.typing import ArrayLike
from torch import Tensor

from diff_gaussian_rasterization.checks import check_written


@dataclass(frozen=True, eq=False)
class Taps:
    """A banded matrix whose values have been checked once, so that a step need not.

    Parameters
    ----------
    start : int32 [outputs], >= 0; weight : float32 [outputs, taps]; reach : inputs that it needs at least: taps with
        weight 0 may lie beyond.
    """

    start: Tensor
    weight: Tensor
    reach: int
    _copies: dict[torch.device, "Taps"] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device) -> "Taps":
        """The same on another device; that copy is made once."""
        if device == self.start.device:
            return self
        if device not in self._copies:
            self._copies[device] = Taps(self.start.to(device), self.weight.to(device), self.reach)
        return self._copies[device]

    @staticmethod
    def of(name: str, taps: Union["Taps", tuple[ArrayLike, ArrayLike]], outputs: int, inputs: int) -> "Taps":
        """Check `taps`, a pair of arrays (start, weight) or Taps, against the sizes.

        Raises
        ------
        TypeError, ValueError : another dtype or shape, or taps reach beyond the inputs; the message says `name`.
        """
        checked = taps if isinstance(taps, Taps) else Taps._made(name, *taps)
        if checked.start.shape[0] != outputs or checked.reach > inputs:
            raise ValueError(
                f"{name}: taps reach beyond the {inputs} input pixels, or are not for {outputs} outputs: "
                f"{checked.start.shape[0]} outputs that need {checked.reach} inputs"
            )
        return checked

    @staticmethod
    def _made(name: str, start: ArrayLike, weight: ArrayLike) -> "Taps":
        # Copies: what has been checked must not change with the caller's arrays.
        starts, weights = (torch.as_tensor(t, device="cpu").contiguous().clone() for t in (start, weight))
        outputs, width = starts.numel(), weights.shape[1] if weights.ndim == 2 else 0
        check_written(name, starts, (outputs,), torch.int32)
        check_written(name, weights, (outputs, max(width, 1)))
        if not outputs:
            return Taps(starts, weights, 0)
        if starts.min() < 0:
            raise ValueError(f"{name}: taps reach beyond the first input pixel: start {int(starts.min())}")
        last = torch.where(
            weights != 0, starts.long()[:, None] + torch.arange(width, device="cpu"), starts.long()[:, None]
        )
        return Taps(starts, weights, int(last.max()) + 1)
