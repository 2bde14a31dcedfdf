"""The linear operator from HR to LR, and the file that says which one made a data set.

Letters: x an HR image [..., H, W], y an LR image [..., h, w], A the operator: y = A x = Ay x Ax^T with one small matrix
per axis, Ay [h, H] and Ax [w, W]. The same object makes LR data, projects frames onto what the LR view says, and
sits in the training objective, so "consistent with LR" has one meaning.

Pixel j covers [j, j + 1]; LR pixel i is centred at s (i + 1/2) in HR pixels, s = HR size / LR size, any s >= 1.
"""

import json
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Float64, Int32
from torch import Tensor

from arguments.lr_kernel import KERNEL_FILE, KERNELS, check_flag, unsaid
from scene.banded import Band, separable
from utils.atomic import read_json, write_text
from utils.errors import UserError

BORDERS = ("renormalise", "mirror")
ROUNDINGS = ("round", "truncate")
ALPHAS = ("none", "straight", "composited")
FILE_NAME = KERNEL_FILE
Size = tuple[int, int]  # width, height in px


def keys_cubic(t: Float64[np.ndarray, "*shape"]) -> Float64[np.ndarray, "*shape"]:
    """Keys' cubic convolution with a = -1/2 (Keys 1981, equation 15), zero from |t| = 2 on."""
    t = np.abs(t)
    inner = (1.5 * t - 2.5) * t * t + 1
    outer = ((-0.5 * t + 2.5) * t - 4) * t + 2
    return np.where(t < 1, inner, np.where(t < 2, outer, 0.0))


@lru_cache(maxsize=64)
def resample_matrix(n_in: int, n_out: int, kernel: str, border: str) -> Float64[np.ndarray, "n_out n_in"]:
    """One axis of the operator: each row holds the weights of one output pixel and sums to 1. Read only.

    Parameters
    ----------
    n_in, n_out : sizes in px, n_in >= n_out >= 1.
    kernel : "bicubic" widened by n_in / n_out (antialiased), or "area" (mean over the box that the pixel covers).
    border : "renormalise" leaves out taps beyond the image and rescales the rest (Pillow, torch antialias=True);
        "mirror" reflects them at the image's edge, edge pixel included (MATLAB's imresize). No effect on "area".
    """
    scale = n_in / n_out
    centre = (np.arange(n_out)[:, None] + 0.5) * scale
    matrix = np.zeros((n_out, n_in))
    if kernel == "area":
        edges = np.arange(n_in)[None, :]
        overlap = np.minimum(centre + scale / 2, edges + 1) - np.maximum(centre - scale / 2, edges)
        matrix[:] = np.maximum(overlap, 0.0)
        matrix[matrix < 1e-9] = 0.0  # rounding of the box's ends, not an overlap
    else:
        margin = int(np.ceil(2 * scale)) + 1 if border == "mirror" else 0
        taps = np.arange(-margin, n_in + margin)
        weights = keys_cubic((taps[None, :] + 0.5 - centre) / scale)  # [n_out, n_in + 2 margin]
        period = taps % (2 * n_in)  # a reflected image has period 2 n_in
        np.add.at(matrix.T, np.where(period < n_in, period, 2 * n_in - 1 - period), weights.T)
    matrix /= matrix.sum(axis=1, keepdims=True)
    matrix.setflags(write=False)
    return matrix


@lru_cache(maxsize=64)
def _pseudo_inverse(n_in: int, n_out: int, kernel: str, border: str) -> Float64[np.ndarray, "n_in n_out"]:
    """Moore-Penrose inverse; rows of A are independent, so A^T = Q R gives A^+ = Q R^-T (SVD where they are not)."""
    matrix = resample_matrix(n_in, n_out, kernel, border)
    q, r = np.linalg.qr(matrix.T)
    pivots = np.abs(np.diag(r))
    independent = pivots.min() > 1e-8 * pivots.max()
    inverse = np.linalg.solve(r, q.T).T if independent else np.linalg.pinv(matrix)
    inverse.setflags(write=False)
    return inverse


