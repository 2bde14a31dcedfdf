"""From Gaussians to images: one function, three interchangeable rasterizers, one kind of output."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Float
from torch import Tensor

from gaussian_renderer.backends import RASTERIZERS, Rasterizer
from gaussian_renderer.splats import (
    DILATION_PX2,
    RenderOutput,
    RenderSettings,
    Splats,
    activated,
    covariances,
    viewed_colors,
)
from scene.cameras import Camera
from scene.gaussians import Gaussians
from utils.errors import UserError

__all__ = ["RASTERIZERS", "Rasterizer", "RenderOutput", "RenderSettings", "Splats", "render"]


def render(
    camera: Camera,
    gaussians: Gaussians,
    *,
    background: Float[Tensor, "3"] | Sequence[float],
    rasterizer: str = "native",
    sh_degree: int | None = None,
    scale_modifier: float = 1.0,
    antialiasing: bool = False,
    dilation: float = DILATION_PX2,
    memory_bytes: int = 0,
    override_color: Float[Tensor, "N 3"] | None = None,
    convert_SHs_python: bool = False,
    compute_cov3D_python: bool = False,
) -> RenderOutput:
    """Render one view; gradients reach the stored parameters (and `means2d`) through autograd.

    Parameters
    ----------
    camera : a pinhole, principal point anywhere.
    gaussians : stored parameters; float32 for `native` and `gsplat`.
    background : RGB, 0-1.
    rasterizer : native (CPU, CUDA where built), gsplat (needs an NVIDIA GPU and the package), reference (any dtype).
    sh_degree : bands used, at most those stored; None = all.
    scale_modifier : factor on every scale.
    antialiasing : compensate opacities for the dilation (Mip-Splatting).
    dilation : added to both screen variances of every splat [px^2].
    memory_bytes : bound of the native rasterizer's scratch memory, 0 = none; changes no bit of the image.
    override_color : [N, 3] RGB instead of spherical harmonics.
    convert_SHs_python, compute_cov3D_python : evaluate colours, covariances in PyTorch and hand them over ready-made.

    Raises
    ------
    UserError : unknown rasterizer, or one that this machine cannot run; more bands than are stored.
    """
    if rasterizer not in RASTERIZERS:
        raise UserError(f"--rasterizer {rasterizer}: one of {', '.join(RASTERIZERS)} is expected")
    stored = gaussians.sh_degree
    degree = stored if sh_degree is None else sh_degree
    if not 0 <= degree <= stored:
        raise UserError(f"spherical-harmonics degree {degree}: the model holds degrees 0 to {stored}")
    splats = activated(gaussians, override_color=override_color)
    if convert_SHs_python and splats.sh is not None:
        splats = replace(splats, sh=None, colors=viewed_colors(camera, splats.means, splats.sh, degree))
    if compute_cov3D_python and splats.scales is not None and splats.quats is not None:
        sigma = covariances(splats.scales, splats.quats, scale_modifier)
        splats = replace(splats, scales=None, quats=None, covariances=sigma)
    settings = RenderSettings(
        background=torch.as_tensor(background).to(gaussians.means.dtype),  # the native kernels take it from main memory
        sh_degree=degree,
        scale_modifier=scale_modifier,
        antialiasing=antialiasing,
        dilation=dilation,
        memory_bytes=memory_bytes,
    )
    return RASTERIZERS[rasterizer](camera, splats, settings)
