"""Where work is done, with how many threads, and whether in a fixed order: set once by each script."""

import os
import re
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

DRIVER = Path("/proc/driver/nvidia/version")


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; "auto" is the first NVIDIA GPU, or the CPU where there is none.

    Returns
    -------
    "cpu", or "cuda" with its number.

    Raises
    ------
    UserError : a GPU is asked for that is not there.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "cpu" or (name == "auto" and not count):
        return torch.device("cpu")
    if not count:
        raise UserError(f"--device {name}: torch sees no NVIDIA GPU here; use --device cpu")
    number = int(name.partition(":")[2] or 0)
    if number >= count:
        raise UserError(f"--device {name}: torch sees {count} here, numbered from 0")
    return torch.device("cuda", number)


def use_device(device: torch.device) -> None:
    """Make a GPU the current one. Its convolutions keep all bits of float32 from now on: SSIM subtracts large sums."""
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cudnn.allow_tf32 = False


def use_fixed_order() -> None:
    """Let torch, its libraries and the native kernels add in a fixed order on a GPU: same bits in each run there.

    Notes
    -----
    To be called before the first work on the GPU: cuBLAS reads its variable once. Operators of torch that have no such
    order raise a RuntimeError from now on.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def set_threads(threads: int) -> None:
    """Use `threads` CPU threads in torch and in the native kernels, which follow it; 0 leaves torch's choice."""
    if threads:
        torch.set_num_threads(threads)


def device_facts(device: torch.device) -> dict[str, Any]:
    """What a record says of a device: its name in torch; of a GPU also model, memory, CUDA version and driver."""
    facts: dict[str, Any] = {"device": str(device)}
    if device.type != "cuda":
        return facts
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "gpu": properties.name,
        "gpu_bytes": properties.total_memory,
        "gpu_peak_bytes": torch.cuda.max_memory_allocated(device),
        "cuda": torch.version.cuda,
        "driver": driver_version(DRIVER),
    }


def driver_version(path: Path) -> str | None:
    """Version of NVIDIA's driver out of the kernel module's own words; None where there is none."""
    try:
        first = path.read_text(errors="replace").partition("\n")[0]
    except OSError:
        return None
    found = re.search(r"\b\d+\.\d+(\.\d+)?\b", first)
    return found[0] if found else None
