"""Blur kernels of blind super-resolution: Gaussians, their generalised and plateau forms, and the sinc.

x = (x, y) in px from the kernel's centre, q = x^T S^-1 x, S = R diag(sigma_x^2, sigma_y^2) R^T with R a rotation. All
kernels are point-symmetric and sum to 1, so none of them moves a picture.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float64
from scipy.signal import oaconvolve
from scipy.special import j1

from arguments.degrade import KINDS
from utils.errors import UserError

MAX_PX = 101


@dataclass(frozen=True)
class Blur:
    """One blur.

    Parameters
    ----------
    kind : one of KINDS. size : px of a side, odd.
    sigma : along x and y before the rotation, px; the iso kinds have two equal ones. Not of sinc.
    rotation : of the kernel, radians.
    beta : exponent of the generalised and plateau kinds; 1 makes the generalised one a Gaussian.
    cutoff : of sinc, radians a px, 0 to pi.

    Raises
    ------
    UserError : a value outside these ranges.
    """

    kind: str
    size: int
    sigma: tuple[float, float] = (1.0, 1.0)
    rotation: float = 0.0
    beta: float = 1.0
    cutoff: float = math.pi

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"blur {self.kind!r}: one of {', '.join(KINDS)} is expected")
        if not (1 <= self.size <= MAX_PX and self.size % 2):
            raise UserError(f"blur of {self.size} px: an odd number from 1 to {MAX_PX} is expected")
        if not (min(self.sigma) > 0 and self.beta > 0 and 0 < self.cutoff <= math.pi):
            raise UserError(f"blur {self}: sigma and beta above 0 and a cut-off from 0 to pi are expected")


def blur_kernel(blur: Blur) -> Float64[np.ndarray, "k k"]:
    """The weights of a blur, [size, size], sum 1.

    Notes
    -----
    iso, aniso: exp(-q / 2). generalised: exp(-q^beta / 2) (Liu et al. 2020). plateau: 1 / (1 + q^beta). sinc: the
    circular low pass c J1(c r) / (2 pi r), which rings. As in Real-ESRGAN (Wang et al. 2021, sections 3.1 and 3.3).
    """
    y, x = np.mgrid[: blur.size, : blur.size] - float(blur.size // 2)
    if blur.kind == "sinc":
        r = np.hypot(x, y)
        far = r > 0
        weights = np.full(r.shape, blur.cutoff**2 / (4 * math.pi))
        weights[far] = blur.cutoff * j1(blur.cutoff * r[far]) / (2 * math.pi * r[far])
        return weights / weights.sum()
    cos, sin = math.cos(blur.rotation), math.sin(blur.rotation)
    q = ((cos * x + sin * y) / blur.sigma[0]) ** 2 + ((cos * y - sin * x) / blur.sigma[1]) ** 2
    if blur.kind.startswith("plateau"):
        weights = 1 / (1 + q**blur.beta)
    else:
        weights = np.exp(-0.5 * (q**blur.beta if blur.kind.startswith("generalised") else q))
    return weights / weights.sum()


def blurred(image: Float64[np.ndarray, "H W C"], blur: Blur) -> Float64[np.ndarray, "H W C"]:
    """The image filtered plane by plane, reflected at its edges (the edge pixel once)."""
    kernel, margin = blur_kernel(blur), blur.size // 2
    planes = [np.pad(image[..., c], margin, mode="reflect") for c in range(image.shape[2])]
    return np.stack([oaconvolve(plane, kernel, mode="valid") for plane in planes], axis=2)
