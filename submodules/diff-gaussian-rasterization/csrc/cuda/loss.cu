// (1 - lambda) L1 + lambda (1 - SSIM) and its gradient in two passes over tiles of 32 x 32 pixels.
//
// The first pass filters the images and leaves SSIM's derivatives by the filtered ones; the second
// filters those and writes the gradient. The derivatives go through memory, 12 bytes a value out
// and 12 in, because in one pass they would have to be computed for a halo of their own: 1.4 times
// as many instructions, which on a GPU with HBM take longer than the bytes (docs/rasterizer.md
// counts both).
//
// A tile and its halo lie in shared memory. Filters go along x first, lanes = rows at an odd pitch,
// then down the columns, lanes = columns, so that lanes are in different banks. A thread makes 4
// outputs in a line, so that 14 values are read for them and not 44.
#include "cuda/device.cuh"
// (the operations on built-in types come first)
#include "core/ssim.h"
#include "cuda/pipeline.h"

namespace splat::cuda {
namespace {

constexpr int kSide = 32;  // of a tile [px]
constexpr int kThreads = 256;
constexpr int kWarps = kThreads / kWarp;
constexpr int kReach = 2 * kSsimRadius;
constexpr int kHalo = kSide + kReach;
constexpr int kStep = kSide / kWarps;  // outputs of a thread in a line
constexpr int kInPitch = kHalo + 1, kRowPitch = kSide + 1;
constexpr int kImages = 4;  // x, y, x^2 + y^2, x y
constexpr int kSlopes = 3;  // derivatives of SSIM by the filtered x, x^2 + y^2, x y
static_assert(kSide == kWarp && kStep * kWarps == kSide, "a warp filters kStep rows of columns");
static_assert(kInPitch % 2 == 1 && kRowPitch % 2 == 1, "lanes in different rows, different banks");

/// A tile of the image; halo coordinates count from kSsimRadius before its corner.
struct Tile {
  int left, top;  // [px], of the halo's corner
  int width, height;

