"""Input checks shared by the interfaces: the native code trusts what passes here."""

import torch
from torch import Tensor


def check_tensor(name: str, value: Tensor, shape: tuple[int | None, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Return `value` if it is a contiguous CPU tensor of this dtype and shape (None = any size), else raise.

    Raises
    ------
    TypeError : not a tensor, or another dtype.
    ValueError : another shape, not on the CPU, or not contiguous.
    """
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype}, got {value.dtype}; convert with .to({dtype})")
    if value.device.type != "cpu":
        raise ValueError(f"{name}: expected a CPU tensor, got {value.device}; this build has no kernels for it")
    if value.ndim != len(shape) or any(
        want is not None and want != got for want, got in zip(shape, value.shape, strict=True)
    ):
        wanted = ", ".join("any" if n is None else str(n) for n in shape)
        raise ValueError(f"{name}: expected shape [{wanted}], got {list(value.shape)}")
    if not value.is_contiguous():
        raise ValueError(f"{name}: must be contiguous; call .contiguous()")
    return value


def check_range(name: str, value: float, low: float, high: float) -> float:
    """Return `value` if low <= value <= high (so NaN fails), else raise ValueError."""
    if not low <= value <= high:
        raise ValueError(f"{name}: expected {low} <= {name} <= {high}, got {value}")
    return value


def address(value: Tensor | None) -> int:
    """Address of a tensor's first element; 0 for None and for empty tensors."""
    return 0 if value is None or value.numel() == 0 else value.data_ptr()
