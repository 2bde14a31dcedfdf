// What both halves compute: squared distances, the three smallest of them, places along a curve.
//
// Exact in float32: a squared distance is rounded as (dx dx + dy dy) + dz dz everywhere, rounding
// is monotonic, so the distance to a box is never above that to a point inside it, and pruning with
// `<` can only skip points that would not change the three smallest distances. These three *values*
// do not depend on the order in which candidates arrive: hence the same bits for any number of
// threads, and on any device. Nothing here may be contracted to fused operations: the CPU's
// compiler is told so by a flag, nvcc by intrinsics.
#pragma once
#include <string.h>

#include <cstdint>

#if defined(__CUDACC__)
#define KNN_HD __host__ __device__ __forceinline__
#else
#define KNN_HD inline
#endif

namespace knn {

struct Box {
  float low[3], high[3];
};

KNN_HD float sum_of_squares(float x, float y, float z) {
#if defined(__CUDA_ARCH__)
  return __fadd_rn(__fadd_rn(__fmul_rn(x, x), __fmul_rn(y, y)), __fmul_rn(z, z));
#else
  return (x * x + y * y) + z * z;
#endif
}

/// How far apart two intervals are; 0 where they meet.
KNN_HD float gap(float low, float high, float other_low, float other_high) {
  const float below = low - other_high, above = other_low - high;
  const float outside = below > above ? below : above;
  return outside > 0.f ? outside : 0.f;
}

/// Squared distance from a box to a point, never above that of any point inside.
KNN_HD float box_distance(const Box& b, float x, float y, float z) {
  return sum_of_squares(gap(b.low[0], b.high[0], x, x), gap(b.low[1], b.high[1], y, y),
                        gap(b.low[2], b.high[2], z, z));
}

/// Squared distance between two boxes, never above that of any two points inside.
KNN_HD float box_distance(const Box& a, const Box& b) {
  return sum_of_squares(gap(a.low[0], a.high[0], b.low[0], b.high[0]),
                        gap(a.low[1], a.high[1], b.low[1], b.high[1]),
                        gap(a.low[2], a.high[2], b.low[2], b.high[2]));
}

/// The three smallest squared distances so far, ascending.
struct Nearest {
  float first, second, third;
};

/// With d among them: the larger ones are pushed along. (By value: the CPU's compiler vectorises it
/// better than references.)
KNN_HD Nearest inserted(float d, float first, float second, float third) {
  const float after_first = d < first ? first : d;
  const float after_second = after_first < second ? second : after_first;
  return {d < first ? d : first, after_first < second ? after_first : second,
          after_second < third ? after_second : third};
}

/// Mean of as many as there are: fewer than 3 only in sets of fewer than 4 points.
KNN_HD float mean_of(const Nearest& nearest, int neighbours) {
  float sum = 0.f;
  if (neighbours > 0) sum += nearest.first;
  if (neighbours > 1) sum += nearest.second;
  if (neighbours > 2) sum += nearest.third;
  return neighbours > 0 ? sum / static_cast<float>(neighbours) : 0.f;
}

constexpr int kCodeBits = 21;  // of an axis

/// Bit k of the lowest kCodeBits bits becomes bit 3k.
KNN_HD uint64_t spread_bits(uint32_t value) {
  uint64_t x = value & ((1u << kCodeBits) - 1u);
  x = (x | x << 32) & 0x001f00000000ffffull;
  x = (x | x << 16) & 0x001f0000ff0000ffull;
  x = (x | x << 8) & 0x100f00f00f00f00full;
  x = (x | x << 4) & 0x10c30c30c30c30c3ull;
  x = (x | x << 2) & 0x1249249249249249ull;
  return x;
}

/// A number for a finite value: in the same order, and the same one for both zeros.
KNN_HD uint32_t ordered_bits(float value) {
  const float positive_zero = value + 0.f;  // where it is -0
  uint32_t bits;
  memcpy(&bits, &positive_zero, sizeof bits);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/// How many of n ascending values are below `value`.
KNN_HD uint32_t rank_of(uint32_t value, const uint32_t* ascending, uint32_t n) {
  uint32_t first = 0, count = n;
  while (count > 0) {
    const uint32_t half = count / 2;
    if (ascending[first + half] < value) {
      first += half + 1;
      count -= half + 1;
    } else {
      count = half;
    }
  }
  return first;
}

/// By how many bits ranks below n are shortened, so that kCodeBits are enough.
KNN_HD int rank_shift(uint32_t n) {
  int shift = 0;
  while (n > 1 && ((n - 1) >> shift) >> kCodeBits) shift++;
  return shift;
}

}  // namespace knn
