// Sixteen float lanes in two AVX registers. The interface is that of simd_scalar.h.
// A struct of two registers: GCC keeps a 64-byte vector type in memory without AVX-512.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace splat::avx2 {

#define SIMD_INLINE inline __attribute__((always_inline))

struct Mask {
  __m256i a, b;  // all bits of a lane set or none
};
SIMD_INLINE Mask operator&(Mask x, Mask y) {
  return {_mm256_and_si256(x.a, y.a), _mm256_and_si256(x.b, y.b)};
}
SIMD_INLINE Mask operator|(Mask x, Mask y) {
  return {_mm256_or_si256(x.a, y.a), _mm256_or_si256(x.b, y.b)};
}
SIMD_INLINE unsigned to_bits(Mask x) {
  const int lower = _mm256_movemask_ps(_mm256_castsi256_ps(x.a));
  const int upper = _mm256_movemask_ps(_mm256_castsi256_ps(x.b));
  return static_cast<unsigned>(lower | upper << 8);
}
SIMD_INLINE bool any(Mask x) {
  return !_mm256_testz_si256(_mm256_or_si256(x.a, x.b), _mm256_or_si256(x.a, x.b));
}
SIMD_INLINE Mask mask_from_bits(unsigned bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lower = _mm256_set1_epi32(static_cast<int>(bits));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(bits >> 8));
  return {_mm256_cmpeq_epi32(_mm256_and_si256(lower, lane), lane),
          _mm256_cmpeq_epi32(_mm256_and_si256(upper, lane), lane)};
}
SIMD_INLINE Mask first_lanes(int n) { return mask_from_bits(n >= 16 ? 0xffffu : (1u << n) - 1u); }

struct VecI {
  __m256i a, b;
  VecI() = default;
  SIMD_INLINE VecI(__m256i x, __m256i y) : a(x), b(y) {}
  SIMD_INLINE VecI(int x) : a(_mm256_set1_epi32(x)), b(_mm256_set1_epi32(x)) {}
  friend SIMD_INLINE VecI operator+(VecI x, VecI y) {
    return {_mm256_add_epi32(x.a, y.a), _mm256_add_epi32(x.b, y.b)};
  }
  friend SIMD_INLINE VecI operator-(VecI x, VecI y) {
    return {_mm256_sub_epi32(x.a, y.a), _mm256_sub_epi32(x.b, y.b)};
  }
  friend SIMD_INLINE VecI operator*(VecI x, VecI y) {
    return {_mm256_mullo_epi32(x.a, y.a), _mm256_mullo_epi32(x.b, y.b)};
  }
  friend SIMD_INLINE Mask operator<(VecI x, VecI y) {
    return {_mm256_cmpgt_epi32(y.a, x.a), _mm256_cmpgt_epi32(y.b, x.b)};
  }
};
SIMD_INLINE VecI lane_index() {
  return {_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
          _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
SIMD_INLINE VecI load_int(const int* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)),
          _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 8))};
}
SIMD_INLINE VecI shift_right(VecI x, unsigned n) {
  const int count = static_cast<int>(n);
  return {_mm256_srai_epi32(x.a, count), _mm256_srai_epi32(x.b, count)};
}
SIMD_INLINE VecI min(VecI x, VecI y) {
  return {_mm256_min_epi32(x.a, y.a), _mm256_min_epi32(x.b, y.b)};
}
SIMD_INLINE VecI max(VecI x, VecI y) {
  return {_mm256_max_epi32(x.a, y.a), _mm256_max_epi32(x.b, y.b)};
}
SIMD_INLINE VecI select(Mask m, VecI x, VecI y) {
  return {_mm256_blendv_epi8(y.a, x.a, m.a), _mm256_blendv_epi8(y.b, x.b, m.b)};
}
SIMD_INLINE void store(int* p, VecI x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b);
}

