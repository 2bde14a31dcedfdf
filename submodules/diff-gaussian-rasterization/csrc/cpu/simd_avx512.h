// Sixteen float lanes in one AVX-512 register. The interface is that of simd_scalar.h.
#pragma once
#include <immintrin.h>

#include <cstdint>

namespace splat::avx512 {

#define SIMD_INLINE inline __attribute__((always_inline))

struct Mask {
  __mmask16 m;
};
SIMD_INLINE Mask operator&(Mask a, Mask b) { return {static_cast<__mmask16>(a.m & b.m)}; }
SIMD_INLINE Mask operator|(Mask a, Mask b) { return {static_cast<__mmask16>(a.m | b.m)}; }
SIMD_INLINE bool any(Mask a) { return a.m != 0; }
SIMD_INLINE unsigned to_bits(Mask a) { return a.m; }
SIMD_INLINE Mask mask_from_bits(unsigned bits) { return {static_cast<__mmask16>(bits)}; }

struct VecI {
  __m512i v;
  VecI() = default;
  SIMD_INLINE VecI(__m512i x) : v(x) {}
  SIMD_INLINE VecI(int x) : v(_mm512_set1_epi32(x)) {}
  friend SIMD_INLINE VecI operator+(VecI a, VecI b) { return _mm512_add_epi32(a.v, b.v); }
  friend SIMD_INLINE VecI operator-(VecI a, VecI b) { return _mm512_sub_epi32(a.v, b.v); }
  friend SIMD_INLINE VecI operator*(VecI a, VecI b) { return _mm512_mullo_epi32(a.v, b.v); }
  friend SIMD_INLINE Mask operator<(VecI a, VecI b) { return {_mm512_cmplt_epi32_mask(a.v, b.v)}; }
};
SIMD_INLINE VecI lane_index() {
  return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
SIMD_INLINE VecI load_int(const int* p) { return _mm512_loadu_si512(p); }
SIMD_INLINE VecI shift_right(VecI a, unsigned n) { return _mm512_srai_epi32(a.v, n); }
SIMD_INLINE VecI min(VecI a, VecI b) { return _mm512_min_epi32(a.v, b.v); }
SIMD_INLINE VecI max(VecI a, VecI b) { return _mm512_max_epi32(a.v, b.v); }
SIMD_INLINE VecI select(Mask m, VecI a, VecI b) { return _mm512_mask_blend_epi32(m.m, b.v, a.v); }
SIMD_INLINE void store(int* p, VecI a) { _mm512_storeu_si512(p, a.v); }

struct VecF {
  __m512 v;
  VecF() = default;
  SIMD_INLINE VecF(__m512 x) : v(x) {}
  SIMD_INLINE VecF(float x) : v(_mm512_set1_ps(x)) {}
  friend SIMD_INLINE VecF operator+(VecF a, VecF b) { return a.v + b.v; }
  friend SIMD_INLINE VecF operator-(VecF a, VecF b) { return a.v - b.v; }
  friend SIMD_INLINE VecF operator*(VecF a, VecF b) { return a.v * b.v; }
  friend SIMD_INLINE VecF operator/(VecF a, VecF b) { return a.v / b.v; }
  friend SIMD_INLINE VecF operator-(VecF a) { return -a.v; }
  friend SIMD_INLINE VecF& operator+=(VecF& a, VecF b) { return a = a + b; }
  friend SIMD_INLINE VecF& operator-=(VecF& a, VecF b) { return a = a - b; }
  friend SIMD_INLINE VecF& operator*=(VecF& a, VecF b) { return a = a * b; }
  friend SIMD_INLINE Mask operator<(VecF a, VecF b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LT_OQ)};
  }
  friend SIMD_INLINE Mask operator<=(VecF a, VecF b) {
    return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_LE_OQ)};
  }
};
SIMD_INLINE Mask first_lanes(int n) {  // lanes 0 .. n - 1
  return {static_cast<__mmask16>(n >= 16 ? 0xffffu : (1u << n) - 1u)};
}
SIMD_INLINE VecF load(const float* p) { return _mm512_loadu_ps(p); }
SIMD_INLINE VecF load_first(const float* p, int n) {
  return _mm512_maskz_loadu_ps(first_lanes(n).m, p);
}
SIMD_INLINE void store(float* p, VecF a) { _mm512_storeu_ps(p, a.v); }
SIMD_INLINE void store_first(float* p, int n, VecF a) {
  _mm512_mask_storeu_ps(p, first_lanes(n).m, a.v);
}
SIMD_INLINE VecF gather(const float* p, VecI index) { return _mm512_i32gather_ps(index.v, p, 4); }
SIMD_INLINE VecF select(Mask m, VecF a, VecF b) { return _mm512_mask_blend_ps(m.m, b.v, a.v); }
SIMD_INLINE VecF zero_unless(Mask m, VecF a) { return _mm512_maskz_mov_ps(m.m, a.v); }
SIMD_INLINE VecF negative_multiply_add(VecF a, VecF b, VecF c) {  // c - a b
  return _mm512_fnmadd_ps(a.v, b.v, c.v);
}
SIMD_INLINE VecF min(VecF a, VecF b) { return _mm512_min_ps(a.v, b.v); }
SIMD_INLINE VecF max(VecF a, VecF b) { return _mm512_max_ps(a.v, b.v); }
SIMD_INLINE VecF abs(VecF a) { return _mm512_abs_ps(a.v); }
SIMD_INLINE VecF sqrt(VecF a) { return _mm512_sqrt_ps(a.v); }
SIMD_INLINE VecF floor(VecF a) { return _mm512_roundscale_ps(a.v, 9); }
SIMD_INLINE VecF ceil(VecF a) { return _mm512_roundscale_ps(a.v, 10); }
SIMD_INLINE VecF fraction(VecF a) { return _mm512_reduce_ps(a.v, 1); }  // a - floor(a)
SIMD_INLINE VecF with_sign_of(VecF magnitude, VecF sign) {
  return _mm512_or_ps(magnitude.v, _mm512_and_ps(sign.v, _mm512_set1_ps(-0.f)));
}
SIMD_INLINE VecF reciprocal(VecF a) {  // 14 bits, then one Newton step
  const VecF r = _mm512_rcp14_ps(a.v);
  return r * negative_multiply_add(a, r, 1.f) + r;
}
SIMD_INLINE VecF scale_by_floor_exponent(VecF a, VecF e) {  // a 2^floor(e)
  return _mm512_scalef_ps(a.v, e.v);
}
SIMD_INLINE void split_exponent(VecF x, VecF& exponent, VecF& mantissa) {  // mantissa in [1, 2)
  exponent = _mm512_getexp_ps(x.v);
  mantissa = _mm512_getmant_ps(x.v, _MM_MANT_NORM_1_2, _MM_MANT_SIGN_zero);
}
SIMD_INLINE VecI truncate(VecF a) { return _mm512_cvttps_epi32(a.v); }
SIMD_INLINE VecF to_float(VecI a) { return _mm512_cvtepi32_ps(a.v); }
SIMD_INLINE VecI float_bits(VecF a) { return _mm512_castps_si512(a.v); }

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
  __m512 t[16], s[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int j = 0; j < 2; j++) {
      const __m512d lower = _mm512_castps_pd(t[i + j]), upper = _mm512_castps_pd(t[i + j + 2]);
      s[i + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(lower, upper));
      s[i + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(lower, upper));
    }
  }
  for (int i = 0; i < 16; i += 8) {
    for (int j = 0; j < 4; j++) {
      t[i + j] = _mm512_shuffle_f32x4(s[i + j], s[i + j + 4], 0x88);
      t[i + j + 4] = _mm512_shuffle_f32x4(s[i + j], s[i + j + 4], 0xdd);
    }
  }
  for (int j = 0; j < 8; j++) {
    r[j] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0x88);
    r[j + 8] = _mm512_shuffle_f32x4(t[j], t[j + 8], 0xdd);
  }
}