  __device__ Tile(int image_width, int image_height) : width(image_width), height(image_height) {
    const int across = (width + kSide - 1) / kSide;
    left = static_cast<int>(blockIdx.x % across) * kSide - kSsimRadius;
    top = static_cast<int>(blockIdx.x / across) * kSide - kSsimRadius;
  }
  __device__ bool has(int row, int column) const {
    const int y = top + row, x = left + column;
    return y >= 0 && y < height && x >= 0 && x < width;
  }
  __device__ int64_t offset(int row, int column) const {
    return int64_t{top + row} * width + (left + column);
  }
};

/// Weight of a tap at a distance; a function, because device code cannot index host constants.
__device__ __forceinline__ float window(int distance) {
  constexpr float kWeights[] = {kSsimWindow[0], kSsimWindow[1], kSsimWindow[2],
                                kSsimWindow[3], kSsimWindow[4], kSsimWindow[5]};
  return kWeights[distance < 0 ? -distance : distance];
}

/// Adds the k-th value of a line to those of kStep sums that it is in reach of.
__device__ __forceinline__ void add_tap(int k, float value, float (&sums)[kStep]) {
#pragma unroll
  for (int i = 0; i < kStep; i++) {
    const int distance = k - i - kSsimRadius;
    if (distance >= -kSsimRadius && distance <= kSsimRadius) sums[i] += window(distance) * value;
  }
}

using In = float[kHalo][kInPitch];
using Rows = float[kHalo][kRowPitch];

/// The tile and its halo, zeros outside the image. Needs a barrier afterwards.
__device__ void load_tile(const Tile& tile, const float* image, In& in) {
  for (int row = static_cast<int>(threadIdx.x) / kWarp; row < kHalo; row += kWarps) {
    for (int column = lane_index(); column < kHalo; column += kWarp) {
      in[row][column] = tile.has(row, column) ? image[tile.offset(row, column)] : 0.f;
    }
  }
}

/// Calls f(row, first column) for every kStep outputs along x of all rows of the halo.
template <class F>
__device__ void each_row_step(F f) {
  for (int k = static_cast<int>(threadIdx.x); k < kHalo * kWarps; k += kThreads) {
    f(k % kHalo, k / kHalo * kStep);
  }
}

/// Filters this thread's kStep rows from `first` of its column.
__device__ __forceinline__ void filter_column(const Rows& rows, int first, int column,
                                              float (&out)[kStep]) {
#pragma unroll
  for (int i = 0; i < kStep; i++) out[i] = 0.f;
#pragma unroll
  for (int k = 0; k < kStep + kReach; k++) add_tap(k, rows[first + k][column], out);
}

/// The images and their products, filtered along x.
__device__ void filter_images(const In& image, const In& target, Rows (&rows)[kImages]) {
  each_row_step([&](int row, int column) {
    float sums[kImages][kStep] = {};
#pragma unroll
    for (int k = 0; k < kStep + kReach; k++) {
      const float x = image[row][column + k], y = target[row][column + k];
      add_tap(k, x, sums[0]);
      add_tap(k, y, sums[1]);
      add_tap(k, x * x + y * y, sums[2]);
      add_tap(k, x * y, sums[3]);
    }
#pragma unroll
    for (int q = 0; q < kImages; q++) {
#pragma unroll
      for (int i = 0; i < kStep; i++) rows[q][row][column + i] = sums[q][i];
    }
  });
}

__device__ double2 operator+(double2 a, double2 b) { return {a.x + b.x, a.y + b.y}; }

/// Sum over the block, in a fixed order; in thread 0. Once a kernel.
__device__ double2 block_sum(double2 v) {
  for (int far = kWarp / 2; far > 0; far /= 2) {
    v = v + double2{__shfl_down_sync(kAllLanes, v.x, far), __shfl_down_sync(kAllLanes, v.y, far)};
  }
  __shared__ double2 of_warps[kWarps];
  if (lane_index() == 0) of_warps[threadIdx.x / kWarp] = v;
  __syncthreads();
  double2 sum{0, 0};
  if (threadIdx.x == 0) {
    for (int w = 0; w < kWarps; w++) sum = sum + of_warps[w];
  }
  return sum;
}

/// SSIM's slopes [kSlopes, 3, height, width] and a block's sums of |x - y| and SSIM, or with
/// weights c of c |x - y| and 1 - c (1 - SSIM). 4 blocks: aiming at more, ptxas spills.
__global__ void __launch_bounds__(kThreads, 4)
    ssim_slopes(const float* image, const float* target, const float* weights, int width,
                int height, float* slopes, double2* partials) {
  __shared__ In in[2];
  __shared__ Rows rows[kImages];
  const Tile tile(width, height);
  const int64_t pixels = int64_t{width} * height, plane = blockIdx.y * pixels;
  load_tile(tile, image + plane, in[0]);
  load_tile(tile, target + plane, in[1]);
  __syncthreads();
  filter_images(in[0], in[1], rows);
  __syncthreads();

  const int lane = lane_index(), first = static_cast<int>(threadIdx.x) / kWarp * kStep;
  float f[kImages][kStep];
#pragma unroll
  for (int q = 0; q < kImages; q++) filter_column(rows[q], first, lane, f[q]);
  double2 sum{0, 0};
#pragma unroll
  for (int i = 0; i < kStep; i++) {
    const int row = first + i + kSsimRadius, column = lane + kSsimRadius;
    if (!tile.has(row, column)) continue;
    SsimTerms<float> t = ssim_terms(f[0][i], f[1][i], f[2][i], f[3][i]);
    const float weight = weights ? weights[tile.offset(row, column)] : 1.f;
    if (weights) weigh(t, weight);
    float* const out = slopes + plane + tile.offset(row, column);
    out[0] = t.mean;
    out[3 * pixels] = t.square;
    out[6 * pixels] = t.cross;
    const float difference = weight * abs(in[0][row][column] - in[1][row][column]);
    sum = sum + double2{static_cast<double>(difference), static_cast<double>(t.value)};
  }
  sum = block_sum(sum);
  if (threadIdx.x == 0) partials[int64_t{blockIdx.y} * gridDim.x + blockIdx.x] = sum;
}

/// terms = l1, ssim, loss from the blocks' sums. One block.
__global__ void __launch_bounds__(kThreads)
    finish_terms(const double2* partials, int64_t count, double share, double lambda,
                 double* terms) {
  double2 sum{0, 0};
  for (int64_t k = threadIdx.x; k < count; k += kThreads) sum = sum + partials[k];
  sum = block_sum(sum);
  if (threadIdx.x == 0) {
    terms[0] = sum.x * share;
    terms[1] = sum.y * share;
    terms[2] = (1 - lambda) * terms[0] + lambda * (1 - terms[1]);
  }
}

struct Factors {
  float l1, ssim;  // of sign(x - y) and of half dSSIM in the gradient
};

/// gradient = (or +=) the derivative of the loss, from SSIM's slopes.
__global__ void __launch_bounds__(kThreads)
    loss_gradient(const float* image, const float* target, const float* weights,
                  const float* slopes, int width, int height, Factors factors, bool accumulate,
                  float* gradient) {
  __shared__ In in[kSlopes];
  __shared__ Rows rows[kSlopes];
  const Tile tile(width, height);
  const int64_t pixels = int64_t{width} * height, plane = blockIdx.y * pixels;
  for (int q = 0; q < kSlopes; q++) load_tile(tile, slopes + 3 * q * pixels + plane, in[q]);
  __syncthreads();
  each_row_step([&](int row, int column) {
    float sums[kSlopes][kStep] = {};
#pragma unroll
    for (int q = 0; q < kSlopes; q++) {
#pragma unroll
      for (int k = 0; k < kStep + kReach; k++) add_tap(k, in[q][row][column + k], sums[q]);
#pragma unroll
      for (int i = 0; i < kStep; i++) rows[q][row][column + i] = sums[q][i];
    }
  });
  __syncthreads();

  const int lane = lane_index(), first = static_cast<int>(threadIdx.x) / kWarp * kStep;
  float d[kSlopes][kStep];
#pragma unroll
  for (int q = 0; q < kSlopes; q++) filter_column(rows[q], first, lane, d[q]);
#pragma unroll
  for (int i = 0; i < kStep; i++) {
    const int row = first + i + kSsimRadius, column = lane + kSsimRadius;
    if (!tile.has(row, column)) continue;
    const int64_t at = plane + tile.offset(row, column);
    const float x = image[at], y = target[at], difference = x - y;
    const float l1 = weights ? factors.l1 * weights[tile.offset(row, column)] : factors.l1;
    const float sign = difference > 0.f ? l1 : difference < 0.f ? -l1 : 0.f;
    const float g = sign + factors.ssim * half_ssim_gradient(x, y, d[0][i], d[1][i], d[2][i]);
    gradient[at] = accumulate ? gradient[at] + g : g;
  }
}

}  // namespace

void image_loss(Workspace& w, const float* image, const float* target, float* gradient, int width,
                int height, const LossSettings& s, double* terms, cudaStream_t stream) {
  const int64_t pixels = int64_t{width} * height;
  if (pixels == 0) {  // three times 0.0
    check(cudaMemsetAsync(terms, 0, 3 * sizeof(double), stream), "the loss of no pixels");
    return;
  }
  const int64_t tiles = int64_t{ceil_div(width, kSide)} * ceil_div(height, kSide);
  float* const slopes = scratch<float>(w, 0, 3 * kSlopes * pixels);
  double2* const partials = scratch<double2>(w, 1, 3 * tiles);
  const double share = 1.0 / (3.0 * static_cast<double>(pixels));
  const double weight = static_cast<double>(s.weight), lambda = static_cast<double>(s.lambda_dssim);
  const Factors factors{static_cast<float>(weight * (1 - lambda) * share),
                        static_cast<float>(-2 * weight * lambda * share)};
  const dim3 grid(static_cast<unsigned>(tiles), 3);
  ssim_slopes<<<grid, kThreads, 0, stream>>>(image, target, s.pixel_weights, width, height, slopes,
                                             partials);
  finish_terms<<<1, kThreads, 0, stream>>>(partials, 3 * tiles, share, lambda, terms);
  loss_gradient<<<grid, kThreads, 0, stream>>>(image, target, s.pixel_weights, slopes, width,
                                               height, factors, s.accumulate, gradient);
  check_launch("the loss");
}

void l1_ssim(Workspace& w, const float* image, const float* target, float* gradient, int width,
             int height, const LossSettings& s, double* terms, Stream stream) {
  const InStage stage(w, kLoss, stream);
  image_loss(w, image, target, gradient, width, height, s, terms, as_stream(stream));
}

}  // namespace splat::cuda
