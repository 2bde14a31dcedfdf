"""Clips without a video: crops that move along a smooth path over a few pictures, their truth exactly known.

Six photographs that come with scikit-image (a development requirement) make the toy benchmark: training sees the left
three quarters of each, validation the right quarter.
"""

import importlib.util
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import grid_sample

from priors.frame_data import ENDLESS, Batch, image_names, make_batch, window
from scene.image_files import read_image
from scene.lr_kernel import LRKernel
from utils.errors import UserError
from utils.provenance import hash_files
from utils.rng import generator

PICTURES = ("astronaut", "coffee", "chelsea", "brick", "grass", "gravel")
BUILT_IN = "skimage"
SPLITS = ("train", "val")
TRAIN_SHARE = 0.75  # of each picture's width
SHIFT_PX = 2.5  # longest step between two frames
TURN_DEG, TILT_DEG = 1.0, 5.0  # most rotation a frame, and of the middle frame
BEND_DEG = 20.0  # most change of the path's direction a frame
ZOOM = 0.01  # change of size a frame
REACH = 4  # steps from the middle frame that always stay inside the picture: 5 frames at stride 2


def pictures(root: str | Path) -> list[Path]:
    """The files of `root`, or of the six photographs where it is "skimage" (the package is not imported).

    Raises
    ------
    UserError : the package or a picture is not there.
    """
    if str(root) != BUILT_IN:
        folder = Path(root)
        found = [folder / name for name in image_names(folder)] if folder.is_dir() else []
        if not found:
            raise UserError(f"{folder}: no PNG or JPEG pictures in it")
        return found
    spec = importlib.util.find_spec(BUILT_IN)
    places = list(spec.submodule_search_locations or []) if spec else []
    paths = [Path(place) / "data" / f"{name}.png" for place in places[:1] for name in PICTURES]
    missing = [path.name for path in paths if not path.is_file()]
    if not paths or missing:
        what = f"lacks {missing[0]}" if missing else "is not installed"
        raise UserError(f"pictures of {BUILT_IN}: scikit-image {what}; pip install -r requirements-dev.txt")
    return paths


