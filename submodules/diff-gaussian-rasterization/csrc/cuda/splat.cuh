// A record at the pixels of a tile: core/tiles.h and this are what forward, backward and
// contributions must share, so that they agree bit for bit on what reaches a pixel.
#pragma once
#include "core/tiles.h"
#include "cuda/device.cuh"

namespace splat::cuda {

constexpr int kTileWarps = kTilePixels / kWarp;

using TileSplat = splat::TileSplat<float>;

/// tile_x, tile_y: the tile's first pixel.
__device__ inline TileSplat in_tile(const Record& r, float tile_x, float tile_y) {
  return splat::in_tile(r.x - tile_x, r.y - tile_y, Conic<float>{r.a, r.b, r.c}, r.log2_opacity);
}

/// Warps of the tile whose pixels the splat may reach. (x, y): its centre, from the tile's corner.
__device__ inline unsigned warps_met(const Record& r, float x, float y) {
  const float size = kTile;
  const NearEllipse<float> e =
      near_ellipse(Conic<float>{r.a, r.b, r.c}, r.extent, fabsf(x) + size, fabsf(y) + size);
  unsigned met = 0;
#pragma unroll
  for (int warp = 0; warp < kTileWarps; warp++) {
    const float left = static_cast<float>(tile_pixel_x(warp * kWarp)) - x;
    const float top = static_cast<float>(tile_pixel_y(warp * kWarp)) - y;
    if (meets_rectangle(e, left, left + 7.f, top, top + 3.f)) met |= 1u << warp;
  }
  return met;
}

/// 2^x, maximal relative error 2^-22; 0 where that is denormal.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Alpha before the cap; 0 where the splat does not contribute, without a branch.
__device__ inline float raw_alpha(float power) {
  return exp2_fast(kLog2AlphaMin <= power ? power : -1000.f);
}

}  // namespace splat::cuda
