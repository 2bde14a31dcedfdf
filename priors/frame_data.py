"""What a small prior is trained on: windows of F LR frames with the HR frame of the middle one.

Two sources: folders that scripts/prepare_frames.py made, and crops that move over a few pictures (`moving_crops`).
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from priors.enlarge import enlarged
from scene.images import ImageStore
from scene.lr_kernel import FILE_NAME as KERNEL_FILE
from scene.lr_kernel import LRKernel, LRKernelFile
from utils.errors import UserError
from utils.provenance import sha256
from utils.rng import generator

PREPARED = "prepared.json"
ENDLESS = 1 << 31  # length of a source that makes its samples
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Batch:
    """Samples of one step, images 0-1.

    Parameters
    ----------
    lr : windows in the order of the clip, the middle one belongs to `hr`. up : the middle frame enlarged, not clamped.
    hr : 8-bit values. names : of the samples, for files and messages.
    """

    lr: Float[Tensor, "B F 3 h w"]
    up: Float[Tensor, "B 3 H W"]
    hr: Float[Tensor, "B 3 H W"]
    names: tuple[str, ...]

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.lr.to(device), self.up.to(device), self.hr.to(device), self.names)

    def flipped(self, which: Sequence[bool]) -> "Batch":
        """Mirrored left to right where `which` says so, all frames of a sample alike."""
        chosen = torch.tensor(which)
        lr, up, hr = (
            torch.where(chosen.view(-1, *[1] * (x.ndim - 1)), x.flip(-1), x) for x in (self.lr, self.up, self.hr)
        )
        return Batch(lr, up, hr, self.names)


@runtime_checkable
class Samples(Protocol):
    """A source of samples by number; the same number is the same sample in every run.

    Attributes
    ----------
    kernel : the operator that made the LR frames, None where nothing says which.
    """

    kernel: LRKernel | None

    def __len__(self) -> int: ...

    def batch(self, indices: Sequence[int]) -> Batch:
        """Raises UserError for a file that cannot be used."""
        ...

    def digest(self) -> dict[str, object]:
        """What decides the samples, as JSON values: a run goes on only with the same."""
        ...


def make_batch(lr: Float[Tensor, "B F 3 h w"], hr: Float[Tensor, "B 3 H W"], names: Sequence[str]) -> Batch:
    """The batch of these views, with u of the middle ones."""
    return Batch(lr, enlarged(lr[:, lr.shape[1] // 2], hr.shape[-1], hr.shape[-2]), hr, tuple(names))


def batch_indices(step: int, size: int, count: int, seed: int, shuffle: bool) -> list[int]:
    """Which of `count` samples step 1, 2, ... sees; every sample once before any twice. A function of its arguments
    alone, so that a run that goes on needs nothing kept.
    """
    first = (step - 1) * size
    if count >= ENDLESS or not shuffle:
        return [(first + i) % count for i in range(size)]
    return [_permutation(count, seed, (first + i) // count)[(first + i) % count] for i in range(size)]


@lru_cache(maxsize=2)
def _permutation(count: int, seed: int, epoch: int) -> list[int]:
    return torch.randperm(count, generator=generator(seed, "order of samples", epoch)).tolist()


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts frame_2 before frame_10."""
    parts = re.findall(r"\d+|\D+", name)
    return tuple((0, int(p), p) if p.isdigit() else (1, 0, p) for p in parts)


def window(middle: int, frames: int, stride: int) -> list[int]:
    """Positions of the F frames around `middle`, in the order of the clip."""
    return [middle + stride * (k - frames // 2) for k in range(frames)]


def image_names(folder: Path) -> list[str]:
    """PNG and JPEG files of a folder, hidden ones left out, in natural order."""
    found = (p.name for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
    return sorted(found, key=natural_key)


class FolderSamples:
    """ROOT/{lr_L,hr_R}/VIDEO_ID/*.png: one sample a folder, its middle frame.

    Parameters
    ----------
    root : folder that prepare_frames made. lr_px, hr_px : L and R. frames, stride : of the window; a folder that holds
        more frames than needed gives the ones around its middle. limit : first so many folders, -1 = all.

    Raises
    ------
    UserError : folders are missing or empty, do not match, or hold too few frames.
    """

    def __init__(self, root: str | Path, lr_px: int, hr_px: int, frames: int, stride: int = 1, limit: int = -1) -> None:
        self.root, self.sizes = Path(root), (lr_px, hr_px)
        self.settings = {"root": str(root), "lr_px": lr_px, "hr_px": hr_px, "frames": frames, "stride": stride}
        low, high = self.root / f"lr_{lr_px}", self.root / f"hr_{hr_px}"
        for folder in (low, high):
            if not folder.is_dir():
                raise UserError(f"{folder}: no such folder; scripts/prepare_frames.py --size {lr_px},{hr_px} makes it")
        clips = sorted((p.name for p in high.iterdir() if p.is_dir()), key=natural_key)
        self.clips = [_clip(low / name, high / name, frames, stride) for name in clips]
        if limit >= 0:
            self.clips = self.clips[:limit]
        if not self.clips:
            raise UserError(f"{high}: no folder of frames in it")
        paths = {str(p): p for lows, middle in self.clips for p in [*lows, middle]}
        self.images = ImageStore(paths, budget_bytes=1 << 30)
        self.kernel = _kernel(self.root, lr_px, hr_px)

    def __len__(self) -> int:
        return len(self.clips)

    def batch(self, indices: Sequence[int]) -> Batch:
        lr = torch.stack([torch.stack([self._load(p, self.sizes[0]) for p in self.clips[i][0]]) for i in indices])
        hr = torch.stack([self._load(self.clips[i][1], self.sizes[1]) for i in indices])
        return make_batch(lr, hr, [self.clips[i][1].parent.name for i in indices])

    def digest(self) -> dict[str, object]:
        made = self.root / PREPARED  # names and sizes of all sources
        return self.settings | {"clips": len(self.clips), "made": sha256(made) if made.is_file() else ""}

    def _load(self, path: Path, side: int) -> Float[Tensor, "3 side side"]:
        header = self.images.header(str(path))
        if (header.width, header.height) != (side, side):
            raise UserError(f"{path}: {header.width}x{header.height} px, {side}x{side} is expected")
        return self.images.load(str(path))


def _kernel(root: Path, lr_px: int, hr_px: int) -> LRKernel | None:
    path = root / KERNEL_FILE
    if not path.is_file():
        return None
    record = LRKernelFile.read(path)
    return LRKernel(record.kernel, record.border, (hr_px, hr_px), (lr_px, lr_px))


def _clip(low: Path, high: Path, frames: int, stride: int) -> tuple[list[Path], Path]:
    """LR frames of the window, and the HR frame of the middle."""
    names = image_names(high)
    if not low.is_dir() or image_names(low) != names:
        raise UserError(f"{low}: its frames are not those of {high}; make both with one call of prepare_frames.py")
    places = window(len(names) // 2, frames, stride)
    if places[0] < 0 or places[-1] >= len(names):
        need = stride * (frames - 1) + 1
        raise UserError(f"{high}: {len(names)} frames; {frames} at stride {stride} need {need}")
    return [low / names[i] for i in places], high / names[len(names) // 2]
