// The screen ellipse in whitened coordinates.
//
// u = a dx + b dy, v = c dy turn the Gaussian into a round one: log2(alpha) = log2(opacity) - u^2 -
// v^2. Five multiply-adds a pixel, no cancellation, and the gradient's moments come out centred.
// The splat contributes (alpha >= 1/255) where u^2 + v^2 <= extent = log2(255 opacity).
#pragma once
#include "core/constants.h"
#include "core/platform.h"
#include "core/projection.h"

namespace splat {

template <class V>
struct Conic {
  V a, b, c;
};

template <class V>
SPLAT_HD Conic<V> whitened_conic(const Projection<V>& p) {
  const V inverse_yy = V(1.f) / p.yy;
  const V a = sqrt(kHalfLog2E * p.yy / p.det);
  return {a, -a * p.xy * inverse_yy, sqrt(kHalfLog2E * inverse_yy)};
}

/// Where the ellipse lies: half sizes of its bounding box [px], and dy of its rightmost point.
template <class V>
struct EllipseBounds {
  V half_width, half_height, rightmost_dy;
};

template <class V>
SPLAT_HD EllipseBounds<V> ellipse_bounds(const Projection<V>& p, const Conic<V>& q, V extent) {
  const V scaled = extent * (1.f / kHalfLog2E);
  const V rightmost = -sqrt(extent) / q.c * q.b / sqrt(q.b * q.b + q.c * q.c);
  return {sqrt(scaled * p.xx), sqrt(scaled * p.yy), rightmost};
}

/// Exact x-interval [left, right], relative to the centre, of the ellipse within dy in [low, high],
/// a band that meets the ellipse. b_over_a = b / a. Rounding is spelled out, see tiles.h.
template <class V>
SPLAT_HD void band_interval(V low, V high, V rightmost_dy, V extent, V c_squared, V inverse_a,
                            V b_over_a, V& left, V& right) {
  const V zero = 0.f;
  const V dy_right = min(max(rightmost_dy, low), high);
  const V dy_left = min(max(-rightmost_dy, low), high);
  const V to_right = negative_multiply_add(c_squared * dy_right, dy_right, extent);
  const V to_left = negative_multiply_add(c_squared * dy_left, dy_left, extent);
  right = negative_multiply_add(b_over_a, dy_right, sqrt(max(to_right, zero)) * inverse_a);
  left = negative_multiply_add(b_over_a, dy_left, -sqrt(max(to_left, zero)) * inverse_a);
}

}  // namespace splat
