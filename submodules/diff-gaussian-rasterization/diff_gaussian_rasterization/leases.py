"""Workspaces between uses, and handles: small tensors that stand for what a forward pass left in native memory.

A handle's storage belongs to a Lease, which belongs to the workspaces, so they stay together as long as any autograd
node, graph or variable holds the handle. A handle is only a cache: a copy of it (a checkpoint, a functionalised graph)
finds nothing, and then the backward pass renders again. Its value is always 0, so it never looks like data.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor

from diff_gaussian_rasterization.checks import CPU
from diff_gaussian_rasterization.devices import Queue, Run, follow, last_queue, native_on, on, queue_of

KEPT_WORKSPACES = 4  # of the CPU, and of each stream of a GPU


class _Pool:
    """Workspaces that nobody uses: fresh memory costs several milliseconds to touch. Bounded, thread-safe."""

    def __init__(self) -> None:
        self.free: dict[Queue | None, deque[Any]] = {}
        self.memory_limit = 0  # [bytes]

    def take(self, device: torch.device, memory_limit: int | None) -> Any:
        try:
            native = self._free(queue_of(device)).pop()
        except IndexError:
            native = native_on(device)
        native.set_memory_limit(self.memory_limit if memory_limit is None else memory_limit)
        return native

    def give_back(self, native: Any) -> None:
        self._free(last_queue(native)).append(native)

    def _free(self, queue: Queue | None) -> deque[Any]:
        return self.free.setdefault(queue, deque(maxlen=KEPT_WORKSPACES))


_POOL = _Pool()


def set_memory_limit(bytes: int) -> None:
    """Bound the memory of each workspace of the autograd interface and of `fused` without a Workspace, process-wide.

    Parameters
    ----------
    bytes : 0 = no bound. On the CPU images whose tile lists would need more are drawn in bands of tile rows, with the
        same bits; on CUDA what does not fit is refused.

    Raises
    ------
    ValueError : negative.
    """
    if bytes < 0:
        raise ValueError(f"bytes: expected 0 or more, got {bytes}")
    _POOL.memory_limit = int(bytes)


def release_memory() -> None:
    """Give up the memory of workspaces that nobody uses, on the CPU and on GPUs (there PyTorch's cache gets it)."""
    _POOL.free.clear()


class Lease(np.ndarray):
    """Memory of a handle, and the workspaces, one per camera, that it stands for. Made by `lease` only."""

    natives: list[Any]
    place: torch.device  # that they are on
    serials: list[int]
    idle: list[bool]  # one entry while no thread works with the natives; an owner shares it with its leases
    drawn: tuple[Any, ...] = ()  # what a backward pass must not differ in from the forward pass
    pooled = False
    memory_limit = 0  # [bytes], of an owner's

    def __del__(self) -> None:
        if self.pooled:
            for native in self.natives:
                _POOL.give_back(native)


_LEASES: WeakValueDictionary[int, Lease] = WeakValueDictionary()  # address of the handle -> lease


def lease(
    count: int, device: torch.device = CPU, natives: list[Any] | None = None, memory_limit: int | None = None
) -> Lease:
    """`count` workspaces from the pool until the lease and its handles are gone, or the given ones of an owner.

    memory_limit : [bytes] of those from the pool; None = that of `set_memory_limit`.
    """
    new = np.ndarray.__new__(Lease, 1, np.uint8)
    new[0] = 0
    new.natives, new.place = [], device
    new.pooled = natives is None
    new.serials, new.idle = [], [True]
    if natives is None:
        for _ in range(count):
            new.natives.append(_POOL.take(device, memory_limit))
        follow(new.natives, device)
    else:
        new.natives = natives
    return new


def occupy(of: Lease) -> None:
    """Keep the lease for this thread alone until `release`.

    Raises
    ------
    RuntimeError : another thread has it.
    """
    try:
        of.idle.pop()
    except IndexError:
        raise RuntimeError("this workspace is at work in another thread; use one per thread") from None


@contextmanager
def at_work(of: Lease) -> Iterator[Run]:
    """`occupy` it on its device, and `release` it at the end; what native calls are told."""
    occupy(of)
    try:
        with on(of.place) as run:
            follow(of.natives, of.place)
            yield run
    finally:
        release(of)


def owned(owner: Tensor | None, count: int, device: torch.device) -> Lease:
    """`count` of the workspaces of an owner, which gets as many as it lacks; without one, from the pool.

    For this thread alone until `release`, on the current stream of the device.

    Raises
    ------
    RuntimeError : another thread has them. ValueError : they are of another device.
    """
    found = None if owner is None else _LEASES.get(owner.data_ptr())
    if found is None:
        new = lease(count, device)
        occupy(new)
        return new
    if found.place != device:
        raise ValueError(
            f"workspace: is on {found.place}, the tensors are on {device}; make it with Workspace(device='{device}')"
        )
    occupy(found)
    try:
        while len(found.natives) < count:
            native = native_on(device)
            native.set_memory_limit(found.memory_limit)
            found.natives.append(native)
        follow(found.natives[:count], device)
    except BaseException:
        release(found)
        raise
    new = lease(count, device, found.natives[:count])
    new.idle = found.idle
    return new


def handle(of: Lease, drawn: tuple[Any, ...] = ()) -> Tensor:
    """uint8 [1]: the lease as a tensor, for the forward passes that its workspaces carried out last, of `drawn`."""
    of.serials, of.drawn = [native.serial for native in of.natives], drawn
    tensor = torch.from_numpy(of)
    _LEASES[tensor.data_ptr()] = of
    return tensor


def empty_handle() -> Tensor:
    """What an operator's fake kernel returns for a handle."""
    return torch.empty(1, dtype=torch.uint8, device="cpu")


def claim(state: Tensor, drawn: tuple[Any, ...]) -> Lease | None:
    """The lease of a handle for this thread alone until `release`; None if there is none or it drew something else."""
    found = _LEASES.get(state.data_ptr())
    if found is None:
        return None
    try:
        found.idle.pop()
    except IndexError:  # another thread is in the same backward pass
        return None
    if found.drawn != drawn or found.serials != [native.serial for native in found.natives]:
        release(found)
        return None
    try:
        follow(found.natives, found.place)
    except BaseException:
        release(found)
        raise
    return found


def release(of: Lease) -> None:
    """Give a claimed lease back."""
    of.idle.append(True)
