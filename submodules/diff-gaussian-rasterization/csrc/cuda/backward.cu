// Blending backward: from the image's gradient to each Gaussian's sums over its pixels.
//
// A warp has a bucket: 32 instances of a tile, one a lane, the hindmost in lane 0. The tile's
// pixels enter at lane 0 and move on by one lane a step, so that each lane gathers the sums of its
// own instance in registers, and nothing is reduced. What a pixel is like behind the bucket comes
// from the checkpoints of the forward pass, so that all buckets of a tile run side by side.
#include <stdexcept>

#include "core/scalar.h"
// (the operations on built-in types come first)
#include "core/moments.h"
#include "core/pixel.h"
#include "cuda/device.cuh"
#include "cuda/geometry.h"
#include "cuda/pipeline.h"
#include "cuda/splat.cuh"

namespace splat::cuda {
namespace {

constexpr int kChunks = kTileWarps;      // of a tile's pixels, loaded side by side
constexpr int kWarps = 4;                // buckets of a block
constexpr int kRing = 128;               // pixels in a warp's shared memory
constexpr int kPitch = kSlotFloats + 1;  // of the sums of an instance there
enum Scratch { kBehind, kColourGradient, kInverseGradient, kSurfaceGradient };

struct alignas(8) BehindPixel {
  float t, rest;  // of core/pixel.h
};

/// What the pixels bring to the buckets, by pixel in the order of the blocks' threads.
struct PixelViews {
  BehindPixel* behind;   // [buckets, 256], written where the pixel reaches into the bucket
  float4* colour;        // [tiles, 256]: dL/dcolour, and the bits of pixel_end
  float* inverse_depth;  // [tiles, 256]: dL/dinverse_depth, from kInverse on
  float4* surface;       // [tiles, 256]: dL/d(depth, normal), at kFull
};

struct TileViews {
  const Range* ranges;
  const uint32_t *first_bucket, *tile_end;
  int tiles_x;
};

struct StateViews {
  TileViews tiles;
  PixelViews pixels;
  Images gradient;
  const float* transmittance;
  const float* checkpoints;
  const uint32_t* pixel_end;
  int64_t channel;  // floats from one channel of the checkpoints to the next
  int channels;     // that were blended
  int width, height;
  float background[3];
};

__device__ float read_or_zero(const float* image, int64_t at) { return image ? image[at] : 0.f; }

template <int kLevel>
__device__ Features<float> image_gradient(const StateViews& v, int64_t pixel) {
  const int64_t plane = int64_t{v.width} * v.height;
  const Images& g = v.gradient;
  Features<float> q{};
  q.red = g.color[pixel];
  q.green = g.color[plane + pixel];
  q.blue = g.color[2 * plane + pixel];
  if (kLevel >= kInverse) q.inverse_depth = read_or_zero(g.inverse_depth, pixel);
  if (kLevel == kFull) {
    q.depth = read_or_zero(g.depth, pixel);
    for (int k = 0; k < 3; k++) q.normal[k] = read_or_zero(g.normal, k * plane + pixel);
  }
  return q;
}

/// What a bucket alone blended into a pixel. Maps that nobody blended have no gradient either.
template <int kLevel>
__device__ Features<float> own_sums(const StateViews& v, int64_t cell) {
  const float* const own = v.checkpoints + v.channel + cell;
  Features<float> f{};
  f.red = own[0];
  f.green = own[v.channel];
  f.blue = own[2 * v.channel];
  if (kLevel >= kInverse && v.channels > 3) f.inverse_depth = own[3 * v.channel];
  if (kLevel == kFull && v.channels > 4) {
    f.depth = own[4 * v.channel];
    for (int k = 0; k < 3; k++) f.normal[k] = own[(5 + k) * v.channel];
  }
  return f;
}

/// A block a tile, a thread a pixel: its gradients, and, from the last bucket that it reaches to
/// the first, what lies behind the bucket.
template <int kLevel>
__global__ void __launch_bounds__(kTilePixels) find_states(StateViews v) {
  const int tile = static_cast<int>(blockIdx.x), p = static_cast<int>(threadIdx.x);
  const Range range = v.tiles.ranges[tile];
  if (range.first == range.end) return;
  const int x = tile % v.tiles.tiles_x * kTile + tile_pixel_x(p);
  const int y = tile / v.tiles.tiles_x * kTile + tile_pixel_y(p);
  const int64_t at = int64_t{tile} * kTilePixels + p, pixel = int64_t{y} * v.width + x;
  Features<float> q{};
  uint32_t end = range.first;
  float t = 0.f, rest = 0.f;
  if (x < v.width && y < v.height) {
    q = image_gradient<kLevel>(v, pixel);
    end = v.pixel_end[at];
    t = v.transmittance[pixel];
    rest = q.red * v.background[0] + q.green * v.background[1] + q.blue * v.background[2];
    rest = (rest + read_or_zero(v.gradient.transmittance, pixel)) * t;
  }
  v.pixels.colour[at] = {q.red, q.green, q.blue, __uint_as_float(end)};
  if (kLevel >= kInverse) v.pixels.inverse_depth[at] = q.inverse_depth;
  if (kLevel == kFull) {
    v.pixels.surface[at] = {q.depth, q.normal[0], q.normal[1], q.normal[2]};
  }
  const int64_t first_bucket = v.tiles.first_bucket[tile];
  const int reached = static_cast<int>(ceil_div<uint32_t>(end - range.first, kBucket));
#pragma unroll 2
  for (int k = reached - 1; k >= 0; k--) {
    const int64_t cell = (first_bucket + k) * kTilePixels + p;
    const Features<float> own = own_sums<kLevel>(v, cell);
    const float in_front = v.checkpoints[cell];
    v.pixels.behind[cell] = {t, rest};
    t = in_front;
    rest += dot_features<kLevel>(own, q);
  }
}

struct BucketViews {
  TileViews tiles;
  PixelViews pixels;
  const Counts* counts;
  const uint32_t* bucket_tile;
  const uint32_t *list_gaussian, *list_slot;
  const Record* records;
  const Surface* surfaces;  // null: there are none
  float* sums;              // [N, 16], added to; or null, and then
  float* slots;             // [instances, 16], written
};

/// Pixels on their way along a warp, and afterwards the sums of its instances.
template <int kLevel>
union WarpMemory {
  struct {
    float4 colour[kRing];  // dL/dcolour; bits of the number of instances up to the pixel's end
    float2 offset[kRing];  // from the tile's first pixel
    BehindPixel behind[kRing];
    float inverse_depth[kLevel >= kInverse ? kRing : 1];
    float4 surface[kLevel == kFull ? kRing : 1];
  } pixel;
  float sums[kWarp * kPitch];
};

struct Bucket {
  uint32_t index, tile, first;  // first: place in the lists
  int count;                    // instances
};

__device__ Bucket load_bucket(const BucketViews& v, uint32_t index) {
  const uint32_t tile = v.bucket_tile[index];
  const Range range = v.tiles.ranges[tile];
  const uint32_t first = range.first + (index - v.tiles.first_bucket[tile]) * kBucket;
  return {index, tile, first, static_cast<int>(::min(range.end - first, uint32_t{kBucket}))};
}

/// A splat that is nowhere.
__device__ TileSplat nowhere() { return {0.f, 0.f, 0.f, 0.f, 0.f, -1000.f}; }

__device__ Features<float> features_of(const Record& r, const Surface& s) {
  return {r.red,           r.green, r.blue,
          r.inverse_depth, s.depth, {s.normal[0], s.normal[1], s.normal[2]}};
}

/// Appends those pixels of a chunk that reach into the bucket to the `staged` ones in the ring;
/// beyond the last chunk, 32 that reach nowhere. Returns how many.
template <int kLevel>
__device__ int stage_chunk(const BucketViews& v, const Bucket& b, int chunk, int staged,
                           WarpMemory<kLevel>& memory) {
  const bool real = chunk < kChunks;
  const int p = chunk * kWarp + lane_index();
  const int64_t at = int64_t{b.tile} * kTilePixels + p;
  const int64_t cell = int64_t{b.index} * kTilePixels + p;
  float4 colour = {0.f, 0.f, 0.f, 0.f};
  uint32_t reach = 0;
  if (real) {
    colour = v.pixels.colour[at];
    const uint32_t end = __float_as_uint(colour.w);
    reach = end > b.first ? ::min(end - b.first, uint32_t{kBucket}) : 0;
  }
  const bool kept = !real || reach > 0;
  const unsigned mask = __ballot_sync(kAllLanes, kept);
  if (kept) {
    const int rank = __popc(mask & ((1u << lane_index()) - 1));
    const int to = (staged + rank) % kRing;
    colour.w = __uint_as_float(reach);
    memory.pixel.colour[to] = colour;
    memory.pixel.offset[to] = {static_cast<float>(tile_pixel_x(p)),
                               static_cast<float>(tile_pixel_y(p))};
    memory.pixel.behind[to] = real ? v.pixels.behind[cell] : BehindPixel{0.f, 0.f};
    if (kLevel >= kInverse) {
      memory.pixel.inverse_depth[to] = real ? v.pixels.inverse_depth[at] : 0.f;
    }
    if (kLevel == kFull) {
      memory.pixel.surface[to] = real ? v.pixels.surface[at] : float4{0.f, 0.f, 0.f, 0.f};
    }
  }
  return __popc(mask);
}

/// One lane's instance.
struct LaneSplat {
  TileSplat splat;
  Features<float> features;
  uint32_t index;      // in the bucket
  unsigned warps_met;  // bit c: may reach a pixel of chunk c
};

/// The 32 steps from `step` on: in step s lane l has pixel s - l of the ring.
///
/// Bounded by the issue of instructions: 49 a step at kColour (nvcc 13.0; 48 on sm_80), which take
/// the four schedulers of an SM 12.3 cycles. Two shuffles and the loads (16 and 8 bytes a lane, 8
/// for lane 0) keep its shared memory busy for 9 of them. Only t and rest go from lane to lane, a
/// shuffle and two operations a step; other warps hide that.
template <int kLevel>
__device__ void pass_along(const WarpMemory<kLevel>& memory, const LaneSplat& mine, int step,
                           Behind<float>& behind, float* sum) {
  const int lane = lane_index();
#pragma unroll 4
  for (int k = 0; k < kWarp; k++) {
    const int at = (step + k - lane) & (kRing - 1);
    behind.t = __shfl_up_sync(kAllLanes, behind.t, 1);
    behind.rest = __shfl_up_sync(kAllLanes, behind.rest, 1);
    if (lane == 0) behind = {memory.pixel.behind[at].t, memory.pixel.behind[at].rest};
    const float4 colour = memory.pixel.colour[at];
    const float2 offset = memory.pixel.offset[at];
    Features<float> q{};
    q.red = colour.x;
    q.green = colour.y;
    q.blue = colour.z;
    if (kLevel >= kInverse) q.inverse_depth = memory.pixel.inverse_depth[at];
    if (kLevel == kFull) {
      const float4 surface = memory.pixel.surface[at];
      q.depth = surface.x;
      q.normal[0] = surface.y;
      q.normal[1] = surface.z;
      q.normal[2] = surface.w;
    }
    float u, v;
    const float power = power_at(mine.splat, offset.x, offset.y, u, v);
    const float alpha = mine.index < __float_as_uint(colour.w) ? raw_alpha(power) : 0.f;
    pixel_gradient<kLevel>(mine.features, q, mine.splat.b, mine.splat.c, u, v, alpha, behind, sum);
  }
}

/// All pixels of the tile that reach into the bucket, in chunks that one of its splats meets.
template <int kLevel>
__device__ void pass_pixels(const BucketViews& v, const Bucket& b, const LaneSplat& mine,
                            WarpMemory<kLevel>& memory, float* sum) {
  const unsigned met = __reduce_or_sync(kAllLanes, mine.warps_met);
  // Lanes look up to 31 pixels back before the first one: nothing there.
  const int before = kRing - kWarp + lane_index();
  memory.pixel.colour[before] = {0.f, 0.f, 0.f, 0.f};
  memory.pixel.offset[before] = {0.f, 0.f};
  if (kLevel >= kInverse) memory.pixel.inverse_depth[before] = 0.f;
  if (kLevel == kFull) memory.pixel.surface[before] = {0.f, 0.f, 0.f, 0.f};
  Behind<float> behind = {0.f, 0.f};
  int staged = 0, pixels = 0, chunk = 0;
  for (int step = 0;; step += kWarp) {
    while (staged < step + kWarp) {  // at most step + 63 then: with 31 behind, less than the ring
      const bool real = chunk < kChunks;
      if (!real || met >> chunk & 1u) {
        staged += stage_chunk<kLevel>(v, b, chunk, staged, memory);
        if (real) pixels = staged;
      }
      chunk++;
    }
    __syncwarp();
    if (chunk >= kChunks && step >= pixels + b.count - 1) break;
    pass_along<kLevel>(memory, mine, step, behind, sum);
    __syncwarp();
  }
}

/// Instance by instance, its 16 sums side by side: half a warp each.
__device__ void write_sums(const BucketViews& v, const Bucket& b, const float* memory) {
  const int k = lane_index() % kSlotFloats;
#pragma unroll 4
  for (int i = lane_index() / kSlotFloats; i < b.count; i += kWarp / kSlotFloats) {
    const float value = memory[i * kPitch + k];
    const int64_t row = __float_as_uint(memory[i * kPitch + kSlotFloats]);
    if (v.slots) {
      v.slots[row * kSlotFloats + k] = value;
    } else if (value != 0.f) {  // also NaN
      atomicAdd(v.sums + row * kSlotFloats + k, value);
    }
  }
}

/// A warp a bucket; no barrier but those of the warp.
template <int kLevel>
__global__ void __launch_bounds__(kWarps* kWarp) differentiate_buckets(BucketViews v) {
  constexpr int num_sums = kLevel == kFull ? kFullMoments : kMoments;
  __shared__ WarpMemory<kLevel> memories[kWarps];
  const uint32_t index = blockIdx.x * kWarps + threadIdx.x / kWarp;
  if (index >= v.counts->buckets) return;
  const Bucket b = load_bucket(v, index);
  const bool reached = b.first < v.tiles.tile_end[b.tile];
  if (!reached && !v.slots) return;
  WarpMemory<kLevel>& memory = memories[threadIdx.x / kWarp];
  const int lane = lane_index(), place = b.count - 1 - lane;  // the hindmost in lane 0
  LaneSplat mine = {nowhere(), {}, 0, 0};
  uint32_t row = 0;
  if (place >= 0) {
    const uint32_t gaussian = v.list_gaussian[b.first + place];
    row = v.slots ? v.list_slot[b.first + place] : gaussian;
    if (reached) {
      const Record record = v.records[gaussian];
      const Surface surface = kLevel == kFull && v.surfaces ? v.surfaces[gaussian] : Surface{};
      const int tile = static_cast<int>(b.tile);
      const float x = static_cast<float>(tile % v.tiles.tiles_x * kTile);
      const float y = static_cast<float>(tile / v.tiles.tiles_x * kTile);
      mine = {in_tile(record, x, y), features_of(record, surface), static_cast<uint32_t>(place),
              warps_met(record, record.x - x, record.y - y)};
    }
  }
  float sum[num_sums];
  for (int k = 0; k < num_sums; k++) sum[k] = 0.f;
  if (reached) pass_pixels<kLevel>(v, b, mine, memory, sum);
  float* const own = memory.sums + lane * kPitch;  // the rows are in the order of the lanes
  for (int k = 0; k < kSlotFloats; k++) own[k] = k < num_sums ? sum[k] : 0.f;
  own[kSlotFloats] = __uint_as_float(row);
  __syncwarp();
  write_sums(v, b, memory.sums);
}

constexpr int kTeams = 16;          // Gaussians of a block, 16 threads each
constexpr uint32_t kFewSlots = 64;  // more than that are a task for the whole block

struct SlotViews {
  const Counts* counts;
  const uint32_t *order, *first_slot, *tiles;
  const float* slots;
  float* sums;
};

/// Slots [first, end), every `stride`-th, in this order.
__device__ float add_slots(const float* slots, uint32_t first, uint32_t end, uint32_t stride,
                           int k) {
  float sum = 0.f;
#pragma unroll 4
  for (uint32_t s = first; s < end; s += stride) sum += slots[int64_t{s} * kSlotFloats + k];
  return sum;
}

/// Each Gaussian's slots, in an order that depends on nothing but their number. Gaussians are taken
/// by rank: the slots of a block's lie side by side.
__global__ void __launch_bounds__(kTeams* kSlotFloats) sum_slots(SlotViews v) {
  __shared__ uint32_t first[kTeams], end[kTeams], gaussian[kTeams];
  __shared__ float partial[kTeams][kSlotFloats];
  const int team = static_cast<int>(threadIdx.x) / kSlotFloats;
  const int k = static_cast<int>(threadIdx.x) % kSlotFloats;
  const uint32_t drawn = v.counts->drawn, rank = blockIdx.x * kTeams + team;
  if (k == 0) {
    first[team] = end[team] = gaussian[team] = 0;
    if (rank < drawn) {
      const uint32_t g = v.order[rank];
      gaussian[team] = g;
      first[team] = v.first_slot[g];
      end[team] = first[team] + v.tiles[g];
    }
  }
  __syncthreads();
  if (rank < drawn && end[team] - first[team] <= kFewSlots) {
    const float sum = add_slots(v.slots, first[team], end[team], 1, k);
    v.sums[int64_t{gaussian[team]} * kSlotFloats + k] = sum;
  }
  for (int t = 0; t < kTeams; t++) {
    if (end[t] - first[t] <= kFewSlots) continue;  // the same for all threads
    partial[team][k] = add_slots(v.slots, first[t] + team, end[t], kTeams, k);
    __syncthreads();
    if (team == 0) {
      float sum = 0.f;
      for (int i = 0; i < kTeams; i++) sum += partial[i][k];
      v.sums[int64_t{gaussian[t]} * kSlotFloats + k] = sum;
    }
    __syncthreads();
  }
}

TileViews tile_views(const Workspace& w) {
  return {w.ranges.data(), w.first_bucket.data(), w.tile_end.data(), w.tiles_x};
}

PixelViews pixel_views(Workspace& w, Level level) {
  const int64_t pixels = int64_t{w.tiles_x} * w.tiles_y * kTilePixels;
  PixelViews v{};
  v.behind = scratch<BehindPixel>(w, kBehind, w.buckets * kTilePixels);
  v.colour = scratch<float4>(w, kColourGradient, pixels);
  if (level >= kInverse) v.inverse_depth = scratch<float>(w, kInverseGradient, pixels);
  if (level == kFull) v.surface = scratch<float4>(w, kSurfaceGradient, pixels);
  return v;
}

StateViews state_views(const Workspace& w, const PixelViews& pixels, const float* transmittance,
                       const Images& gradient) {
  const Camera& c = w.camera;
  return {tile_views(w),
          pixels,
          gradient,
          transmittance,
          w.checkpoints.data(),
          w.pixel_end.data(),
          w.buckets * kTilePixels,
          blended_channels(w.level),
          c.width,
          c.height,
          {c.background[0], c.background[1], c.background[2]}};
}

BucketViews bucket_views(const Workspace& w, const PixelViews& pixels, float* sums, float* slots) {
  return {tile_views(w),
          pixels,
          w.counts.data(),
          w.bucket_tile.data(),
          w.list_gaussian.data(),
          w.list_slot.data(),
          w.records.data(),
          w.has_surfaces ? w.surfaces.data() : nullptr,
          sums,
          slots};
}

template <int kLevel>
void launch(const StateViews& states, const BucketViews& buckets, int64_t tiles, int64_t count,
            cudaStream_t stream) {
  find_states<kLevel><<<static_cast<unsigned>(tiles), kTilePixels, 0, stream>>>(states);
  check_launch("states behind the buckets");
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(count, kWarps));
  differentiate_buckets<kLevel><<<blocks, kWarps * kWarp, 0, stream>>>(buckets);
  check_launch("gradients of the buckets");
}

/// Sums of the Gaussians or, where they are null, slots.
void differentiate_tiles(Workspace& w, const float* transmittance, const Images& gradient,
                         Level level, float* sums, float* slots, cudaStream_t stream) {
  const PixelViews pixels = pixel_views(w, level);
  const StateViews states = state_views(w, pixels, transmittance, gradient);
  const BucketViews buckets = bucket_views(w, pixels, sums, slots);
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  if (level == kFull) {
    launch<kFull>(states, buckets, tiles, w.buckets, stream);
  } else if (level == kInverse) {
    launch<kInverse>(states, buckets, tiles, w.buckets, stream);
  } else {
    launch<kColour>(states, buckets, tiles, w.buckets, stream);
  }
}

/// Checkpoints with all maps that have a gradient.
void ensure_checkpoints(Workspace& w, const Images& gradient, cudaStream_t stream) {
  const bool surfaces = w.has_surfaces && (gradient.depth || gradient.normal);
  const Level needed = surfaces ? kFull : gradient.inverse_depth ? kInverse : kColour;
  if (w.has_checkpoints && w.level >= needed) return;
  if (w.level < needed) w.level = needed;
  blend_forward(w, Images{}, true, stream);
}

/// The sums of all drawn Gaussians.
void blend_backward(Workspace& w, const float* transmittance, const Images& gradient, Level level,
                    bool deterministic, cudaStream_t stream) {
  if (w.count == 0) return;
  const int64_t floats = w.count * kSlotFloats;
  float* const sums = w.sums.grow(floats);
  const bool any = w.buckets > 0 && w.tiles_x > 0 && w.tiles_y > 0;
  if (any) ensure_checkpoints(w, gradient, stream);
  if (!deterministic || !any) {
    check(cudaMemsetAsync(sums, 0, sizeof(float) * floats, stream), "zeros");
    if (any) differentiate_tiles(w, transmittance, gradient, level, sums, nullptr, stream);
    return;
  }
  float* const slots = w.slots.grow(w.instances * kSlotFloats);
  differentiate_tiles(w, transmittance, gradient, level, nullptr, slots, stream);
  const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(w.drawn, kTeams));
  sum_slots<<<blocks, kTeams * kSlotFloats, 0, stream>>>(
      {w.counts.data(), w.order.data(), w.first_slot.data(), w.tiles.data(), slots, sums});
  check_launch("sums of slots");
}

Level level_of(const Images& gradient, const BackwardOutputs& out) {
  const bool absolute = out.absolute_means2d || out.statistics.absolute_norm;
  if (absolute || gradient.depth || gradient.normal) return kFull;
  return gradient.inverse_depth ? kInverse : kColour;
}

}  // namespace

void backward(Workspace& w, const Scene& scene, const float* transmittance, const Images& gradient,
              const BackwardOutputs& out, const Backward& how, Stream stream) {
  if (scene.half_sh)
    throw std::invalid_argument("there is no way back through shN in half precision");
  const Level level = level_of(gradient, out);
  {
    const InStage stage(w, kBlendBackward, stream);
    blend_backward(w, transmittance, gradient, level, how.deterministic, as_stream(stream));
  }
  const InStage stage(w, kGeometry, stream);
  geometry_backward(w, scene, out, level, how.guard, as_stream(stream));
}

}  // namespace splat::cuda
