// Stage 4: blending, a block of threads a tile, a thread a pixel, a warp a block of 8 x 4 pixels.
//
// Splats come in batches into shared memory, with a mask of the warps whose pixels they meet. A
// warp takes 32 of them at a time, a bucket, and runs through those with its bit. What a bucket
// adds to a pixel is summed up by itself before it joins the pixel's total: the backward pass needs
// these sums with all their digits, and the image is the same with and without them kept.
#include "core/tiles.h"
// (it brings the operations on built-in types first)
#include "cuda/device.cuh"
#include "cuda/pipeline.h"
#include "cuda/splat.cuh"

namespace splat::cuda {
namespace {

constexpr int kBatch = kTilePixels;  // splats: each thread fetches one
static_assert(kBatch % kBucket == 0, "buckets do not span batches");

struct Blend {
  const Record* records;
  const Surface* surfaces;  // null: no normals, no depths
  const uint32_t* list;
  const Range* ranges;
  const uint32_t* first_bucket;
  Images out;
  // with kKeep only
  float* checkpoints;
  uint32_t *pixel_end, *tile_end;
  int64_t buckets;
  float background[3];
  int width, height, tiles_x;
};

template <Level kLevel>
struct Batch {
  float4 shape[kBatch];  // u, v, a, b
  float4 look[kBatch];   // c, log2 of the opacity, red, green
  float2 rest[kBatch];   // blue, inverse depth
  float4 surface[kLevel == kFull ? kBatch : 1];
  uint8_t warps[kBatch];  // bit w: it meets a pixel of warp w
};

template <Level kLevel>
__device__ void fetch(const Blend& b, uint32_t place, float left, float top, int i,
                      Batch<kLevel>& batch) {
  const uint32_t gaussian = b.list[place];
  const Record r = b.records[gaussian];
  const TileSplat s = in_tile(r, left, top);
  batch.shape[i] = make_float4(s.u, s.v, s.a, s.b);
  batch.look[i] = make_float4(s.c, s.log2_opacity, r.red, r.green);
  batch.rest[i] = make_float2(r.blue, r.inverse_depth);
  if (kLevel == kFull) {
    const Surface f = b.surfaces[gaussian];
    batch.surface[i] = make_float4(f.depth, f.normal[0], f.normal[1], f.normal[2]);
  }
  batch.warps[i] = static_cast<uint8_t>(warps_met(r, r.x - left, r.y - top));
}

template <Level kLevel>
struct Pixel {
  static constexpr int kMaps = blended_channels(kLevel);
  float x, y;                      // from the tile's corner
  float t, t_final;                // running transmittance; behind the last splat that was blended
  float total[kMaps], own[kMaps];  // over all buckets before, over this one
  uint32_t end;                    // place after the last instance that was blended

