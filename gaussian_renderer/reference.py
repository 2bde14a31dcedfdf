"""The rasterizer's definition in plain PyTorch: any dtype, every pixel against every Gaussian, autograd throughout.

Slow and short on purpose: in float64 it is the oracle for the values and the gradients of the native kernels.

Letters: N Gaussians (M of them drawn), P pixels; W (world to camera), J (Jacobian of the projection), S = 2D covariance
[px^2]; T = transmittance in front of a Gaussian. Pixel (column i, row j) has its centre at (i + 1/2, j + 1/2) in K's
units; positions below are relative to pixel *indices*, i.e. shifted by -1/2.

Source: Kerbl et al., "3D Gaussian Splatting", SIGGRAPH 2023, sections 4 and 6, appendix A and C, with the thresholds of
its released code; antialiasing: Yu et al., "Mip-Splatting", CVPR 2024, section 5.2.
"""

from dataclasses import replace
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int32, Int64
from torch import Tensor

from gaussian_renderer.splats import (
    DILATION_PX2,
    RenderOutput,
    RenderSettings,
    Splats,
    activated,
    covariances,
    depth_map,
    full_covariances,
    screen_means,
    viewed_colors,
)
from scene.cameras import Camera
from scene.gaussians import Gaussians

NEAR_Z = 0.2  # Gaussians with z <= this [world units] are culled; the only frustum test
CLAMP_TAN = 1.3  # J is taken no further out than this times the tangent of half the field of view
ALPHA_MIN = 1 / 255  # smaller contributions to a pixel are skipped
ALPHA_MAX = 0.99
T_MIN = 1e-4  # a pixel ends before the Gaussian that would take T below this
COMPENSATION_MIN = 2.5e-5  # floor of det0 / det under the square root of antialiasing
COVARIANCE_MAX_PX2 = 1e18  # larger (or NaN) screen covariances are culled
TILE_PX = 16  # tile of the original code; only its visibility rule depends on it
RADIUS_MAX_PX = 2**30
PAIRS_AT_ONCE = 1 << 22  # pixel-Gaussian pairs evaluated together


class Projection(NamedTuple):
    """Gaussians on the screen: position [px], S without and with dilation's parts, camera depth."""

    xy: Float[Tensor, "N 2"]
    xx: Float[Tensor, " N"]
    xy_cov: Float[Tensor, " N"]
    yy: Float[Tensor, " N"]
    det: Float[Tensor, " N"]
    det_undilated: Float[Tensor, " N"]
    z: Float[Tensor, " N"]


class Layers(NamedTuple):
    """The Gaussians that are drawn, nearest first: row in the input, place, opacity in this view, (r, g, b, 1 / z)."""

    order: Int64[Tensor, " M"]
    screen: Projection
    opacities: Float[Tensor, " M"]
    features: Float[Tensor, "M 4"]


def render_reference(
    camera: Camera,
    gaussians: Gaussians,
    background: Float[Tensor, "3"],
    *,
    sh_degree: int | None = None,
    scale_modifier: float = 1.0,
    antialiasing: bool = False,
    dilation: float = DILATION_PX2,
    override_color: Float[Tensor, "N 3"] | None = None,
) -> RenderOutput:
    """Render stored (unactivated) Gaussians of any dtype; see `rasterize`. sh_degree None = all stored bands."""
    degree = gaussians.sh_degree if sh_degree is None else sh_degree
    splats = activated(gaussians, override_color=override_color)
    return rasterize(camera, splats, RenderSettings(background, degree, scale_modifier, antialiasing, dilation))


def rasterize(camera: Camera, splats: Splats, settings: RenderSettings) -> RenderOutput:
    """Render activated Gaussians exactly as defined in the module docstring.

    Parameters
    ----------
    camera : pinhole; the arithmetic is done in the dtype and on the device of `splats.means`.
    splats, settings : see their classes; gradients reach every tensor in them.

    Notes
    -----
    O(N W H) time; with gradients on also O(M W H) memory (about 100 bytes a pair).
    """
    means2d = screen_means(splats.means)
    layers = prepare(camera, splats, settings, means2d)
    sums, transmittance = blend(layers, camera.width, camera.height)
    alpha, inverse_depth = 1 - transmittance, sums[3]
    color = sums[:3] + transmittance * settings.background.to(splats.means)[:, None, None]
    sizes = radii(camera, splats, settings)
    return RenderOutput(color, alpha, inverse_depth, depth_map(alpha, inverse_depth), sizes, means2d)


