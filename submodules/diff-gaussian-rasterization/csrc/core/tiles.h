// A splat at the pixels of a tile; which tiles, and which blocks of their pixels, it meets. For one
// splat a thread: GPUs, and tests.
//
// The tests of tiles and blocks are exact but for rounding, which is outwards: what they leave out
// fails the test of a single pixel, with its rounding, too. So they decide about time alone, and
// the passes of an image cannot disagree.
#pragma once
#include "core/scalar.h"
// (the operations on built-in types come first)
#include "core/blend.h"
#include "core/conic.h"
#include "core/platform.h"

namespace splat {

/// u and v at the tile's first pixel, and how they grow from there.
template <class V>
struct TileSplat {
  V u, v, a, b, c, log2_opacity;
};

/// x, y: the splat's centre, from the tile's first pixel [px]. Rounding is spelled out, here and in
/// power_at, because compilers fuse a product and a sum as they like: forward and backward pass
/// must find the same bits.
template <class V>
SPLAT_HD TileSplat<V> in_tile(V x, V y, const Conic<V>& q, V log2_opacity) {
  return {::fma(q.a, -x, q.b * -y), q.c * -y, q.a, q.b, q.c, log2_opacity};
}

/// log2(alpha) before the cap, at pixel (x, y) of the tile; also u and v there.
template <class V>
SPLAT_HD V power_at(const TileSplat<V>& s, V x, V y, V& u, V& v) {
  u = ::fma(s.a, x, ::fma(s.b, y, s.u));
  v = ::fma(s.c, y, s.v);
  return log2_alpha(u, v, s.log2_opacity);
}

constexpr float kCullEdge = 0.001f;      // [px]
constexpr float kCullRounding = 1e-6f;   // relative; float32 has 6e-8 for each of a few operations
constexpr float kPowerRounding = 4e-6f;  // of log2(alpha), next to the threshold
constexpr float kFarAway = 1e9f;         // [px]: any image is smaller, and it fits an int

/// The extent within which pixels may pass, by their rounded log2(alpha).
template <class V>
SPLAT_HD V cull_extent(V extent) {
  return extent + ::fma(V(kCullRounding), extent, V(kPowerRounding));
}

/// A splat's ellipse around (x, y) [px], with cull_extent. Rounding is spelled out here too: tiles
/// are counted and listed by different kernels, which must find the same ones.
template <class V>
struct CullEllipse {
  V x, y, extent, half_height, rightmost_dy;
  V c_squared, inverse_a, b_over_a;
  V edge_x, edge_y;  // [px] outward rounding
};

template <class V>
SPLAT_HD CullEllipse<V> cull_ellipse(V x, V y, const Conic<V>& q, V extent) {
  CullEllipse<V> e;
  e.x = x;
  e.y = y;
  e.extent = cull_extent(extent);
  e.half_height = sqrt(e.extent) / q.c;
  e.c_squared = q.c * q.c;
  e.rightmost_dy = -e.half_height * (q.b / sqrt(::fma(q.b, q.b, e.c_squared)));
  e.inverse_a = V(1.f) / q.a;
  e.b_over_a = q.b * e.inverse_a;
  const V far_x = ::fma(abs(e.b_over_a), e.half_height, abs(x));
  e.edge_x = ::fma(V(kCullRounding), far_x, V(kCullEdge));
  e.edge_y = ::fma(V(kCullRounding), abs(y) + e.half_height, V(kCullEdge));
  return e;
}

/// Whole numbers from first to last; none where last < first.
struct Span {
  int first, last;
};

SPLAT_HD int span_size(Span s) { return s.last < s.first ? 0 : s.last - s.first + 1; }

/// Tiles of `tile` pixels, of a line of `size` pixels, with a pixel in [low, high].
template <class V>
SPLAT_HD Span tiles_between(V low, V high, int size, int tile) {
  const int first = static_cast<int>(ceil(min(max(low, V(0.f)), V(kFarAway))));
  const int last = static_cast<int>(::floor(max(min(high, V(kFarAway)), V(-1.f))));
  const int end = last < size ? last : size - 1;
  if (end < first) return {0, -1};
  return {first / tile, end / tile};
}

/// Rows of tiles that the ellipse reaches.
template <class V>
SPLAT_HD Span tile_rows(const CullEllipse<V>& e, int height, int tile) {
  const V reach = e.half_height + e.edge_y;
  return tiles_between(e.y - reach, e.y + reach, height, tile);
}

/// Columns of tiles that it meets in one of these rows.
template <class V>
SPLAT_HD Span tile_columns(const CullEllipse<V>& e, int row, int width, int height, int tile) {
  const int top = row * tile, bottom = top + tile < height ? top + tile - 1 : height - 1;
  const V low = max(static_cast<V>(top) - e.y, -e.half_height);
  const V high = min(static_cast<V>(bottom) - e.y, e.half_height);
  V left, right;
  band_interval(low, high, e.rightmost_dy, e.extent, e.c_squared, e.inverse_a, e.b_over_a, left,
                right);
  return tiles_between(e.x + left - e.edge_x, e.x + right + e.edge_x, width, tile);
}

/// For tests of rectangles close by: d = pixel - centre.
template <class V>
struct NearEllipse {
  V a, b, c;
  V dy_over_dx, dx_over_dy;  // along a line of constant dx (dy), where u^2 + v^2 is least
  V reach;                   // u^2 + v^2 up to which a pixel may pass
};

/// far_x, far_y: the largest |dx|, |dy| of any pixel that is tested, which bound its rounding.
template <class V>
SPLAT_HD NearEllipse<V> near_ellipse(const Conic<V>& q, V extent, V far_x, V far_y) {
  const V rounding = kCullRounding * (q.a * far_x + (abs(q.b) + q.c) * far_y);
  const V radius = sqrt(cull_extent(max(extent, V(0.f)))) + rounding;
  return {q.a, q.b, q.c, -q.a * q.b / (q.b * q.b + q.c * q.c), -q.b / q.a, radius * radius};
}

template <class V>
SPLAT_HD V whitened_distance(const NearEllipse<V>& e, V dx, V dy) {
  const V u = e.a * dx + e.b * dy, v = e.c * dy;
  return u * u + v * v;
}

/// Whether it meets the rectangle [left, right] x [top, bottom], relative to its centre. The least
/// u^2 + v^2 lies on a side that faces the centre: the nearer vertical or horizontal one.
template <class V>
SPLAT_HD bool meets_rectangle(const NearEllipse<V>& e, V left, V right, V top, V bottom) {
  const V zero = 0.f;
  const V dx = min(max(zero, left), right), dy = min(max(zero, top), bottom);
  const V along_y = min(max(dx * e.dy_over_dx, top), bottom);
  const V along_x = min(max(dy * e.dx_over_dy, left), right);
  return min(whitened_distance(e, dx, along_y), whitened_distance(e, along_x, dy)) <= e.reach;
}

}  // namespace splat
