// What each Gaussian contributes to the last image, for pruning; and small entry points. A block a
// tile leaves one triple for each instance, in its slot; then each Gaussian's are put together in
// the order of its slots: the same bits in every run.
#include "cuda/device.cuh"
#include "cuda/pipeline.h"
#include "cuda/splat.cuh"

namespace splat::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kBatch = kTilePixels;  // splats: each thread fetches one
enum Scratch { kSlots };

struct alignas(16) Contribution {
  float largest, sum, pixels, unused;
};

struct Tiles {
  const Record* records;
  const uint32_t *list, *slot;
  const Range* ranges;
  Contribution* slots;
  int width, height, tiles_x;
};

struct Batch {
  TileSplat splat[kBatch];
  float largest[kTileWarps][kBatch], sum[kTileWarps][kBatch], pixels[kTileWarps][kBatch];
  uint8_t warps[kBatch];  // bit w: it meets a pixel of warp w
};

/// Instance `place` as splat i, no warp having found anything yet.
__device__ void fetch(const Tiles& t, uint32_t place, float left, float top, int i, Batch& batch) {
  const Record r = t.records[t.list[place]];
  batch.splat[i] = in_tile(r, left, top);
  batch.warps[i] = static_cast<uint8_t>(warps_met(r, r.x - left, r.y - top));
  for (int warp = 0; warp < kTileWarps; warp++) {
    batch.largest[warp][i] = batch.sum[warp][i] = batch.pixels[warp][i] = 0.f;
  }
}

/// In all lanes, by the same additions in every run.
__device__ float sum_over_warp(float x) {
  for (int step = kWarp / 2; step > 0; step /= 2) x += __shfl_xor_sync(kAllLanes, x, step);
  return x;
}

struct Pixel {
  float x, y, t;  // from the tile's corner; running transmittance
  __device__ bool done() const { return !(kTransmittanceMin <= t); }
};

/// What splat i of the batch contributes to the warp's pixels. Whether one of them may go on.
__device__ bool weigh(Batch& batch, int i, Pixel& pixel) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  float u, v, t_final = 0.f;
  bool live;
  const float alpha = min(raw_alpha(power_at(batch.splat[i], pixel.x, pixel.y, u, v)), kAlphaMax);
  const float weight = blend_step(alpha, pixel.t, t_final, live);
  const unsigned largest = __reduce_max_sync(kAllLanes, __float_as_uint(weight));  // not negative
  const unsigned blended = __ballot_sync(kAllLanes, weight > 0.f);
  const float sum = sum_over_warp(weight);
  if (lane_index() == 0) {
    batch.largest[warp][i] = __uint_as_float(largest);
    batch.sum[warp][i] = sum;
    batch.pixels[warp][i] = static_cast<float>(__popc(blended));
  }
  return __any_sync(kAllLanes, live);
}

/// The splats of a batch that the warp's pixels meet, front to back.
__device__ void weigh_batch(Batch& batch, int n, Pixel& pixel) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int base = 0; base < n && !__all_sync(kAllLanes, pixel.done()); base += kWarp) {
    unsigned hits = __ballot_sync(kAllLanes, batch.warps[base + lane_index()] >> warp & 1);
    for (; hits; hits &= hits - 1) {
      if (!weigh(batch, base + __ffs(static_cast<int>(hits)) - 1, pixel)) break;
    }
  }
}

/// The warps' results for splat i, in order.
__device__ Contribution combine(const Batch& batch, int i) {
  Contribution c{};
  for (int warp = 0; warp < kTileWarps; warp++) {
    c.largest = max(c.largest, batch.largest[warp][i]);
    c.sum += batch.sum[warp][i];
    c.pixels += batch.pixels[warp][i];
  }
  return c;
}

/// Slots of instances behind a finished tile stay 0.
__global__ void __launch_bounds__(kTilePixels) weigh_kernel(const Tiles t) {
  __shared__ Batch batch;
  const int tile = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int left = tile % t.tiles_x * kTile, top = tile / t.tiles_x * kTile;
  const int x = tile_pixel_x(thread), y = tile_pixel_y(thread);
  const bool inside = left + x < t.width && top + y < t.height;
  Pixel pixel = {static_cast<float>(x), static_cast<float>(y), inside ? 1.f : 0.f};
  const Range range = t.ranges[tile];
  for (uint32_t first = range.first; first < range.end; first += kBatch) {
    if (__syncthreads_and(pixel.done())) break;
    const uint32_t place = first + threadIdx.x;
    const bool there = place < range.end;
    batch.warps[thread] = 0;
    if (there) fetch(t, place, static_cast<float>(left), static_cast<float>(top), thread, batch);
    __syncthreads();
    weigh_batch(batch, static_cast<int>(min<uint32_t>(kBatch, range.end - first)), pixel);
    __syncthreads();
    if (there) t.slots[t.slot[place]] = combine(batch, thread);
  }
}

/// A thread a Gaussian: combined with what is there.
__global__ void __launch_bounds__(kThreads)
    add_kernel(int64_t count, const uint32_t* tiles, const uint32_t* first_slot,
               const Contribution* slots, const Contributions out) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= count || tiles[i] == 0) return;
  const uint32_t first = first_slot[i], end = first + tiles[i];
  float largest = out.max_weight ? out.max_weight[i] : 0.f;
  float sum = out.weight ? out.weight[i] : 0.f, pixels = out.pixels ? out.pixels[i] : 0.f;
  for (uint32_t s = first; s < end; s++) {
    largest = max(largest, slots[s].largest);
    sum += slots[s].sum;
    pixels += slots[s].pixels;
  }
  if (out.max_weight) out.max_weight[i] = largest;
  if (out.weight) out.weight[i] = sum;
  if (out.pixels) out.pixels[i] = pixels;
}

__global__ void add_invalid_kernel(const Counts* counts, double* to) { *to += counts->invalid; }

}  // namespace

void contributions(Workspace& w, const Contributions& out, Stream s) {
  const cudaStream_t stream = as_stream(s);
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  if (w.drawn == 0 || w.instances == 0 || tiles == 0) return;
  Contribution* const slots = scratch<Contribution>(w, kSlots, w.instances);
  const size_t bytes = static_cast<size_t>(w.instances) * sizeof(Contribution);
  check(cudaMemsetAsync(slots, 0, bytes, stream), "the contributions");
  const Tiles t = {
      w.records.data(), w.list_gaussian.data(), w.list_slot.data(), w.ranges.data(), slots,
      w.camera.width,   w.camera.height,        w.tiles_x};
  weigh_kernel<<<static_cast<unsigned>(tiles), kTilePixels, 0, stream>>>(t);
  check_launch("contributions of tiles");
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(w.count, kThreads));
  add_kernel<<<blocks, kThreads, 0, stream>>>(w.count, w.tiles.data(), w.first_slot.data(), slots,
                                              out);
  check_launch("contributions of Gaussians");
}

void add_invalid(const Workspace& w, double* to, Stream stream) {
  add_invalid_kernel<<<1, 1, 0, as_stream(stream)>>>(w.counts.data(), to);
  check_launch("invalid Gaussians");
}

}  // namespace splat::cuda
