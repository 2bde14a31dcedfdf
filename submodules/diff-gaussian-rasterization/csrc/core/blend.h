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

/// Backward, front to back. `colour_gradient` = (colour, depth) . (their gradients) of this splat;
/// `rest` = what is still to come, background included, times the gradient: one scalar a pixel, so
/// that nothing per splat is stored and T is never divided back. raw_alpha is 0 where skipped.
/// The cap at 0.99 is straight-through, as in the original.
template <class V>
SPLAT_HD BlendGradient<V> blend_step_gradient(V raw_alpha, V colour_gradient, V& t, V& rest) {
  const V alpha = min(raw_alpha, V(kAlphaMax));
  const V in_front = t;
  const V behind = negative_multiply_add(in_front, alpha, in_front);
  const auto live = V(kTransmittanceMin) <= behind;
  const V weight = zero_unless(live, in_front * alpha);
  rest = negative_multiply_add(weight, colour_gradient, rest);
  t = behind;
  const V through = negative_multiply_add(rest, reciprocal(behind), colour_gradient);
  return {zero_unless(live, raw_alpha * in_front * through), weight};
}

}  // namespace splat
