// One splat at one pixel (or several) on the way back: what it passes on to the splats in front of
// it, and the sums that it gathers.
//
// Letters: u, v = whitened coordinates of the pixel (conic.h), q = dL/dimage there.
#pragma once
#include "core/blend.h"
#include "core/moments.h"
#include "core/platform.h"

namespace splat {

/// What a splat blends into the maps; which of it is used depends on the level.
template <class V>
struct Features {
  V red, green, blue, inverse_depth, depth, normal[3];
};

/// What one blends times the gradient of the other.
template <int kLevel, class V>
SPLAT_HD V dot_features(const Features<V>& splat, const Features<V>& q) {
  V sum = splat.red * q.red + splat.green * q.green + splat.blue * q.blue;
  if (kLevel >= kInverse) sum += splat.inverse_depth * q.inverse_depth;
  if (kLevel == kFull) {
    sum += splat.depth * q.depth;
    for (int k = 0; k < 3; k++) sum += splat.normal[k] * q.normal[k];
  }
  return sum;
}

/// All of a pixel that lies behind a splat: transmittance, and its part of the image times q,
/// background included.
template <class V>
struct Behind {
  V t, rest;
};

/// Moves `behind` in front of the splat, whose alpha before the cap is raw_alpha or, where it was
/// not blended, 0; adds what the pixel gives to its sums (in the order of Moment: ten, or 16 at the
/// full level). b, c: of the whitened conic.
template <int kLevel, class V>
SPLAT_HD void pixel_gradient(const Features<V>& splat, const Features<V>& q, V b, V c, V u, V v,
                             V raw_alpha, Behind<V>& behind, V* sum) {
  const BlendGradient<V> g =
      blend_step_gradient(raw_alpha, dot_features<kLevel>(splat, q), behind.t, behind.rest);
  const V gu = g.power * u, gv = g.power * v;
  sum[kSum] += g.power;
  sum[kU] += gu;
  sum[kV] += gv;
  sum[kUU] += gu * u;
  sum[kUV] += gu * v;
  sum[kVV] += gv * v;
  sum[kRed] += g.weight * q.red;
  sum[kGreen] += g.weight * q.green;
  sum[kBlue] += g.weight * q.blue;
  if (kLevel >= kInverse) sum[kInverseDepth] += g.weight * q.inverse_depth;
  if (kLevel == kFull) {
    sum[kDepth] += g.weight * q.depth;
    for (int k = 0; k < 3; k++) sum[kNormal + k] += g.weight * q.normal[k];
    sum[kAbsoluteX] += abs(gu);
    sum[kAbsoluteY] += abs(b * gu + c * gv);
  }
}

}  // namespace splat
