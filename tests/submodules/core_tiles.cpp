// csrc/core/tiles.h against every single pixel, in float and in double, callable from Python.
#include "core/tiles.h"

namespace {

using namespace splat;

constexpr int kTile = 16, kBlockWidth = 8, kBlockHeight = 4;

template <class V>
struct Splat {
  V x, y, extent;
  Conic<V> conic;
  V log2_opacity;
};

/// in: xx, xy, yy, det, opacity, x, y.
template <class V>
Splat<V> read_splat(const V* in) {
  Projection<V> p{};
  p.xx = in[0];
  p.xy = in[1];
  p.yy = in[2];
  p.det = in[3];
  const V log2_opacity = log2_positive(in[4]);
  return {in[5], in[6], log2_opacity - kLog2AlphaMin, whitened_conic(p), log2_opacity};
}

/// Whether the splat contributes to a pixel of the rectangle, both ends included.
template <class V>
bool reaches(const Splat<V>& s, int tile_x, int tile_y, int left, int right, int top, int bottom) {
  const TileSplat<V> t =
      in_tile(s.x - static_cast<V>(tile_x), s.y - static_cast<V>(tile_y), s.conic, s.log2_opacity);
  for (int y = top; y <= bottom; y++) {
    for (int x = left; x <= right; x++) {
      V u, v;
      const V power = power_at(t, static_cast<V>(x - tile_x), static_cast<V>(y - tile_y), u, v);
      if (V(kLog2AlphaMin) <= power) return true;
    }
  }
  return false;
}

int smaller(int a, int b) { return a < b ? a : b; }

/// listed, reached: [n, rows, columns] of tiles, 0 or 1.
template <class V>
void tiles(int n, const V* in, int width, int height, unsigned char* listed,
           unsigned char* reached) {
  const int columns = (width + kTile - 1) / kTile, rows = (height + kTile - 1) / kTile;
  for (int i = 0; i < n; i++, listed += rows * columns, reached += rows * columns) {
    const Splat<V> s = read_splat(in + 7 * i);
    const CullEllipse<V> e = cull_ellipse(s.x, s.y, s.conic, s.extent);
    const Span in_rows = tile_rows(e, height, kTile);
    for (int row = in_rows.first; row <= in_rows.last; row++) {
      const Span found = tile_columns(e, row, width, height, kTile);
      for (int k = found.first; k <= found.last; k++) listed[row * columns + k]++;
    }
    for (int row = 0; row < rows; row++) {
      for (int k = 0; k < columns; k++) {
        const int x = k * kTile, y = row * kTile;
        reached[row * columns + k] =
            reaches(s, x, y, x, smaller(x + kTile, width) - 1, y, smaller(y + kTile, height) - 1);
      }
    }
  }
}

/// The blocks of the tile at (0, 0). listed, reached: [n, 4, 2].
template <class V>
void blocks(int n, const V* in, unsigned char* listed, unsigned char* reached) {
  for (int i = 0; i < n; i++) {
    const Splat<V> s = read_splat(in + 7 * i);
    const V far_x = abs(s.x) + V(kTile), far_y = abs(s.y) + V(kTile);
    const NearEllipse<V> e = near_ellipse(s.conic, s.extent, far_x, far_y);
    for (int b = 0; b < 8; b++) {
      const int x = b % 2 * kBlockWidth, y = b / 2 * kBlockHeight;
      const int right = x + kBlockWidth - 1, bottom = y + kBlockHeight - 1;
      *listed++ = meets_rectangle(e, V(x) - s.x, V(right) - s.x, V(y) - s.y, V(bottom) - s.y);
      *reached++ = reaches(s, 0, 0, x, right, y, bottom);
    }
  }
}

}  // namespace

extern "C" {
void tiles_float(int n, const float* in, int width, int height, unsigned char* listed,
                 unsigned char* reached) {
  tiles(n, in, width, height, listed, reached);
}
void tiles_double(int n, const double* in, int width, int height, unsigned char* listed,
                  unsigned char* reached) {
  tiles(n, in, width, height, listed, reached);
}
void blocks_float(int n, const float* in, unsigned char* listed, unsigned char* reached) {
  blocks(n, in, listed, reached);
}
void blocks_double(int n, const double* in, unsigned char* listed, unsigned char* reached) {
  blocks(n, in, listed, reached);
}
}
