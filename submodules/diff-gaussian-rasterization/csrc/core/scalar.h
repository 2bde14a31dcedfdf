// What the formulas use beyond + - * / for V = float or double: one Gaussian a thread on a GPU,
// double in tests. Include it before the formulas: names are looked up where they are used, and
// nothing else leads the compiler to operations on built-in types. (Vector types bring their own.)
#pragma once
#include <math.h>

#include "core/platform.h"

namespace splat {

template <class V>
SPLAT_HD V select(bool condition, V a, V b) {
  return condition ? a : b;
}
template <class V>
SPLAT_HD V zero_unless(bool condition, V a) {
  return condition ? a : V(0);
}
// Like the vector instructions: the second argument where either is NaN.
template <class V>
SPLAT_HD V min(V a, V b) {
  return a < b ? a : b;
}
template <class V>
SPLAT_HD V max(V a, V b) {
  return a > b ? a : b;
}
template <class V>
SPLAT_HD V abs(V a) {
  return ::fabs(a);
}
template <class V>
SPLAT_HD V sqrt(V a) {
  return ::sqrt(a);
}
template <class V>
SPLAT_HD V ceil(V a) {
  return ::ceil(a);
}
template <class V>
SPLAT_HD V fraction(V a) {
  return a - ::floor(a);
}
template <class V>
SPLAT_HD V negative_multiply_add(V a, V b, V c) {  // c - a b, rounded once wherever it is used
  return ::fma(-a, b, c);
}
template <class V>
SPLAT_HD V reciprocal(V a) {
  return V(1) / a;
}
#if defined(__CUDA_ARCH__)
// One instruction, good to one unit in the last place.
__device__ __forceinline__ float reciprocal(float a) {
  float r;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(r) : "f"(a));
  return r;
}
#endif
template <class V>
SPLAT_HD V scale_by_floor_exponent(V a, V e) {  // a 2^floor(e)
  return ::ldexp(a, static_cast<int>(::floor(min(max(e, V(-127)), V(127)))));
}
template <class V>
SPLAT_HD void split_exponent(V x, V& exponent, V& mantissa) {  // mantissa in [1, 2)
  int e = 0;
  mantissa = 2 * ::frexp(x, &e);
  exponent = static_cast<V>(e - 1);
}

}  // namespace splat
