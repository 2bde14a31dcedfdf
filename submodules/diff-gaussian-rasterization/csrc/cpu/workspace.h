// What lives between the forward and the backward pass, and the scratch memory of both.
#pragma once
#include <cstdint>

#include "core/camera.h"
#include "cpu/buffer.h"

namespace splat {

constexpr int kLanes = 16;
constexpr int kChunk = 1024;     // Gaussians of one task; a multiple of kLanes
constexpr int kTile = 32;        // [px]
constexpr int kBlocks = 64;      // 4x4-pixel blocks of a tile; block b: column b & 7, row b >> 3
constexpr int kSlotFloats = 16;  // gradient sums of an instance
constexpr int kMaxThreads = 64;
constexpr int kScratches =
    3;  // transmittance and dL/dimage of an image; gradients of all Gaussians
constexpr int kImageScratches = 2;
constexpr int64_t kMaxInstances = int64_t{1} << 26;  // about 6 GB of lists and slots

/// A visible Gaussian on the screen: one cache line.
struct alignas(64) Record {
  float x, y;     // [px]
  float a, b, c;  // whitened conic
  float log2_opacity;
  float red, green, blue;
  float inverse_depth;
  float extent, inverse_a, rightmost_dy, half_width, half_height;
  float unused;
};

/// What the depth and normal maps blend of it; filled only when one of them is wanted.
struct alignas(16) Surface {
  float depth;      // camera z
  float normal[3];  // towards the camera, world axes; 0 with precomputed covariances
};

/// A (Gaussian, tile) pair: bit r * 8 + c of the mask is the block in row r, column c.
struct Instance {
  uint64_t mask;
  uint32_t tile, gaussian;
};

/// Facts about 16 consecutive Gaussians, one bit each.
struct GroupFlags {
  uint16_t drawn;       // has a record
  uint16_t visible;     // by the original's rule: radius > 0
  uint16_t clamped[3];  // colour channel below 0
};

/// A banded matrix in blocks of rows. Block b holds, for each of its start[b + 1] - start[b] inputs
/// from first[b] on, the weights of its rows side by side.
struct BlockMatrix {
  int rows = 0, block = 0;
  Buffer<int32_t> first, start;
  Buffer<float> weight;
};

/// One axis of the downscaling of the last LR loss, and a copy of the taps that it was made from.
struct LRAxis {
  int outputs = 0, inputs = 0, width = 0;
  Buffer<int32_t> start;
  Buffer<float> weight;
  BlockMatrix down, up;  // A and its transpose
};

enum Stage { kPreprocess, kSortBin, kForward, kLoss, kBlendBackward, kGeometry, kStages };

struct Workspace {
  Camera camera{};
  int64_t count = 0;  // Gaussians
  int64_t drawn = 0;  // with a record
  int64_t instances = 0;
  int64_t invalid = 0;  // culled because of NaN, Inf or values beyond float32's reach
  int tiles_x = 0, tiles_y = 0, threads = 1;
  // An image whose lists and slots are too many runs in bands of tile rows: these are one band's.
  int bands = 1;        // of the last image
  int ranges = 1;       // of the depth order, consecutive, whose tiles were counted apart
  int64_t listed = 0;   // instances in the lists now
  int64_t longest = 0;  // most that are ever listed at a time
  int first_tile = 0, end_tile = 0;  // tiles with lists now
  bool has_surfaces = false;         // of the last image
  bool slots_are_full = false;       // all 16 sums of the last backward pass, not the first ten
  double stage_ms[kStages] = {};

  Budget budget;  // of all buffers here; its limit is kept by bands of tile rows
  Buffer<Record> records;
  Buffer<Surface> surfaces;
  Buffer<float> radii;  // [px], 0 = not visible
  Buffer<GroupFlags> flags;
  Buffer<int64_t> invalid_in_chunk;
  Buffer<uint32_t> keys;               // depth as bits, ~0 = not drawn
  Buffer<uint64_t> order, order_swap;  // key << 32 | index, nearest first
  Buffer<uint32_t> histogram;
  Buffer<Instance> emitted[kMaxThreads];
  int64_t num_emitted[kMaxThreads] = {};
  Buffer<int> band_start;         // [bands + 1] tile rows
  Buffer<uint32_t> range_counts;  // [ranges, tiles] instances, of an image in bands
  Buffer<uint32_t> tile_start;    // [tiles + 1], of the tiles with lists now
  Buffer<uint32_t> slot_start;    // [count + 1], a Gaussian's instances side by side
  Buffer<uint32_t> band_slot_end;
  const uint32_t* slot_end = nullptr;  // [count]: Gaussian g has slots slot_start[g] .. slot_end[g]
  Buffer<uint32_t> instance_gaussian, instance_slot;
  Buffer<uint64_t> instance_mask;
  Buffer<uint32_t> block_end;  // [tiles, 64]: index after which no lane of the block is live
  Buffer<int32_t> lane_end;    // [tiles, 64, 16]: index after the last instance blended there
  Buffer<float> slots;         // [longest, 16]: gradient sums of the instances listed now
  Buffer<float> slot_sums;     // [count, 16]: the same of each Gaussian, of an image in bands
  Buffer<double> pose_sums;    // [chunks, 15]
  Buffer<char> loss_scratch[kMaxThreads];
  Buffer<double> loss_sums;
  LRAxis lr_axis[2];  // x, y
  Buffer<float> lr_images, lr_rows[kMaxThreads];
  Buffer<float> scratch[kScratches];  // the caller's

  Workspace();  // these in buffer.cpp, which knows all buffers
  /// Of what `room_for_instances` leaves free: the losses' memory and the scratches of one image.
  int64_t later_bytes() const;
  void release_image();
  void release_losses();
  /// Where it changes, all memory goes: what was taken with some room in advance, too.
  void set_limit(int64_t bytes);
  /// Scratches of these sizes [floats], whose contents are lost; false where they do not fit.
  bool try_reserve(const int64_t* sizes);
  int64_t bytes() const { return budget.used; }
};

}  // namespace splat
