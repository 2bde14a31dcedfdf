"""Mip-Splatting's 3D filter: each Gaussian convolved with one as wide as the sharpest training view can tell.

Letters: f = standard deviation of a Gaussian's filter [world units], s its own along an axis, s' = sqrt(s^2 + f^2),
o its opacity, c = product of s / s' over the axes: what is drawn has s' and c o, so its mass stays the same.

How sharp a view is, is a question of trust where it is a pseudo-HR frame: TrainingViews.trust.

Yu et al., "Mip-Splatting: Alias-free 3D Gaussian Splatting", CVPR 2024, section 5.1.
"""

from collections.abc import Iterable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from scene.cameras import Camera
from scene.gaussians import Gaussians

INTERVAL = 100  # iterations from one computation to the next, as means move; and after each change of the rows


def filters(
    cameras: Iterable[Camera], means: Float[Tensor, "N 3"], trust: Iterable[Float[Tensor, "h w"] | None] | None = None
) -> Float[Tensor, " N"]:
    """Width f of each Gaussian's filter, from all training cameras at the size that is rendered.

    trust : for each camera which share of that size its images resolve, over the whole image; None = all.
    """
    from diff_gaussian_rasterization.fused import RasterCamera, filter_3d

    pinholes = [RasterCamera(c.width, c.height, c.fx, c.fy, c.cx, c.cy, c.world_to_camera) for c in cameras]
    return filter_3d(pinholes, means, trust)


def baked(gaussians: Gaussians, widths: Float[Tensor, " N"]) -> Gaussians:
    """Gaussians that look without a filter as `gaussians` do with theirs, for any viewer; differentiable.

    Notes
    -----
    logit(c o) = log c + log o - log(1 - c o), and 1 - c o = (1 - o) + (1 - c) o is a sum of what is not negative.
    """
    log_scales = torch.logaddexp(2 * gaussians.log_scales, 2 * widths.log()[:, None]) / 2
    log_share = (gaussians.log_scales - log_scales).sum(dim=1, keepdim=True)  # log c
    logits = gaussians.logit_opacities
    rest = (-logits).sigmoid() - log_share.expm1() * logits.sigmoid()
    logits = log_share + logsigmoid(logits) - rest.clamp(min=torch.finfo(rest.dtype).tiny).log()
    return Gaussians(**vars(gaussians) | {"log_scales": log_scales, "logit_opacities": logits})