// One step of a joint lane reduction: lanes of `a` are summed in pairs into one half of the result,
// those of `b` into the other half.
SIMD_INLINE __m512 fold8(VecF a, VecF b) {
  return _mm512_mask_blend_ps(0xff00, a.v, b.v) + _mm512_shuffle_f32x4(a.v, b.v, 0x4e);
}
SIMD_INLINE __m512 fold4(__m512 a, __m512 b) {
  const __m512i swap =
      _mm512_setr_epi32(4, 5, 6, 7, 16, 17, 18, 19, 12, 13, 14, 15, 24, 25, 26, 27);
  return _mm512_mask_blend_ps(0xf0f0, a, b) + _mm512_permutex2var_ps(a, swap, b);
}
SIMD_INLINE __m512 fold2(__m512 a, __m512 b) {
  const __m512d crossed = _mm512_shuffle_pd(_mm512_castps_pd(a), _mm512_castps_pd(b), 0x55);
  return _mm512_mask_blend_ps(0xcccc, a, b) + _mm512_castpd_ps(crossed);
}
SIMD_INLINE __m512 fold1(__m512 a, __m512 b) {
  const __m512 crossed = _mm512_permute_ps(_mm512_mask_blend_ps(0x5555, a, b), 0xb1);
  return _mm512_mask_blend_ps(0xaaaa, a, b) + crossed;
}

