"""Deterministic scenes for the rasterizer benchmark; distributions follow what training looks like.

`random`: coverage independent of N, about 40 splats over each pixel. `skewed`: a shell of small splats of very
different sizes, and half a percent of huge ones behind it.

Letters: N splats, S image side [px]; the camera looks along +z from a distance of 4, field of view 0.7 rad.
"""

from collections.abc import Callable

import numpy as np

DISTANCE = 4.0
FIELD_OF_VIEW = 0.7
COVERAGE_PX = 3.6  # sigma of `random` at 100k splats and 800 px
BACKGROUND_SHARE = 200  # one splat in so many is a huge one

Arrays = dict[str, np.ndarray]


def focal_px(size: int) -> float:
    """Focal length of the benchmark's camera for a square image."""
    return size / 2 / np.tan(FIELD_OF_VIEW / 2)


def random_scene(n: int, size: int, rng: np.random.Generator) -> Arrays:
    """Splats spread evenly through a box that fills the view."""
    sigma_px = COVERAGE_PX * np.sqrt(100_000 / n) * size / 800
    means = (rng.random((n, 3)) * 2 - 1) * [1.35, 1.35, 1.0]
    log_scales = np.log(sigma_px * DISTANCE / focal_px(size)) + rng.normal(0, 0.45, (n, 3))
    return {"means": means, "log_scales": log_scales, "logit_opacities": rng.normal(-0.4, 1.4, (n, 1))}


def skewed_scene(n: int, size: int, rng: np.random.Generator) -> Arrays:
    """A surface of small splats before a few large ones: most tiles are short, a few are very long."""
    pixel = DISTANCE / focal_px(size)
    direction = rng.normal(size=(n, 3))
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    means = direction * (0.9 + 0.03 * rng.normal(size=(n, 1)))
    log_scales = np.log(1.3 * pixel) + rng.normal(0, 0.8, (n, 1)) + rng.normal(0, 0.7, (n, 3))
    behind = max(8, n // BACKGROUND_SHARE)
    means[:behind, :2] = rng.normal(0, 4, (behind, 2))
    means[:behind, 2] = 6 + 6 * rng.random(behind)
    log_scales[:behind] = np.log(80 * pixel) + rng.normal(0, 0.8, (behind, 3))
    return {"means": means, "log_scales": log_scales, "logit_opacities": rng.normal(0.3, 2.0, (n, 1))}


KINDS: dict[str, Callable[[int, int, np.random.Generator], Arrays]] = {
    "random": random_scene,
    "skewed": skewed_scene,
}


def scene(n: int, size: int, kind: str, seed: int = 1) -> Arrays:
    """Raw parameters, float32, means relative to the centre of the scene.

    Returns
    -------
    means [N, 3], log_scales [N, 3], quats [N, 4], logit_opacities [N, 1], sh0 [N, 1, 3], shN [N, 15, 3].
    """
    rng = np.random.default_rng(seed)
    values = KINDS[kind](n, size, rng)
    values["quats"] = rng.normal(size=(n, 4))
    values["sh0"] = rng.normal(0, 0.8, (n, 1, 3))
    values["shN"] = rng.normal(0, 0.12, (n, 15, 3))
    names = ("means", "log_scales", "quats", "logit_opacities", "sh0", "shN")
    return {name: np.ascontiguousarray(values[name], np.float32) for name in names}


def target(size: int, seed: int = 2) -> np.ndarray:
    """A blocky picture with noise, float32 [3, S, S]."""
    rng = np.random.default_rng(seed)
    blocks = rng.random((3, size // 16 + 1, size // 16 + 1)).repeat(16, 1).repeat(16, 2)[:, :size, :size]
    return np.ascontiguousarray(blocks + 0.05 * rng.random((3, size, size)), np.float32)