class MovingCrops:
    """See the module. The middle frame of sample i does not depend on F and stride, so that these can be compared.

    Parameters
    ----------
    root : "skimage" or a folder. split : "train" or "val". lr_px, hr_px : sides of the crops.
    frames, stride : of the window. limit : number of samples, -1 = endless. seed : of the paths.

    Raises
    ------
    UserError : no pictures, or one whose part is too small for the crops and their motion.
    """

    def __init__(
        self,
        root: str | Path,
        split: str,
        lr_px: int,
        hr_px: int,
        frames: int,
        *,
        stride: int = 1,
        limit: int = -1,
        seed: int = 0,
    ) -> None:
        paths = pictures(root)
        self.settings = {"pictures": hash_files(paths), "split": split, "lr_px": lr_px, "hr_px": hr_px}
        self.settings |= {"frames": frames, "stride": stride, "limit": limit, "seed": seed}
        self.split, self.hr_px, self.seed = split, hr_px, seed
        self.frames, self.stride, self.limit = frames, stride, limit
        if stride * (frames // 2) > REACH:
            raise UserError(f"moving crops: {frames} frames at stride {stride} reach further than {REACH} steps")
        self.down = LRKernel("bicubic", "renormalise", (hr_px, hr_px), (lr_px, lr_px))
        self.kernel: LRKernel | None = self.down
        self.names = [path.stem for path in paths]
        self.parts = [_part(read_image(path), split) for path in paths]
        # Half the side of the box around a tilted, zoomed crop, the longest way from the middle, the filter's taps.
        # Of REACH, not of the window: the middle frames stay the same for every F.
        angle = math.radians(TILT_DEG + REACH * TURN_DEG)
        self.margin = hr_px / 2 * (math.cos(angle) + math.sin(angle)) * (1 + REACH * ZOOM) + REACH * SHIFT_PX + 2
        for path, part in zip(paths, self.parts, strict=True):
            if min(part.shape[1:]) <= 2 * self.margin:
                raise UserError(f"{path}: its {split} part of {part.shape[2]}x{part.shape[1]} px is too small")

    def __len__(self) -> int:
        return ENDLESS if self.limit < 0 else self.limit

    def batch(self, indices: Sequence[int]) -> Batch:
        hr = torch.stack([self.clip(i) for i in indices])  # [B, F, 3, H, W]
        lr = (255 * self.down.down(hr.double()).clamp(0, 1)).round().float() / 255  # rounded once
        names = [f"{self.names[i % len(self.names)]}_{i:05}" for i in indices]
        return make_batch(lr, hr[:, hr.shape[1] // 2].contiguous(), names)

    def digest(self) -> dict[str, object]:
        return dict(self.settings)

    def clip(self, index: int) -> Float[Tensor, "F 3 H W"]:
        """The HR frames of one sample, 8-bit values."""
        part = self.parts[index % len(self.parts)]
        draws = torch.rand(8, generator=generator(self.seed, self.split, index), dtype=torch.float64).tolist()
        across, down, heading, speed = draws[:4]
        bend, tilt, turn, zoom = (2 * draw - 1 for draw in draws[4:])
        rows, cols = part.shape[1:]
        x, y = self.margin + across * (cols - 2 * self.margin), self.margin + down * (rows - 2 * self.margin)
        places = []
        for step in window(0, self.frames, self.stride):
            dx, dy = _arc(step, 2 * math.pi * heading, SHIFT_PX * speed, math.radians(BEND_DEG) * bend)
            degrees = TILT_DEG * tilt + TURN_DEG * turn * step
            places.append((x + dx, y + dy, math.radians(degrees), 1 + ZOOM * zoom * step))
        return (255 * _crops(part, places, self.hr_px).clamp(0, 1)).round() / 255


def _part(image: UInt8[np.ndarray, "H W0 C"], split: str) -> Float[Tensor, "3 H W"]:
    if split not in SPLITS:
        raise UserError(f"moving crops: split {split!r}; one of {', '.join(SPLITS)} is expected")
    planes = torch.from_numpy(image[..., :3].copy()).permute(2, 0, 1).float() / 255
    cut = round(TRAIN_SHARE * planes.shape[2])
    return (planes[:, :, :cut] if split == "train" else planes[:, :, cut:]).contiguous()


def _arc(step: int, heading: float, speed: float, bend: float) -> tuple[float, float]:
    """Where a path of constant speed, px a step, and constant bend, rad a step, is after `step` steps."""
    sign = 1 if step >= 0 else -1
    steps = [heading + bend * (k + 0.5) * sign for k in range(abs(step))]
    return sign * speed * sum(map(math.cos, steps)), sign * speed * sum(map(math.sin, steps))


def _crops(
    image: Float[Tensor, "3 H W"], places: Sequence[tuple[float, float, float, float]], side: int
) -> Float[Tensor, "F 3 side side"]:
    """Cubic samples of `image`; a place is centre x, y in px (pixel j covers [j, j + 1]), angle in rad, px a px."""
    rows, cols = image.shape[1:]
    at = torch.arange(side, dtype=torch.float64) + 0.5 - side / 2
    v, u = torch.meshgrid(at, at, indexing="ij")
    grids = []
    for x, y, angle, zoom in places:
        cos, sin = zoom * math.cos(angle), zoom * math.sin(angle)
        px, py = x + cos * u - sin * v, y + sin * u + cos * v
        grids.append(torch.stack([2 * px / cols - 1, 2 * py / rows - 1], -1))
    grid = torch.stack(grids).float()  # [F, side, side, 2]
    stack = image[None].expand(len(places), -1, -1, -1)
    return grid_sample(stack, grid, mode="bicubic", padding_mode="border", align_corners=False)
