"""Matrices of all pairs of views, as functions of the user's own return them."""

from typing import Any

import numpy as np
from jaxtyping import Float

from utils.errors import UserError


def square(what: str, values: Any, n: int) -> Float[np.ndarray, "N N"]:
    """`values` as an [n, n] float64 matrix without NaN.

    Parameters
    ----------
    what : who returned them, for the message: a flag and its value.

    Raises
    ------
    UserError : not numbers, another shape, or NaN in it.
    """
    try:
        matrix = np.asarray(values, dtype=float)
    except (TypeError, ValueError):
        raise UserError(f"{what}: returned {type(values).__name__}; {n} x {n} numbers are expected") from None
    if matrix.shape != (n, n):
        raise UserError(f"{what}: returned shape {list(matrix.shape)} for {n} views; [{n}, {n}] is expected")
    if np.isnan(matrix).any():
        raise UserError(f"{what}: returned NaN; write +inf where two views cannot be compared")
    return matrix
