"""Train a toy scene on the CPU through the original rasterizer API; needs torch, numpy and the two wheels only."""

from math import cos, pi, sin

import torch
from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer
from simple_knn._C import distCUDA2
from torch import Tensor
from torch.nn.functional import normalize


def render(view: int, means: Tensor, log_scales: Tensor, quats: Tensor, logits: Tensor, colours: Tensor) -> Tensor:
    """Image [3, 96, 96] from one of 8 cameras in a circle; matrices are transposed, as everywhere in 3DGS code."""
    c, s = cos(2 * pi * view / 8), sin(2 * pi * view / 8)
    pose = torch.tensor([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 4], [0, 0, 0, 1]])
    full = torch.tensor([[2.5, 0, 0, 0], [0, 2.5, 0, 0], [0, 0, 1, -0.01], [0, 0, 1, 0]]) @ pose
    centre = pose[:3, :3].T @ -pose[:3, 3]
    settings = GaussianRasterizationSettings(96, 96, 0.4, 0.4, torch.ones(3), 1.0, pose.T, full.T, 0, centre)
    shapes = {"scales": log_scales.exp(), "rotations": normalize(quats), "colors_precomp": colours}
    return GaussianRasterizer(settings)(means, torch.zeros_like(means), logits.sigmoid(), **shapes)[0]


def splats(points: Tensor, colours: Tensor, logit: float) -> list[Tensor]:
    """Round Gaussians as large as the gaps between the points."""
    log_scales = distCUDA2(points).sqrt().log()[:, None].repeat(1, 3)
    return [points, log_scales, torch.eye(4)[:1].repeat(600, 1), torch.full((600, 1), logit), colours]


torch.manual_seed(0)
sphere = normalize(torch.randn(600, 3))
targets = [render(view, *splats(sphere, 0.5 + 0.5 * sphere, 3.0)) for view in range(8)]
scene = [p.requires_grad_() for p in splats(1.2 * torch.randn(600, 3), torch.full((600, 3), 0.5), -1.0)]
adam = torch.optim.Adam([{"params": [p], "lr": r} for p, r in zip(scene, (0.01, 0.02, 0.01, 0.05, 0.02), strict=True)])
for step in range(301):
    (render(step % 8, *scene) - targets[step % 8]).abs().mean().backward()
    if step % 300 == 0:
        errors = torch.stack([(render(view, *scene).detach() - targets[view]).square().mean() for view in range(8)])
        print(f"step {step}: PSNR {-10 * errors.mean().log10():.2f} dB")
    adam.step()
    adam.zero_grad()
