"""What a GPU needs beside the networks: how cuDNN picks kernels, a bound on memory, results that travel while it works.

On a processor all of this does nothing.
"""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

CPU_BYTES = 4 << 30
FREE_PART = 0.9  # of a GPU's free memory; the rest is for CUDA's own modules, and for other programs


def memory_bound(max_memory_gb: float, device: torch.device) -> int:
    """Bytes that --max_memory allows; 0 = 4 GB on a processor, nine tenths of what is free now on a GPU."""
    if max_memory_gb:
        return int(max_memory_gb * 2**30)
    if device.type != "cuda":
        return CPU_BYTES
    return int(FREE_PART * torch.cuda.mem_get_info(device)[0])


@contextmanager
def session(device: torch.device, max_bytes: int) -> Iterator[dict[str, Any]]:
    """Let cuDNN time its kernels and keep the fastest, and hold torch to `max_bytes` of the GPU, while it lasts.

    Returns
    -------
    What was chosen, for the record; nothing on a processor. Deterministic algorithms are taken where torch is told to
    (`torch.use_deterministic_algorithms`); then nothing is timed, since the fastest kernel may differ from run to run.
    """
    if device.type != "cuda":
        yield {}
        return
    deterministic = torch.are_deterministic_algorithms_enabled()
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.empty_cache()
    torch.cuda.set_per_process_memory_fraction(min(max_bytes / total, 1.0), device)
    flags = {"benchmark": not deterministic, "deterministic": deterministic}
    try:
        with torch.backends.cudnn.flags(enabled=True, allow_tf32=False, **flags), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Plan failed with")  # a kernel for which there is no room: not taken
            yield {
                "cudnn": torch.backends.cudnn.version(),
                "autotuned": not deterministic,
                "deterministic": deterministic,
                "max_memory_gb": round(max_bytes / 2**30, 2),
            }
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)


def to_host(
    frames: Iterator[tuple[int, Float[Tensor, "*shape"]]],
) -> Iterator[tuple[int, Float[Tensor, "*shape"]]]:
    """(position, frame) on the CPU, in order; while the host works on one frame, a GPU is at the next.

    A frame is handed out only after the next one's work was queued, and copied into pinned memory in between.
    """
    waiting: tuple[int, Tensor, Any] | None = None
    for position, frame in frames:
        if not frame.is_cuda:
            yield position, frame
            continue
        stream = torch.cuda.current_stream(frame.device)
        copy = torch.empty(frame.shape, dtype=frame.dtype, pin_memory=True)
        copy.copy_(frame, non_blocking=True)
        del frame  # its memory may serve the next one: both happen on the same stream
        done = torch.cuda.Event()
        done.record(stream)
        if waiting:
            yield _arrived(*waiting)
        waiting = position, copy, done
    if waiting:
        yield _arrived(*waiting)


def _arrived(position: int, copy: Tensor, done: Any) -> tuple[int, Tensor]:
    done.synchronize()
    return position, copy
