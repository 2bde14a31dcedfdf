"""One autograd node around the kernels: activated Gaussians in, colour, transmittance and inverse depth out."""

from collections import deque
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from diff_gaussian_rasterization import _native
from diff_gaussian_rasterization.checks import address, check_tensor

SH_COUNTS = (1, 4, 9, 16)
KEPT_WORKSPACES = 2


@dataclass(frozen=True, eq=False)
class Splats:
    """Activated Gaussians: either sh or colors, and either scales and quats or covariances; float32 on the CPU.

    Parameters
    ----------
    means [N, 3]; opacities [N, 1], 0-1; sh [N, K, 3] with K = 1, 4, 9, 16; colors [N, 3]; scales [N, 3], > 0;
    quats [N, 4], w x y z, any length; covariances [N, 6], xx xy xz yy yz zz.
    """

    means: Tensor
    opacities: Tensor
    sh: Tensor | None = None
    colors: Tensor | None = None
    scales: Tensor | None = None
    quats: Tensor | None = None
    covariances: Tensor | None = None

    def checked(self, sh_degree: int) -> "Splats":
        """Contiguous copies where needed, or a TypeError or ValueError that names the argument."""
        if (self.sh is None) == (self.colors is None):
            raise ValueError("provide exactly one of spherical harmonics and precomputed colors")
        pair = (self.scales is None, self.quats is None)
        if pair != (self.covariances is not None,) * 2:
            raise ValueError("provide exactly one of the pair scales and rotations, and the precomputed 3D covariance")
        count = self.means.shape[0] if isinstance(self.means, Tensor) else None
        shapes: dict[str, tuple[int | None, ...]] = {
            "means": (count, 3),
            "opacities": (count, 1),
            "sh": (count, None, 3),
            "colors": (count, 3),
            "scales": (count, 3),
            "quats": (count, 4),
            "covariances": (count, 6),
        }
        given = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v.contiguous() if isinstance(v, Tensor) else v for k, v in given.items() if v is not None}
        for name, value in tensors.items():
            check_tensor(name, value, shapes[name])
        if self.sh is not None:
            stored = self.sh.shape[1]
            if stored not in SH_COUNTS or stored < (sh_degree + 1) ** 2:
                raise ValueError(f"sh: degree {sh_degree} needs one of {SH_COUNTS} coefficients, got {stored}")
        return Splats(**tensors)


class Maps(NamedTuple):
    """color [3, H, W], transmittance [H, W], inverse_depth [H, W] or None, radii int32 [N]."""

    color: Tensor
    transmittance: Tensor
    inverse_depth: Tensor | None
    radii: Tensor


class _Pool:
    """Workspaces between uses: fresh memory costs several milliseconds to touch. A cache, bounded, thread-safe."""

    def __init__(self) -> None:
        self.free: deque[Any] = deque(maxlen=KEPT_WORKSPACES)

    def take(self) -> Any:
        try:
            return self.free.pop()
        except IndexError:
            return _native.Rasterization()


_POOL = _Pool()


class _Lease:
    """A workspace until the autograd node that needs it is gone."""

    def __init__(self) -> None:
        self.native = _POOL.take()

    def __del__(self) -> None:
        _POOL.free.append(self.native)


def rasterize(
    camera: Any, size: tuple[int, int], splats: Splats, means2d: Tensor | None, *, inverse_depth: bool
) -> Maps:
    """Render `checked` splats; size is (height, width) of the native camera.

    means2d [N, 3] only receives a gradient: that of the screen position in NDC units (its values are not read).
    """
    if means2d is None:
        means2d = splats.means.new_zeros(len(splats.means), 3)
    elif means2d.shape != splats.means.shape:
        raise ValueError(f"means2D: expected shape {list(splats.means.shape)}, got {list(means2d.shape)}")
    tensors = [getattr(splats, f.name) for f in fields(splats)]
    return Maps(*_Rasterize.apply(camera, size, inverse_depth, means2d, *tensors))


class _Rasterize(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, camera: Any, size: tuple[int, int], with_depth: bool, means2d: Tensor, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        splats = Splats(*tensors)  # type: ignore[arg-type]
        count = splats.means.shape[0]
        color, transmittance = torch.empty(3, *size), torch.empty(size)
        inverse_depth = torch.empty(size) if with_depth else None
        radii = torch.empty(count, dtype=torch.int32)
        stored = 1 if splats.sh is None else splats.sh.shape[1]
        ctx.lease = _Lease()
        ctx.lease.native.forward(
            camera,
            _addresses(splats),
            0,
            count,
            3 * stored,
            3 * stored,
            stored - 1,
            True,
            [address(color), address(transmittance), address(inverse_depth), 0, 0],
            address(radii),
            torch.get_num_threads(),
        )
        ctx.mark_non_differentiable(radii)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(*tensors, transmittance)
        return color, transmittance, inverse_depth, radii

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        *tensors, transmittance = ctx.saved_tensors
        splats = Splats(*tensors)
        wanted = ctx.needs_input_grad[3:]  # means2d, then the fields of Splats
        means2d = torch.empty(splats.means.shape) if wanted[0] else None
        out = [None if t is None or not w else torch.empty_like(t) for t, w in zip(tensors, wanted[1:], strict=True)]
        g_color, g_transmittance, g_depth = (None if g is None else g.contiguous() for g in gradients[:3])
        if g_color is None:
            g_color = torch.zeros(3, *transmittance.shape)
        ctx.lease.native.backward(
            _addresses(splats),
            0,
            address(transmittance),
            [address(g_color), address(g_transmittance), address(g_depth), 0, 0],
            _addresses(Splats(*out)),  # type: ignore[arg-type]
            [0] * 8,
            address(means2d),
            0,
            0,
            torch.get_num_threads(),
        )
        return None, None, None, means2d, *out


def _addresses(s: Splats) -> list[int]:
    """In the order of the native parameters; the rest of sh starts three floats after its first coefficient."""
    sh = address(s.sh)
    rest = sh + 12 if s.sh is not None and sh and s.sh.shape[1] > 1 else 0
    return [address(t) for t in (s.means, s.scales, s.quats, s.opacities)] + [
        sh,
        rest,
        address(s.colors),
        address(s.covariances),
    ]
