// Sixteen float lanes in two AVX registers. The interface is that of simd_scalar.h.
//
// Structs of registers: GCC keeps a 64-byte vector type in memory without AVX-512. There are only
// sixteen, so loops with many sums work on a part of eight lanes at a time.
#pragma once
#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace splat::avx2 {

#define SIMD_INLINE inline __attribute__((always_inline))

struct HalfMask {
  __m256i v;  // all bits of a lane set or none
};
SIMD_INLINE HalfMask operator&(HalfMask x, HalfMask y) { return {_mm256_and_si256(x.v, y.v)}; }
SIMD_INLINE HalfMask operator|(HalfMask x, HalfMask y) { return {_mm256_or_si256(x.v, y.v)}; }
SIMD_INLINE bool any(HalfMask x) { return !_mm256_testz_si256(x.v, x.v); }

struct Mask {
  HalfMask a, b;
};
SIMD_INLINE Mask operator&(Mask x, Mask y) { return {x.a & y.a, x.b & y.b}; }
SIMD_INLINE Mask operator|(Mask x, Mask y) { return {x.a | y.a, x.b | y.b}; }
SIMD_INLINE bool any(Mask x) { return any(x.a | x.b); }
SIMD_INLINE unsigned to_bits(Mask x) {
  const int lower = _mm256_movemask_ps(_mm256_castsi256_ps(x.a.v));
  const int upper = _mm256_movemask_ps(_mm256_castsi256_ps(x.b.v));
  return static_cast<unsigned>(lower | upper << 8);
}
SIMD_INLINE Mask mask_from_bits(unsigned bits) {
  const __m256i lane = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i lower = _mm256_set1_epi32(static_cast<int>(bits));
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(bits >> 8));
  return {{_mm256_cmpeq_epi32(_mm256_and_si256(lower, lane), lane)},
          {_mm256_cmpeq_epi32(_mm256_and_si256(upper, lane), lane)}};
}
SIMD_INLINE Mask first_lanes(int n) {
  const __m256i count = _mm256_set1_epi32(n);
  return {{_mm256_cmpgt_epi32(count, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))},
          {_mm256_cmpgt_epi32(count, _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15))}};
}

struct HalfI {
  __m256i v;
  HalfI() = default;
  SIMD_INLINE HalfI(__m256i x) : v(x) {}
  SIMD_INLINE HalfI(int x) : v(_mm256_set1_epi32(x)) {}
  friend SIMD_INLINE HalfI operator+(HalfI x, HalfI y) { return _mm256_add_epi32(x.v, y.v); }
  friend SIMD_INLINE HalfI operator-(HalfI x, HalfI y) { return _mm256_sub_epi32(x.v, y.v); }
  friend SIMD_INLINE HalfI operator*(HalfI x, HalfI y) { return _mm256_mullo_epi32(x.v, y.v); }
  friend SIMD_INLINE HalfMask operator<(HalfI x, HalfI y) { return {_mm256_cmpgt_epi32(y.v, x.v)}; }
};
SIMD_INLINE HalfI select(HalfMask m, HalfI x, HalfI y) { return _mm256_blendv_epi8(y.v, x.v, m.v); }

struct VecI {
  HalfI a, b;
  VecI() = default;
  SIMD_INLINE VecI(HalfI x, HalfI y) : a(x), b(y) {}
  SIMD_INLINE VecI(int x) : a(x), b(x) {}
  friend SIMD_INLINE VecI operator+(VecI x, VecI y) { return {x.a + y.a, x.b + y.b}; }
  friend SIMD_INLINE VecI operator-(VecI x, VecI y) { return {x.a - y.a, x.b - y.b}; }
  friend SIMD_INLINE VecI operator*(VecI x, VecI y) { return {x.a * y.a, x.b * y.b}; }
  friend SIMD_INLINE Mask operator<(VecI x, VecI y) { return {x.a < y.a, x.b < y.b}; }
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
  return {_mm256_srai_epi32(x.a.v, count), _mm256_srai_epi32(x.b.v, count)};
}
SIMD_INLINE VecI min(VecI x, VecI y) {
  return {_mm256_min_epi32(x.a.v, y.a.v), _mm256_min_epi32(x.b.v, y.b.v)};
}
SIMD_INLINE VecI max(VecI x, VecI y) {
  return {_mm256_max_epi32(x.a.v, y.a.v), _mm256_max_epi32(x.b.v, y.b.v)};
}
SIMD_INLINE VecI select(Mask m, VecI x, VecI y) {
  return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)};
}
SIMD_INLINE void store(int* p, VecI x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), x.a.v);
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p + 8), x.b.v);
}

