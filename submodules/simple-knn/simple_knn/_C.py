"""The interface that 3DGS code knows: `from simple_knn._C import distCUDA2`."""

import torch
from torch import Tensor

from simple_knn import _native

MAX_POINTS = 2**32 - 1


def distCUDA2(points: Tensor) -> Tensor:
    """Mean squared distance of every point to its three nearest neighbours, exact.

    Parameters
    ----------
    points : [N, 3] float32, finite, any unit. On a CUDA device it is computed there, where this build has the kernels;
        otherwise on the CPU, and the result goes back.

    Returns
    -------
    [N] float32, unit squared, on the device of `points`. Other points at the same place are neighbours at distance 0.
    With N < 4 it is the mean over the N - 1 others, and 0 for a single point. Squared distances beyond float32 are inf.

    Raises
    ------
    TypeError : not a float32 tensor. ValueError : another shape, too many points, or a coordinate that is not finite.

    Notes
    -----
    O(N log N) time; the same bits on both devices. CPU: kd-tree, as many threads as `torch.get_num_threads()`. CUDA: a
    tree of boxes over points in Morton order, on the current stream; the host waits once, for the check of the input.
    """
    if not isinstance(points, Tensor) or points.dtype != torch.float32:
        raise TypeError(f"distCUDA2: points must be a float32 tensor, not {getattr(points, 'dtype', type(points))}")
    if points.ndim != 2 or points.shape[1] != 3 or len(points) > MAX_POINTS:
        raise ValueError(f"distCUDA2: points must be [N, 3] with N <= {MAX_POINTS}, not {list(points.shape)}")
    rows = points.detach().contiguous()
    if rows.is_cuda and not _native.cuda_build.startswith("no: "):
        return _on_cuda(rows)
    return _on_cpu(rows.cpu()).to(points.device)


def _on_cpu(rows: Tensor) -> Tensor:
    _refuse_if(_native.first_not_finite(rows.data_ptr(), len(rows)), rows)
    out = torch.empty(len(rows), dtype=torch.float32, device="cpu")
    _native.mean_squared_distance_3(rows.data_ptr(), len(rows), out.data_ptr(), torch.get_num_threads())
    return out


def _on_cuda(rows: Tensor) -> Tensor:
    """The kernels work on PyTorch's current stream, in memory that its allocator gives."""
    index = rows.device.index
    with torch.cuda.device(index):
        if not torch.isfinite(rows).all():
            _refuse_if(int(torch.isfinite(rows).all(dim=1).logical_not().nonzero()[0]), rows)
        bytes_ = _native.cuda_workspace_bytes(len(rows), index)
        workspace = torch.empty(bytes_, dtype=torch.uint8, device=rows.device)
        out = torch.empty(len(rows), dtype=torch.float32, device=rows.device)
        addresses = (rows.data_ptr(), len(rows), out.data_ptr(), workspace.data_ptr(), bytes_)
        stream = torch.cuda.current_stream(index).cuda_stream
        _native.cuda_mean_squared_distance_3(*addresses, index, stream)
    return out


def _refuse_if(bad: int, rows: Tensor) -> None:
    """Raise for the row of this number, the first that is not finite; -1 = there is none."""
    if bad >= 0:
        raise ValueError(f"distCUDA2: point {bad} is not finite: {rows[bad].tolist()}; remove such points first")
