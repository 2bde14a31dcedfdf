// Small tools of all kernels: launches, errors, warps.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

#include "core/scalar.h"
#include "cuda/kernels.h"

namespace splat::cuda {

inline cudaStream_t as_stream(Stream s) { return static_cast<cudaStream_t>(s); }

/// Throw where a call of CUDA failed, or the launch before it.
inline void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}
inline void check_launch(const char* what) { check(cudaGetLastError(), what); }

template <class T>
__host__ __device__ constexpr T ceil_div(T a, T b) {
  return (a + b - 1) / b;
}

constexpr unsigned kAllLanes = 0xffffffffu;
__device__ inline int lane_index() { return static_cast<int>(threadIdx.x) % kWarp; }

/// Pixel of thread p of a tile: warps have blocks of 8 x 4.
__host__ __device__ inline int tile_pixel_x(int p) { return (p >> 5 & 1) * 8 + (p & 7); }
__host__ __device__ inline int tile_pixel_y(int p) { return (p >> 6) * 4 + (p >> 3 & 3); }

}  // namespace splat::cuda
