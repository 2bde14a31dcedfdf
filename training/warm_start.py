"""A warm start: Gaussians of a model of the LR views, rid of what nobody sees, and split to a number.

Letters: c = what a Gaussian contributes, the sum of T alpha over all pixels of all training views [LR px]; o its
opacity, s its largest scale. A split puts two children at s / 2 to both sides along that axis, with sqrt(3) / 2 s
there: the mixture keeps mean and covariance. Further apart their middle shows.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from gaussian_renderer import render
from scene.cameras import Camera
from scene.gaussians import Gaussians
from training.densify import rotated
from utils.errors import UserError

USELESS_PX = 2.0
GROWTH = 4  # of the useful ones, where no number is wanted
APART, NARROWER = 0.5, math.sqrt(0.75)
ROUND = 4  # one in so many is split at once, at most: the next round sees what is largest then


def warm_start(
    gaussians: Gaussians, cameras: Iterable[Camera], wanted: int, options: dict[str, Any], most: int = 0
) -> Gaussians:
    """Return exactly `wanted` Gaussians that look like the given ones.

    Parameters
    ----------
    cameras : of the training views, at LR size. options : of `gaussian_renderer.render`, how they are drawn.
    wanted : -1 = four times as many as are of use, but half of `most` (0 = no limit) is left to densification.

    Raises
    ------
    UserError : no Gaussian contributes as much as 2 px.

    Notes
    -----
    Those under 2 px are left out; of more than `wanted` those that contribute most stay; with fewer, those that
    contribute most are split, each half counted with half of it. Deterministic.
    """
    shares = contributions(gaussians, cameras, options)
    useful = (shares >= USELESS_PX).nonzero()[:, 0]
    if len(useful) == 0:
        raise UserError(
            "--init_gaussians: no Gaussian of the start contributes to the training views: no model of this scene"
        )
    if wanted < 0:
        wanted = _grown(len(useful), most)
    if len(useful) > wanted:
        useful = _largest(shares[useful], wanted, useful).sort().values
    gaussians, shares = _rows(gaussians, useful), shares[useful]
    while gaussians.num < wanted:
        parents = _largest(shares, min(wanted - gaussians.num, 1 + gaussians.num // ROUND))
        shares[parents] /= 2
        gaussians, shares = split(gaussians, parents), torch.cat([shares, shares[parents]])
    return gaussians


def contributions(gaussians: Gaussians, cameras: Iterable[Camera], options: dict[str, Any]) -> Float[Tensor, " N"]:
    """c of each Gaussian: the gradient of a render's sum with respect to the Gaussians' own colours."""
    total = torch.zeros(gaussians.num, device=gaussians.means.device)
    for camera in cameras:
        colours = torch.zeros(gaussians.num, 3, device=total.device, requires_grad=True)
        with torch.enable_grad():
            drawn = render(camera, gaussians, background=(0.0, 0.0, 0.0), override_color=colours, **options)
            (gradient,) = torch.autograd.grad(drawn.color[0].sum(), colours)
        total += gradient[:, 0]
    return total


def split(gaussians: Gaussians, parents: Int64[Tensor, " P"]) -> Gaussians:
    """The Gaussians with the rows `parents` made first children, and their second children at the end.

    Notes
    -----
    The children's opacity p keeps the light along the axis: the integral of 1 - (1 - a)(1 - b), a and b those of the
    children, is that of the parent's alpha: 2 r p - r q p^2 = o with r = sqrt(3) / 2, q = exp(-1 / 3) / sqrt(2).
    """
    scales, axis = gaussians.log_scales[parents].max(dim=1)
    along = torch.zeros_like(gaussians.log_scales[parents])
    along[torch.arange(len(parents), device=axis.device), axis] = APART * scales.exp()
    offset = rotated(gaussians.quats[parents], along)
    narrow = gaussians.log_scales[parents]
    narrow[torch.arange(len(parents), device=axis.device), axis] += math.log(NARROWER)
    q = math.exp(-((APART / NARROWER) ** 2)) / math.sqrt(2)
    opacities = gaussians.opacities[parents].double()
    fainter = torch.logit((1 - (1 - q * opacities / NARROWER).sqrt()) / q).to(gaussians.logit_opacities)
    made = {name: torch.cat([value, value[parents]]) for name, value in vars(gaussians).items()}
    both = torch.cat([parents, torch.arange(gaussians.num, len(made["means"]), device=axis.device)])
    made["means"][both] += torch.cat([offset, -offset])
    made["log_scales"][both] = narrow.repeat(2, 1)
    made["logit_opacities"][both] = fainter.repeat(2, 1)
    return Gaussians(**made)


def _largest(values: Float[Tensor, " N"], count: int, rows: Int64[Tensor, " N"] | None = None) -> Int64[Tensor, " P"]:
    """Rows of the `count` largest values; of equal ones the first."""
    order = torch.sort(values, descending=True, stable=True).indices[:count]
    return order if rows is None else rows[order]


def _grown(useful: int, most: int) -> int:
    return min(max(useful, min(GROWTH * useful, most // 2)), most) if most else GROWTH * useful


def _rows(gaussians: Gaussians, rows: Int64[Tensor, " M"]) -> Gaussians:
    return Gaussians(**{name: value[rows] for name, value in vars(gaussians).items()})