@lru_cache(maxsize=64)
def _band(
    n_in: int, n_out: int, kernel: str, border: str, inverse: bool, dtype: torch.dtype, device: torch.device
) -> Band:
    make = _pseudo_inverse if inverse else resample_matrix
    return Band.of(make(n_in, n_out, kernel, border), dtype, device)


@dataclass(frozen=True)
class LRKernel:
    """A: HR image -> LR image, separable, with its transpose and exact pseudo-inverse.

    Parameters
    ----------
    kernel, border : see `resample_matrix`.
    hr_size, lr_size : (width, height) in px; any ratio >= 1, each axis its own.

    Raises
    ------
    UserError : unknown kernel or border, an LR side longer than the HR side, or empty.

    Notes
    -----
    Matrices are made in float64, rounded once to the tensor's dtype and applied in blocks (`scene.banded`); they are
    cached by size. Against dense products, one thread of a busy EPYC, x4, `python -m benchmarks.lr_projection`:
    `project` takes 0.55 of the time at 800x800x3 (`down` 0.23, `pinv` 0.53), 0.56 at 400x400x3 (0.38, 0.71); torch's
    CSR 0.95 and 1.17. Not measured on a GPU.
    "bicubic", "renormalise" equals torch interpolate(mode="bicubic", antialias=True, align_corners=False).
    """

    kernel: str
    border: str
    hr_size: Size
    lr_size: Size

    def __post_init__(self) -> None:
        if self.kernel not in KERNELS or self.border not in BORDERS:
            raise UserError(f"LR kernel {self.kernel!r}, border {self.border!r}: one of {KERNELS} and of {BORDERS}")
        if any(not 1 <= lr <= hr for hr, lr in zip(self.hr_size, self.lr_size, strict=True)):
            raise UserError(f"LR kernel: LR size {self.lr_size} must lie within 1x1 and the HR size {self.hr_size}")

    @property
    def scale(self) -> tuple[float, float]:
        """HR px per LR px along x and y."""
        return self.hr_size[0] / self.lr_size[0], self.hr_size[1] / self.lr_size[1]

    def matrix(self, axis: str) -> Float64[np.ndarray, "n_out n_in"]:
        """Ax ("x") or Ay ("y"). Read only."""
        k = "xy".index(axis)
        return resample_matrix(self.hr_size[k], self.lr_size[k], self.kernel, self.border)

    def down(self, x: Float[Tensor, "*batch H W"]) -> Float[Tensor, "*batch h w"]:
        """A x; differentiable."""
        self._check(x, self.hr_size, "down")
        ay, ax = self._bands(x, inverse=False)
        return separable(x, ay, ax)

    def transpose(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch H W"]:
        """A^T y: <A x, y> = <x, A^T y>."""
        self._check(y, self.lr_size, "transpose")
        ay, ax = self._bands(y, inverse=False)
        return separable(y, ay.T, ax.T)

    def pinv(self, y: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch H W"]:
        """A^+ y, the smallest image with A (A^+ y) = y. Exact: (Ay (x) Ax)^+ = Ay^+ (x) Ax^+."""
        self._check(y, self.lr_size, "pinv")
        py, px = self._bands(y, inverse=True)
        return separable(y, py, px)

    def project(
        self,
        x: Float[Tensor, "*batch H W"],
        y: Float[Tensor, "*batch h w"],
        mask: Bool[Tensor, "*#batch h w"] | None = None,
    ) -> Float[Tensor, "*batch H W"]:
        """The image nearest to x whose LR version is y: x + A^+ (y - A x).

        `mask`: where False the LR pixel says nothing and A x is left as it is (see `opaque_support_mask`).
        """
        residual = y - self.down(x)
        return x + self.pinv(residual if mask is None else residual * mask)

    def project_soft(
        self,
        x: Float[Tensor, "*batch H W"],
        y: Float[Tensor, "*batch h w"],
        tolerance: float = 0.0,
        mask: Bool[Tensor, "*#batch h w"] | None = None,
    ) -> Float[Tensor, "*batch H W"]:
        """x + A^+ r with A x + r in what y allows: a saturated LR pixel, y <= 0 or y >= 1, is a bound, not a value.

        A x of the result lies in [y - tolerance, y + tolerance], open towards a saturated side. Not the nearest such
        image unless tolerance = 0 and nothing is saturated, when it is `project`.

        Parameters
        ----------
        x : units in which y is 0-1; not clipped. tolerance : >= 0; 0.5 / 255 is what rounding y to 8 bit once costs.
        mask : as in `project`.
        """
        now, inf = self.down(x), float("inf")
        low, high = torch.where(y <= 0, -inf, y - tolerance), torch.where(y >= 1, inf, y + tolerance)
        residual = (low - now).clamp(min=0) - (now - high).clamp(min=0)
        return x + self.pinv(residual if mask is None else residual * mask)

    def taps(self, axis: str) -> tuple[Int32[np.ndarray, "n_out"], Float32[np.ndarray, "n_out K"]]:
        """The banded matrix of one axis for native code: out[i] = sum_k weight[i, k] in[start[i] + k].

        Returns
        -------
        start : first input pixel of each row; start + K never passes the input's end.
        weight : rows padded with zeros to the longest band, K.
        """
        matrix = self.matrix(axis)
        n_out, n_in = matrix.shape
        used = matrix != 0
        first, last = used.argmax(axis=1), n_in - 1 - used[:, ::-1].argmax(axis=1)
        width = int((last - first).max()) + 1
        start = np.minimum(first, n_in - width)
        weight = matrix[np.arange(n_out)[:, None], start[:, None] + np.arange(width)]
        return start.astype(np.int32), np.ascontiguousarray(weight, np.float32)

    def _bands(self, like: Tensor, inverse: bool) -> tuple[Band, Band]:
        (width, height), (w, h) = self.hr_size, self.lr_size
        rest = (self.kernel, self.border, inverse, like.dtype, like.device)
        return _band(height, h, *rest), _band(width, w, *rest)

    def _check(self, image: Tensor, size: Size, what: str) -> None:
        if tuple(image.shape[-2:]) != (size[1], size[0]):
            raise UserError(
                f"LR kernel {what}: image of {image.shape[-1]}x{image.shape[-2]} px, {size[0]}x{size[1]} is expected"
            )


def opaque_support_mask(
    kernel: LRKernel, alpha: Float[Tensor, "rows cols"], tolerance: float = 0.5 / 255
) -> Bool[Tensor, "h w"]:
    """LR pixels on whose whole HR support alpha is 1, or 0: there RGBA consistency can be tested and projected.

    Elsewhere the filtered premultiplied colour overshoots, which straight 8-bit alpha cannot hold.

    Parameters
    ----------
    alpha : [H, W] (exact), or [h, w] where only the LR view is known: then all LR pixels whose own box the kernel's
        support touches must be equally opaque. 0-1.
    tolerance : how far from 0 or 1 still counts as such.

    Raises
    ------
    UserError : alpha has neither the HR nor the LR size.
    """
    rows, cols = alpha.shape
    if (cols, rows) == kernel.hr_size:
        reach_y, reach_x = (torch.tensor(kernel.matrix(axis) != 0, dtype=torch.float64) for axis in "yx")
    elif (cols, rows) == kernel.lr_size:
        reach_y, reach_x = (_lr_reach(kernel, axis) for axis in "yx")
    else:
        raise UserError(f"alpha of {cols}x{rows} px: the HR size {kernel.hr_size} or LR {kernel.lr_size} is expected")
    count = reach_y.sum(1)[:, None] * reach_x.sum(1)[None, :]

    def everywhere(hit: Tensor) -> Tensor:
        return (reach_y @ hit.to(reach_y) @ reach_x.T) == count  # small integers: exact

    mask = everywhere(alpha >= 1 - tolerance) | everywhere(alpha <= tolerance)
    return mask.to(alpha.device)


def _lr_reach(kernel: LRKernel, axis: str) -> Float64[Tensor, "n n"]:
    """reach[i, k] = 1 where LR pixel k's own box meets the support of LR pixel i."""
    support = kernel.matrix(axis) != 0
    n_out, n_in = support.shape
    boxes = resample_matrix(n_in, n_out, "area", "renormalise") != 0
    return torch.tensor((support.astype(float) @ boxes.T.astype(float)) > 0, dtype=torch.float64)


@dataclass(frozen=True)
class LRKernelFile:
    """lr_kernel.json: how the LR views of a scene were made. Only `kernel` is required in a file written by hand.

    Parameters
    ----------
    kernel, border : of the LRKernel.
    scale : HR size / LR size that was asked for; 0 = not known.
    rounding : to 8 bit, "round" or "truncate".
    alpha : "none", "straight" (filtered premultiplied, stored straight) or "composited" (on `background` first).
    background : RGB 0-1 that "composited" used.
    hr_root : folder of the HR scene, absolute or relative to the LR scene; "" = none.
    sizes : one entry for each distinct pair: {"hr": [W, H], "used": [W, H] after the crop, "lr": [w, h]}.
    made : settings, digest of the source images and versions of whoever made the set.
    """

    kernel: str
    border: str = "renormalise"
    scale: float = 0.0
    rounding: str = "round"
    alpha: str = "none"
    background: tuple[float, ...] = ()
    hr_root: str = ""
    sizes: tuple[dict[str, Any], ...] = ()
    made: dict[str, Any] = field(default_factory=dict)

    def write(self, path: str | Path) -> None:
        """Write atomically. Raises UserError where that fails."""
        values = {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}
        write_text(path, json_lines(values))

    @classmethod
    def read(cls, path: str | Path) -> "LRKernelFile":
        """Read and check. Raises UserError naming the file, the field and what is expected."""
        values = read_json(path, max_bytes=1 << 20)
        if not isinstance(values, dict) or "kernel" not in values:
            raise UserError(f'{path}: a JSON object with at least {{"kernel": "bicubic"}} is expected')
        known = {f: type(v) for f, v in asdict(cls("bicubic")).items()}
        for name, value in values.items():
            if name not in known:
                raise UserError(f"{path}: unknown field {name!r}; known: {', '.join(known)}")
            expected = {tuple: list, float: (int, float)}.get(known[name], known[name])
            if not isinstance(value, expected) or isinstance(value, bool):  # type: ignore[arg-type]
                raise UserError(f"{path}: {name} = {value!r} is of the wrong type")
        for name, allowed in (("kernel", KERNELS), ("border", BORDERS), ("rounding", ROUNDINGS), ("alpha", ALPHAS)):
            if name in values and values[name] not in allowed:
                raise UserError(f"{path}: {name} = {values[name]!r}; one of {', '.join(allowed)} is expected")
        arguments: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**arguments)


def json_lines(values: dict[str, Any]) -> str:
    """A JSON object with one field a line, so that it reads and diffs well."""
    rows = [f"  {json.dumps(k)}: {json.dumps(v, allow_nan=False)}" for k, v in values.items()]
    return "{\n" + ",\n".join(rows) + "\n}\n"


@runtime_checkable
class HasKernelFile(Protocol):
    """What `resolve_kernel` needs of a Scene."""

    root: Path
    kernel_file: LRKernelFile | None


def resolve_kernel(scene: HasKernelFile, flag: str) -> tuple[str, str]:
    """Kernel and border of the scene's LR views: --lr_kernel first, then the scene's lr_kernel.json.

    Parameters
    ----------
    flag : value of --lr_kernel: "", "bicubic", "area", or a JSON file.

    Raises
    ------
    UserError : neither says how the LR views were made (nothing is assumed in silence), or they were degraded.
    """
    check_flag(flag)
    if flag in KERNELS:
        return flag, "renormalise"
    if flag:
        found = LRKernelFile.read(flag)
        return found.kernel, found.border
    if scene.kernel_file is None:
        raise unsaid(scene.root)
    return scene.kernel_file.kernel, scene.kernel_file.border
