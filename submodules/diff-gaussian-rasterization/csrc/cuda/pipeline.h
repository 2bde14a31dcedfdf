// The stages of the forward pass, and what the stages of both passes share. For .cu files.
#pragma once
#include <cuda_runtime.h>

#include <cstdint>

#include "cuda/kernels.h"

namespace splat::cuda {

/// Records, surfaces, flags, radii, keys and tiles of all Gaussians; instances and invalid ones are
/// counted. radii_out: [N] or null. `tiles` is 0, and first_slot not written, where not drawn.
void preprocess(Workspace&, const Scene&, int32_t* radii_out, cudaStream_t);

/// Depth order, slots, lists, ranges and buckets. Here the host waits for the sizes, unless the
/// capacity is fixed. Throws std::length_error where an image has more than kMaxInstances.
void order(Workspace&, cudaStream_t);

/// Blend the lists at w.level: into `out`, whose pointers may all be null. keep: and leave
/// checkpoints, pixel_end and tile_end for a backward pass.
void blend_forward(Workspace&, const Images& out, bool keep, cudaStream_t);

/// l1_ssim, in scratch memory 0 and 1.
void image_loss(Workspace&, const float* image, const float* target, float* gradient, int width,
                int height, const LossSettings&, double* terms, cudaStream_t);

/// Maps that are blended at a level: checkpoints have one channel more, for T.
__host__ __device__ constexpr int blended_channels(Level level) {
  return level == kColour ? 3 : level == kInverse ? 4 : 8;
}

/// Scratch memory k as n elements, which the next call may take for something else.
template <class T>
T* scratch(Workspace& w, int k, int64_t n) {
  return reinterpret_cast<T*>(w.scratch[k].grow(n * static_cast<int64_t>(sizeof(T))));
}

}  // namespace splat::cuda
