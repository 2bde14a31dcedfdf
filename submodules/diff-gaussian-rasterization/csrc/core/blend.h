// One splat at one pixel (or 16): front-to-back alpha blending and its derivative.
//
// A pixel is finished when the next splat would take T below 1e-4. T only falls, so "first time
// below" needs no branch: t runs on, and whatever is added while t is below the limit is masked.
#pragma once
#include "core/constants.h"
#include "core/platform.h"

namespace splat {

/// log2(alpha) before the cap, from whitened coordinates.
template <class V>
SPLAT_HD V log2_alpha(V u, V v, V log2_opacity) {
  return negative_multiply_add(v, v, negative_multiply_add(u, u, log2_opacity));
}

/// Weight of a splat with this (capped) alpha; t becomes the transmittance behind it, t_final the
/// one behind the last splat that was blended, `live` where this one still was.
template <class V, class M>
SPLAT_HD V blend_step(V alpha, V& t, V& t_final, M& live) {
  const V behind = negative_multiply_add(t, alpha, t);
  live = V(kTransmittanceMin) <= behind;
  const V weight = zero_unless(live, t * alpha);
  t_final = select(live, behind, t_final);
  t = behind;
  return weight;
}

template <class V>
struct BlendGradient {
  V power;   // dL/d(ln alpha)
  V weight;  // T alpha, the factor of dL/dcolour
};

/// Backward, back to front. `colour_gradient` = (colour, depth) . (their gradients) of this splat;
/// `rest` = all that lies behind it, background included, times the gradient; t = transmittance
/// behind it, then in front of it. raw_alpha is 0 where the splat was not blended.
///
/// Front to back, `rest` would be the pixel's total less what has been passed, and its rounding,
/// 1e-7 of the total, divided by t: up to 1e4 times larger behind opaque splats. Summed from behind
/// it is good to its own last digits everywhere. The cap at 0.99 is straight-through, as in the
/// original.
template <class V>
SPLAT_HD BlendGradient<V> blend_step_gradient(V raw_alpha, V colour_gradient, V& t, V& rest) {
  const V alpha = min(raw_alpha, V(kAlphaMax));
  const V inverse = reciprocal(V(1.f) - alpha);
  const V power = raw_alpha * inverse * (t * colour_gradient - rest);
  t = t * inverse;
  const V weight = t * alpha;
  rest += weight * colour_gradient;
  return {power, weight};
}

}  // namespace splat
