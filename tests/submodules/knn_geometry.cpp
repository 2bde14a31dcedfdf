// The formulas of simple-knn's csrc/geometry.h, callable from Python.
#include "geometry.h"

using namespace knn;

static Box box_of(const float* six) { return {{six[0], six[1], six[2]}, {six[3], six[4], six[5]}}; }

extern "C" {

float point_to_box(const float* box, const float* p) {
  return box_distance(box_of(box), p[0], p[1], p[2]);
}

float box_to_box(const float* a, const float* b) { return box_distance(box_of(a), box_of(b)); }

float between_points(const float* a, const float* b) {
  return sum_of_squares(a[0] - b[0], a[1] - b[1], a[2] - b[2]);
}

/// three: 3, ascending; becomes the three smallest of it and d.
void insert_into(float d, float* three) {
  const Nearest n = inserted(d, three[0], three[1], three[2]);
  three[0] = n.first;
  three[1] = n.second;
  three[2] = n.third;
}

float mean(const float* three, int neighbours) {
  return mean_of({three[0], three[1], three[2]}, neighbours);
}

uint64_t spread(uint32_t value) { return spread_bits(value); }
uint32_t ordered(float value) { return ordered_bits(value); }
uint32_t rank(uint32_t value, const uint32_t* ascending, uint32_t n) {
  return rank_of(value, ascending, n);
}
int shift(uint32_t n) { return rank_shift(n); }

/// codes: [n], of points [n, 3] whose coordinates lie in ascending order in `sorted` [3, n].
void add_codes(const float* points, const uint32_t* sorted, uint32_t n, uint64_t* codes) {
  for (uint32_t i = 0; i < n; i++) {
    codes[i] = 0;
    for (uint32_t axis = 0; axis < 3; axis++) {
      const uint32_t rank = rank_of(ordered_bits(points[3 * i + axis]), sorted + axis * n, n);
      codes[i] |= spread_bits(rank >> rank_shift(n)) << axis;
    }
  }
}
}
