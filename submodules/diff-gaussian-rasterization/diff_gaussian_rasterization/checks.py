"""Input checks shared by the interfaces: the native code trusts what passes here."""

import torch
from torch import Tensor

SH_COUNTS = (1, 4, 9, 16)
FLOAT_MAX = torch.finfo(torch.float32).max
CPU = torch.device("cpu")


def device_of(name: str, value: Tensor) -> torch.device:
    """Device of the tensor that decides where a call runs.

    Raises
    ------
    TypeError : not a tensor. ValueError : neither on the CPU nor on a CUDA device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.device.type not in ("cpu", "cuda"):
        raise ValueError(f"{name}: there are kernels for cpu and cuda, not for {value.device}; move it with .to('cpu')")
    return value.device


def check_tensor(
    name: str,
    value: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Tensor:
    """Return `value` if it is a tensor of this dtype and shape on this device, else raise.

    Raises
    ------
    TypeError : not a tensor, or another dtype.
    ValueError : another shape, or another device.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}; convert with .to({dtype})")
    if value.shape != shape:
        raise ValueError(f"{name}: expected shape {list(shape)}, got {list(value.shape)}")
    if value.device != device:
        raise ValueError(
            f"{name}: expected on {device}, where this call runs, got on {value.device}; move it with .to('{device}')"
        )
    return value


def check_written(
    name: str,
    value: Tensor,
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> Tensor:
    """The same for a tensor that is changed in place or kept by address: it must be contiguous too."""
    check_tensor(name, value, shape, dtype, device)
    if not value.is_contiguous():
        raise ValueError(f"{name}: must be contiguous; call .contiguous()")
    return value


def size_of(name: str, value: Tensor, axis: int) -> int:
    """Size of one axis whose length is free; 0 where there is none, for `check_tensor` to name what is wrong."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    return value.shape[axis] if value.ndim > axis else 0


def check_range(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if low <= value <= high (so NaN fails), else raise ValueError."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {value}")
    return value


def check_finite(name: str, value: float) -> float:
    """Return `value` if float32 holds it, else raise ValueError."""
    return check_range(name, value, -FLOAT_MAX, FLOAT_MAX)


def address(value: Tensor | None) -> int:
    """Address of a tensor's first element; 0 for None and for empty tensors."""
    return 0 if value is None or value.numel() == 0 else value.data_ptr()


def addresses(value: Tensor | None, count: int) -> list[int]:
    """Addresses of the `count` slices along the first axis; zeros for None and for empty tensors."""
    first = address(value)
    if not first or value is None:
        return [0] * count
    step = value.numel() // count * value.element_size()
    return [first + k * step for k in range(count)]
