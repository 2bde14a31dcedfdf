"""Numbers of a step, read without stopping the device that computes them."""

import torch
from torch import Tensor


class Reading:
    """Numbers on their way to main memory; asking for them waits only for what is not done yet.

    On the GPU their copy is queued behind the work that makes them. The next step reads a size that comes later in the
    same queue, so after it they are there, and nothing has waited for them.

    Parameters
    ----------
    numbers : [n], never written again.
    """

    def __init__(self, numbers: Tensor) -> None:
        self._copied: torch.cuda.Event | None = None
        self._numbers = numbers
        if numbers.is_cuda:
            self._numbers = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
            self._numbers.copy_(numbers, non_blocking=True)
            self._copied = torch.cuda.Event()
            self._copied.record(torch.cuda.current_stream(numbers.device))

    def values(self) -> list[float]:
        """Return them."""
        if self._copied is not None:
            self._copied.synchronize()
        found: list[float] = self._numbers.tolist()
        return found
