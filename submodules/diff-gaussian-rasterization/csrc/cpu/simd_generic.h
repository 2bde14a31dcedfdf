// Parts that AVX-512 has instructions for, in portable code for the other instruction sets.
#pragma once
#include <cstdint>

namespace splat::SPLAT_ISA_NAME {

/// Up to 8 masks (one per 32-pixel tile) from the block intervals [lo, hi] of 8 block rows.
/// Byte k of a mask is block row k, bit j of that byte is block column j. Empty row: lo > hi.
SIMD_INLINE void tile_masks(const int* lo, const int* hi, int first_block, uint64_t* out, int n) {
  for (int i = 0; i < n; i++) out[i] = 0;
  for (int k = 0; k < 8; k++) {
    const int a = lo[k] - first_block > 0 ? lo[k] - first_block : 0;
    const int b = hi[k] - first_block < 63 ? hi[k] - first_block : 63;
    if (lo[k] > hi[k] || a > b) continue;
    uint64_t bits = (~uint64_t{0} >> (63 - b)) & (~uint64_t{0} << a);
    for (int i = 0; i < n; i++, bits >>= 8) out[i] |= (bits & 255u) << (8 * k);
  }
}

/// row[3 (k - 1) + c] = basis[k] colour[c] for k = 1..15, c = 0..2, as three vectors (48 values).
SIMD_INLINE void sh_gradient_row(VecF basis, VecF colour, VecF* row) {
  float b[16], c[16], product[48];
  store(b, basis);
  store(c, colour);
  for (int k = 1; k < 16; k++) {
    for (int j = 0; j < 3; j++) product[3 * (k - 1) + j] = b[k] * c[j];
  }
  for (int j = 45; j < 48; j++) product[j] = 0.f;
  for (int q = 0; q < 3; q++) row[q] = load(product + 16 * q);
}

}  // namespace splat::SPLAT_ISA_NAME
