"""Adaptive density control of Kerbl et al. 2023 (section 5.2 and the released code) as plain `Change`s of the state.

Decisions compare stored values (logarithms, logits) with transformed thresholds, so no rounding of exp or sigmoid,
which may depend on how work is cut into threads, can flip one. Letters: N Gaussians, S of them split.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from arguments.training import OptimizationParams
from training.state import Change, TrainState

CHILDREN = 2
SHRINK = math.log(0.8 * CHILDREN)  # a child's scales are its parent's / 1.6
LARGE = 0.1  # of the extent: Gaussians with a larger scale are pruned
RESET_OPACITY = 0.01


def opacity_reset(state: TrainState) -> Change:
    """Return the change that cuts all opacities back to 0.01 and lets Adam forget their moments."""
    logits = state.gaussians.logit_opacities.clamp(max=logit(RESET_OPACITY))
    return Change(values={"logit_opacities": (None, logits)}, forget=("logit_opacities",))


def densification(
    state: TrainState, settings: OptimizationParams, extent: float, prune_large: bool, noise: torch.Generator
) -> Change:
    """Return the clone, split and prune of one densification as a single change.

    Parameters
    ----------
    extent : radius of the scene [world units].
    prune_large : also prune what is large in the world (and on screen where `prune_screen_px` is set).
    noise : CPU generator that chooses whom dropout passes over, and places the children of a split.

    Notes
    -----
    Gaussians whose mean gradient reaches the threshold are cloned when small and split when large; the order of the
    new rows is that of the original code: kept, clones, first children, second children.
    The original clears the screen radii before it looks at them, so its 20 px rule never prunes
    (graphdeco-inria/gaussian-splatting issues 123, 544); `prune_screen_px` = 0 keeps that, 20 is the paper's text.
    `densify_dropout`: Hu et al., "GaussianSR", 2024: candidates that it passes over stay as they are; whom is pruned
    does not depend on it. 0 draws nothing, so that runs without it are what they were.
    """
    clone, split = _selected(state, settings, extent, noise)
    stay = (~split).nonzero()[:, 0]
    cloned, parents = clone.nonzero()[:, 0], split.nonzero()[:, 0]
    source = torch.cat([stay, cloned, parents, parents])  # [N + clones + S] rows, S of them given up
    first_new, first_child = len(stay), len(stay) + len(cloned)
    means, log_scales = _children(state, parents, noise)

    largest = state.gaussians.log_scales.amax(dim=1)[source]
    largest[first_child:] = log_scales.amax(dim=1)
    pruned = state.gaussians.logit_opacities[source, 0] < logit(settings.min_opacity)
    if prune_large:
        pruned |= largest > math.log(LARGE * extent)
        if settings.prune_screen_px > 0:
            pruned[:first_new] |= state.max_radius[stay] > settings.prune_screen_px
    keep = (~pruned).nonzero()[:, 0]
    new_rows = torch.arange(len(keep), device=keep.device)
    from_split = keep >= first_child
    rows, children = new_rows[from_split], keep[from_split] - first_child
    return Change(
        source=source[keep],
        fresh=keep >= first_new,
        values={"means": (rows, means[children]), "log_scales": (rows, log_scales[children])},
        restart_statistics=True,
    )


def _selected(
    state: TrainState, settings: OptimizationParams, extent: float, noise: torch.Generator
) -> tuple[Bool[Tensor, " N"], Bool[Tensor, " N"]]:
    """Which Gaussians are cloned and which are split."""
    gradient = torch.where(state.view_count > 0, state.grad_norm_sum / state.view_count, 0.0)
    hot = gradient >= settings.densify_grad_threshold
    if settings.densify_dropout > 0:
        candidates = hot.nonzero()[:, 0]
        passed_over = torch.rand(len(candidates), generator=noise) < settings.densify_dropout
        hot[candidates[passed_over.to(hot.device)]] = False
    if settings.max_gaussians:  # each clone or split adds one
        budget = max(settings.max_gaussians - state.gaussians.num, 0)
        order = torch.sort(torch.where(hot, gradient, -1.0), descending=True, stable=True).indices
        allowed = torch.zeros_like(hot)
        allowed[order[:budget]] = True
        hot &= allowed
    large = state.gaussians.log_scales.amax(dim=1) > _log(settings.percent_dense * extent)
    return hot & ~large, hot & large


def _children(
    state: TrainState, parents: Tensor, noise: torch.Generator
) -> tuple[Float[Tensor, "children 3"], Float[Tensor, "children 3"]]:
    """Means and log scales of both children of each parent: drawn from the parent, and smaller."""
    log_scales = state.gaussians.log_scales[parents].repeat(CHILDREN, 1)
    drawn = torch.randn(log_scales.shape, generator=noise).to(log_scales)
    offset = rotated(state.gaussians.quats[parents].repeat(CHILDREN, 1), drawn * log_scales.exp())
    return state.gaussians.means[parents].repeat(CHILDREN, 1) + offset, log_scales - SHRINK


def rotated(quats: Float[Tensor, "R 4"], vectors: Float[Tensor, "R 3"]) -> Float[Tensor, "R 3"]:
    """Vectors turned by quaternions w x y z of any length; sums are spelled out, so their order is fixed."""
    w, x, y, z = quats.unbind(1)
    a, b, c = vectors.unbind(1)
    norm2 = w * w + x * x + y * y + z * z
    s = 2 / norm2  # v + s (w (u x v) + u x (u x v)), u the vector part
    p, q, r = y * c - z * b, z * a - x * c, x * b - y * a
    turned = [
        a + s * (w * p + y * r - z * q),
        b + s * (w * q + z * p - x * r),
        c + s * (w * r + x * q - y * p),
    ]
    return torch.stack(turned, dim=1)


def logit(p: float) -> float:
    """Log of p / (1 - p); infinite at 0 and 1."""
    return math.log(p / (1 - p)) if 0 < p < 1 else math.copysign(math.inf, p - 0.5)


def _log(x: float) -> float:
    return math.log(x) if x > 0 else -math.inf
