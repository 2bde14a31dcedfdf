"""Features of many frames between the passes of a network: in memory, or in a file where memory is too small."""

from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError


class Features:
    """Tensors [1, c, h, w] of one shape and type by frame; what comes out has the bits and the layout of what went in.

    Parameters
    ----------
    folder : None = they stay in memory, on their device; else they wait in a file there. It has no name, so nothing of
        it is left however the process ends.

    Raises
    ------
    UserError : the folder is not writable; on storing, the disk is full.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._kept: dict[int, Any] = {}  # the tensor, or how to make it from its bytes in the file
        self._file: Any = None
        if folder is not None:
            try:
                folder.mkdir(parents=True, exist_ok=True)
                self._file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115 (closed by __exit__)
            except OSError as error:
                reason = f"{folder}: features cannot wait there ({error.strerror}); raise --max_memory"
                raise UserError(reason) from error

    def __enter__(self) -> "Features":
        return self

    def __exit__(self, *_: object) -> None:
        self._kept.clear()
        if self._file is not None:
            self._file.close()

    def __setitem__(self, frame: int, feature: Tensor) -> None:
        self._kept[frame] = feature if self._file is None else self._written(frame, feature)

    def __getitem__(self, frame: int) -> Tensor:
        return self._kept[frame] if self._file is None else self._read(frame, *self._kept[frame])

    def __delitem__(self, frame: int) -> None:
        del self._kept[frame]

    def pop(self, frame: int) -> Tensor:
        """The feature of a frame, which is not needed again."""
        feature = self[frame]
        del self[frame]
        return feature

    def _written(self, frame: int, feature: Tensor) -> tuple[torch.Size, bool, torch.dtype, torch.device]:
        last = not feature.is_contiguous()  # then channels lie innermost
        rows = feature.permute(0, 2, 3, 1) if last else feature
        data = _bytes(rows.contiguous().cpu())
        try:
            self._file.seek(frame * data.nbytes)
            rest = data
            while rest:  # a single call writes 2 GB at most
                rest = rest[self._file.write(rest) :]
        except OSError as error:
            reason = f"features cannot be written to the output folder ({error.strerror}); raise --max_memory"
            raise UserError(reason) from error
        return rows.shape, last, feature.dtype, feature.device

    def _read(self, frame: int, shape: torch.Size, last: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
        rows = torch.empty(shape, dtype=dtype)
        data = _bytes(rows)
        self._file.seek(frame * data.nbytes)
        rest = data
        while rest:
            rest = rest[self._file.readinto(rest) :]
        feature = rows.to(device)
        return feature.permute(0, 3, 1, 2) if last else feature


def _bytes(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor on the CPU."""
    array: Any = tensor.view(-1).view(torch.uint8).numpy()
    return memoryview(array)
