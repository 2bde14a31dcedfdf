"""Small random scenes for rasterizer tests, and how near their pixels come to the thresholds where values jump."""

from dataclasses import fields

import numpy as np
import torch
from torch import Tensor

from gaussian_renderer import reference
from gaussian_renderer.sh import basis
from gaussian_renderer.splats import RenderSettings, activated
from scene.cameras import Camera, intrinsics
from scene.gaussians import FIELDS, Gaussians

BACKGROUND = (0.3, 0.1, 0.7)


def make_camera(
    width: int = 40, height: int = 30, *, focal: float = 45.0, off_centre: tuple[float, float] = (0.0, 0.0)
) -> Camera:
    """A camera near the origin that looks along +z, turned a little about all axes."""
    a, b, c = 0.05, -0.08, 0.3
    rx = np.array([[1, 0, 0], [0, np.cos(a), -np.sin(a)], [0, np.sin(a), np.cos(a)]])
    ry = np.array([[np.cos(b), 0, np.sin(b)], [0, 1, 0], [-np.sin(b), 0, np.cos(b)]])
    rz = np.array([[np.cos(c), -np.sin(c), 0], [np.sin(c), np.cos(c), 0], [0, 0, 1]])
    world_to_camera = np.eye(4)
    world_to_camera[:3, :3] = rx @ ry @ rz
    world_to_camera[:3, 3] = (0.1, -0.05, 0.2)
    K = intrinsics(focal, 1.1 * focal, width / 2 + off_centre[0], height / 2 + off_centre[1])
    return Camera("view", width, height, K, world_to_camera)


def make_gaussians(
    n: int,
    seed: int,
    *,
    degree: int = 3,
    depth: tuple[float, float] = (1.0, 5.0),
    spread: float = 1.2,
    log_scale: float = -2.8,
    opacity: float = 0.0,
) -> Gaussians:
    """Random splats in a wedge in front of `make_camera`; some lie outside the picture. float32."""
    g = torch.Generator().manual_seed(seed)
    z = depth[0] + (depth[1] - depth[0]) * torch.rand(n, generator=g)
    xy = spread * (torch.rand(n, 2, generator=g) - 0.5) * z[:, None]
    return Gaussians(
        means=torch.cat([xy, z[:, None]], dim=1),
        log_scales=log_scale + 0.6 * torch.randn(n, 3, generator=g),
        quats=torch.randn(n, 4, generator=g),
        logit_opacities=opacity + 1.5 * torch.randn(n, 1, generator=g),
        sh0=torch.randn(n, 1, 3, generator=g),
        shN=0.2 * torch.randn(n, (degree + 1) ** 2 - 1, 3, generator=g),
    )


def converted(gaussians: Gaussians, dtype: torch.dtype, *, gradients: bool = False) -> Gaussians:
    """A copy of another dtype; leaves that gather gradients on request."""
    return Gaussians(**{k: getattr(gaussians, k).detach().clone().to(dtype).requires_grad_(gradients) for k in FIELDS})


def rows(gaussians: Gaussians, keep: Tensor) -> Gaussians:
    return Gaussians(**{f.name: getattr(gaussians, f.name)[keep] for f in fields(gaussians)})


def off_the_edges(camera: Camera, gaussians: Gaussians, settings: RenderSettings) -> Gaussians:
    """Without the splats that float32 may sort, cull, clamp or colour otherwise than float64.

    Dropped: z within 1e-3 of the near plane; depth within 1e-5 of the one before; a slope within 1e-3 of the Jacobian's
    limit; a colour channel within 1e-3 of the clamp at 0; compensation within 1e-3 of its floor; 3 sigma within 1e-3 of
    a whole number of pixels, or its square within 1e-3 of a tile's border.
    """
    exact = converted(gaussians, torch.float64)
    layers = reference.prepare(camera, activated(exact), settings)
    to_camera = torch.from_numpy(camera.world_to_camera)
    local = exact.means[layers.order] @ to_camera[:3, :3].T + to_camera[:3, 3]
    slope = (local[:, :2] / local[:, 2:]).abs()
    limit = 1.3 * torch.tensor([camera.width / camera.fx, camera.height / camera.fy]).double() / 2
    sure = ((slope - limit).abs() > 1e-3).all(1)
    sure &= torch.diff(local[:, 2], prepend=local.new_zeros(1)) > 1e-5
    sure &= local[:, 2] > reference.NEAR_Z + 1e-3
    ratio = layers.screen.det_undilated / layers.screen.det
    sure &= (ratio / reference.COMPENSATION_MIN - 1).abs() > 1e-3
    sure &= (_colours_before_clamp(camera, exact, settings)[layers.order].abs() > 1e-3).all(1)
    sure &= _radius_is_sure(layers)
    return rows(gaussians, layers.order[sure].sort().values)


def _radius_is_sure(layers: reference.Layers) -> Tensor:
    screen = layers.screen
    middle = 0.5 * (screen.xx + screen.yy)
    three_sigma = 3 * (middle + (middle**2 - screen.det).clamp(min=0.1).sqrt()).sqrt()
    radius = three_sigma.ceil()[:, None]
    borders = torch.cat([screen.xy - radius, screen.xy + radius - 1], dim=1) / 16  # [M, 4] tiles
    far = (three_sigma - three_sigma.round()).abs() > 1e-3
    return far & ((borders - borders.round()).abs() > 1e-4).all(1)


def _colours_before_clamp(camera: Camera, exact: Gaussians, settings: RenderSettings) -> Tensor:
    rays = exact.means - torch.from_numpy(camera.centre)
    values = basis(rays / rays.norm(dim=1, keepdim=True), settings.sh_degree)
    sh = torch.cat([exact.sh0, exact.shN], dim=1)[:, : values.shape[1]]
    return (values[..., None] * sh).sum(1) + 0.5


def sure_pixels(camera: Camera, gaussians: Gaussians, settings: RenderSettings, band: float = 1e-3) -> Tensor:
    """[H, W] bool: no alpha within `band` (relative) of 1/255, no transmittance within `band` of 1e-4."""
    layers = reference.prepare(camera, activated(converted(gaussians, torch.float64)), settings)
    rows_, columns = torch.meshgrid(torch.arange(camera.height), torch.arange(camera.width), indexing="ij")
    raw = reference.raw_alphas(layers, torch.stack([columns, rows_], dim=-1).reshape(-1, 2).double())
    alpha = torch.where(raw >= reference.ALPHA_MIN, raw.clamp(max=reference.ALPHA_MAX), 0.0)
    behind = (1 - alpha).cumprod(0)
    sure = ((raw / reference.ALPHA_MIN - 1).abs() > band) & ((behind / reference.T_MIN - 1).abs() > band)
    return sure.all(0).reshape(camera.height, camera.width)


def relative_error(value: Tensor, exact: Tensor) -> float:
    """|value - exact|_2 / |exact|_2; 0 where both vanish."""
    difference = float((value.detach().double() - exact.detach()).norm())
    return difference / max(float(exact.detach().norm()), 1e-30) if difference else 0.0