struct HalfF {
  __m256 v;
  HalfF() = default;
  SIMD_INLINE HalfF(__m256 x) : v(x) {}
  SIMD_INLINE HalfF(float x) : v(_mm256_set1_ps(x)) {}
  friend SIMD_INLINE HalfF operator+(HalfF x, HalfF y) { return x.v + y.v; }
  friend SIMD_INLINE HalfF operator-(HalfF x, HalfF y) { return x.v - y.v; }
  friend SIMD_INLINE HalfF operator*(HalfF x, HalfF y) { return x.v * y.v; }
  friend SIMD_INLINE HalfF operator/(HalfF x, HalfF y) { return x.v / y.v; }
  friend SIMD_INLINE HalfF operator-(HalfF x) { return -x.v; }
  friend SIMD_INLINE HalfF& operator+=(HalfF& x, HalfF y) { return x = x + y; }
  friend SIMD_INLINE HalfF& operator*=(HalfF& x, HalfF y) { return x = x * y; }
  friend SIMD_INLINE HalfMask operator<(HalfF x, HalfF y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.v, y.v, _CMP_LT_OQ))};
  }
  friend SIMD_INLINE HalfMask operator<=(HalfF x, HalfF y) {
    return {_mm256_castps_si256(_mm256_cmp_ps(x.v, y.v, _CMP_LE_OQ))};
  }
};
SIMD_INLINE HalfF select(HalfMask m, HalfF x, HalfF y) {
  return _mm256_blendv_ps(y.v, x.v, _mm256_castsi256_ps(m.v));
}
SIMD_INLINE HalfF zero_unless(HalfMask m, HalfF x) {
  return _mm256_and_ps(x.v, _mm256_castsi256_ps(m.v));
}
SIMD_INLINE HalfF negative_multiply_add(HalfF x, HalfF y, HalfF z) {  // z - x y
  return _mm256_fnmadd_ps(x.v, y.v, z.v);
}
SIMD_INLINE HalfF min(HalfF x, HalfF y) { return _mm256_min_ps(x.v, y.v); }
SIMD_INLINE HalfF max(HalfF x, HalfF y) { return _mm256_max_ps(x.v, y.v); }
SIMD_INLINE HalfF abs(HalfF x) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), x.v); }
SIMD_INLINE HalfF floor(HalfF x) { return _mm256_floor_ps(x.v); }
SIMD_INLINE HalfF fraction(HalfF x) { return x - floor(x); }
SIMD_INLINE HalfF reciprocal(HalfF x) {  // 12 bits, then two Newton steps; 1 for 1
  HalfF r = _mm256_rcp_ps(x.v);
  r = r * negative_multiply_add(x, r, 1.f) + r;
  return r * negative_multiply_add(x, r, 1.f) + r;
}
/// x 2^floor(e) where both are normal numbers and |floor(e)| <= 126; anything elsewhere.
SIMD_INLINE HalfF scale_by_floor_exponent(HalfF x, HalfF e) {
  const __m256i n = _mm256_slli_epi32(_mm256_cvttps_epi32(floor(e).v), 23);
  return _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), n));
}

