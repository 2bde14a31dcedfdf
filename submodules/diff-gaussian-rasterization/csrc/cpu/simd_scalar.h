// Sixteen float lanes as an array and plain loops: runs on any processor and defines what the
// vector versions mean.
#pragma once
#if defined(__SSE__)
#include <xmmintrin.h>
#endif

#include <cmath>
#include <cstdint>
#include <cstring>

namespace splat::scalar {

#define SIMD_INLINE inline __attribute__((always_inline))
#define EACH_LANE for (int k = 0; k < 16; k++)

struct Mask {
  int32_t v[16];  // -1 or 0
};
SIMD_INLINE Mask operator&(Mask a, Mask b) {
  EACH_LANE a.v[k] &= b.v[k];
  return a;
}
SIMD_INLINE Mask operator|(Mask a, Mask b) {
  EACH_LANE a.v[k] |= b.v[k];
  return a;
}
SIMD_INLINE unsigned to_bits(Mask a) {
  unsigned bits = 0;
  EACH_LANE bits |= static_cast<unsigned>(a.v[k] & 1) << k;
  return bits;
}
SIMD_INLINE bool any(Mask a) { return to_bits(a) != 0; }
SIMD_INLINE Mask mask_from_bits(unsigned bits) {
  Mask m;
  EACH_LANE m.v[k] = -static_cast<int32_t>(bits >> k & 1u);
  return m;
}
SIMD_INLINE Mask first_lanes(int n) {  // lanes 0 .. n - 1
  Mask m;
  EACH_LANE m.v[k] = k < n ? -1 : 0;
  return m;
}

struct VecI {
  int32_t v[16];
  VecI() = default;
  SIMD_INLINE VecI(int x) { EACH_LANE v[k] = x; }
  friend SIMD_INLINE VecI operator+(VecI a, VecI b) {
    EACH_LANE a.v[k] += b.v[k];
    return a;
  }
  friend SIMD_INLINE VecI operator-(VecI a, VecI b) {
    EACH_LANE a.v[k] -= b.v[k];
    return a;
  }
  friend SIMD_INLINE VecI operator*(VecI a, VecI b) {
    EACH_LANE a.v[k] *= b.v[k];
    return a;
  }
  friend SIMD_INLINE Mask operator<(VecI a, VecI b) {
    Mask m;
    EACH_LANE m.v[k] = a.v[k] < b.v[k] ? -1 : 0;
    return m;
  }
};
SIMD_INLINE VecI lane_index() {
  VecI r;
  EACH_LANE r.v[k] = k;
  return r;
}
SIMD_INLINE VecI load_int(const int* p) {
  VecI r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
SIMD_INLINE VecI shift_right(VecI a, unsigned n) {
  EACH_LANE a.v[k] >>= n;
  return a;
}
SIMD_INLINE VecI min(VecI a, VecI b) {
  EACH_LANE a.v[k] = b.v[k] < a.v[k] ? b.v[k] : a.v[k];
  return a;
}
SIMD_INLINE VecI max(VecI a, VecI b) {
  EACH_LANE a.v[k] = b.v[k] > a.v[k] ? b.v[k] : a.v[k];
  return a;
}
SIMD_INLINE VecI select(Mask m, VecI a, VecI b) {
  EACH_LANE a.v[k] = m.v[k] ? a.v[k] : b.v[k];
  return a;
}
SIMD_INLINE void store(int* p, VecI a) { std::memcpy(p, a.v, sizeof a.v); }

struct VecF {
  float v[16];
  VecF() = default;
  SIMD_INLINE VecF(float x) { EACH_LANE v[k] = x; }
  friend SIMD_INLINE VecF operator+(VecF a, VecF b) {
    EACH_LANE a.v[k] += b.v[k];
    return a;
  }
  friend SIMD_INLINE VecF operator-(VecF a, VecF b) {
    EACH_LANE a.v[k] -= b.v[k];
    return a;
  }
  friend SIMD_INLINE VecF operator*(VecF a, VecF b) {
    EACH_LANE a.v[k] *= b.v[k];
    return a;
  }
  friend SIMD_INLINE VecF operator/(VecF a, VecF b) {
    EACH_LANE a.v[k] /= b.v[k];
    return a;
  }
  friend SIMD_INLINE VecF operator-(VecF a) {
    EACH_LANE a.v[k] = -a.v[k];
    return a;
  }
  friend SIMD_INLINE VecF& operator+=(VecF& a, VecF b) { return a = a + b; }
  friend SIMD_INLINE VecF& operator-=(VecF& a, VecF b) { return a = a - b; }
  friend SIMD_INLINE VecF& operator*=(VecF& a, VecF b) { return a = a * b; }
  friend SIMD_INLINE Mask operator<(VecF a, VecF b) {
    Mask m;
    EACH_LANE m.v[k] = a.v[k] < b.v[k] ? -1 : 0;
    return m;
  }
  friend SIMD_INLINE Mask operator<=(VecF a, VecF b) {
    Mask m;
    EACH_LANE m.v[k] = a.v[k] <= b.v[k] ? -1 : 0;
    return m;
  }
};
SIMD_INLINE VecF load(const float* p) {
  VecF r;
  std::memcpy(r.v, p, sizeof r.v);
  return r;
}
SIMD_INLINE VecF load_first(const float* p, int n) {
  VecF r;
  EACH_LANE r.v[k] = k < n ? p[k] : 0.f;
  return r;
}
SIMD_INLINE void store(float* p, VecF a) { std::memcpy(p, a.v, sizeof a.v); }
SIMD_INLINE void store_first(float* p, int n, VecF a) { EACH_LANE if (k < n) p[k] = a.v[k]; }
SIMD_INLINE VecF gather(const float* p, VecI index) {
  VecF r;
  EACH_LANE r.v[k] = p[index.v[k]];
  return r;
}
SIMD_INLINE VecF select(Mask m, VecF a, VecF b) {
  EACH_LANE a.v[k] = m.v[k] ? a.v[k] : b.v[k];
  return a;
}
SIMD_INLINE VecF zero_unless(Mask m, VecF a) {
  EACH_LANE a.v[k] = m.v[k] ? a.v[k] : 0.f;
  return a;
}
SIMD_INLINE VecF negative_multiply_add(VecF a, VecF b, VecF c) { return c - a * b; }
// Like the instructions: the second argument where either is NaN.
SIMD_INLINE VecF min(VecF a, VecF b) {
  EACH_LANE a.v[k] = a.v[k] < b.v[k] ? a.v[k] : b.v[k];
  return a;
}
SIMD_INLINE VecF max(VecF a, VecF b) {
  EACH_LANE a.v[k] = a.v[k] > b.v[k] ? a.v[k] : b.v[k];
  return a;
}
SIMD_INLINE VecF abs(VecF a) {
  EACH_LANE a.v[k] = __builtin_fabsf(a.v[k]);
  return a;
}
SIMD_INLINE VecF sqrt(VecF a) {
  EACH_LANE a.v[k] = __builtin_sqrtf(a.v[k]);
  return a;
}
SIMD_INLINE VecF floor(VecF a) {
  EACH_LANE a.v[k] = __builtin_floorf(a.v[k]);
  return a;
}
SIMD_INLINE VecF ceil(VecF a) {
  EACH_LANE a.v[k] = __builtin_ceilf(a.v[k]);
  return a;
}
SIMD_INLINE VecF fraction(VecF a) { return a - floor(a); }
SIMD_INLINE VecF with_sign_of(VecF magnitude, VecF sign) {
  EACH_LANE magnitude.v[k] = __builtin_copysignf(magnitude.v[k], sign.v[k]);
  return magnitude;
}
SIMD_INLINE VecF reciprocal(VecF a) { return VecF(1.f) / a; }
SIMD_INLINE VecI truncate(VecF a) {
  VecI r;
  EACH_LANE r.v[k] = static_cast<int32_t>(a.v[k]);
  return r;
}
SIMD_INLINE VecF to_float(VecI a) {
  VecF r;
  EACH_LANE r.v[k] = static_cast<float>(a.v[k]);
  return r;
}
SIMD_INLINE VecI float_bits(VecF a) {
  VecI r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
SIMD_INLINE VecF from_bits(VecI a) {
  VecF r;
  std::memcpy(r.v, a.v, sizeof r.v);
  return r;
}
SIMD_INLINE VecF scale_by_floor_exponent(VecF a, VecF e) {  // a 2^floor(e), 0 below 2^-126
  VecI biased = truncate(floor(max(min(e, 127.f), -127.f))) + 127;
  EACH_LANE biased.v[k] = static_cast<int32_t>(static_cast<uint32_t>(biased.v[k]) << 23);
  return a * from_bits(biased);
}
SIMD_INLINE void split_exponent(VecF x, VecF& exponent, VecF& mantissa) {  // mantissa in [1, 2)
  VecI bits = float_bits(x);
  exponent = to_float(shift_right(bits, 23) - 127);
  EACH_LANE bits.v[k] = (bits.v[k] & 0x7fffff) | 0x3f800000;
  mantissa = from_bits(bits);
}

// Parts of a vector for loops with many sums: here the whole.
constexpr int kParts = 1, kPartLanes = 16;
using PartF = VecF;
using PartI = VecI;
using PartMask = Mask;
SIMD_INLINE PartF load_part(const float* p) { return load(p); }
SIMD_INLINE PartF& part(VecF& x, int) { return x; }
SIMD_INLINE PartI& part(VecI& x, int) { return x; }

/// Transpose the 16 x 16 matrix held in r[0..15].
SIMD_INLINE void transpose16(VecF* r) {
  for (int i = 0; i < 16; i++) {
    for (int j = 0; j < i; j++) {
      const float t = r[i].v[j];
      r[i].v[j] = r[j].v[i];
      r[j].v[i] = t;
    }
  }
}

constexpr int kSumLane[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

/// Lane sums of ten vectors; the sum of v[k] is lane kSumLane[k].
SIMD_INLINE VecF sum_lanes10(const VecF* v) {
  VecF r = 0.f;
  for (int q = 0; q < 10; q++) {
    float half[8];
    for (int k = 0; k < 8; k++) half[k] = v[q].v[k] + v[q].v[k + 8];
    r.v[q] =
        ((half[0] + half[4]) + (half[1] + half[5])) + ((half[2] + half[6]) + (half[3] + half[7]));
  }
  return r;
}

SIMD_INLINE int list_hits(const uint8_t* rows, uint8_t bit, int n, uint8_t* hits) {
  int count = 0;
  for (int i = 0; i < n; i++) {
    hits[count] = static_cast<uint8_t>(i);
    count += (rows[i] & bit) != 0;
  }
  return count;
}

struct FlushDenormals {
#if defined(__SSE__)
  unsigned old = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(old | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(old); }
#endif
};

#undef EACH_LANE

}  // namespace splat::scalar
#include "cpu/simd_generic.h"