def prepare(
    camera: Camera, splats: Splats, settings: RenderSettings, means2d: Float[Tensor, "N 3"] | None = None
) -> Layers:
    """Cull, sort, project and colour; ties in depth: the lower index is in front.

    means2d : zeros whose gradient is wanted, added to the positions in normalised device coordinates.
    """
    # First pass: who is drawn. Culled rows never enter the second, where 0 * inf in a gradient would be NaN.
    with torch.no_grad():
        everything = project(camera, splats, settings)
        drawn = is_drawn(everything).nonzero()[:, 0]
        order = drawn[torch.argsort(everything.z[drawn], stable=True)]
    chosen = replace(splats, **{name: value[order] for name, value in vars(splats).items() if value is not None})
    screen = project(camera, chosen, settings)
    if means2d is not None:
        half_size = torch.tensor([camera.width / 2, camera.height / 2]).to(splats.means)
        screen = screen._replace(xy=screen.xy + means2d[order, :2] * half_size)
    opacities = chosen.opacities[:, 0]
    if settings.antialiasing:
        opacities = opacities * (screen.det_undilated / screen.det).clamp(min=COMPENSATION_MIN).sqrt()
    colors = chosen.colors
    if colors is None:
        assert chosen.sh is not None
        colors = viewed_colors(camera, chosen.means, chosen.sh, settings.sh_degree)
    return Layers(order, screen, opacities, torch.cat([colors, 1 / screen.z[:, None]], dim=1))


def project(camera: Camera, splats: Splats, settings: RenderSettings) -> Projection:
    """Means and covariances on the screen: S = J W Sigma W^T J^T + dilation I (EWA splatting, Zwicker et al. 2001).

    Notes
    -----
    J is linearised at the mean, but no further out than 1.3 tan(fov/2), where the linearisation would explode. The
    gradient is that of exactly this expression (the released code treats part of it as constant when clamped).
    """
    to_camera = torch.as_tensor(camera.world_to_camera).to(splats.means)  # [4, 4]
    fx, fy, cx, cy = camera.fx, camera.fy, camera.cx, camera.cy
    x, y, z = (splats.means @ to_camera[:3, :3].T + to_camera[:3, 3]).unbind(-1)
    limit_x, limit_y = CLAMP_TAN * camera.width / (2 * fx), CLAMP_TAN * camera.height / (2 * fy)
    slope_x, slope_y = (x / z).clamp(-limit_x, limit_x), (y / z).clamp(-limit_y, limit_y)
    zero = torch.zeros_like(z)
    jacobian = torch.stack(
        [
            torch.stack([fx / z, zero, -fx * slope_x / z], dim=-1),
            torch.stack([zero, fy / z, -fy * slope_y / z], dim=-1),
        ],
        dim=-2,
    )  # [N, 2, 3]
    sigma = splats.covariances
    if sigma is None:
        assert splats.scales is not None
        assert splats.quats is not None
        sigma = covariances(splats.scales, splats.quats, settings.scale_modifier)
    half = jacobian @ to_camera[:3, :3]  # [N, 2, 3]
    cov = half @ full_covariances(sigma) @ half.transpose(1, 2)  # [N, 2, 2]
    xx, xy_cov, yy = cov[:, 0, 0], cov[:, 0, 1], cov[:, 1, 1]
    det_undilated = xx * yy - xy_cov * xy_cov
    xx, yy = xx + settings.dilation, yy + settings.dilation
    xy = torch.stack([fx * x / z + cx - 0.5, fy * y / z + cy - 0.5], dim=-1)
    return Projection(xy, xx, xy_cov, yy, xx * yy - xy_cov * xy_cov, det_undilated, z)


def is_drawn(screen: Projection) -> Bool[Tensor, " N"]:
    """In front of the near plane, with a covariance that can be inverted (False for NaN)."""
    return (screen.z > NEAR_Z) & (screen.xx + screen.yy <= COVARIANCE_MAX_PX2) & (screen.det > 0)


