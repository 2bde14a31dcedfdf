"""One seed for everything, and every generator's state as tensors and JSON, so that a run continues exactly."""

import hashlib
import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Seed Python, NumPy's legacy generator and torch. Only top-level scripts call it; the rest is given generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (third-party code may draw from it)
    torch.manual_seed(seed)


def _derived(seed: int, names: tuple[object, ...]) -> int:
    text = ":".join([str(seed), *map(str, names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator(seed: int, *names: object) -> torch.Generator:
    """A torch generator on the CPU of its own for each purpose: `names` keep the streams apart."""
    return torch.Generator().manual_seed(_derived(seed, names))


def numpy_generator(seed: int, *names: object) -> np.random.Generator:
    """As `generator`, for NumPy."""
    return np.random.default_rng(_derived(seed, names))


def capture() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """States of the global generators of Python and torch (and of the GPUs where this process works on one).

    Returns
    -------
    tensors : uint8 tensors by name. info : a JSON value.
    """
    tensors = {"torch": torch.get_rng_state()}
    if torch.cuda.is_initialized():  # asking for a state would claim memory of every GPU
        tensors |= {f"cuda{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    version, internal, gauss = random.getstate()
    return tensors, {"python": [version, list(internal), gauss]}


def restore(tensors: dict[str, torch.Tensor], info: dict[str, Any]) -> None:
    """Continue from what `capture` returned; states of GPUs that this process does not work on are left aside."""
    torch.set_rng_state(tensors["torch"])
    for i in range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0):
        if f"cuda{i}" in tensors:
            torch.cuda.set_rng_state(tensors[f"cuda{i}"], i)
    version, internal, gauss = info["python"]
    random.setstate((version, tuple(internal), gauss))
