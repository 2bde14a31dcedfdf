"""What one optimisation step uses beside the images."""

from dataclasses import dataclass

from training.objective import Weights
from training.views import Background


@dataclass(frozen=True)
class Step:
    """Settings of one iteration.

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
