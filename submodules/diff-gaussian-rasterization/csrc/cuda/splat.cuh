// A record at the pixels of a tile. Forward, backward and contributions must agree bit for bit on
// which pixels a splat reaches and how opaque it is there: rounding is spelled out here.
#pragma once
#include "core/scalar.h"
// (the operations on built-in types come first)
#include "core/blend.h"
#include "cuda/device.cuh"

namespace splat::cuda {

/// u and v at the tile's first pixel instead of the record's position.
struct TileSplat {
  float u, v, a, b, c, log2_opacity;
};

/// tile_x, tile_y: the tile's first pixel.
__device__ inline TileSplat in_tile(const Record& r, float tile_x, float tile_y) {
  const float dx = __fsub_rn(tile_x, r.x), dy = __fsub_rn(tile_y, r.y);
  return {
      __fmaf_rn(r.a, dx, __fmul_rn(r.b, dy)), __fmul_rn(r.c, dy), r.a, r.b, r.c, r.log2_opacity};
}

/// log2(alpha) before the cap, at pixel (x, y) of the tile; also u and v there.
__device__ inline float power_at(const TileSplat& s, float x, float y, float& u, float& v) {
  u = __fmaf_rn(s.a, x, __fmaf_rn(s.b, y, s.u));
  v = __fmaf_rn(s.c, y, s.v);
  return log2_alpha(u, v, s.log2_opacity);
}

/// 2^x, maximal relative error 2^-22; 0 where that is denormal.
__device__ inline float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

/// Alpha before the cap; 0 where the splat does not contribute.
__device__ inline float raw_alpha(float power) {
  return kLog2AlphaMin <= power ? exp2_fast(power) : 0.f;
}

}  // namespace splat::cuda
