"""What networks of published models share: the view among its neighbours, guidance, sizes that are not multiples."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from priors.interfaces import Coefficients, Cond
from priors.processes import x0_from_eps, x0_from_v
from utils.errors import UserError

Prediction = Literal["epsilon", "v_prediction", "sample"]
PREDICTIONS = ("epsilon", "v_prediction", "sample")


def prediction_of(config: dict[str, Any], where: str) -> Prediction:
    """What the network of a scheduler's configuration returns. Raises UserError where that is not known here."""
    name = config.get("prediction_type", "epsilon")
    if name not in PREDICTIONS:
        raise UserError(f"{where}: prediction_type {name!r}; one of {', '.join(PREDICTIONS)} is expected")
    return name


def clean(
    x_t: Float[Tensor, "*shape"], output: Float[Tensor, "*shape"], c: Coefficients, prediction: Prediction
) -> Float[Tensor, "*shape"]:
    """The clean estimate that a network's output stands for, where b = 0."""
    if prediction == "epsilon":
        return x0_from_eps(x_t, output, c)
    return x0_from_v(x_t, output, c) if prediction == "v_prediction" else output


def view(cond: Cond, batch: int, who: str) -> Float[Tensor, "{batch} 3 h w"]:
    """The middle frame of the window of LR views, 0-1. Raises UserError where there is none, or not one a sample."""
    if cond.lr is None:
        raise UserError(f"{who}: sees the LR view; give one (Cond.lr)")
    frame = cond.lr[:, cond.lr.shape[1] // 2]
    if len(frame) != batch and len(frame) != 1:
        raise UserError(f"{who}: {len(frame)} LR views for {batch} samples")
    return frame.expand(batch, -1, -1, -1)


def guided(
    network: Callable[[Tensor, Tensor | None], Tensor],
    cond: Cond,
    prompt: Tensor,
    negative: Tensor,
    pooled: Tensor | None = None,
    negative_pooled: Tensor | None = None,
) -> Tensor:
    """Output of `network(embeddings, pooled)` under classifier-free guidance (Ho and Salimans 2022, equation 6).

    out = negative + guidance (prompt - negative), one call after the other, so that memory does not double; guidance 1
    is the prompt alone. What `cond` holds goes before the defaults.
    """

    def first(*options: Tensor | None) -> Tensor | None:
        return next((option for option in options if option is not None), None)

    wanted = network(first(cond.prompt, prompt), first(cond.pooled, pooled))  # type: ignore[arg-type]
    if cond.guidance == 1.0:
        return wanted
    unwanted = network(first(cond.negative, negative), first(cond.negative_pooled, negative_pooled))  # type: ignore[arg-type]
    return unwanted + cond.guidance * (wanted - unwanted)


def rows(embedding: Tensor, like: Tensor) -> Tensor:
    """An embedding [1 or B, ...], once for each sample of `like`, of its type and on its device.

    Raises
    ------
    UserError : it has another number of rows.
    """
    batch = len(like)
    if len(embedding) not in (1, batch):
        raise UserError(f"{len(embedding)} embeddings for {batch} samples; one, or one each, is expected")
    return embedding.to(like).expand(batch, *embedding.shape[1:])


def extended(x: Float[Tensor, "B C h w"], multiple: int) -> Float[Tensor, "B C H W"]:
    """x with its right and lower ends mirrored until both sides are multiples (repeated where it is too small)."""
    height, width = x.shape[-2:]
    right, down = -width % multiple, -height % multiple
    if not right and not down:
        return x
    mode = "reflect" if right < width and down < height else "replicate"
    return F.pad(x, (0, right, 0, down), mode=mode)


def times(value: float, like: Tensor) -> Float[Tensor, "B"]:
    """The network's time, once a sample."""
    return torch.full((len(like),), value, dtype=torch.float32, device=like.device)