struct VecF {
  HalfF a, b;
  VecF() = default;
  SIMD_INLINE VecF(HalfF x, HalfF y) : a(x), b(y) {}
  SIMD_INLINE VecF(float x) : a(x), b(x) {}
  friend SIMD_INLINE VecF operator+(VecF x, VecF y) { return {x.a + y.a, x.b + y.b}; }
  friend SIMD_INLINE VecF operator-(VecF x, VecF y) { return {x.a - y.a, x.b - y.b}; }
  friend SIMD_INLINE VecF operator*(VecF x, VecF y) { return {x.a * y.a, x.b * y.b}; }
  friend SIMD_INLINE VecF operator/(VecF x, VecF y) { return {x.a / y.a, x.b / y.b}; }
  friend SIMD_INLINE VecF operator-(VecF x) { return {-x.a, -x.b}; }
  friend SIMD_INLINE VecF& operator+=(VecF& x, VecF y) { return x = x + y; }
  friend SIMD_INLINE VecF& operator-=(VecF& x, VecF y) { return x = x - y; }
  friend SIMD_INLINE VecF& operator*=(VecF& x, VecF y) { return x = x * y; }
  friend SIMD_INLINE Mask operator<(VecF x, VecF y) { return {x.a < y.a, x.b < y.b}; }
  friend SIMD_INLINE Mask operator<=(VecF x, VecF y) { return {x.a <= y.a, x.b <= y.b}; }
};
SIMD_INLINE VecF load(const float* p) {
  return {HalfF(_mm256_loadu_ps(p)), HalfF(_mm256_loadu_ps(p + 8))};
}
SIMD_INLINE VecF load_first(const float* p, int n) {
  if (n >= 16) return load(p);
  const Mask m = first_lanes(n);
  return {HalfF(_mm256_maskload_ps(p, m.a.v)), HalfF(_mm256_maskload_ps(p + 8, m.b.v))};
}
SIMD_INLINE void store(float* p, VecF x) {
  _mm256_storeu_ps(p, x.a.v);
  _mm256_storeu_ps(p + 8, x.b.v);
}
/// Not with vmaskmov, which is slow on AMD processors.
SIMD_INLINE void store_first(float* p, int n, VecF x) {
  if (n >= 16) return store(p, x);
  __m256 rest = x.a.v;
  if (n & 8) {
    _mm256_storeu_ps(p, rest);
    p += 8;
    rest = x.b.v;
  }
  __m128 last = _mm256_castps256_ps128(rest);
  if (n & 4) {
    _mm_storeu_ps(p, last);
    p += 4;
    last = _mm256_extractf128_ps(rest, 1);
  }
  if (n & 2) {
    _mm_storel_pi(reinterpret_cast<__m64*>(p), last);
    p += 2;
    last = _mm_movehl_ps(last, last);
  }
  if (n & 1) _mm_store_ss(p, last);
}
SIMD_INLINE VecF gather(const float* p, VecI index) {
  return {HalfF(_mm256_i32gather_ps(p, index.a.v, 4)), HalfF(_mm256_i32gather_ps(p, index.b.v, 4))};
}
SIMD_INLINE VecF select(Mask m, VecF x, VecF y) {
  return {select(m.a, x.a, y.a), select(m.b, x.b, y.b)};
}
SIMD_INLINE VecF zero_unless(Mask m, VecF x) {
  return {zero_unless(m.a, x.a), zero_unless(m.b, x.b)};
}
SIMD_INLINE VecF negative_multiply_add(VecF x, VecF y, VecF z) {  // z - x y
  return {negative_multiply_add(x.a, y.a, z.a), negative_multiply_add(x.b, y.b, z.b)};
}
SIMD_INLINE VecF min(VecF x, VecF y) { return {min(x.a, y.a), min(x.b, y.b)}; }
SIMD_INLINE VecF max(VecF x, VecF y) { return {max(x.a, y.a), max(x.b, y.b)}; }
SIMD_INLINE VecF abs(VecF x) { return {abs(x.a), abs(x.b)}; }
SIMD_INLINE VecF sqrt(VecF x) {
  return {HalfF(_mm256_sqrt_ps(x.a.v)), HalfF(_mm256_sqrt_ps(x.b.v))};
}
SIMD_INLINE VecF floor(VecF x) { return {floor(x.a), floor(x.b)}; }
SIMD_INLINE VecF ceil(VecF x) {
  return {HalfF(_mm256_ceil_ps(x.a.v)), HalfF(_mm256_ceil_ps(x.b.v))};
}
SIMD_INLINE VecF fraction(VecF x) { return x - floor(x); }
SIMD_INLINE VecF with_sign_of(VecF magnitude, VecF sign) {
  const __m256 bit = _mm256_set1_ps(-0.f);
  return {HalfF(_mm256_or_ps(magnitude.a.v, _mm256_and_ps(sign.a.v, bit))),
          HalfF(_mm256_or_ps(magnitude.b.v, _mm256_and_ps(sign.b.v, bit)))};
}
SIMD_INLINE VecF reciprocal(VecF x) { return {reciprocal(x.a), reciprocal(x.b)}; }
SIMD_INLINE VecI truncate(VecF x) {
  return {_mm256_cvttps_epi32(x.a.v), _mm256_cvttps_epi32(x.b.v)};
}
SIMD_INLINE VecF to_float(VecI x) {
  return {HalfF(_mm256_cvtepi32_ps(x.a.v)), HalfF(_mm256_cvtepi32_ps(x.b.v))};
}
SIMD_INLINE VecI float_bits(VecF x) {
  return {_mm256_castps_si256(x.a.v), _mm256_castps_si256(x.b.v)};
}
SIMD_INLINE VecF scale_by_floor_exponent(VecF x, VecF e) {
  return {scale_by_floor_exponent(x.a, e.a), scale_by_floor_exponent(x.b, e.b)};
}
SIMD_INLINE HalfF mantissa_of(HalfI bits) {  // in [1, 2)
  const __m256i digits = _mm256_and_si256(bits.v, _mm256_set1_epi32(0x7fffff));
  return _mm256_castsi256_ps(_mm256_or_si256(digits, _mm256_set1_epi32(0x3f800000)));
}
SIMD_INLINE void split_exponent(VecF x, VecF& exponent, VecF& mantissa) {
  const VecI bits = float_bits(x);
  exponent = to_float(shift_right(bits, 23) - 127);
  mantissa = {mantissa_of(bits.a), mantissa_of(bits.b)};
}

