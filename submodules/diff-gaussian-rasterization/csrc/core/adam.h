// Adam (Kingma & Ba 2015, Algorithm 1), with the arithmetic of torch.optim.Adam without decay.
#pragma once
#include "core/platform.h"

namespace splat {

/// The factors of one step, prepared in double: rate = lr / (1 - beta1^t),
/// inverse_root = 1 / sqrt(1 - beta2^t).
struct AdamFactors {
  float rate, inverse_root, beta1, beta2, one_minus_beta1, one_minus_beta2, eps;
};

template <class V>
SPLAT_HD void adam_step(const AdamFactors& f, V gradient, V& parameter, V& mean, V& square) {
  mean = f.beta1 * mean + f.one_minus_beta1 * gradient;
  square = f.beta2 * square + f.one_minus_beta2 * gradient * gradient;
  parameter -= f.rate * mean / (sqrt(square) * f.inverse_root + f.eps);
}

}  // namespace splat
