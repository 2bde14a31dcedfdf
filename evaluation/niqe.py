"""NIQE_fit: how unlike the user's own pristine images an image is, without a truth; smaller is more natural.

Mittal et al., "Making a Completely Blind Image Quality Analyzer", IEEE SPL 2013, with the model fitted to images that
the user names instead of the authors' 125: the numbers compare only where the same images were fitted, so the metric
has a name of its own. Of each block of 96x96 px, at full and half size, the statistics of the luma's local contrast
(MSCN) are fitted by asymmetric generalised Gaussians (AGGD); 36 numbers a block, whose mean and covariance over the
blocks make a normal distribution (MVN). The score is the distance of two of these.

Letters: I luma, 0-255; mu and sigma local mean and deviation; alpha the AGGD's shape, left and right its two widths.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64, UInt8
from scipy.ndimage import correlate1d
from scipy.special import gamma

from scene.image_files import read_image
from scene.lr_kernel import LRKernel
from utils.errors import UserError

BLOCK_PX = 96
FEATURES = 36
LUMA = (0.299, 0.587, 0.114)  # Rec. 601
WINDOW = np.exp(-0.5 * (np.arange(-3, 4) / (7 / 6)) ** 2)
SHARP = 0.75  # of the sharpest block of an image: from there on its blocks are fitted
FLAT = 0.01  # levels: where sigma is less there is no texture, as around a rendered object
SHIFTS = ((0, 1), (1, 0), (1, 1), (1, -1))  # neighbours whose products are fitted
SUFFIXES = (".png", ".jpg", ".jpeg")
MIN_BLOCKS = 2 * FEATURES  # fewer say nothing about a covariance of 36 numbers


def luma(image: UInt8[np.ndarray, "H W c"]) -> Float64[np.ndarray, "H W"]:
    """Luma in levels, 0-255, of RGB; alpha, where there is one, puts the image on black."""
    grey = image[..., :3].astype(np.float64) @ np.array(LUMA)
    return grey * image[..., 3] / 255.0 if image.shape[2] == 4 else grey


def mscn(
    grey: Float64[np.ndarray, "H W"],
) -> tuple[Float64[np.ndarray, "H W"], Float64[np.ndarray, "H W"]]:
    """Mean-subtracted, contrast-normalised luma (I - mu) / (sigma + 1), and sigma; a 7x7 Gaussian window of 7/6 px."""
    weights = WINDOW / WINDOW.sum()
    mu, square = (
        correlate1d(correlate1d(x, weights, 0, mode="nearest"), weights, 1, mode="nearest") for x in (grey, grey**2)
    )
    sigma = np.sqrt(np.abs(square - mu**2))
    return (grey - mu) / (sigma + 1.0), sigma


@lru_cache(maxsize=1)
def _shapes() -> tuple[Float64[np.ndarray, "n"], Float64[np.ndarray, "n"]]:
    """Shapes, and the ratio E|x|^2 / E x^2 of a generalised Gaussian of each."""
    alpha = np.arange(0.2, 10.0005, 0.001)
    return alpha, gamma(2 / alpha) ** 2 / (gamma(1 / alpha) * gamma(3 / alpha))


def aggd(x: Float64[np.ndarray, "n"]) -> tuple[float, float, float]:
    """(alpha, left, right) of an asymmetric generalised Gaussian by its moments; NaN where x is constant.

    Notes
    -----
    Lasmar et al., ICIP 2009. left, right are its scale parameters: deviation x sqrt(Gamma(1/alpha) / Gamma(3/alpha)).
    """
    negative, positive = x[x < 0], x[x > 0]
    if not len(negative) or not len(positive):
        return float("nan"), float("nan"), float("nan")
    left, right = float(np.sqrt(np.mean(negative**2))), float(np.sqrt(np.mean(positive**2)))
    ratio = left / right
    found = np.mean(np.abs(x)) ** 2 / np.mean(x**2) * (ratio**3 + 1) * (ratio + 1) / (ratio**2 + 1) ** 2
    alphas, ratios = _shapes()
    alpha = float(alphas[np.argmin((ratios - found) ** 2)])
    width = float(np.sqrt(gamma(1 / alpha) / gamma(3 / alpha)))
    return alpha, left * width, right * width


def block_features(block: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "18"]:
    """Of a block's MSCN values: shape and width, then shape, mean and both widths of four neighbours' products."""
    alpha, left, right = aggd(block.ravel())
    values = [alpha, (left + right) / 2]
    for shift in SHIFTS:
        alpha, left, right = aggd((block * np.roll(block, shift, (0, 1))).ravel())
        mean = (right - left) * gamma(2 / alpha) / gamma(1 / alpha)
        values += [alpha, mean, left, right]
    return np.array(values)


def image_features(
    image: UInt8[np.ndarray, "H W c"], where: str = "image"
) -> tuple[Float64[np.ndarray, "blocks 36"], Float64[np.ndarray, "blocks"]]:
    """Features of all blocks that have texture, and how sharp each is (mean sigma); sides are cropped to whole blocks.

    Raises
    ------
    UserError : less than a block a side; `where` names the image.
    """
    rows, columns = image.shape[0] // BLOCK_PX, image.shape[1] // BLOCK_PX
    if not rows or not columns:
        size = f"{image.shape[1]}x{image.shape[0]}"
        raise UserError(f"{where}: {size} px, NIQE_fit needs {BLOCK_PX}x{BLOCK_PX} px or more")
    grey = luma(image[: rows * BLOCK_PX, : columns * BLOCK_PX])
    half = LRKernel("bicubic", "mirror", grey.shape[::-1], (grey.shape[1] // 2, grey.shape[0] // 2))
    scales, kept, sharpness = [], np.zeros(0, bool), np.zeros(0)
    for side, plane in ((BLOCK_PX, grey), (BLOCK_PX // 2, half.down(torch.from_numpy(grey)).numpy())):
        normalised, sigma = mscn(plane)
        scales.append(np.stack([block_features(b) for b in _blocks(normalised, side)]))
        if side == BLOCK_PX:
            blocks = np.stack(list(_blocks(sigma, side)))
            kept, sharpness = (blocks > FLAT).mean((1, 2)) >= 0.5, blocks.mean((1, 2))
    features = np.concatenate(scales, axis=1)
    kept &= np.isfinite(features).all(axis=1)
    return features[kept], sharpness[kept]


def _blocks(plane: Float64[np.ndarray, "H W"], side: int) -> Iterator[Float64[np.ndarray, "side side"]]:
    for y in range(0, plane.shape[0], side):
        for x in range(0, plane.shape[1], side):
            yield plane[y : y + side, x : x + side]


@dataclass(frozen=True, eq=False)
class NiqeModel:
    """The normal distribution of the features of pristine blocks."""

    mean: Float64[np.ndarray, "36"]
    covariance: Float64[np.ndarray, "36 36"]

    def score(self, image: UInt8[np.ndarray, "H W c"], where: str = "image") -> float | None:
        """sqrt(d^T ((C1 + C2) / 2)^+ d), d the difference of the means, C1, C2 the covariances.

        None where no block has texture. Raises UserError for an image of less than a block.
        """
        features, _ = image_features(image, where)
        if not len(features):
            return None
        other = np.cov(features, rowvar=False) if len(features) > 1 else np.zeros_like(self.covariance)
        difference = features.mean(axis=0) - self.mean
        inverse = np.linalg.pinv((self.covariance + other) / 2, hermitian=True)
        return float(np.sqrt(difference @ inverse @ difference))


def fit(images: Iterable[UInt8[np.ndarray, "H W c"]], where: str = "images") -> NiqeModel:
    """The model of pristine images: of each, the blocks at least 0.75 times as sharp as its sharpest.

    Raises
    ------
    UserError : fewer than 72 such blocks in all, or an image of less than a block.
    """
    chosen = []
    for index, image in enumerate(images):
        features, sharpness = image_features(image, f"{where}, image {index}")
        if len(features):
            chosen.append(features[_sharp(sharpness)])
    found = np.concatenate(chosen) if chosen else np.zeros((0, FEATURES))
    if len(found) < MIN_BLOCKS:
        raise UserError(
            f"{where}: {len(found)} sharp blocks of {BLOCK_PX}x{BLOCK_PX} px in all, NIQE_fit needs {MIN_BLOCKS} or "
            "more; name more or larger pristine images"
        )
    return NiqeModel(found.mean(axis=0), np.cov(found, rowvar=False))


def _sharp(sharpness: Float[np.ndarray, "n"]) -> Bool[np.ndarray, "n"]:
    return sharpness >= SHARP * sharpness.max()


def pristine_files(folder: str | Path) -> list[Path]:
    """The PNG and JPEG files of a folder, also in folders below it, in the order of their names.

    Raises
    ------
    UserError : no such folder, or no image in it.
    """
    folder = Path(folder)
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
    if not files:
        raise UserError(f"--niqe_fit {folder}: a folder of pristine PNG or JPEG images is expected")
    return files


def fit_files(files: Iterable[Path], where: str) -> NiqeModel:
    """The model of image files, one in memory at a time. Raises UserError as `fit`."""
    return fit((read_image(path) for path in files), where)
