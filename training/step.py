"""What one optimisation step uses beside the images."""

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from training.mcmc import Regularisers
from training.objective import Weights
from training.views import Background

# A render -> the gradient of one more term of the objective by it, and what that term came to, float32 []
Guide = Callable[[Float[Tensor, "3 H W"]], tuple[Float[Tensor, "3 H W"], Float[Tensor, ""]]]


@dataclass(frozen=True)
class Step:
    """Settings of one iteration.

    Attributes
    ----------
    background : RGB 0-1. sh_degree : bands in use. weights : of the objective.
    learning_rates : by field; a field that is not in it is not updated, and nothing is when it is empty.
    statistics : whether densification statistics are gathered.
    visible_only : Gaussians that this view does not see keep their parameters and moments.
    absolute : the statistic is the norm of the sums over pixels of absolute gradients.
    exposure_rate : learning rate of the views' exposures; 0 = they rest. depth_weight : of the depth regulariser.
    regularisers : terms of the loss that do not depend on the view; None = there are none.
    guide : gives a gradient by the render, beside the losses'; None = there is none.
    """

    background: Background
    sh_degree: int
    weights: Weights
    learning_rates: dict[str, float]
    statistics: bool
    visible_only: bool = False
    absolute: bool = False
    exposure_rate: float = 0.0
    depth_weight: float = 0.0
    regularisers: Regularisers | None = None
    guide: Guide | None = None

    @property
    def looks_back(self) -> bool:
        """Whether anything asks for gradients."""
        return bool(self.learning_rates) or self.statistics or self.exposure_rate > 0
