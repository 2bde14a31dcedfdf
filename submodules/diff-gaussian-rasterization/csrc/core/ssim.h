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

template <class V>
struct SsimTerms {
  V value;     // SSIM
  V d_mean;    // dSSIM / d(filtered x)
  V d_square;  // dSSIM / d(filtered x^2 + y^2)
  V d_cross;   // dSSIM / d(filtered x y)
};

/// From the filtered images x, y, x^2 + y^2, x y: the denominator needs only the sum of variances.
template <class V>
SPLAT_HD SsimTerms<V> ssim_terms(V mean_x, V mean_y, V square, V cross) {
  const V product = mean_x * mean_y, squares = mean_x * mean_x + mean_y * mean_y;
  const V a1 = 2.f * product + kSsimC1, a2 = 2.f * (cross - product) + kSsimC2;
  const V inverse_b1 = reciprocal(squares + kSsimC1);
  const V inverse_b2 = reciprocal(square - squares + kSsimC2);
  const V value = a1 * inverse_b1 * a2 * inverse_b2;
  const V d_square = -value * inverse_b2;
  const V d_cross = 2.f * a1 * inverse_b1 * inverse_b2;
  V d_mean = 2.f * (mean_y * a2 * inverse_b1 * inverse_b2 - mean_x * value * inverse_b1);
  d_mean -= 2.f * mean_x * d_square + mean_y * d_cross;
  return {value, d_mean, d_square, d_cross};
}

}  // namespace splat
