// The loss at LR size: L(A image, LR view) with A the scene's separable, banded downscaling, and
// its gradient A^T g written or added to the gradient of the HR image.
//
// A = A_y A_x, applied along y first: that reads contiguous pixels, and leaves the filter along x a
// fraction of the rows. The way back expands along x first, for the same reason. Every thread
// gathers one output, also of the transpose: from the outputs that have the input in their band.
// Which these are is found anew in each call, because memory at the same address may hold other
// taps by then; it is a few hundred comparisons for each row and column.
#include "cuda/device.cuh"
#include "cuda/pipeline.h"

namespace splat::cuda {
namespace {

constexpr int kThreads = 128;
constexpr unsigned kMaxGridY = 65535;

/// Outputs first .. end - 1 hold all those with weight for an input.
struct Users {
  int first, end;
};

/// users[j] of every input of one axis, x or y by block row.
__global__ void __launch_bounds__(kThreads)
    find_users(Taps taps_x, Taps taps_y, Users* users_x, Users* users_y) {
  const Taps t = blockIdx.y == 0 ? taps_x : taps_y;
  const int64_t j = int64_t{blockIdx.x} * kThreads + threadIdx.x;
  if (j >= t.inputs) return;
  Users u{0, 0};
  for (int i = 0; i < t.outputs; i++) {
    const int64_t k = j - t.start[i];
    if (k < 0 || k >= t.width || t.weight[int64_t{i} * t.width + k] == 0.f) continue;
    if (u.end == 0) u.first = i;
    u.end = i + 1;
  }
  (blockIdx.y == 0 ? users_x : users_y)[j] = u;
}

/// Output i of the band, from a line of inputs.
__device__ float shrunk(const Taps& t, int i, const float* line, int64_t stride) {
  const int start = t.start[i];
  const int count = t.width < t.inputs - start ? t.width : t.inputs - start;
  const float* const weight = t.weight + int64_t{i} * t.width;
  float sum = 0.f;
  for (int k = 0; k < count; k++) sum += weight[k] * line[(start + k) * stride];
  return sum;
}

/// Input j of the transposed band, from a line of outputs.
__device__ float expanded(const Taps& t, Users users, int j, const float* line, int64_t stride) {
  float sum = 0.f;
  for (int i = users.first; i < users.end; i++) {
    const int k = j - t.start[i];
    if (k >= 0 && k < t.width) sum += t.weight[int64_t{i} * t.width + k] * line[i * stride];
  }
  return sum;
}

struct Size {
  int width, height;
  __host__ __device__ int64_t pixels() const { return int64_t{width} * height; }
};

/// The band along one axis of three planes, or its transpose where there are users. Blocks:
/// columns, rows, planes.
template <bool kAlongX>
__global__ void __launch_bounds__(kThreads)
    apply(const float* in, Size in_size, float* out, Size out_size, Taps taps, const Users* users,
          bool accumulate) {
  const int x = static_cast<int>(blockIdx.x) * kThreads + static_cast<int>(threadIdx.x);
  if (x >= out_size.width) return;
  in += blockIdx.z * in_size.pixels();
  out += blockIdx.z * out_size.pixels();
  for (int64_t y = blockIdx.y; y < out_size.height; y += gridDim.y) {
    const float* const line = kAlongX ? in + y * in_size.width : in + x;
    const int64_t stride = kAlongX ? 1 : in_size.width;
    const int at = kAlongX ? x : static_cast<int>(y);
    const float sum =
        users ? expanded(taps, users[at], at, line, stride) : shrunk(taps, at, line, stride);
    float* const to = out + y * out_size.width + x;
    *to = accumulate ? *to + sum : sum;
  }
}

template <bool kAlongX>
void launch(const float* in, Size in_size, float* out, Size out_size, const Taps& taps,
            const Users* users, bool accumulate, cudaStream_t queue) {
  if (out_size.pixels() == 0) return;
  const unsigned height = static_cast<unsigned>(out_size.height);
  const dim3 grid(static_cast<unsigned>(ceil_div(out_size.width, kThreads)),
                  height < kMaxGridY ? height : kMaxGridY, 3);
  apply<kAlongX><<<grid, kThreads, 0, queue>>>(in, in_size, out, out_size, taps, users, accumulate);
}

}  // namespace

void lr_l1_ssim(Workspace& w, const float* image, const float* lr_target, float* gradient,
                const Taps& taps_x, const Taps& taps_y, const LossSettings& s, double* terms,
                Stream stream) {
  const InStage stage(w, kLoss, stream);
  const cudaStream_t queue = as_stream(stream);
  const Size hr{taps_x.inputs, taps_y.inputs}, lr{taps_x.outputs, taps_y.outputs};
  const Size rows{hr.width, lr.height};  // shrunk along y alone
  Users* const users_x = scratch<Users>(w, 2, int64_t{hr.width} + hr.height);
  Users* const users_y = users_x + hr.width;
  float* const half_way = scratch<float>(w, 3, 3 * (rows.pixels() + 2 * lr.pixels()));
  float* const small = half_way + 3 * rows.pixels();
  float* const small_gradient = small + 3 * lr.pixels();

  launch<false>(image, hr, half_way, rows, taps_y, nullptr, false, queue);
  launch<true>(half_way, rows, small, lr, taps_x, nullptr, false, queue);
  LossSettings at_lr = s;
  at_lr.accumulate = false;
  image_loss(w, small, lr_target, small_gradient, lr.width, lr.height, at_lr, terms, queue);

  if (hr.pixels() == 0) return;
  const int longer = hr.width > hr.height ? hr.width : hr.height;
  find_users<<<dim3(static_cast<unsigned>(ceil_div(longer, kThreads)), 2), kThreads, 0, queue>>>(
      taps_x, taps_y, users_x, users_y);
  launch<true>(small_gradient, lr, half_way, rows, taps_x, users_x, false, queue);
  launch<false>(half_way, rows, gradient, hr, taps_y, users_y, s.accumulate, queue);
  check_launch("lr_l1_ssim");
}

}  // namespace splat::cuda
