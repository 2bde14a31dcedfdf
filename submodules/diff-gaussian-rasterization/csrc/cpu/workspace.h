// What lives between the forward and the backward pass, and the scratch memory of both.
#pragma once
#include <cstdint>

#include "core/camera.h"
#include "cpu/buffer.h"

namespace splat {

constexpr int kLanes = 16;
constexpr int kChunk = 1024;  // Gaussians of one task; a multiple of kLanes
constexpr int kTile = 32;     // [px]
constexpr int kBlocks = 64;   // 4x4-pixel blocks of a tile; block b: column b & 7, row b >> 3
constexpr int kMaxThreads = 64;
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

enum Stage { kPreprocess, kSortBin, kForward, kLoss, kBlendBackward, kGeometry, kStages };

struct Workspace {
  Camera camera{};
  int64_t count = 0;  // Gaussians
  int64_t drawn = 0;  // with a record
  int64_t instances = 0;
  int64_t invalid = 0;       // culled because of NaN, Inf or values beyond float32's reach
  int64_t memory_limit = 0;  // [bytes] of all buffers here, kept by bands of tile rows; 0 = none
  int bands = 1;             // of the last image
  int tiles_x = 0, tiles_y = 0;
  double stage_ms[kStages] = {};

  Buffer<Record> records;
  Buffer<float> radii;  // [px], 0 = not visible
  Buffer<GroupFlags> flags;
  Buffer<int64_t> invalid_in_chunk;
  Buffer<uint32_t> keys;               // depth as bits, ~0 = not drawn
  Buffer<uint64_t> order, order_swap;  // key << 32 | index, nearest first
  Buffer<uint32_t> histogram;
  Buffer<Instance> emitted[kMaxThreads];
  int64_t num_emitted[kMaxThreads] = {};
  Buffer<uint32_t> tile_start;  // [tiles + 1]
  Buffer<uint32_t> slot_start;  // [count + 1], a Gaussian's instances side by side
  Buffer<uint32_t> instance_gaussian, instance_slot;
  Buffer<uint64_t> instance_mask;
  Buffer<uint32_t> block_end;  // [tiles, 64]: index after which no lane of the block is live
  Buffer<int32_t> lane_end;    // [tiles, 64, 16]: index after the last instance blended there
  Buffer<float> slots;         // [instances, 16]: gradient sums
  Buffer<double> pose_sums;    // [chunks, 15]
  Buffer<float> loss_rows[kMaxThreads];
  Buffer<double> loss_sums;
  Buffer<float> lr_scratch[3];
  Buffer<float> taps_by_column;

  int64_t bytes() const {
    int64_t sum = records.bytes() + radii.bytes() + flags.bytes() + keys.bytes() + order.bytes() +
                  order_swap.bytes() + histogram.bytes() + tile_start.bytes() + slot_start.bytes() +
                  instance_gaussian.bytes() + instance_slot.bytes() + instance_mask.bytes() +
                  block_end.bytes() + lane_end.bytes() + slots.bytes() + pose_sums.bytes() +
                  loss_sums.bytes() + taps_by_column.bytes();
    for (const auto& b : emitted) sum += b.bytes();
    for (const auto& b : loss_rows) sum += b.bytes();
    for (const auto& b : lr_scratch) sum += b.bytes();
    return sum;
  }
};

}  // namespace splat
