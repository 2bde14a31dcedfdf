// A Gaussian's parameters from memory into registers, one thread a Gaussian.
#pragma once
#include <cuda_fp16.h>

#include <cstdint>

#include "core/scalar.h"
// (the operations on built-in types come first)
#include "core/projection.h"
#include "core/sh.h"
#include "cuda/device.cuh"
#include "interface.h"

namespace splat::cuda {

__host__ __device__ inline Form form_of(const Scene& scene) {
  const bool precomputed = scene.p.sigma != nullptr;
  return {scene.activated, precomputed, scene.filter && !precomputed};
}

/// What the form does not have is 0.
__device__ inline RawGaussian<float> load_gaussian(const Scene& scene, int64_t i) {
  RawGaussian<float> g{};
  for (int k = 0; k < 3; k++) g.position[k] = scene.p.means[3 * i + k];
  if (scene.p.sigma) {
    for (int k = 0; k < 6; k++) g.sigma[k] = scene.p.sigma[6 * i + k];
  } else {
    for (int k = 0; k < 3; k++) g.scale[k] = scene.p.scales[3 * i + k];
    for (int k = 0; k < 4; k++) g.quat[k] = scene.p.quats[4 * i + k];
  }
  g.opacity = scene.p.opacities[i];
  if (scene.filter) g.filter = scene.filter[i];
  return g;
}

/// Floats of a row of shN that a degree uses: 0, 9, 24, 45.
__host__ __device__ constexpr int sh_floats(int degree) {
  return 3 * ((degree + 1) * (degree + 1) - 1);
}
/// From row to row in shared memory: odd, so that 32 lanes read their rows without conflicts.
__host__ __device__ constexpr int sh_pitch(int degree) { return sh_floats(degree) | 1; }

__device__ inline float as_float(float x) { return x; }
__device__ inline float as_float(__half x) { return __half2float(x); }

/// The rows of shN of the warp's Gaussians, `first` being lane 0's, into 32 rows of shared memory:
/// those whose bit is set in `wanted`. Reads side by side what lies side by side. T = float, or
/// __half with half_sh. The whole warp calls it; rows are complete for all lanes afterwards.
template <int kDegree, class T>
__device__ inline void stage_sh(const Scene& scene, int64_t first, unsigned wanted, float* rows) {
  constexpr int n = sh_floats(kDegree), pitch = sh_pitch(kDegree);
  static_assert(n > 0, "degree 0 has no such rows");
  const T* const shN = reinterpret_cast<const T*>(scene.p.shN) + first * scene.shN_stride;
#pragma unroll 9  // n is a multiple of 3
  for (int step = 0; step < n; step++) {
    const int i = step * kWarp + lane_index(), row = i / n, k = i % n;
    if (wanted >> row & 1u) rows[row * pitch + k] = as_float(shN[row * scene.shN_stride + k]);
  }
  __syncwarp();
}

}  // namespace splat::cuda