// Parts of a vector for loops with many sums.
constexpr int kParts = 2, kPartLanes = 8;
using PartF = HalfF;
using PartI = HalfI;
using PartMask = HalfMask;
SIMD_INLINE PartF load_part(const float* p) { return _mm256_loadu_ps(p); }
SIMD_INLINE PartF& part(VecF& x, int i) { return i == 0 ? x.a : x.b; }
SIMD_INLINE PartI& part(VecI& x, int i) { return i == 0 ? x.a : x.b; }

/// Columns of the 8 x 8 matrix at `from` (rows of 16 floats). Two rows fill a register from memory:
/// that spares a third of the shuffles.
SIMD_INLINE void transpose8(const float* from, __m256* columns) {
  for (int j = 0; j < 8; j += 4) {
    __m256 row[4], t[4];
    for (int i = 0; i < 4; i++) {
      const float* const upper = from + 16 * i + j;
      row[i] = _mm256_insertf128_ps(_mm256_castps128_ps256(_mm_loadu_ps(upper)),
                                    _mm_loadu_ps(upper + 64), 1);
    }
    t[0] = _mm256_unpacklo_ps(row[0], row[1]);
    t[1] = _mm256_unpackhi_ps(row[0], row[1]);
    t[2] = _mm256_unpacklo_ps(row[2], row[3]);
    t[3] = _mm256_unpackhi_ps(row[2], row[3]);
    for (int i = 0; i < 2; i++) {
      columns[j + 2 * i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
      columns[j + 2 * i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    }
  }
}

/// Transpose the 16 x 16 matrix held in r[0..15]: four 8 x 8 quadrants.
SIMD_INLINE void transpose16(VecF* r) {
  alignas(32) float rows[16 * 16];
  for (int i = 0; i < 16; i++) store(rows + 16 * i, r[i]);
  for (int half = 0; half < 2; half++) {
    __m256 left[8], right[8];
    transpose8(rows + 8 * half, left);
    transpose8(rows + 8 * half + 128, right);
    for (int i = 0; i < 8; i++) r[8 * half + i] = {HalfF(left[i]), HalfF(right[i])};
  }
}

constexpr int kSumLane[10] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9};

SIMD_INLINE __m128 sum_lanes4(HalfF p, HalfF q, HalfF r, HalfF s) {
  const __m256 sums = _mm256_hadd_ps(_mm256_hadd_ps(p.v, q.v), _mm256_hadd_ps(r.v, s.v));
  return _mm_add_ps(_mm256_castps256_ps128(sums), _mm256_extractf128_ps(sums, 1));
}

/// Lane sums of ten vectors; the sum of v[k] is lane kSumLane[k].
SIMD_INLINE VecF sum_lanes10(const PartF* v) {
  const __m128 first = sum_lanes4(v[0], v[1], v[2], v[3]);
  const __m128 second = sum_lanes4(v[4], v[5], v[6], v[7]);
  const __m128 third = sum_lanes4(v[8], v[9], v[8], v[9]);
  return {
      HalfF(_mm256_insertf128_ps(_mm256_castps128_ps256(first), second, 1)),
      HalfF(_mm256_insertf128_ps(_mm256_setzero_ps(), _mm_movelh_ps(third, _mm_setzero_ps()), 0))};
}

/// Up to 8 masks (one per 32-pixel tile) from the block intervals [lo, hi] of 8 block rows.
/// Byte k of a mask is block row k, bit j of that byte is block column j. Empty row: lo > hi.
SIMD_INLINE void tile_masks(const int* lo, const int* hi, int first_block, uint64_t* out, int n) {
  const __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(lo));
  const __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(hi));
  const __m256i zero = _mm256_setzero_si256(), origin = _mm256_set1_epi32(first_block);
  const __m256i empty = _mm256_cmpgt_epi32(low, high);
  // Shifts by more than 63 give 0: rows wholly left or right of these tiles vanish.
  const __m256i a = _mm256_max_epi32(_mm256_sub_epi32(low, origin), zero);
  const __m256i last = _mm256_add_epi32(origin, _mm256_set1_epi32(63));
  const __m256i b = _mm256_max_epi32(_mm256_sub_epi32(last, high), zero);
  // Rows 2 i and 2 i + 1 byte by byte side by side, for i = 0 .. 3.
  const __m256i interleave = _mm256_broadcastsi128_si256(
      _mm_setr_epi8(0, 8, 1, 9, 2, 10, 3, 11, 4, 12, 5, 13, 6, 14, 7, 15));
  __m128i pairs[4];
  for (int half = 0; half < 2; half++) {
    const auto four = [&](__m256i x) __attribute__((always_inline)) {
      return half == 0 ? _mm256_castsi256_si128(x) : _mm256_extracti128_si256(x, 1);
    };
    const __m256i ones = _mm256_set1_epi64x(-1);
    const __m256i from = _mm256_sllv_epi64(ones, _mm256_cvtepi32_epi64(four(a)));
    const __m256i to = _mm256_srlv_epi64(ones, _mm256_cvtepi32_epi64(four(b)));
    const __m256i bits =
        _mm256_andnot_si256(_mm256_cvtepi32_epi64(four(empty)), _mm256_and_si256(from, to));
    const __m256i bytes = _mm256_shuffle_epi8(bits, interleave);
    pairs[2 * half] = _mm256_castsi256_si128(bytes);
    pairs[2 * half + 1] = _mm256_extracti128_si256(bytes, 1);
  }
  const auto write = [&](int i, __m128i upper_rows, __m128i lower_rows)
                         __attribute__((always_inline)) {  // of columns i .. i + 3
                           __m128i* const to = reinterpret_cast<__m128i*>(out + i);
                           _mm_storeu_si128(to, _mm_unpacklo_epi32(upper_rows, lower_rows));
                           _mm_storeu_si128(to + 1, _mm_unpackhi_epi32(upper_rows, lower_rows));
                         };
  write(0, _mm_unpacklo_epi16(pairs[0], pairs[1]), _mm_unpacklo_epi16(pairs[2], pairs[3]));
  if (n <= 4) return;
  write(4, _mm_unpackhi_epi16(pairs[0], pairs[1]), _mm_unpackhi_epi16(pairs[2], pairs[3]));
}

