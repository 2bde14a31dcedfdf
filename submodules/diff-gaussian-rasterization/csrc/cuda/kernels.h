// Entry points of the CUDA backend; the CPU's are in cpu/kernels.h. All work is queued on a stream.
//
// The host waits for the device once: forward reads how many instances there are, unless the
// workspace has a fixed capacity. Errors of CUDA are std::runtime_error, of one line; no room is
// std::bad_alloc.
#pragma once
#include <cstdint>

#include "core/camera.h"
#include "cuda/workspace.h"
#include "interface.h"

namespace splat::cuda {

using Stream = void*;  // a cudaStream_t, without its header

/// Numbers on the device that must all be finite, or else nothing is written.
struct Guard {
  const double* values = nullptr;
  int count = 0;
};

/// How to go back: the sums of a Gaussian by atomic additions, or instance by instance in order.
struct Backward {
  bool deterministic = false;
  Guard guard;
};

/// keep: for a backward pass. Without it that pass blends the image once more.
void forward(Workspace&, const Scene&, const Camera&, const Images&, int32_t* radii, bool keep,
             Stream);

/// gradient.color is required; `transmittance` is that of the forward pass.
void backward(Workspace&, const Scene&, const float* transmittance, const Images& gradient,
              const BackwardOutputs&, const Backward&, Stream);

void contributions(Workspace&, const Contributions&, Stream);

/// terms: where l1, ssim and loss go, on the device.
void l1_ssim(Workspace&, const float* image, const float* target, float* gradient, int width,
             int height, const LossSettings&, double* terms, Stream);
void lr_l1_ssim(Workspace&, const float* image, const float* lr_target, float* gradient,
                const Taps& taps_x, const Taps& taps_y, const LossSettings&, double* terms, Stream);

/// *to += the last image's invalid Gaussians.
void add_invalid(const Workspace&, double* to, Stream);

/// The counts of the last image. Waits for the stream.
Counts read_counts(const Workspace&, Stream);

/// Make it the current one of this thread and of this copy of CUDA's runtime.
void use_device(int index);

}  // namespace splat::cuda
