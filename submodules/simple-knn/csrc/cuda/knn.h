// Entry points of the CUDA half. Plain C++: the bindings include it without CUDA's headers.
#pragma once
#include <cstdint>

namespace knn::cuda {

/// Device memory that mean_squared_distance_3 works in: about 25 bytes a point.
int64_t workspace_bytes(int64_t n, int device);

/// As knn.h's, queued on the stream; all memory is the device's. n < 2^32. The workspace starts at
/// a multiple of 256 bytes and is free for later work on the stream at once. Errors of CUDA are
/// std::runtime_error, of one line.
void mean_squared_distance_3(const float* points, int64_t n, float* out, void* workspace,
                             int64_t bytes, int device, void* stream);

}  // namespace knn::cuda