/// For every byte: the positions of its set bits, one a byte, in order.
struct BitPositions {
  uint64_t of[256];
};
constexpr BitPositions make_bit_positions() {
  BitPositions t{};
  for (int byte = 0; byte < 256; byte++) {
    int count = 0;
    for (int i = 0; i < 8; i++) {
      if (byte >> i & 1) t.of[byte] |= static_cast<uint64_t>(i) << (8 * count++);
    }
  }
  return t;
}
constexpr BitPositions kBitPositions = make_bit_positions();

/// Indices i < n (at most 255) with (rows[i] & bit) != 0, in order; returns how many.
/// rows holds 256 readable bytes, hits n + 64 writable ones. A branch a hit would mispredict.
SIMD_INLINE int list_hits(const uint8_t* rows, uint8_t bit, int n, uint8_t* hits) {
  const __m256i wanted = _mm256_set1_epi8(static_cast<char>(bit));
  constexpr uint64_t kEveryByte = 0x0101010101010101u;
  int count = 0;
  for (int i = 0; i < n; i += 32) {
    const __m256i chunk = _mm256_load_si256(reinterpret_cast<const __m256i*>(rows + i));
    const __m256i equal = _mm256_cmpeq_epi8(_mm256_and_si256(chunk, wanted), wanted);
    uint32_t hit = static_cast<uint32_t>(_mm256_movemask_epi8(equal));
    if (n - i < 32) hit &= (1u << (n - i)) - 1u;
    for (int j = 0; j < 4; j++) {
      const uint32_t byte = hit >> (8 * j) & 255u;
      const uint64_t indices = kBitPositions.of[byte] + kEveryByte * uint64_t(i + 8 * j);
      std::memcpy(hits + count, &indices, 8);
      count += __builtin_popcount(byte);
    }
  }
  return count;
}

