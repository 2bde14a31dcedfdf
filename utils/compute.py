"""Where work is done: the device and the number of threads, set once by each script."""

import torch

from utils.errors import UserError


def choose_device(name: str) -> torch.device:
    """The device that `--device` names; "auto" is the first NVIDIA GPU, or the CPU where there is none.

    Raises
    ------
    UserError : a GPU is asked for and none is there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name != "cpu" and not torch.cuda.is_available():
        raise UserError(f"--device {name}: torch sees no NVIDIA GPU here; use --device cpu")
    return torch.device(name)


def set_threads(threads: int) -> None:
    """Use `threads` CPU threads in torch and in the native kernels, which follow it; 0 leaves torch's choice."""
    if threads:
        torch.set_num_threads(threads)
