// What lives on the device between the forward and the backward pass, and the scratch memory of
// both. Plain C++: the bindings include it without CUDA's headers.
//
// Words: a Gaussian is `drawn` where it may change a pixel; its rank is its place in the depth
// order; an instance is a (tile, Gaussian) pair; its slot is its place in the order (rank, tile),
// in which all instances of a Gaussian lie side by side, and its place in the lists the one in the
// order (tile, rank); a bucket is 32 consecutive instances of one tile's list.
#pragma once
#include <cstdint>

#include "core/camera.h"
#include "core/moments.h"
#include "cuda/memory.h"
#include "cuda/stages.h"

namespace splat::cuda {

constexpr int kTile = 16;         // [px]
constexpr int kTilePixels = 256;  // thread p of a tile's block has the pixel of tile_pixel(p)
constexpr int kWarp = 32;
constexpr int kBucket = kWarp;   // instances of a bucket
constexpr int kSlotFloats = 16;  // sums of a Gaussian or an instance, in the order of Moment
constexpr int64_t kMaxInstances = (int64_t{1} << 31) - 1;

/// A drawn Gaussian on the screen: three 16-byte loads.
struct alignas(16) Record {
  float x, y;     // [px]
  float a, b, c;  // whitened conic
  float log2_opacity;
  float unused;  // 0
  float inverse_depth;
  float red, green, blue;
  float extent;  // log2(255 opacity)
};

/// What the depth and normal maps blend of it; filled only when one of them is wanted.
struct alignas(16) Surface {
  float depth;      // camera z
  float normal[3];  // towards the camera, world axes; 0 with precomputed covariances
};

/// Facts about a Gaussian.
enum Flag : uint32_t {
  kDrawn = 1,       // has a record
  kVisible = 2,     // by the original's rule: radius > 0
  kClampedRed = 4,  // colour channel below 0; green and blue are the next two bits
};

/// Sizes that only the device knows. The host reads the first two once a forward pass.
struct Counts {
  uint64_t instances;  // of the whole image, also beyond the capacity
  uint32_t drawn;
  uint32_t invalid;   // culled because of NaN, Inf or values beyond float32's reach
  uint32_t overflow;  // 1: instances did not fit into a fixed capacity, and some are missing
  uint32_t buckets;
};

struct Range {
  uint32_t first, end;  // of a tile, places in the lists
};

struct Workspace {
  Camera camera{};
  int64_t count = 0;  // Gaussians
  int64_t drawn = 0;  // on the host, like the next; upper bounds with a fixed capacity
  int64_t instances = 0;
  int64_t buckets = 0;  // upper bound on the host, and the stride of `checkpoints`
  int tiles_x = 0, tiles_y = 0;
  Level level = kColour;  // how the image was blended, which decides what else is kept
  bool has_surfaces = false;
  bool has_checkpoints = false;  // the last image was blended for a backward pass
  // For CUDA graphs: no size is read, and the lists keep the room that they have. All else that
  // depends on it has grown after one more call like those that are captured.
  bool fixed_capacity = false;
  bool timing = false;  // record events around the stages, see stages.h
  Stages stages;        // restarted by every forward pass

  Buffer<Counts> counts;   // one
  Counts* read = nullptr;  // one, in pinned memory of the host
  // by Gaussian
  Buffer<Record> records;
  Buffer<Surface> surfaces;
  Buffer<uint32_t> flags;
  Buffer<float> radii;     // [px], 0 where not visible
  Buffer<uint32_t> keys;   // bits of the camera z of drawn ones
  Buffer<uint32_t> tiles;  // how many it touches
  Buffer<uint32_t> first_slot;
  Buffer<float> sums;  // [N, 16], backward
  // by rank
  Buffer<uint32_t> order;  // Gaussian
  // by instance
  Buffer<uint32_t> list_gaussian, list_slot;  // by place in the lists
  Buffer<float> slots;                        // [instances, 16], by slot; only when deterministic
  // by tile
  Buffer<Range> ranges;
  Buffer<uint32_t> first_bucket;  // [tiles + 1]
  Buffer<uint32_t> tile_end;      // place after the last instance blended into any pixel of it
  // by bucket
  Buffer<uint32_t> bucket_tile;
  // [channels, buckets, 256]: T in front of the bucket, then the sums of T alpha times red, green,
  // blue, (inverse depth, (depth, normal)) over the bucket alone. Not written beyond the pixel's
  // end.
  Buffer<float> checkpoints;
  // by pixel of all tiles, in the order of the blocks' threads
  Buffer<uint32_t> pixel_end;  // place after the last instance that was blended into it
  // what single calls need: sorted copies, CUB's storage, the backward's states, losses
  Buffer<uint8_t> scratch[12];

  /// visit(buffer) for every one of them: a new buffer has its name here too.
  template <class Visit>
  void each_buffer(const Visit& visit) {
    const auto all = [&](auto&... buffer) { (visit(buffer), ...); };
    all(counts, records, surfaces, flags, radii, keys, tiles, first_slot, sums, order,
        list_gaussian, list_slot, slots, ranges, first_bucket, tile_end, bucket_tile, checkpoints,
        pixel_end);
    for (auto& buffer : scratch) visit(buffer);
  }
};

}  // namespace splat::cuda
