"""Memory for rows that come and go: reserved ahead, and used again by the next change.

Fresh memory is dear: the system hands it out page by page and clears each one (22 ms for 64 MB; 6 ms to write memory
that is in use). A change of the rows cannot be made in place, as rows may move either way; so each width of row has one
spare buffer, into which the new rows go, and the buffer that they leave is the next spare.
"""

import math

import torch
from torch import Tensor

# Room in a new buffer over the rows that it is made for. What is not used takes no memory on the CPU; on a GPU it does.
GROWTH = 1.5
Kind = tuple[int, torch.dtype, torch.device]  # floats a row, and what a tensor needs to lie in a buffer


class Reserve:
    """Buffers behind the tensors that `select` gave, and one spare buffer for each kind of row."""

    def __init__(self) -> None:
        self.spare: dict[Kind, Tensor] = {}
        self.used: dict[int, Tensor] = {}  # by address; memory of others is never written to

    def select(self, values: Tensor, source: Tensor) -> Tensor:
        """Return values[source] [M, ...], contiguous; `values` [N, ...] is given up and must not be used any more.

        Parameters
        ----------
        source : int64 [M], entries in 0..N-1.
        """
        rows, shape = len(source), values.shape[1:]
        width = math.prod(shape)
        kind = (width, values.dtype, values.device)
        buffer = self.spare.pop(kind, None)
        if buffer is None or buffer.numel() < rows * width:
            buffer = values.new_empty(math.ceil(GROWTH * rows) * width)
        chosen = buffer[: rows * width].view(rows, *shape)
        torch.index_select(values, 0, source, out=chosen)
        left = self.used.pop(_address(values), None)
        if left is not None:
            self.spare[kind] = left
        if buffer.numel():
            self.used[_address(buffer)] = buffer
        return chosen


def _address(values: Tensor) -> int:
    return values.untyped_storage().data_ptr()
