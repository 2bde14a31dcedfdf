"""Where a call runs: native workspaces of either kind, and what each native call is told about the device.

On the CPU a call is told its number of threads; on CUDA the stream that is current when it is made, and whether its
sums must have the same bits in every run (torch.use_deterministic_algorithms). Everything is queued on that stream.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diff_gaussian_rasterization import _native

Run = int | list[int]  # the last argument of native calls
Queue = tuple[int, int]  # index and stream of a GPU
CAPTURE = "a CUDA graph is being captured: give a fused.Workspace of that device, after its fix_capacity()"


def has_cuda_kernels() -> bool:
    """Whether this build has kernels for CUDA; `cuda_build` says for which GPUs, or why it has none."""
    return hasattr(_native, "CudaRasterization")


def device_from(name: str | torch.device) -> torch.device:
    """The device of this name, with its index.

    Raises
    ------
    ValueError : neither a CPU nor CUDA. RuntimeError : CUDA, and this build or this machine cannot.
    """
    device = torch.device(name)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"device: expected cpu or cuda, got {device}")
    if device.type == "cpu":
        return torch.device("cpu")
    _check_kernels(device)
    if not torch.cuda.is_available():
        raise RuntimeError(f"device: {device} was asked for, but PyTorch {torch.__version__} finds no CUDA device here")
    return device if device.index is not None else torch.device("cuda", torch.cuda.current_device())


def _check_kernels(device: torch.device) -> None:
    if not has_cuda_kernels():
        raise RuntimeError(
            f"this build of diff_gaussian_rasterization has no CUDA kernels ({_native.cuda_build}), which tensors on "
            f"{device} need: move them to the CPU, or install a build that has them"
        )


class DeviceMemory:
    """Memory of one workspace on a GPU, from PyTorch's caching allocator. The kernels know it by address.

    Parameters
    ----------
    device : cuda:N.

    Attributes
    ----------
    pinned : uint8, main memory into which the kernels' sizes are copied. stream : on which the workspace worked last;
        at first the current one.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        count = _native.CudaRasterization.PINNED_BYTES
        self.pinned = torch.empty(count, dtype=torch.uint8, device="cpu", pin_memory=True)
        self.stream = torch.cuda.current_stream(device)
        self._tensors: dict[int, Tensor] = {}
        self._captured = False  # a graph knows addresses from here
        self._outgrown: list[Tensor] = []  # which it may go on using

    def allocate(self, count: int) -> int:
        """Address of `count` bytes, on the current stream of the device.

        Raises
        ------
        MemoryError : the GPU has no room. RuntimeError : the stream is being captured into a graph.
        """
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                "a CUDA graph is being captured, and the workspace would have to grow for it: "
                "do the same once between Workspace.fix_capacity and the capture"
            )
        try:
            tensor = torch.empty(count, dtype=torch.uint8, device=self.device)
        except torch.OutOfMemoryError:
            held = sum(t.numel() for t in self._tensors.values())
            raise MemoryError(
                f"{self.device} has no room for {count} more bytes of a workspace that holds {held}; "
                "use fewer Gaussians or a smaller image, or free memory there"
            ) from None
        self._tensors[tensor.data_ptr()] = tensor
        return tensor.data_ptr()

    def release(self, address: int) -> None:
        """Give it back to PyTorch; where a graph may know it, together with the workspace."""
        tensor = self._tensors.pop(address)
        if self._captured:
            self._outgrown.append(tensor)

    def follow(self, stream: torch.cuda.Stream) -> None:
        """The workspace works on `stream` from now on: after what it did on another one.

        A stream that is being captured does not wait: a graph begins when everything before it is done.
        """
        last, self.stream = self.stream, stream
        capturing = torch.cuda.is_current_stream_capturing()
        self._captured = self._captured or capturing
        if last == stream or capturing:
            return
        stream.wait_stream(last)
        for tensor in self._tensors.values():
            tensor.record_stream(stream)


def native_on(device: torch.device) -> Any:
    """A new native workspace; within `on(device)`.

    Raises
    ------
    RuntimeError : on CUDA, for which this build has no kernels, or whose stream is being captured into a graph.
    """
    if device.type == "cpu":
        return _native.Rasterization()
    _check_kernels(device)
    if torch.cuda.is_current_stream_capturing():
        raise RuntimeError(CAPTURE)
    memory = DeviceMemory(device)
    return _native.CudaRasterization(device.index, memory, memory.pinned.data_ptr())


@contextmanager
def on(device: torch.device) -> Iterator[Run]:
    """Make it the current device, and return what native calls are told."""
    if device.type == "cpu":
        yield torch.get_num_threads()
        return
    _check_kernels(device)
    with torch.cuda.device(device):
        stream = torch.cuda.current_stream(device).cuda_stream
        yield [stream, int(torch.are_deterministic_algorithms_enabled())]


def follow(natives: Iterable[Any], device: torch.device) -> None:
    """These workspaces are used on the current stream next; within `on(device)`.

    Raises
    ------
    RuntimeError : that stream is being captured into a graph, and a workspace's capacity is not fixed.
    """
    if device.type == "cpu":
        return
    stream = torch.cuda.current_stream(device)
    for native in natives:
        if not native.fixed_capacity and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(CAPTURE)
        native.memory.follow(stream)


def queue_of(device: torch.device) -> Queue | None:
    """The current stream of a GPU; None for the CPU."""
    return None if device.type == "cpu" else (device.index, torch.cuda.current_stream(device).cuda_stream)


def last_queue(native: Any) -> Queue | None:
    """The stream on which a workspace worked last; None for the CPU."""
    memory = getattr(native, "memory", None)
    return None if memory is None else (memory.device.index, memory.stream.cuda_stream)
