"""Train a toy scene on the CPU through the original rasterizer API; needs torch, numpy and the two wheels only."""

from math import cos, pi, sin

import torch
from diff_gaussian_rasterization import GaussianRasterizationSettings, GaussianRasterizer
from simple_knn._C import distCUDA2
from torch import Tensor
from torch.nn.functional import normalize

SIDE_PX, TAN, VIEWS, N = 96, 0.4, 8, 600


def render(view: int, means: Tensor, log_scales: Tensor, quats: Tensor, logits: Tensor, colours: Tensor) -> Tensor:
    """Image [3, H, W] from one of 8 cameras around the scene; matrices are transposed, as everywhere in 3DGS code."""
    c, s = cos(2 * pi * view / VIEWS), sin(2 * pi * view / VIEWS)
    pose = torch.tensor([[c, 0, s, 0], [0, 1, 0, 0], [-s, 0, c, 4], [0, 0, 0, 1]])
    full = torch.tensor([[1 / TAN, 0, 0, 0], [0, 1 / TAN, 0, 0], [0, 0, 1, -0.01], [0, 0, 1, 0]]) @ pose
    size, centre, white = (SIDE_PX, SIDE_PX, TAN, TAN), pose[:3, :3].T @ -pose[:3, 3], torch.ones(3)
    rasterizer = GaussianRasterizer(GaussianRasterizationSettings(*size, white, 1.0, pose.T, full.T, 0, centre))
    shapes = {"scales": log_scales.exp(), "rotations": normalize(quats)}
    return rasterizer(means, torch.zeros_like(means), logits.sigmoid(), colors_precomp=colours, **shapes)[0]


def splats(points: Tensor, colours: Tensor, logit: float) -> list[Tensor]:
    """Round Gaussians as large as the gaps between the points."""
    log_scales = distCUDA2(points).clamp_min(1e-7).sqrt().log()[:, None].repeat(1, 3)
    quats, logits = torch.eye(4)[:1].repeat(len(points), 1), torch.full((len(points), 1), logit)
    return [points, log_scales, quats, logits, colours]


def main() -> None:
    torch.manual_seed(0)
    sphere = normalize(torch.randn(N, 3))
    truth = splats(sphere, 0.5 + 0.5 * sphere, 3.0)
    targets = torch.stack([render(view, *truth) for view in range(VIEWS)])
    scene = [p.requires_grad_() for p in splats(1.2 * torch.randn(N, 3), torch.full((N, 3), 0.5), -1.0)]
    rates = (0.01, 0.02, 0.01, 0.05, 0.02)
    adam = torch.optim.Adam([{"params": p, "lr": lr} for p, lr in zip(scene, rates, strict=True)], eps=1e-15)
    for step in range(301):
        if step % 300 == 0:
            images = torch.stack([render(view, *scene).detach() for view in range(VIEWS)])
            print(f"step {step}: PSNR {-10 * (images - targets).square().mean().log10():.2f} dB")
        adam.zero_grad()
        (render(step % VIEWS, *scene) - targets[step % VIEWS]).abs().mean().backward()
        adam.step()


if __name__ == "__main__":
    main()
