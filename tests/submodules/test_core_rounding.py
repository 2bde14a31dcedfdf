"""Formulas in which kernels must find the same bits leave no rounding to the compiler.

A product that goes into a sum may be rounded first or fused with it, and nvcc and ptxas choose kernel by kernel. So
tiles.h spells it out. Compiled without fusing, every product that is left to choose about shows in the PTX.
"""

import re
import shutil
from pathlib import Path

import pytest

from tests.submodules.building import RASTERIZER, run

pytestmark = pytest.mark.skipif(not shutil.which("nvcc"), reason="nvcc is not installed")

TILES = """
#include "core/tiles.h"
using namespace splat;
__global__ void f(const float* in, int* out) {
  const CullEllipse<float> e = cull_ellipse(in[0], in[1], Conic<float>{in[2], in[3], in[4]}, in[5]);
  const Span rows = tile_rows(e, out[0], 16);
  for (int row = rows.first; row <= rows.last; row++) {
    const Span columns = tile_columns(e, row, out[1], out[0], 16);
    out[2 * row] = columns.first;
    out[2 * row + 1] = columns.last;
  }
}
"""
PIXELS = """
#include "core/tiles.h"
using namespace splat;
__global__ void f(const float* in, float* out) {
  const TileSplat<float> s = in_tile(in[0], in[1], Conic<float>{in[2], in[3], in[4]}, in[5]);
  float u, v, t = in[6], t_final = in[7];
  bool live;
  out[0] = power_at(s, in[8], in[9], u, v);
  out[1] = blend_step(in[10], t, t_final, live);
  out[2] = t;
  out[3] = t_final;
}
"""
LEFT = "__global__ void f(const float* in, float* out) { out[0] = in[0] - in[1] * in[2]; }"


def fusible(kernel: str, folder: Path) -> list[str]:
    """Sums in the PTX, one of whose terms is a product, or its negative."""
    source, ptx = folder / "kernel.cu", folder / "kernel.ptx"
    source.write_text(kernel)
    run(
        "nvcc", "-std=c++17", f"-I{RASTERIZER / 'csrc'}", "-O3", "-arch=sm_80", "-fmad=false", "-ptx", source, "-o", ptx
    )
    text = ptx.read_text()
    assert "mul" in text
    products = set(re.findall(r"mul(?:\.rn)?\.f32\s+(%\w+),", text))
    for _ in range(3):  # and what they go through
        products |= {to for to, of in re.findall(r"(?:neg|mov)\.(?:f|b)32\s+(%\w+), (%\w+);", text) if of in products}
    sums = re.findall(r"(?:add|sub)(?:\.rn)?\.f32\s+%\w+, [^;]*;", text)
    return [line for line in sums if products & set(re.findall(r"%\w+", line)[1:])]


@pytest.mark.parametrize("kernel", [TILES, PIXELS], ids=["tiles", "pixels"])
def test_no_product_goes_into_a_sum(kernel: str, tmp_path: Path) -> None:
    assert fusible(kernel, tmp_path) == []


def test_one_that_does_is_found(tmp_path: Path) -> None:
    assert len(fusible(LEFT, tmp_path)) == 1
