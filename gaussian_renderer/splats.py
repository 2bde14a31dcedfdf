"""What goes into a rasterizer and what comes out: the nouns that the three backends share.

Letters: N Gaussians, K spherical-harmonics coefficients a channel, W x H pixels. Activated values only: standard
deviations and opacities, not their logarithms and logits.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from gaussian_renderer import sh as spherical_harmonics
from scene.cameras import Camera
from scene.gaussians import Gaussians

DILATION_PX2 = 0.3  # added to the diagonal of every screen-space covariance (Kerbl et al. 2023): a splat covers a pixel
SOLID_ALPHA = 0.5  # depth is stated only where at least this much light comes from the Gaussians


@dataclass(frozen=True, eq=False)
class Splats:
    """Activated Gaussians: shape as scales + quats or as covariances, colour as sh or as colors.

    means : [N, 3] world. scales : [N, 3] standard deviations, world units. quats : [N, 4] w x y z, any length > 0.
    covariances : [N, 6] world, xx xy xz yy yz zz. opacities : [N, 1] in 0-1. sh : [N, K, 3]. colors : [N, 3] RGB.
    """

    means: Float[Tensor, "N 3"]
    opacities: Float[Tensor, "N 1"]
    scales: Float[Tensor, "N 3"] | None = None
    quats: Float[Tensor, "N 4"] | None = None
    covariances: Float[Tensor, "N 6"] | None = None
    sh: Float[Tensor, "N K 3"] | None = None
    colors: Float[Tensor, "N 3"] | None = None

    def __post_init__(self) -> None:
        if (self.scales is None) != (self.quats is None) or (self.scales is None) == (self.covariances is None):
            raise ValueError("Splats: give either scales and quats, or covariances")
        if (self.sh is None) == (self.colors is None):
            raise ValueError("Splats: give either sh or colors")


@dataclass(frozen=True, eq=False)
class RenderSettings:
    """How Splats become an image; defaults are those of Kerbl et al. 2023.

    background : [3] RGB 0-1. sh_degree : bands used, 0-3. scale_modifier : factor on all scales.
    antialiasing : Mip-Splatting's opacity compensation. dilation : [px^2], on the diagonal of the 2D covariance.
    memory_bytes : bound of the native rasterizer's scratch memory, 0 = none; changes no bit of the image.
    """

    background: Float[Tensor, "3"]
    sh_degree: int = 3
    scale_modifier: float = 1.0
    antialiasing: bool = False
    dilation: float = DILATION_PX2
    memory_bytes: int = 0


@dataclass(frozen=True, eq=False)
class RenderOutput:
    """One rendered view.

    color : [3, H, W] RGB, background composed. alpha : [H, W] = 1 - final transmittance.
    inverse_depth : [H, W] = sum of weight / z [1 / world units]. depth : [H, W] z where alpha > 0.5, else 0.
    radii : [N] int32 [px], the 3-sigma radius of the original code; 0 = not visible in this view.
    means2d : [N, 3] zeros; after backward, `.grad[:, :2]` is the gradient of the loss with respect to the projected
        means in normalised device coordinates (dL/dx_px * W/2, dL/dy_px * H/2): the densification statistic.
    """

    color: Float[Tensor, "3 H W"]
    alpha: Float[Tensor, "H W"]
    inverse_depth: Float[Tensor, "H W"]
    depth: Float[Tensor, "H W"]
    radii: Int32[Tensor, " N"]
    means2d: Float[Tensor, "N 3"]


def activated(gaussians: Gaussians, *, override_color: Float[Tensor, "N 3"] | None = None) -> Splats:
    """What is rasterized of stored parameters: exp, sigmoid, colour coefficients side by side; differentiable.

    Where shN is in half precision, all coefficients are: only the native rasterizer draws that, and only on a GPU.
    """
    return Splats(
        means=gaussians.means,
        scales=gaussians.scales,
        quats=gaussians.quats,
        opacities=gaussians.opacities,
        sh=torch.cat([gaussians.sh0.to(gaussians.shN.dtype), gaussians.shN], dim=1) if override_color is None else None,
        colors=override_color,
    )


def depth_map(alpha: Float[Tensor, "H W"], inverse_depth: Float[Tensor, "H W"]) -> Float[Tensor, "H W"]:
    """z = alpha / inverse_depth where alpha > 0.5, else 0; the gradient flows where it is not 0."""
    solid = (alpha > SOLID_ALPHA) & (inverse_depth > 0)
    return torch.where(solid, alpha / torch.where(solid, inverse_depth, 1.0), 0.0)


def screen_means(means: Float[Tensor, "N 3"]) -> Float[Tensor, "N 3"]:
    """The zero tensor whose gradient is the densification statistic; a leaf when gradients are on."""
    return torch.zeros_like(means, requires_grad=torch.is_grad_enabled())


def rotations(quats: Float[Tensor, "N 4"]) -> Float[Tensor, "N 3 3"]:
    """Rotation matrices of quaternions (w x y z) of any length; NaN for a zero quaternion, which is then culled."""
    w, x, y, z = (quats / quats.norm(dim=-1, keepdim=True)).unbind(-1)
    rows = [
        torch.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], dim=-1),
        torch.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], dim=-1),
        torch.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], dim=-1),
    ]
    return torch.stack(rows, dim=-2)  # [N, 3, 3]


def covariances(
    scales: Float[Tensor, "N 3"], quats: Float[Tensor, "N 4"], scale_modifier: float = 1.0
) -> Float[Tensor, "N 6"]:
    """World covariances R diag(s m)^2 R^T as xx xy xz yy yz zz (Kerbl et al. 2023, eq. 6)."""
    half = rotations(quats) * (scale_modifier * scales)[:, None, :]  # [N, 3, 3] = R diag(s m)
    full = half @ half.transpose(1, 2)
    return full[:, (0, 0, 0, 1, 1, 2), (0, 1, 2, 1, 2, 2)]


def full_covariances(sigma: Float[Tensor, "N 6"]) -> Float[Tensor, "N 3 3"]:
    """Symmetric matrices from xx xy xz yy yz zz; the gradient of an off-diagonal value counts both its places."""
    return sigma[:, (0, 1, 2, 1, 3, 4, 2, 4, 5)].reshape(len(sigma), 3, 3)


def viewed_colors(
    camera: Camera, means: Float[Tensor, "N 3"], sh: Float[Tensor, "N K 3"], degree: int
) -> Float[Tensor, "N 3"]:
    """Colours of Gaussians as the camera sees them; the gradient reaches `means` through the direction."""
    rays = means - torch.as_tensor(camera.centre).to(means)
    return spherical_harmonics.colors_from_sh(sh, rays / rays.norm(dim=-1, keepdim=True), degree)
