"""Depth with errors of known kind and size, and what they do to the flow between views.

A *depth* here is z of every view by name, [h, w] float32, 0 = background. Errors are relative to z and stay inside the
silhouette: what is tested is how exact the surface must be, not how well its outline is known.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import gaussian_filter

from scene.cameras import Camera
from upsampling.geometry import flow_between

SMOOTH_PX = 4.0
EXACT_TOLERANCE = 0.01
ANGLES_DEG = (0, 5, 10, 15, 20, 30, 45, 90)
Depth = Mapping[str, Float[np.ndarray, "h w"]]
Change = Callable[[Float[np.ndarray, "h w"], np.random.Generator], Float[np.ndarray, "h w"]]


def white(share: float) -> Change:
    """Independent normal errors of standard deviation `share` of z."""
    return lambda z, rng: z * (1 + share * rng.standard_normal(z.shape))


def smooth(share: float) -> Change:
    """Normal errors that vary over a few pixels, standard deviation `share` of z."""

    def change(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        field = gaussian_filter(rng.standard_normal(z.shape), SMOOTH_PX, mode="wrap")
        return z * (1 + share * field / field.std())

    return change


def blurred(sigma_px: float) -> Change:
    """The mean over a Gaussian window, of the surface only."""

    def change(z: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        weight = gaussian_filter((z > 0).astype(float), sigma_px, mode="constant")
        return gaussian_filter(z.astype(float), sigma_px, mode="constant") / np.maximum(weight, 1e-12)

    return change


ERRORS: dict[str, Change] = {
    **{f"white-{percent:g}%": white(percent / 100) for percent in (0.5, 1.0, 2.0)},
    **{f"smooth-{percent:g}%": smooth(percent / 100) for percent in (0.5, 1.0, 2.0, 5.0)},
    "blur-2px": blurred(2.0),
}


def changed(exact: Depth, change: Change, seed: int = 0) -> dict[str, Float[np.ndarray, "h w"]]:
    """Every view with errors, its silhouette as it was."""
    rng = np.random.default_rng(seed)
    return {name: np.where(z > 0, change(z, rng), 0).astype(np.float32) for name, z in exact.items()}


def depth_error(depth: Depth, exact: Depth) -> dict[str, float]:
    """Relative error on the surface that both have, and intersection over union of the silhouettes."""
    both = {name: (z > 0) & (depth[name] > 0) for name, z in exact.items()}
    relative = np.concatenate([np.abs(depth[name][m] / exact[name][m] - 1) for name, m in both.items()])
    either = sum(int(((z > 0) | (depth[name] > 0)).sum()) for name, z in exact.items())
    return {
        "median": float(np.median(relative)),
        "mean": float(relative.mean()),
        "p90": float(np.percentile(relative, 90)),
        "iou": len(relative) / either,
    }


@dataclass
class FlowErrors:
    """End-point errors in LR pixels, gathered over pairs."""

    sum_px: float = 0.0
    below_1_px: int = 0
    pixels: int = 0

    def add(self, error: Float[torch.Tensor, "P"]) -> None:
        self.sum_px += float(error.double().sum())
        self.below_1_px += int((error < 1).sum())
        self.pixels += error.numel()

    def facts(self) -> dict[str, float]:
        """Mean error and share of pixels off by less than one; no pixel = nothing to say."""
        if not self.pixels:
            return {}
        return {"mean_px": self.sum_px / self.pixels, "below_1_px": self.below_1_px / self.pixels}


def chosen_pairs(angles: Float[np.ndarray, "N N"], count: int, seed: int = 0) -> dict[str, list[tuple[int, int]]]:
    """At most `count` pairs (target, support) of each range of angles, drawn at random, the same every time."""
    rng, found = np.random.default_rng(seed), {}
    for low, high in pairwise(ANGLES_DEG):
        pairs = np.argwhere((angles >= low) & (angles < high) & ~np.eye(len(angles), dtype=bool))
        if len(pairs):
            pick = rng.permutation(len(pairs))[:count]
            found[f"{low}-{high}"] = [(int(i), int(j)) for i, j in pairs[pick]]
    return found


def flow_errors(
    cameras: Mapping[str, Camera],
    exact: Depth,
    depths: Mapping[str, Depth],
    pairs: Sequence[tuple[str, str]],
    learned: Mapping[tuple[str, str], Float[torch.Tensor, "2 h w"]],
) -> dict[str, Any]:
    """Compare flows with those from exact depth, over the pixels whose surface the support shows.

    Parameters
    ----------
    cameras : at the size of the depths. depths : those to be tested, by what they are called.
    learned : a network's flow of each pair; {} = none.

    Returns
    -------
    {"pairs", "pixels", "flow_px": mean length of the exact flow, "errors": {name: `FlowErrors.facts`}}.
    """
    errors = {name: FlowErrors() for name in (*depths, *(["learned"] if learned else []))}
    length = FlowErrors()
    for pair in pairs:
        target, support = pair
        views = cameras[target], cameras[support]

        def flow(depth: Depth, pair: tuple[str, str] = pair, views: tuple[Camera, Camera] = views) -> Any:
            z = [torch.from_numpy(depth[name]) for name in pair]
            return flow_between(z[0], views[0], z[1], views[1], EXACT_TOLERANCE)

        truth = flow(exact)
        shown = (truth.visible[0, 0] > 0) & torch.from_numpy(exact[target] > 0)
        length.add(truth.px[0].norm(dim=0)[shown])
        found = {name: flow(depth).px[0] for name, depth in depths.items()}
        found |= {"learned": learned[pair]} if learned else {}
        for name, px in found.items():
            errors[name].add((px - truth.px[0]).norm(dim=0)[shown])
    facts = {name: e.facts() for name, e in errors.items()}
    return {"pairs": len(pairs), "pixels": length.pixels, "flow_px": length.facts().get("mean_px"), "errors": facts}
