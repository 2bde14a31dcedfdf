"""Flow between any two views from the depth of an LR-trained model: no network guesses, so no pair is too far apart.

Letters: `z` [h, w] depth along the camera axis, 0 = background; `target` is the view that gets features, `support` the
one they come from. A flow [1, 2, h, w] in pixels belongs to the target's grid (channel 0 = x, 1 = y) and says where in
the support each pixel is found, as SPyNet's do (`upsampling/spynet.py`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from scene.cameras import Camera
from utils.errors import UserError

FILL_PX = 3  # how far the flow of the foreground is carried into the background
FOLDER = "geometry"


@dataclass(frozen=True)
class Flow:
    """Where the pixels of a target are found in a support.

    Attributes
    ----------
    px : [1, 2, h, w] float32, pixels.
    visible : [1, 1, h, w] float32, 0 where the support does not show the pixel's surface, else 1 (background counts as
        visible); None = not known, all count.
    """

    px: Float[Tensor, "1 2 h w"]
    visible: Float[Tensor, "1 1 h w"] | None = None

    def cropped(self, top: int, bottom: int, left: int, right: int) -> "Flow":
        """The flow of a tile to the same tile of the support, which does not show what was cut off."""
        px = self.px[:, :, top:bottom, left:right]
        h, w = px.shape[-2:]
        v, u = (torch.arange(n, dtype=px.dtype, device=px.device) for n in (h, w))
        x, y = px[:, :1] + u, px[:, 1:] + v[:, None]
        height, width = self.px.shape[-2:]  # the image's own edges are none of the tile's
        across = ((x >= 0) | (left == 0)) & ((x <= w - 1) | (right == width))
        inside = (across & ((y >= 0) | (top == 0)) & ((y <= h - 1) | (bottom == height))).to(px.dtype)
        return Flow(px, inside if self.visible is None else inside * self.visible[:, :, top:bottom, left:right])


FlowOf = Callable[[int, int], Flow]  # (target, support), positions in a clip


def depth_path(folder: Path, name: str) -> Path:
    """File of a view's depth; folders in names are kept."""
    return folder / f"{name}.npz"


class Geometry:
    """Depths of a scene's views, read from a folder of NAME.npz (`render.py --geometry`) and kept once used.

    Parameters
    ----------
    cameras : of the LR views, by name; depths must have their sizes.
    tolerance : largest difference between the depths of a surface in two views, relative to the depth.
    """

    def __init__(self, folder: Path, cameras: Mapping[str, Camera], tolerance: float) -> None:
        self.folder, self.cameras, self.tolerance = folder, cameras, tolerance
        self._depths: dict[tuple[str, torch.device], Tensor] = {}

    def depth(self, name: str, device: torch.device) -> Float[Tensor, "h w"]:
        """z of a view, float32.

        Raises
        ------
        UserError : no readable file for this view, of another size than the view, or with depths that are none.
        """
        key = name, device
        if key not in self._depths:
            camera, path = self.cameras[name], depth_path(self.folder, name)
            z = read_depth(path)
            if z.shape != (camera.height, camera.width):
                raise UserError(
                    f"{path}: {z.shape[1]}x{z.shape[0]} px, view {name} has {camera.width}x{camera.height}; "
                    "make it anew from these views: render.py --geometry"
                )
            self._depths[key] = torch.from_numpy(z).to(device)
        return self._depths[key]

    def flow(self, target: str, support: str, device: torch.device) -> Flow:
        """Flow from view `target` to view `support`; raises UserError as `depth`."""
        z, z_support = self.depth(target, device), self.depth(support, device)
        return flow_between(z, self.cameras[target], z_support, self.cameras[support], self.tolerance)


