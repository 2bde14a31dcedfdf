"""Differentiable 3D Gaussian rasterizer for CPU and CUDA behind the API of the reference 3DGS code."""

from diff_gaussian_rasterization import fused
from diff_gaussian_rasterization._native import cuda_build, isa, isa_supported
from diff_gaussian_rasterization.cameras import RasterCamera
from diff_gaussian_rasterization.devices import has_cuda_kernels
from diff_gaussian_rasterization.extended import RasterOutput, rasterize_extended
from diff_gaussian_rasterization.leases import release_memory, set_memory_limit
from diff_gaussian_rasterization.rasterizer import GaussianRasterizationSettings, GaussianRasterizer

__all__ = [
    "GaussianRasterizationSettings",
    "GaussianRasterizer",
    "RasterCamera",
    "RasterOutput",
    "cuda_build",
    "fused",
    "has_cuda_kernels",
    "isa",
    "isa_supported",
    "rasterize_extended",
    "release_memory",
    "set_memory_limit",
]
