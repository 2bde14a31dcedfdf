"""The depth regulariser: the inverse depth of the render against that of a model trained on the LR views.

Letters: H x W the size that is rendered, h x w that of the depth files, H = n h and W = n w for a whole number n.
Inverse depth is the sum of weight / z over a pixel's Gaussians, as rasterizers give it; of a file that is alpha / z.

Kerbl et al., "A Hierarchical 3D Gaussian Representation", SIGGRAPH 2024 (there against monocular depth).
"""

from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from scene.cameras import Camera
from utils.errors import UserError


def depth_path(folder: Path, name: str) -> Path:
    """Where the depth of view `name` lies."""
    return folder / f"{name}.npz"


def inverse_depths(folder: Path, cameras: dict[str, Camera], device: torch.device) -> dict[str, Float[Tensor, "h w"]]:
    """Inverse depth [1 / world units] of each view, 0 where its file has none.

    Parameters
    ----------
    folder : of NAME.npz with `z` and `alpha`, written by render.py --geometry. cameras : at the size that is rendered.

    Raises
    ------
    UserError : a file is missing, malformed, or of a size that is no whole fraction of its camera's.
    """
    if not folder.is_dir():
        raise UserError(f"--depths {folder}: no such folder; render.py --geometry of a model of the LR views makes one")
    return {name: _inverse_depth(depth_path(folder, name), camera).to(device) for name, camera in cameras.items()}


def _inverse_depth(path: Path, camera: Camera) -> Float[Tensor, "h w"]:
    if not path.is_file():
        raise UserError(f"{path}: no such depth; make them with render.py --geometry")
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            z, alpha = (np.asarray(file[name], np.float32) for name in ("z", "alpha"))
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); make it again with render.py --geometry") from error
    if z.ndim != 2 or z.shape != alpha.shape or not (np.isfinite(z).all() and np.isfinite(alpha).all()) or z.min() < 0:
        raise UserError(f"{path}: z and alpha of one size, finite and not negative, are expected")
    height, width = z.shape
    n = camera.width // width
    if n < 1 or (camera.width, camera.height) != (n * width, n * height):
        raise UserError(
            f"{path}: {width}x{height} px, no whole fraction of the {camera.width}x{camera.height} px that are trained"
        )
    return torch.from_numpy(np.where(z > 0, alpha / np.where(z > 0, z, 1), 0).astype(np.float32))


def depth_loss(rendered: Float[Tensor, "H W"], target: Float[Tensor, "h w"]) -> Float[Tensor, ""]:
    """Mean over all h w of |mean of the rendered n x n - target| where the target is not 0; differentiable."""
    n = rendered.shape[1] // target.shape[1]
    shrunk = F.avg_pool2d(rendered[None], n)[0]
    return ((shrunk - target) * (target > 0)).abs().mean()
