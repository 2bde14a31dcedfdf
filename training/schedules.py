"""What changes with the iteration: learning rates, the SH degree, the weight of the frames, when density changes.

Iterations count from 1, as in the original code. Kerbl et al., "3D Gaussian Splatting for Real-Time Radiance Field
Rendering", SIGGRAPH 2023, section 7.1 and the released code of that year.
"""

import math

from arguments.training import OptimizationParams

HIGHER_BANDS = 1 / 20  # learning rate of shN over that of sh0


def exponential_decay(
    iteration: int, initial: float, final: float, max_steps: int, delay_steps: int = 0, delay_mult: float = 1.0
) -> float:
    """Return the rate that falls from `initial` to `final` over `max_steps` iterations, a straight line in its log.

    delay_steps : iterations over which a factor on it rises from `delay_mult` to 1, as a quarter of a sine.

    Notes
    -----
    The original's `get_expon_lr_func`; for the means it always leaves the number of delay steps at 0.
    """
    if initial <= 0 or final <= 0:
        return 0.0
    t = min(max(iteration / max_steps, 0.0), 1.0)
    rate = math.exp(math.log(initial) * (1 - t) + math.log(final) * t)
    if delay_steps <= 0:
        return rate
    return rate * (delay_mult + (1 - delay_mult) * math.sin(math.pi / 2 * min(max(iteration / delay_steps, 0.0), 1.0)))


def learning_rates(settings: OptimizationParams, iteration: int, extent: float) -> dict[str, float]:
    """Return Adam's learning rate of each parameter tensor; `extent` is the scene's radius [world units]."""
    means_lr = exponential_decay(
        iteration,
        settings.position_lr_init * extent,
        settings.position_lr_final * extent,
        settings.position_lr_max_steps,
    )
    return {
        "means": means_lr,
        "log_scales": settings.scaling_lr,
        "quats": settings.rotation_lr,
        "logit_opacities": settings.opacity_lr,
        "sh0": settings.feature_lr,
        "shN": settings.feature_lr * HIGHER_BANDS,
    }


def exposure_rate(settings: OptimizationParams, iteration: int) -> float:
    """Return Adam's learning rate of the exposures; 0 = they are off, or it is the last iteration."""
    if iteration >= settings.iterations:
        return 0.0
    return exponential_decay(
        iteration,
        settings.exposure_lr_init,
        settings.exposure_lr_final,
        settings.iterations,
        settings.exposure_lr_delay_steps,
        settings.exposure_lr_delay_mult,
    )


def depth_weight(settings: OptimizationParams, iteration: int) -> float:
    """Return the weight of the depth regulariser, where there are depths."""
    first, last = settings.depth_l1_weight_init, settings.depth_l1_weight_final
    return exponential_decay(iteration, first, last, settings.iterations)


def sh_degree(iteration: int, interval: int, maximum: int) -> int:
    """Return the degree of the spherical harmonics in use: 0 at first, one more each `interval` iterations."""
    return min(iteration // interval, maximum)


def texture_weight(settings: OptimizationParams, iteration: int) -> float:
    """Return lambda_tex at `iteration`: constant, or linear to `lambda_tex_final` over a fraction of the run."""
    if settings.lambda_tex_final < 0:
        return settings.lambda_tex
    span = max(settings.lambda_tex_anneal * settings.iterations, 1.0)
    t = min((iteration - 1) / span, 1.0)
    return (1 - t) * settings.lambda_tex + t * settings.lambda_tex_final


def _density_changes(settings: OptimizationParams, iteration: int) -> bool:
    return iteration < settings.densify_until_iter


def gathers_statistics(settings: OptimizationParams, iteration: int) -> bool:
    """Tell whether densification statistics are gathered at `iteration`; 3DGS-MCMC asks for none."""
    return _density_changes(settings, iteration) and settings.densification == "adc"


def densifies(settings: OptimizationParams, iteration: int) -> bool:
    """Tell whether Gaussians are cloned, split, pruned or moved after the gradients of `iteration`."""
    due = iteration > settings.densify_from_iter and iteration % settings.densification_interval == 0
    return due and _density_changes(settings, iteration)


def prunes_large(settings: OptimizationParams, iteration: int) -> bool:
    """Tell whether densification also prunes large Gaussians: only after the first opacity reset."""
    return iteration > settings.opacity_reset_interval


def resets_opacity(settings: OptimizationParams, iteration: int, white_background: bool) -> bool:
    """Tell whether opacities are cut back at `iteration`; on white once more when densification starts."""
    due = iteration % settings.opacity_reset_interval == 0
    early = white_background and iteration == settings.densify_from_iter
    return (due or early) and gathers_statistics(settings, iteration)
