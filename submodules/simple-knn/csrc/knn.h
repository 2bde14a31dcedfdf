// Exact k-nearest-neighbour distances of a point set to itself, k = 3.
#pragma once
#include <cstdint>

namespace knn {

/// Row of the first point with a coordinate that is not finite, or -1. points: [n, 3].
int64_t first_not_finite(const float* points, int64_t n);

/// out[i] = mean squared distance of point i to its 3 nearest other points (to all others if n < 4;
/// 0 if n == 1). points: [n, 3] finite, n < 2^32; out: [n]. Same bits for every number of threads.
/// Throws std::bad_alloc; at most 29 bytes of memory a point.
void mean_squared_distance_3(const float* points, int64_t n, float* out, int threads);

}  // namespace knn