@torch.no_grad()
def radii(camera: Camera, splats: Splats, settings: RenderSettings) -> Int32[Tensor, " N"]:
    """Radii of all Gaussians in this view by the original's rule, see `visible_radii`."""
    screen = project(camera, splats, settings)
    return visible_radii(screen, is_drawn(screen), camera.width, camera.height)


def visible_radii(screen: Projection, drawn: Bool[Tensor, " N"], width: int, height: int) -> Int32[Tensor, " N"]:
    """Radii by the original's rule: 3 standard deviations of the long axis, rounded up; 0 = not visible.

    Notes
    -----
    Visible = drawn, and the square of that radius touches at least one 16 x 16 tile of the image as the released code
    rounds it: its last tile is (x + r + 15) // 16, so a square must reach pixel index 1 from the left. Opacity does not
    matter here: densification counts views in which a Gaussian could be seen.
    """
    middle = 0.5 * (screen.xx + screen.yy)
    longest = middle + (middle * middle - screen.det).clamp(min=0.1).sqrt()  # larger eigenvalue
    radius = (3 * longest.sqrt()).ceil().clamp(max=RADIUS_MAX_PX)
    visible = drawn.clone()
    for centre, size in ((screen.xy[:, 0], width), (screen.xy[:, 1], height)):
        tiles = -(-size // TILE_PX)
        first = ((centre - radius) / TILE_PX).trunc().clamp(0, tiles)
        last = ((centre + radius + TILE_PX - 1) / TILE_PX).trunc().clamp(0, tiles)
        visible &= last > first
    return torch.where(visible, radius, 0).to(torch.int32)


def blend(layers: Layers, width: int, height: int) -> tuple[Float[Tensor, "4 H W"], Float[Tensor, "H W"]]:
    """Front-to-back alpha blending: sums of T alpha feature, and the transmittance that is left."""
    sides = (torch.arange(n, device=layers.features.device) for n in (height, width))
    rows, columns = torch.meshgrid(*sides, indexing="ij")
    pixels = torch.stack([columns, rows], dim=-1).reshape(-1, 2).to(layers.features)  # [H W, 2]
    sums, left = [], []
    for some in pixels.split(max(1, PAIRS_AT_ONCE // max(1, len(layers.order)))):
        weights, transmittance = blending_weights(raw_alphas(layers, some))  # [M, P], [P]
        sums.append(layers.features.T @ weights)
        left.append(transmittance)
    return torch.cat(sums, dim=1).reshape(4, height, width), torch.cat(left).reshape(height, width)


def raw_alphas(layers: Layers, pixels: Float[Tensor, "P 2"]) -> Float[Tensor, "M P"]:
    """opacity * exp(-d^T S^-1 d / 2) of every Gaussian at every pixel (column, row), before cap and thresholds."""
    screen = layers.screen
    dx = pixels[None, :, 0] - screen.xy[:, 0, None]  # [M, P]
    dy = pixels[None, :, 1] - screen.xy[:, 1, None]
    distance = screen.yy[:, None] * dx * dx - 2 * screen.xy_cov[:, None] * dx * dy + screen.xx[:, None] * dy * dy
    return layers.opacities[:, None] * (-0.5 * distance / screen.det[:, None]).exp()


def blending_weights(raw: Float[Tensor, "M P"]) -> tuple[Float[Tensor, "M P"], Float[Tensor, " P"]]:
    """Weight T alpha of every Gaussian in every pixel, and the transmittance behind the last one blended."""
    # The cap is straight-through in the released code: capped alphas keep the gradient of the uncapped value.
    alpha = raw + (raw.clamp(max=ALPHA_MAX) - raw).detach()
    alpha = torch.where(raw >= ALPHA_MIN, alpha, 0.0)
    # T only falls, so "T behind this one is below the limit" is also true of every later one: the pixel has ended.
    behind = (1 - alpha.detach()).cumprod(dim=0)
    alpha = torch.where(behind >= T_MIN, alpha, 0.0)
    front = alpha.new_ones(1, alpha.shape[1])
    transmittance = torch.cat([front, 1 - alpha]).cumprod(dim=0)  # [M + 1, P]: before each one, and behind the last
    return transmittance[:-1] * alpha, transmittance[-1]
