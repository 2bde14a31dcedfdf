// SSIM at one pixel and its derivatives (Wang et al. 2004; 11x11 Gaussian window, sigma 1.5).
#pragma once
#include "core/platform.h"

namespace splat {

constexpr float kSsimC1 = 1e-4f, kSsimC2 = 9e-4f;
constexpr int kSsimRadius = 5;
/// Half of the window exp(-i^2 / 4.5), normalised to sum 1 over the 11 taps.
constexpr float kSsimWindow[6] = {0.2660117248617943f,   0.21300553771125366f,
                                  0.1093606895097f,      0.03600077212843082f,
                                  0.007598758135239184f, 0.0010283800844791099f};

/// SSIM and its derivatives, scaled so that the pixel's gradient needs the fewest operations.
template <class V>
struct SsimTerms {
  V value;   // SSIM
  V mean;    // 1/2 dSSIM / d(filtered x)
  V square;  // -dSSIM / d(filtered x^2 + y^2)
  V cross;   // 1/2 dSSIM / d(filtered x y)
};

/// From the filtered images x, y, x^2 + y^2, x y: the denominator needs only the sum of variances.
template <class V>
SPLAT_HD SsimTerms<V> ssim_terms(V mean_x, V mean_y, V square, V cross) {
  const V product = mean_x * mean_y, squares = mean_x * mean_x + mean_y * mean_y;
  const V inverse_b1 = reciprocal(squares + kSsimC1);
  const V inverse_b2 = reciprocal(square - squares + kSsimC2);
  const V luminance = (2.f * product + kSsimC1) * inverse_b1;
  const V structure = (2.f * (cross - product) + kSsimC2) * inverse_b2;
  const V value = luminance * structure, by_cross = luminance * inverse_b2;
  const V by_mean =
      mean_y * (structure * inverse_b1 - by_cross) + mean_x * (value * (inverse_b2 - inverse_b1));
  return {value, by_mean, value * inverse_b2, by_cross};
}

/// The pixel's share of 1 - c (1 - SSIM), c its weight.
template <class V>
SPLAT_HD void weigh(SsimTerms<V>& t, V weight) {
  t = {1.f - weight * (1.f - t.value), weight * t.mean, weight * t.square, weight * t.cross};
}

/// Half the derivative of the sum of SSIM by a pixel x, from the terms filtered once more.
template <class V>
SPLAT_HD V half_ssim_gradient(V x, V y, V mean, V square, V cross) {
  return mean + y * cross - x * square;
}

}  // namespace splat
