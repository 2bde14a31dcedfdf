"""Nested dicts of numpy arrays out of a pickle, through an unpickler that can build nothing else."""

import io
import pickle
from typing import Any

import numpy as np

from utils.errors import UserError

# An array's own __reduce__ names the function that rebuilds it; its private module moved between NumPy 1 and 2.
_RECONSTRUCT = np.empty(0).__reduce__()[0]
_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
}
_BROKEN = (pickle.UnpicklingError, EOFError, ValueError, TypeError, KeyError, IndexError, AttributeError, MemoryError)


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"{module}.{name} is not an array")
        return _ALLOWED[module, name]


def load_pickle_arrays(data: bytes, where: str) -> dict[str, np.ndarray]:
    """Read a pickled nested dict of float32 arrays.

    Parameters
    ----------
    data : bytes of the pickle, checksum already compared.
    where : its name, for messages.

    Returns
    -------
    {"outer/inner/...": array}, every array float32, C-contiguous and finite.

    Raises
    ------
    UserError : not a pickle, anything but dicts with string keys and such arrays, or arrays larger than the file.
    """
    try:
        tree = _ArrayUnpickler(io.BytesIO(data)).load()
    except (*_BROKEN, OverflowError, UnicodeDecodeError) as error:
        raise UserError(f"{where}: refused, not a plain pickle of arrays ({error})") from error
    flat: dict[str, np.ndarray] = {}
    _flatten(tree, "", flat, where)
    if sum(a.nbytes for a in flat.values()) > len(data):
        raise UserError(f"{where}: refused, its arrays are larger than the file")
    return {name: np.ascontiguousarray(a) for name, a in flat.items()}


def _flatten(tree: Any, prefix: str, flat: dict[str, np.ndarray], where: str, depth: int = 0) -> None:
    if depth > 8 or not isinstance(tree, dict) or not all(isinstance(k, str) for k in tree):
        raise UserError(f"{where}: refused, expected nested dicts of arrays at {prefix or 'the top'}")
    for key, value in tree.items():
        name = f"{prefix}/{key}" if prefix else key
        if isinstance(value, np.ndarray):
            if value.dtype != np.float32 or not np.isfinite(value).all():
                raise UserError(f"{where}: refused, {name} is not finite float32")
            flat[name] = value
        else:
            _flatten(value, name, flat, where, depth + 1)
