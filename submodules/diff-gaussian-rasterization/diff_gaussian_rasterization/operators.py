"""Registration of operators with PyTorch under the namespace of this package.

The parts of torch.library one by one, which is what torch.library.custom_op is made of, without its wrapper around the
kernel: that imports the compiler (2 s, 70 MB) at the first call, and costs tens of microseconds at every one.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

NAMESPACE = "diff_gaussian_rasterization"
_LIBRARY = torch.library.Library(NAMESPACE, "DEF")


def operator(
    fake: Callable[..., Any], *, mutates_args: Sequence[str] = (), dispatch_keys: Sequence[str] = ("CPU", "CUDA")
) -> Callable[[Callable[..., Any]], Any]:
    """Decorator that makes a function an operator; its schema comes from the annotations.

    Parameters
    ----------
    fake : the same on tensors without data: checks, and outputs of the right shapes.
    mutates_args : names of the arguments that are changed in place. The kernel itself must count their versions.
    dispatch_keys : what the function is the kernel for.
    """

    def register(kernel: Callable[..., Any]) -> Any:
        name = kernel.__name__
        schema = torch.library.infer_schema(kernel, mutates_args=mutates_args)
        # They read sizes from the device: the compiler must not capture them into a CUDA graph by itself.
        _LIBRARY.define(name + schema, tags=(torch.Tag.cudagraph_unsafe,))
        for key in dispatch_keys:
            _LIBRARY.impl(name, kernel, key)
        torch.library.register_fake(f"{NAMESPACE}::{name}", fake, lib=_LIBRARY)
        return getattr(getattr(torch.ops, NAMESPACE), name).default

    return register


def differentiable(name: str, backward: Callable[..., Any], setup_context: Callable[..., None] | None = None) -> None:
    """Register the gradient of an operator, and that there is no vmap of it."""
    torch.library.register_autograd(f"{NAMESPACE}::{name}", backward, setup_context=setup_context, lib=_LIBRARY)
    torch.library.register_vmap(f"{NAMESPACE}::{name}", _no_vmap, lib=_LIBRARY)


def _no_vmap(info: Any, in_dims: Any, *arguments: Any) -> None:
    raise NotImplementedError(f"{NAMESPACE}: vmap is not supported; pass a sequence of cameras, or loop over scenes")
