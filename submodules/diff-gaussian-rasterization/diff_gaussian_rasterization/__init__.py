"""Differentiable 3D Gaussian rasterizer on the CPU behind the API of the reference 3DGS code."""

from diff_gaussian_rasterization._native import isa, isa_supported
from diff_gaussian_rasterization.fused import RasterCamera

__all__ = ["RasterCamera", "isa", "isa_supported"]
