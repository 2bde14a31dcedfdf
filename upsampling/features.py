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
                self._file = TemporaryFile(dir=folder)  # noqa: SIM115 (lives as long as this object)
            except OSError as error:
                raise UserError(
                    f"{folder}: features cannot wait there ({error.strerror}); raise --max_memory"
                ) from error

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
        data = rows.contiguous().cpu().view(-1).view(torch.uint8).numpy()
        try:
            self._file.seek(frame * data.nbytes)
            self._file.write(data)
            self._file.flush()
        except OSError as error:
            raise UserError(
                f"features of {data.nbytes >> 20} MB a frame cannot be written ({error.strerror})"
            ) from error
        return rows.shape, last, feature.dtype, feature.device

    def _read(self, frame: int, shape: torch.Size, last: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
        rows = torch.empty(shape, dtype=dtype)
        data = rows.view(-1).view(torch.uint8).numpy()
        self._file.seek(frame * data.nbytes)
        self._file.readinto(data)
        feature = rows.to(device)
        return feature.permute(0, 3, 1, 2) if last else feature
