// What goes into the kernels and what comes out, the same for every backend: addresses and sizes.
//
// The CPU backend gets addresses of main memory, the CUDA backend those of the device.
#pragma once
#include <cstdint>

#include "core/adam.h"

namespace splat {

/// Gaussian parameters, or their gradients, or their moments. A null pointer = not there.
/// Colours come from sh0 + shN, or from `colors`; shapes from scales + quats, or from `sigma`.
struct Parameters {
  float* means = nullptr;      // [N, 3]
  float* scales = nullptr;     // [N, 3], logarithms unless activated
  float* quats = nullptr;      // [N, 4]
  float* opacities = nullptr;  // [N], logits unless activated
  float* sh0 = nullptr;        // row i at sh0 + i * sh0_stride, 3 floats
  float* shN = nullptr;        // row i at shN + i * shN_stride, 3 * rest floats
  float* colors = nullptr;     // [N, 3]
  float* sigma = nullptr;      // [N, 6]: xx xy xz yy yz zz
};

struct Scene {
  Parameters p;  // read only, except by Adam
  int64_t count = 0;
  int64_t sh0_stride = 3, shN_stride = 45;
  int rest = 15;                  // coefficients per channel stored in shN
  bool activated = false;         // scales and opacities are values, not logarithms and logits
  const float* filter = nullptr;  // [N] 3D smoothing filter, standard deviation [world units];
                                  // not with `sigma`
  bool half_sh = false;           // p.shN holds 16-bit floats; CUDA only, and not to be updated
};

struct Images {
  float* color = nullptr;          // [3, H, W]
  float* transmittance = nullptr;  // [H, W]
  float* inverse_depth = nullptr;  // [H, W] or null: sum of T alpha / z
  float* depth = nullptr;          // [H, W] or null: sum of T alpha z
  float* normal = nullptr;         // [3, H, W] or null: sum of T alpha n, world axes
};

/// A field whose moments are null rests: Adam leaves it alone.
struct AdamState {
  Parameters mean, square;
  AdamFactors means, scales, quats, opacities, sh0, shN;
  const uint8_t* visible = nullptr;  // [N]: 0 = leave parameters and moments alone; null = all 1
};

/// Densification statistics, added to in place. Any of them may be null.
struct Statistics {
  float* gradient_norm = nullptr;  // [N], norm of dL/dmeans2D in NDC units
  float* count = nullptr;          // [N], views in which the Gaussian was visible
  float* max_radius = nullptr;     // [N], [px]
  float* absolute_norm = nullptr;  // [N], norm of the sums over pixels of |dL/dx|, |dL/dy|, NDC
};

/// Where the backward pass leaves what it finds. Null pointers = not wanted.
struct BackwardOutputs {
  Parameters gradients;               // without Adam
  const AdamState* adam = nullptr;    // with it, scene.p is updated in place instead
  Parameters added;                   // gradients of other views, added; may be `gradients`
  float* means2d = nullptr;           // [N, 3], NDC units, third = 0
  float* absolute_means2d = nullptr;  // [N, 3], sums over pixels of absolute values
  double* pose = nullptr;             // [15]: dL/d rotation (row major), translation, camera centre
  Statistics statistics;
};

/// What each Gaussian contributed to the last image; combined in place. Any may be null.
struct Contributions {
  float* max_weight = nullptr;  // [N], largest T alpha of a pixel
  float* weight = nullptr;      // [N], sum of T alpha over pixels
  float* pixels = nullptr;      // [N], number of pixels blended into
};

struct Taps {            // a banded matrix: out[i] = sum_k weight[i, k] in[start[i] + k]
  const int32_t* start;  // [outputs]
  const float* weight;   // [outputs, width]
  int outputs, inputs, width;
};

struct LossTerms {
  double l1, ssim, loss;
};

struct LossSettings {
  float weight;                          // of the loss in the gradient
  float lambda_dssim;                    // loss = (1 - lambda) L1 + lambda (1 - SSIM)
  bool accumulate;                       // add to the gradient instead of writing it
  const float* pixel_weights = nullptr;  // [H, W], c: the loss is (1 - lambda) mean(c |x - y|) +
                                         // lambda mean(c (1 - SSIM)); null = 1
};

}  // namespace splat