  __device__ bool done() const { return !(kTransmittanceMin <= t); }
};

/// Splat i of the batch, at `place` in the list. Whether the pixel may go on.
template <Level kLevel>
__device__ bool blend(const Batch<kLevel>& batch, int i, uint32_t place, Pixel<kLevel>& pixel) {
  const float4 shape = batch.shape[i], look = batch.look[i];
  const TileSplat s = {shape.x, shape.y, shape.z, shape.w, look.x, look.y};
  float u, v;
  const float power = power_at(s, pixel.x, pixel.y, u, v);
  const float alpha = min(raw_alpha(power), kAlphaMax);
  bool live;
  const float weight = blend_step(alpha, pixel.t, pixel.t_final, live);
  const float2 rest = batch.rest[i];
  pixel.own[0] += weight * look.z;
  pixel.own[1] += weight * look.w;
  pixel.own[2] += weight * rest.x;
  if constexpr (kLevel >= kInverse) pixel.own[3] += weight * rest.y;
  if constexpr (kLevel == kFull) {
    const float4 surface = batch.surface[i];
    pixel.own[4] += weight * surface.x;
    pixel.own[5] += weight * surface.y;
    pixel.own[6] += weight * surface.z;
    pixel.own[7] += weight * surface.w;
  }
  if (weight > 0.f) pixel.end = place + 1;
  return live;
}

/// The 32 splats from `base` on of a batch whose first one has `place` in the list. A warp calls
/// it.
template <Level kLevel>
__device__ void blend_bucket(const Batch<kLevel>& batch, int base, uint32_t place,
                             Pixel<kLevel>& pixel) {
  const int warp = static_cast<int>(threadIdx.x) / kWarp;
  for (float& sum : pixel.own) sum = 0.f;
  unsigned hits = __ballot_sync(kAllLanes, batch.warps[base + lane_index()] >> warp & 1);
  for (; hits; hits &= hits - 1) {
    const int i = base + __ffs(static_cast<int>(hits)) - 1;
    const bool live = blend(batch, i, place + static_cast<uint32_t>(i), pixel);
    if (!__any_sync(kAllLanes, live)) break;
  }
  for (int k = 0; k < Pixel<kLevel>::kMaps; k++) pixel.total[k] += pixel.own[k];
}

/// t: in front of the bucket.
template <Level kLevel>
__device__ void keep_bucket(const Blend& b, int64_t bucket, float t, const Pixel<kLevel>& pixel) {
  const int64_t channel = b.buckets * kTilePixels;
  float* const to = b.checkpoints + bucket * kTilePixels + threadIdx.x;
  to[0] = t;
  for (int k = 0; k < Pixel<kLevel>::kMaps; k++) to[(k + 1) * channel] = pixel.own[k];
}

template <Level kLevel>
__device__ void write_pixel(const Blend& b, int x, int y, const Pixel<kLevel>& pixel) {
  const int64_t plane = int64_t{b.width} * b.height, at = int64_t{y} * b.width + x;
  if (b.out.color) {
    for (int c = 0; c < 3; c++) {
      b.out.color[c * plane + at] = pixel.total[c] + pixel.t_final * b.background[c];
    }
  }
  if (b.out.transmittance) b.out.transmittance[at] = pixel.t_final;
  if constexpr (kLevel >= kInverse) {
    if (b.out.inverse_depth) b.out.inverse_depth[at] = pixel.total[3];
  }
  if constexpr (kLevel == kFull) {
    if (b.out.depth) b.out.depth[at] = pixel.total[4];
    if (b.out.normal) {
      for (int c = 0; c < 3; c++) b.out.normal[c * plane + at] = pixel.total[5 + c];
    }
  }
}

/// Where the pixels of the tile end, and the last of them. The block calls it together.
__device__ void write_ends(const Blend& b, uint32_t tile, uint32_t first, uint32_t end) {
  __shared__ uint32_t last;
  b.pixel_end[int64_t{tile} * kTilePixels + threadIdx.x] = end;
  if (threadIdx.x == 0) last = first;
  __syncthreads();
  const uint32_t in_warp = __reduce_max_sync(kAllLanes, end);
  if (lane_index() == 0) atomicMax(&last, in_warp);
  __syncthreads();
  if (threadIdx.x == 0) b.tile_end[tile] = last;
}

/// Pixels outside the image start, and stay, finished.
template <Level kLevel, bool kKeep>
__global__ void __launch_bounds__(kTilePixels) blend_kernel(const Blend b) {
  __shared__ Batch<kLevel> batch;
  const int tile = static_cast<int>(blockIdx.x), thread = static_cast<int>(threadIdx.x);
  const int left = tile % b.tiles_x * kTile, top = tile / b.tiles_x * kTile;
  const int x = left + tile_pixel_x(thread), y = top + tile_pixel_y(thread);
  const bool inside = x < b.width && y < b.height;
  const Range range = b.ranges[tile];
  Pixel<kLevel> pixel{};
  pixel.x = static_cast<float>(tile_pixel_x(thread));
  pixel.y = static_cast<float>(tile_pixel_y(thread));
  pixel.t = pixel.t_final = inside ? 1.f : 0.f;
  pixel.end = range.first;
  int64_t bucket = kKeep ? b.first_bucket[tile] : 0;
  for (uint32_t first = range.first; first < range.end; first += kBatch) {
    if (__syncthreads_and(pixel.done())) break;
    const uint32_t place = first + threadIdx.x;
    if (place < range.end) {
      fetch(b, place, static_cast<float>(left), static_cast<float>(top), thread, batch);
    } else {
      batch.warps[thread] = 0;
    }
    __syncthreads();
    const int n = static_cast<int>(min<uint32_t>(kBatch, range.end - first));
    for (int base = 0; base < n && !__all_sync(kAllLanes, pixel.done()); base += kBucket) {
      const float t = pixel.t;
      blend_bucket(batch, base, first, pixel);
      if (kKeep && kTransmittanceMin <= t) keep_bucket(b, bucket + base / kBucket, t, pixel);
    }
    bucket += kBatch / kBucket;
  }
  if (inside) write_pixel(b, x, y, pixel);
  if constexpr (kKeep) write_ends(b, blockIdx.x, range.first, pixel.end);
}

template <Level kLevel>
void launch(const Blend& b, int64_t tiles, bool keep, cudaStream_t stream) {
  if (tiles == 0) return;
  const auto kernel = keep ? blend_kernel<kLevel, true> : blend_kernel<kLevel, false>;
  kernel<<<static_cast<unsigned>(tiles), kTilePixels, 0, stream>>>(b);
  check_launch("blending");
}

}  // namespace

void blend_forward(Workspace& w, const Images& out, bool keep, cudaStream_t stream) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  w.has_checkpoints = false;  // until they are, should memory run out below
  Blend b{};
  b.records = w.records.data();
  b.surfaces = w.surfaces.data();
  b.list = w.list_gaussian.data();
  b.ranges = w.ranges.data();
  b.first_bucket = w.first_bucket.data();
  b.out = out;
  if (keep) {
    const int64_t channels = 1 + blended_channels(w.level);
    b.checkpoints = w.checkpoints.grow(channels * w.buckets * kTilePixels);
    b.pixel_end = w.pixel_end.grow(tiles * kTilePixels);
    b.tile_end = w.tile_end.grow(tiles);
    b.buckets = w.buckets;
  }
  for (int c = 0; c < 3; c++) b.background[c] = w.camera.background[c];
  b.width = w.camera.width;
  b.height = w.camera.height;
  b.tiles_x = w.tiles_x;
  if (w.level == kFull) {
    launch<kFull>(b, tiles, keep, stream);
  } else if (w.level == kInverse) {
    launch<kInverse>(b, tiles, keep, stream);
  } else {
    launch<kColour>(b, tiles, keep, stream);
  }
  w.has_checkpoints = keep;
}

void forward(Workspace& w, const Scene& scene, const Camera& camera, const Images& out,
             int32_t* radii, bool keep, Stream s) {
  if (scene.count > kMaxInstances) throw std::length_error("more than 2^31 - 1 splats");
  const cudaStream_t stream = as_stream(s);
  w.stages.restart();
  w.has_checkpoints = false;
  w.camera = camera;
  w.count = scene.count;
  w.tiles_x = ceil_div(camera.width, kTile);
  w.tiles_y = ceil_div(camera.height, kTile);
  w.has_surfaces = out.depth || out.normal;
  w.level = w.has_surfaces ? kFull : out.inverse_depth ? kInverse : kColour;
  preprocess(w, scene, radii, stream);
  order(w, stream);
  const InStage stage(w, kForward, stream);
  blend_forward(w, out, keep, stream);
}

}  // namespace splat::cuda
