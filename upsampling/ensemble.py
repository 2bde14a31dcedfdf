"""Several estimates of the same views: the network over flipped clips, their mean, and how far they differ.

Letters: x_k the estimate number k of a frame, k = 1..n; mean = sum x_k / n; m2 = sum (x_k - mean)^2, summed over the
channels as well. Both are streamed (Welford 1962): an estimate is folded in and forgotten. What waits between two
passes over the frames lies in a file, so that memory does not grow with the number of frames.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from upsampling.geometry import Flow
from utils.errors import UserError

FULL_DEVIATION = 0.1  # standard deviation, in units of the image's range, from which confidence is 0


@dataclass(frozen=True)
class Flip:
    """A mirror image of a clip: left and right exchanged, or up and down, or first and last frame, several or none.

    backwards : the frames in reversed order. What one branch of a network did the other does then, so that the
        estimate is another one, though the frames look as before.
    """

    horizontal: bool = False
    vertical: bool = False
    backwards: bool = False

    def __call__(self, image: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
        """The mirrored image; twice gives it back. The order of frames stays."""
        axes = self._axes()
        return image.flip(axes) if axes else image

    def clip(self, frames: Float[Tensor, "t c h w"]) -> Float[Tensor, "t c h w"]:
        """The mirrored clip, its frames in the flip's order."""
        axes = [0] * self.backwards + self._axes()
        return frames.flip(axes) if axes else frames

    def position(self, i: int, t: int) -> int:
        """Where frame i of a clip of t frames lies in the mirrored one; twice gives i back."""
        return t - 1 - i if self.backwards else i

    def flow(self, flow: Flow) -> Flow:
        """The flow between mirrored images: its field is mirrored, and so is its direction."""
        signs = flow.px.new_tensor([-1.0 if self.horizontal else 1.0, -1.0 if self.vertical else 1.0])
        return Flow(self(flow.px) * signs[:, None, None], None if flow.visible is None else self(flow.visible))

    def _axes(self) -> list[int]:
        return [-1] * self.horizontal + [-2] * self.vertical


FLIPS = (Flip(), Flip(horizontal=True), Flip(vertical=True), Flip(True, True))
Frames = Iterator[tuple[int, Float[Tensor, "c H W"]]]


def flips(count: int) -> tuple[Flip, ...]:
    """Of 1 estimate none, of 2 both orders of the frames, of 4 the mirror images, of 8 these in both orders.

    The given order comes last, so that frames are finished in it.
    """
    mirrored = FLIPS if count >= 4 else FLIPS[:1]
    backwards = tuple(replace(flip, backwards=True) for flip in mirrored) if count in (2, 8) else ()
    return backwards + mirrored


def mean_over_flips(
    estimate: Callable[[Flip], Frames], count: int, folder: Path
) -> Iterator[tuple[int, Float[Tensor, "c H W"], Float[Tensor, "H W"] | None]]:
    """The mean of `count` estimates of each frame.

    Parameters
    ----------
    estimate : (position, frame) of all frames, in any order: made from the mirrored clip with mirrored flows, and
        mirrored themselves; positions are those of the clip as it is. On the CPU.
    count : 1 (frames pass through), 2, 4 or 8; see `flips`.
    folder : what waits between two passes is kept there, [c + 1, H, W] float32 a frame, in a file without a name: it
        is gone afterwards, also after a kill.

    Returns
    -------
    Iterator of (position, mean, standard deviation over the estimates, root mean square over channels; None of one
    estimate). Frames come during the last pass, in its order.

    Raises
    ------
    UserError : the folder cannot be written.
    """
    if count == 1:
        yield from ((position, frame, None) for position, frame in estimate(FLIPS[0]))
        return
    slots: dict[int, int] = {}  # of positions, in the file
    with _Waiting(folder) as waiting:
        for k, flip in enumerate(flips(count), 1):
            for position, mirrored in estimate(flip):
                frame, slot = flip(mirrored), slots.setdefault(position, len(slots))
                if k == 1:
                    state = torch.cat([frame, torch.zeros_like(frame[:1])])
                else:
                    state = folded(waiting.read(slot, (len(frame) + 1, *frame.shape[-2:])), frame, k)
                if k < count:
                    waiting.write(slot, state)
                else:
                    yield position, state[:-1], (state[-1] / (len(frame) * count)).sqrt()


def folded(state: Float[Tensor, "n H W"], frame: Float[Tensor, "c H W"], k: int) -> Float[Tensor, "n H W"]:
    """Mean and m2, n = c + 1 planes, of k estimates: from those of k - 1 and the k-th."""
    before = frame - state[:-1]
    mean = state[:-1] + before / k
    m2 = state[-1] + (before * (frame - mean)).sum(0)
    return torch.cat([mean, m2[None]])


def confidence(deviation: Float[Tensor, "H W"]) -> UInt8[np.ndarray, "H W"]:
    """8-bit confidence: 255 where all estimates agree, falling linearly to 0 at a standard deviation of 0.1."""
    level = 1 - deviation.double() / FULL_DEVIATION
    return (level.clamp(0, 1) * 255).round().to(torch.uint8).numpy()


class _Waiting:
    """Arrays of one size in a file without a name."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file: IO[bytes]

    def __enter__(self) -> "_Waiting":
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self.file = TemporaryFile(dir=self.folder)
        except OSError as error:
            raise self._failed(error) from error
        return self

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # what could not be written is not needed any more
            self.file.close()

    def write(self, slot: int, state: Float[Tensor, "n H W"]) -> None:
        try:
            self.file.seek(slot * state.nbytes)
            self.file.write(state.contiguous().numpy().tobytes())
            self.file.flush()
        except OSError as error:
            raise self._failed(error) from error

    def read(self, slot: int, shape: tuple[int, ...]) -> Float[Tensor, "n H W"]:
        state = torch.empty(shape)
        self.file.seek(slot * state.nbytes)
        self.file.readinto(state.numpy())  # type: ignore[attr-defined]
        return state

    def _failed(self, error: OSError) -> UserError:
        return UserError(f"cannot write into {self.folder}: {error.strerror}; --ensemble keeps its sums there")
