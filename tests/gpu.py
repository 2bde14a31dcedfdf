"""When tests marked `gpu` run: there is a GPU, and the rasterizer that is installed has kernels for it."""

import functools
import warnings


def reason_to_skip(available: bool, build: str) -> str | None:
    """Why GPU tests cannot run here; None where they can.

    Parameters
    ----------
    available : whether PyTorch can use a GPU.
    build : the rasterizer's `cuda_build`: architectures, or "no: " and why not.
    """
    if not available:
        return "no GPU here: torch.cuda.is_available() is False"
    if build.startswith("no: "):
        return f"the rasterizer was built without its CUDA kernels ({build.removeprefix('no: ')})"
    return None


@functools.cache
def why_not() -> str | None:
    """`reason_to_skip` on this machine."""
    import torch  # slow to import: only once a test asks
    from diff_gaussian_rasterization import _native

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch warns of a driver too old for it; then there is no GPU, that is all
        available = torch.cuda.is_available()
    return reason_to_skip(available, _native.cuda_build)
