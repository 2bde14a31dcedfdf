"""NaN and Inf while training: report, go back to the last good state, leave that view out, and stop the fourth time.

The run is repeated from the last good state with the same random numbers, so it ends as if that one iteration's view
had never been drawn; nothing is mended in silence.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.trainer import NonFinite, Trainer
from utils.atomic import write_json
from utils.log import warn

MAX_ROLLBACKS = 3
EXIT_CODE = 3
LISTED = 10
GOOD_STATE_INTERVAL = 1000  # iterations between copies of the state in memory

Snapshot = tuple[dict[str, Tensor], dict[str, Any]]


class Guard:
    """The last good state in memory, and how often it was needed.

    Parameters
    ----------
    report : nan_report.json of the run. rollbacks : of an earlier part of this run.
    """

    def __init__(self, report: Path, rollbacks: int = 0) -> None:
        self.report, self.rollbacks = report, rollbacks
        self.good: Snapshot | None = None
        self.good_log_bytes = 0

    def keep(self, trainer: Trainer, log_bytes: int) -> None:
        """Copy the present state.

        Raises
        ------
        NonFinite : a moment or a statistic is NaN or Inf: this state is not good.
        """
        broken = trainer.state.first_broken(thorough=True)
        if broken:
            raise NonFinite(trainer.iteration, trainer.view, broken, None)
        tensors, info = trainer.capture()
        self.good = (
            _copies(tensors),
            info
            | {
                "adam_steps": dict(info["adam_steps"]),
                "views_left": list(info["views_left"]),
            },
        )
        self.good_log_bytes = log_bytes

    def roll_back(self, trainer: Trainer, error: NonFinite) -> None:
        """Report `error` and restore the last good state, from which that iteration's view will be left out.

        Raises
        ------
        SystemExit : with code 3 the fourth time.
        """
        self.rollbacks += 1
        stop = self.rollbacks > MAX_ROLLBACKS or self.good is None
        self._write_report(trainer, error, stop)
        if stop or self.good is None:
            warn(f"{error}; after {MAX_ROLLBACKS} roll-backs training stops, see {self.report}")
            raise SystemExit(EXIT_CODE)
        skipped = trainer.skipped | {error.iteration}
        trainer.restore(*self.good)
        trainer.skipped |= skipped
        warn(f"{error}; back to iteration {trainer.iteration}, that view is left out, see {self.report}")

    def _write_report(self, trainer: Trainer, error: NonFinite, stop: bool) -> None:
        terms = vars(error.terms) if error.terms else {}
        report = {
            "iteration": error.iteration,
            "view": error.view,
            "what": error.what,
            "terms": {name: str(value) for name, value in terms.items() if value is not None},
            "tensors": {name: _broken_entries(value) for name, value in trainer.state.tensors().items()},
            "rollbacks": self.rollbacks,
            "action": "stopped" if stop else "rolled back",
        }
        write_json(self.report, report)


def _copies(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies where the tensors are; of those on a GPU in main memory where they would fill half of what is free."""
    on_gpu = [value for value in tensors.values() if value.is_cuda]
    if on_gpu:
        free, _ = torch.cuda.mem_get_info(on_gpu[0].device)
        roomy = 2 * sum(value.numel() * value.element_size() for value in on_gpu) < free
        return {name: value.clone() if roomy or not value.is_cuda else value.cpu() for name, value in tensors.items()}
    return {name: value.clone() for name, value in tensors.items()}


def _broken_entries(values: Tensor) -> dict[str, Any]:
    """How many rows of `values` [N, ...] hold NaN or Inf, and the first ten of them."""
    rows = (~torch.isfinite(values)).flatten(1).any(dim=1) if values.dim() > 1 else ~torch.isfinite(values)
    return {"rows": int(rows.sum()), "first": rows.nonzero()[:LISTED, 0].tolist()}
