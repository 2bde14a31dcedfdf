"""The interface that 3DGS code knows: `from simple_knn._C import distCUDA2`."""

import torch
from torch import Tensor

from simple_knn import _native

MAX_POINTS = 2**32 - 1


def distCUDA2(points: Tensor) -> Tensor:
    """Mean squared distance of every point to its three nearest neighbours, exact.

    Parameters
    ----------
    points : [N, 3] float32, finite, any unit. A tensor on a GPU is computed on the CPU and the result goes back.

    Returns
    -------
    [N] float32, unit squared, on the device of `points`. Other points at the same place are neighbours at distance 0.
    With N < 4 it is the mean over the N - 1 others, and 0 for a single point. Squared distances beyond float32 are inf.

    Raises
    ------
    TypeError : not a float32 tensor. ValueError : another shape, too many points, or a coordinate that is not finite.

    Notes
    -----
    kd-tree; O(N log N) time; as many threads as `torch.get_num_threads()`, the same bits for any number of them.
    """
    if not isinstance(points, Tensor) or points.dtype != torch.float32:
        raise TypeError(f"distCUDA2: points must be a float32 tensor, not {getattr(points, 'dtype', type(points))}")
    if points.ndim != 2 or points.shape[1] != 3 or len(points) > MAX_POINTS:
        raise ValueError(f"distCUDA2: points must be [N, 3] with N <= {MAX_POINTS}, not {list(points.shape)}")
    rows = points.detach().cpu().contiguous()
    bad = _native.first_not_finite(rows.data_ptr(), len(rows))
    if bad >= 0:
        raise ValueError(f"distCUDA2: point {bad} is not finite: {rows[bad].tolist()}; remove such points first")
    out = torch.empty(len(rows), dtype=torch.float32)
    _native.mean_squared_distance_3(rows.data_ptr(), len(rows), out.data_ptr(), torch.get_num_threads())
    return out.to(points.device)
