// 2^x, e^x and log2(x) for a vector type V; every instruction set evaluates the same polynomials.
#pragma once
#include "core/platform.h"

namespace splat {

/// x[k] <- 2^x[k] for K independent arguments, maximal relative error 1.5e-7 (degree 5 minimax).
/// Side by side because the latency of one chain would fill the scheduler.
template <int K, class V>
SPLAT_HD void exp2_each(V* x) {
  constexpr float c[6] = {1.87757646e-3f, 8.98934063e-3f, 5.58263175e-2f,
                          2.40153611e-1f, 6.93153083e-1f, 9.99999940e-1f};
  V f[K], p[K];
  for (int k = 0; k < K; k++) {
    f[k] = fraction(x[k]);
    p[k] = f[k] * c[0] + c[1];
  }
  for (int i = 2; i < 6; i++) {
    for (int k = 0; k < K; k++) p[k] = p[k] * f[k] + c[i];
  }
  for (int k = 0; k < K; k++) x[k] = scale_by_floor_exponent(p[k], x[k]);
}

/// e^x for finite x; saturates at 2^126 and (about) 2^-126, NaN becomes the lower bound.
template <class V>
SPLAT_HD V exp_bounded(V x) {
  V y = min(max(x * 1.44269504f, V(-126.f)), V(126.f));
  exp2_each<1>(&y);
  return y;
}

/// log2(x) for normal x > 0, absolute error about 1e-7 near 1.
template <class V>
SPLAT_HD V log2_positive(V x) {
  V exponent, m;
  split_exponent(x, exponent, m);  // m in [1, 2)
  const auto upper = V(1.41421356f) <= m;
  m = select(upper, m * 0.5f, m);
  exponent = exponent + zero_unless(upper, V(1.f));
  constexpr float two_log2e = 2.885390082f;  // log2(m) = 2 log2(e) artanh((m - 1) / (m + 1))
  const V t = (m - 1.f) / (m + 1.f), t2 = t * t;
  V p = t2 * (two_log2e / 9) + two_log2e / 7;
  p = p * t2 + two_log2e / 5;
  p = p * t2 + two_log2e / 3;
  p = p * t2 + two_log2e;
  return p * t + exponent;
}

}  // namespace splat