constexpr int kSumLane[10] = {0, 8, 4, 12, 2, 10, 6, 14, 1, 9};

/// Lane sums of ten vectors in 31 instructions; the sum of v[k] is lane kSumLane[k].
SIMD_INLINE VecF sum_lanes10(const VecF* v) {
  const __m512 a = fold4(fold8(v[0], v[1]), fold8(v[2], v[3]));
  const __m512 b = fold4(fold8(v[4], v[5]), fold8(v[6], v[7]));
  __m512 c = fold8(v[8], v[9]);
  c = fold4(c, c);
  c = fold2(c, c);
  return fold1(fold2(a, b), c);
}

/// Up to 8 masks (one per 32-pixel tile) from the block intervals [lo, hi] of 8 block rows.
/// Byte k of a mask is block row k, bit j of that byte is block column j. Empty row: lo > hi.
SIMD_INLINE void tile_masks(const int* lo, const int* hi, int first_block, uint64_t* out, int n) {
  const __m512i origin = _mm512_set1_epi64(first_block), zero = _mm512_setzero_si512();
  const __m512i ones = _mm512_set1_epi64(-1);
  __m512i a = _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(lo)));
  __m512i b = _mm512_cvtepi32_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(hi)));
  const __mmask8 filled = _mm512_cmple_epi64_mask(a, b);
  // Shifts by more than 63 give 0: rows wholly left or right of these tiles vanish.
  a = _mm512_max_epi64(_mm512_sub_epi64(a, origin), zero);
  b = _mm512_sub_epi64(_mm512_set1_epi64(63), _mm512_sub_epi64(b, origin));
  b = _mm512_max_epi64(b, zero);
  __m512i bits =
      _mm512_maskz_and_epi64(filled, _mm512_srlv_epi64(ones, b), _mm512_sllv_epi64(ones, a));
  for (int i = 0; i < n; i++) {
    out[i] = static_cast<uint64_t>(_mm_cvtsi128_si64(_mm512_cvtepi64_epi8(bits)));
    bits = _mm512_srli_epi64(bits, 8);
  }
}

/// Indices i < n (at most 255) with (rows[i] & bit) != 0, in order; returns how many.
/// rows holds 256 readable bytes, hits n + 64 writable ones.
SIMD_INLINE int list_hits(const uint8_t* rows, uint8_t bit, int n, uint8_t* hits) {
  const __m512i wanted = _mm512_set1_epi8(static_cast<char>(bit)), step = _mm512_set1_epi8(64);
  __m512i ids = _mm512_set_epi8(63, 62, 61, 60, 59, 58, 57, 56, 55, 54, 53, 52, 51, 50, 49, 48, 47,
                                46, 45, 44, 43, 42, 41, 40, 39, 38, 37, 36, 35, 34, 33, 32, 31, 30,
                                29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16, 15, 14, 13,
                                12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
  int count = 0;
  for (int i = 0; i < n; i += 64) {
    uint64_t hit = _mm512_test_epi8_mask(_mm512_load_si512(rows + i), wanted);
    if (n - i < 64) hit &= (uint64_t{1} << (n - i)) - 1;
    _mm512_storeu_si512(hits + count, _mm512_maskz_compress_epi8(hit, ids));
    count += __builtin_popcountll(hit);
    ids = _mm512_add_epi8(ids, step);
  }
  return count;
}

/// row[3 (k - 1) + c] = basis[k] colour[c] for k = 1..15, c = 0..2, as three vectors (48 values).
SIMD_INLINE void sh_gradient_row(VecF basis, VecF colour, VecF* row) {
  const __m512i k[3] = {
      _mm512_setr_epi32(1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6),
      _mm512_setr_epi32(6, 6, 7, 7, 7, 8, 8, 8, 9, 9, 9, 10, 10, 10, 11, 11),
      _mm512_setr_epi32(11, 12, 12, 12, 13, 13, 13, 14, 14, 14, 15, 15, 15, 15, 15, 15)};
  const __m512i c[3] = {_mm512_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0),
                        _mm512_setr_epi32(1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1),
                        _mm512_setr_epi32(2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2)};
  for (int q = 0; q < 3; q++) {
    row[q] = _mm512_permutexvar_ps(k[q], basis.v) * _mm512_permutexvar_ps(c[q], colour.v);
  }
}

/// Denormals are zero while in scope: a transmittance that keeps shrinking must not become slow.
struct FlushDenormals {
  unsigned old = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(old | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(old); }
};

}  // namespace splat::avx512