def read_depth(path: Path) -> Float[np.ndarray, "h w"]:
    """z of one NAME.npz, float32.

    Raises
    ------
    UserError : no such file, not such a file, or depths that are negative or not finite.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
            z = np.asarray(arrays["z"])
    except FileNotFoundError:
        raise UserError(f"{path}: not there; render.py --geometry makes one for every view of the scene") from None
    except (OSError, ValueError, LookupError, EOFError, TypeError, AttributeError, BadZipFile) as error:
        raise UserError(f"{path}: no geometry file ({error}); make it anew with render.py --geometry") from error
    if z.ndim != 2 or z.dtype.kind != "f" or not np.isfinite(z).all() or (z < 0).any():
        raise UserError(f"{path}: z must be finite depths [h, w], 0 or more; make it anew with render.py --geometry")
    return z.astype(np.float32)


def flow_between(
    z: Float[Tensor, "h w"], camera: Camera, z_support: Float[Tensor, "hs ws"], support: Camera, tolerance: float
) -> Flow:
    """Reproject the target's pixels into the support and test whether it sees the same surface there.

    Parameters
    ----------
    z, z_support : depths, 0 = background, on one device.
    camera, support : of the target and the support, at the sizes of `z` and `z_support`.
    tolerance : see `visible`.

    Returns
    -------
    Flow; background has the flow of the foreground within FILL_PX pixels, beyond it 0.

    Notes
    -----
    q = z M (u, v, 1) + b with M = K_s R K^-1 and b = K_s t of the pose of the support relative to the target; M and b
    in float64, the rest in float32 (1e-4 px). The fill: LR pixels whose central ray misses an object still hold its
    colour, and most of what propagation gains at edges would be lost without it.
    """
    h, w = z.shape
    pose = support.world_to_camera @ np.linalg.inv(camera.world_to_camera)
    moved = torch.tensor(support.K @ pose[:3, :3] @ np.linalg.inv(camera.K), dtype=torch.float32, device=z.device)
    shift = torch.tensor(support.K @ pose[:3, 3], dtype=torch.float32, device=z.device)
    v, u = (torch.arange(n, dtype=torch.float32, device=z.device) + 0.5 for n in (h, w))
    u, v = u.expand(h, w), v[:, None].expand(h, w)
    q = (moved @ torch.stack([u, v, torch.ones_like(u)]).view(3, -1)).view(3, h, w) * z + shift[:, None, None]
    solid = z > 0
    front = solid & (q[2] > 1e-6 * z)  # the rest lies behind the support
    depth = torch.where(front, q[2], 1.0)
    x, y = q[0] / depth, q[1] / depth  # positions in the support, corner origin
    flow = torch.where(front, torch.stack([x - u, y - v]), 0.0).clamp(-4 * max(h, w), 4 * max(h, w))
    seen = ~solid | (front & visible(x, y, depth, z_support, tolerance))
    return Flow(filled(flow, front)[None], seen[None, None].float())


def visible(
    x: Float[Tensor, "*n"], y: Float[Tensor, "*n"], z: Float[Tensor, "*n"], z_support: Tensor, tolerance: float
) -> Tensor:
    """Does the support see the points at its positions (x, y) px, corner origin, and depth z > 0? [*n] bool.

    A point passes where one of the four depths around it, or their interpolation in 1 / z, lies within tolerance * z.
    The four alone would reject slanted surfaces, the interpolation alone silhouettes.
    """
    h, w = z_support.shape
    inside = (x > 0) & (x < w) & (y > 0) & (y < h)
    x, y = (torch.where(inside, p, 0.5) - 0.5 for p in (x, y))
    left, top = x.floor(), y.floor()
    right, below = x - left, y - top  # fractions
    passes, surrounded, inverse = torch.zeros_like(inside), inside.clone(), torch.zeros_like(z)
    for dy in (0, 1):
        row = (top + dy).clamp(0, h - 1).long() * w
        for dx in (0, 1):
            d = z_support.reshape(-1)[row + (left + dx).clamp(0, w - 1).long()]
            hit = d > 0
            passes |= hit & ((d - z).abs() < tolerance * z)
            surrounded &= hit
            inverse += (below if dy else 1 - below) * (right if dx else 1 - right) / torch.where(hit, d, 1.0)
    between = surrounded & ((1 / inverse.clamp(min=1e-30) - z).abs() < tolerance * z)
    return inside & (passes | between)


def filled(flow: Float[Tensor, "2 h w"], known: Tensor, steps: int = FILL_PX) -> Float[Tensor, "2 h w"]:
    """Carry a flow into the pixels where it is not known: each step by one pixel, the mean of known neighbours of 8."""
    for _ in range(steps):
        if bool(known.all()):
            break
        parts = torch.cat([flow * known, known[None].float()])  # [3, h, w]
        mean = F.avg_pool2d(parts[None], 3, 1, 1, count_include_pad=True)[0]
        fresh = ~known & (mean[2] > 0)
        flow = torch.where(fresh, mean[:2] / torch.where(fresh, mean[2], 1.0), flow)
        known = known | fresh
    return flow