/// row[3 (k - 1) + c] = basis[k] colour[c] for k = 1..15, c = 0..2, as three vectors (48 values).
SIMD_INLINE void sh_gradient_row(VecF basis, VecF colour, VecF* row) {
  const __m256 low = basis.a.v, high = basis.b.v;
  const __m256 middle = _mm256_permute2f128_ps(low, high, 0x21);  // k = 4 .. 11
  const __m256 from[6] = {low, low, middle, high, high, high};
  const __m256i k[6] = {
      _mm256_setr_epi32(1, 1, 1, 2, 2, 2, 3, 3), _mm256_setr_epi32(3, 4, 4, 4, 5, 5, 5, 6),
      _mm256_setr_epi32(2, 2, 3, 3, 3, 4, 4, 4), _mm256_setr_epi32(1, 1, 1, 2, 2, 2, 3, 3),
      _mm256_setr_epi32(3, 4, 4, 4, 5, 5, 5, 6), _mm256_setr_epi32(6, 6, 7, 7, 7, 7, 7, 7)};
  const __m256i c[3] = {_mm256_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1),
                        _mm256_setr_epi32(2, 0, 1, 2, 0, 1, 2, 0),
                        _mm256_setr_epi32(1, 2, 0, 1, 2, 0, 1, 2)};
  HalfF half[6];
  for (int q = 0; q < 6; q++) {
    half[q] =
        _mm256_permutevar8x32_ps(from[q], k[q]) * _mm256_permutevar8x32_ps(colour.a.v, c[q % 3]);
  }
  for (int q = 0; q < 3; q++) row[q] = {half[2 * q], half[2 * q + 1]};
}

struct FlushDenormals {
  unsigned old = _mm_getcsr();
  FlushDenormals() { _mm_setcsr(old | 0x8040u); }
  ~FlushDenormals() { _mm_setcsr(old); }
};

}  // namespace splat::avx2