struct VecF {
  __m256 a, b;
  VecF() = default;
  SIMD_INLINE VecF(__m256 x, __m256 y) : a(x), b(y) {}
  SIMD_INLINE VecF(float x) : a(_mm256_set1_ps(x)), b(_mm256_set1_ps(x)) {}
  friend SIMD_INLINE VecF operator+(VecF x, VecF y) { return {x.a + y.a, x.b + y.b}; }
  friend SIMD_INLINE VecF operator-(VecF x, VecF y) { return {x.a - y.a, x.b - y.b}; }
  friend SIMD_INLINE VecF operator*(VecF x, VecF y) { return {x.a * y.a, x.b * y.b}; }
  friend SIMD_INLINE VecF operator/(VecF x, VecF y) { return {x.a / y.a, x.b / y.b}; }
  friend SIMD_INLINE VecF operator-(VecF x) { return {-x.a, -x.b}; }
  friend SIMD_INLINE VecF& operator+=(VecF& x, VecF y) { return x = x + y; }
  friend SIMD_INLINE VecF& operator-=(VecF& x, VecF y) { return x = x - y; }
  friend SIMD_INLINE VecF& operator*=(VecF& x, VecF y) { return x = x * y; }
  friend SIMD_INLINE Mask operator<(VecF x, VecF y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_LT_OQ)),
            _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_LT_OQ))};
  }
  friend SIMD_INLINE Mask operator<=(VecF x, VecF y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.a, y.a, _CMP_LE_OQ)),
            _mm256_castps_si256(_mm256_cmp_ps(x.b, y.b, _CMP_LE_OQ))};
  }
};
SIMD_INLINE VecF load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
SIMD_INLINE VecF load_first(const float* p, int n) {
  const Mask m = first_lanes(n);
  return {_mm256_maskload_ps(p, m.a), _mm256_maskload_ps(p + 8, m.b)};
}
SIMD_INLINE void store(float* p, VecF x) {
  _mm256_storeu_ps(p, x.a);
  _mm256_storeu_ps(p + 8, x.b);
}
SIMD_INLINE void store_first(float* p, int n, VecF x) {
  const Mask m = first_lanes(n);
  _mm256_maskstore_ps(p, m.a, x.a);
  _mm256_maskstore_ps(p + 8, m.b, x.b);
}
SIMD_INLINE VecF gather(const float* p, VecI index) {
  return {_mm256_i32gather_ps(p, index.a, 4), _mm256_i32gather_ps(p, index.b, 4)};
}
SIMD_INLINE VecF select(Mask m, VecF x, VecF y) {
  return {_mm256_blendv_ps(y.a, x.a, _mm256_castsi256_ps(m.a)),
          _mm256_blendv_ps(y.b, x.b, _mm256_castsi256_ps(m.b))};
}
SIMD_INLINE VecF zero_unless(Mask m, VecF x) {
  return {_mm256_and_ps(x.a, _mm256_castsi256_ps(m.a)),
          _mm256_and_ps(x.b, _mm256_castsi256_ps(m.b))};
}
SIMD_INLINE VecF negative_multiply_add(VecF x, VecF y, VecF z) {  // z - x y
  return {_mm256_fnmadd_ps(x.a, y.a, z.a), _mm256_fnmadd_ps(x.b, y.b, z.b)};
}
SIMD_INLINE VecF min(VecF x, VecF y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
SIMD_INLINE VecF max(VecF x, VecF y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
SIMD_INLINE VecF abs(VecF x) {
  const __m256 sign = _mm256_set1_ps(-0.f);
  return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
SIMD_INLINE VecF sqrt(VecF x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
SIMD_INLINE VecF floor(VecF x) { return {_mm256_floor_ps(x.a), _mm256_floor_ps(x.b)}; }
SIMD_INLINE VecF ceil(VecF x) { return {_mm256_ceil_ps(x.a), _mm256_ceil_ps(x.b)}; }
SIMD_INLINE VecF fraction(VecF x) { return x - floor(x); }
SIMD_INLINE VecF with_sign_of(VecF magnitude, VecF sign) {
  const __m256 bit = _mm256_set1_ps(-0.f);
  return {_mm256_or_ps(magnitude.a, _mm256_and_ps(sign.a, bit)),
          _mm256_or_ps(magnitude.b, _mm256_and_ps(sign.b, bit))};
}
SIMD_INLINE VecF reciprocal(VecF x) {  // 12 bits, then two Newton steps; 1 for 1
  VecF r = {_mm256_rcp_ps(x.a), _mm256_rcp_ps(x.b)};
  r = r * negative_multiply_add(x, r, 1.f) + r;
  return r * negative_multiply_add(x, r, 1.f) + r;
}
SIMD_INLINE VecI truncate(VecF x) { return {_mm256_cvttps_epi32(x.a), _mm256_cvttps_epi32(x.b)}; }
SIMD_INLINE VecF to_float(VecI x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
SIMD_INLINE VecI float_bits(VecF x) { return {_mm256_castps_si256(x.a), _mm256_castps_si256(x.b)}; }
SIMD_INLINE VecF from_bits(VecI x) { return {_mm256_castsi256_ps(x.a), _mm256_castsi256_ps(x.b)}; }
SIMD_INLINE VecF scale_by_floor_exponent(VecF x, VecF e) {  // x 2^floor(e), 0 below 2^-126
  const VecI biased = truncate(floor(max(min(e, 127.f), -127.f))) + 127;
  return x * from_bits({_mm256_slli_epi32(biased.a, 23), _mm256_slli_epi32(biased.b, 23)});
}
SIMD_INLINE void split_exponent(VecF x, VecF& exponent, VecF& mantissa) {  // mantissa in [1, 2)
  const VecI bits = float_bits(x);
  exponent = to_float(shift_right(bits, 23) - 127);
  const __m256i digits = _mm256_set1_epi32(0x7fffff), one = _mm256_set1_epi32(0x3f800000);
  mantissa = from_bits({_mm256_or_si256(_mm256_and_si256(bits.a, digits), one),
                        _mm256_or_si256(_mm256_and_si256(bits.b, digits), one)});
}

SIMD_INLINE void transpose8(__m256* r) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int j = 0; j < 2; j++) {
      u[i + 2 * j] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0x44);
      u[i + 2 * j + 1] = _mm256_shuffle_ps(t[i + j], t[i + j + 2], 0xee);
    }
  }
  for (int i = 0; i < 4; i++) {
    r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

/// Transpose the 16 x 16 matrix held in r[0..15]: four 8 x 8 quadrants.
SIMD_INLINE void transpose16(VecF* r) {
  __m256 top_left[8], top_right[8], bottom_left[8], bottom_right[8];
  for (int i = 0; i < 8; i++) {
    top_left[i] = r[i].a;
    top_right[i] = r[i].b;
    bottom_left[i] = r[i + 8].a;
    bottom_right[i] = r[i + 8].b;
  }
  transpose8(top_left);
  transpose8(top_right);
  transpose8(bottom_left);
  transpose8(bottom_right);
  for (int i = 0; i < 8; i++) {
    r[i] = {top_left[i], bottom_left[i]};
    r[i + 8] = {top_right[i], bottom_right[i]};
  }
}

constexpr int kSumLane[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

SIMD_INLINE __m128 sum_lanes4(VecF p, VecF q, VecF r, VecF s) {
  const __m256 pq = _mm256_hadd_ps(_mm256_add_ps(p.a, p.b), _mm256_add_ps(q.a, q.b));
  const __m256 rs = _mm256_hadd_ps(_mm256_add_ps(r.a, r.b), _mm256_add_ps(s.a, s.b));
  const __m256 sums = _mm256_hadd_ps(pq, rs);
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

/// Lane sums of ten vectors; the sum of v[k] is lane kSumLane[k].
SIMD_INLINE VecF sum_lanes10(const VecF* v) {
  const __m128 first = sum_lanes4(v[0], v[1], v[2], v[3]);
  const __m128 second = sum_lanes4(v[4], v[5], v[6], v[7]);
  const __m128 third = sum_lanes4(v[8], v[9], v[8], v[9]);
  const __m256 zero = _mm256_setzero_ps();
  return {_mm256_insertf128_ps(_mm256_castps128_ps256(first), second, 1),
          _mm256_insertf128_ps(zero, _mm_movelh_ps(third, _mm_setzero_ps()), 0)};
}

SIMD_INLINE int list_hits(const uint8_t* rows, uint8_t bit, int n, uint8_t* hits) {
  const __m256i wanted = _mm256_set1_epi8(static_cast<char>(bit));
  int count = 0;
  for (int i = 0; i < n; i += 32) {
    const __m256i chunk = _mm256_load_si256(reinterpret_cast<const __m256i*>(rows + i));
    const __m256i equal = _mm256_cmpeq_epi8(_mm256_and_si256(chunk, wanted), wanted);
    uint32_t hit = static_cast<uint32_t>(_mm256_movemask_epi8(equal));
    if (n - i < 32) hit &= (1u << (n - i)) - 1u;
    for (; hit; hit &= hit - 1) hits[count++] = static_cast<uint8_t>(i + __builtin_ctz(hit));
  }
  return count;
}

struct FlushDenormals {
  unsigned old = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(old | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(old); }
};

}  // namespace splat::avx2
#include "cpu/simd_generic.h"
