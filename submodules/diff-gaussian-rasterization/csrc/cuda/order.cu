// Stages 2 and 3: the drawn Gaussians in depth order, then the list of each tile, nearest first.
//
// Only Gaussians are sorted by depth. Their instances are written in that order, each into its
// slot, and a stable sort by tile makes the lists: 32-bit keys, of which only the bits of a tile
// count.
#include <cub/device/device_radix_sort.cuh>
#include <cub/device/device_scan.cuh>
#include <cub/device/device_select.cuh>
#include <thrust/iterator/counting_iterator.h>

#include <stdexcept>
#include <string>

#include "core/tiles.h"
#include "cuda/device.cuh"
#include "cuda/pipeline.h"

namespace splat::cuda {
namespace {

constexpr int kThreads = 256;
constexpr uint32_t kManyTiles = 24;  // from here on the warp writes a Gaussian's instances together
constexpr uint32_t kNone = ~0u;      // key of what sorts last

enum Scratch {
  kStorage,  // CUB's own
  kDrawn,    // by rank in index order: Gaussian,
  kDepth,    // and its key
  kSortedDepth,
  kOffset,   // by rank: first slot
  kTileKey,  // by slot, then by place
  kTileKeySwap,
  kOwner,  // by slot: Gaussian
  kSlotSwap
};

/// As CUB takes it, which is faster with 32 bits. read_sizes and forward refuse more.
int items(int64_t n) { return static_cast<int>(n); }
unsigned blocks_for(int64_t n) { return static_cast<unsigned>(ceil_div<int64_t>(n, kThreads)); }

/// call(storage, bytes), first with null to learn the bytes.
template <class Call>
void with_storage(Workspace& w, const char* what, const Call& call) {
  size_t bytes = 0;
  check(call(nullptr, bytes), what);
  void* const storage = scratch<uint8_t>(w, kStorage, static_cast<int64_t>(bytes) + 1);  // not null
  check(call(storage, bytes), what);
}

struct IsDrawn {
  const uint32_t* keys;
  __device__ bool operator()(uint32_t gaussian) const { return keys[gaussian] != kNone; }
};

/// Their indices side by side, in order, and their number.
uint32_t* select_drawn(Workspace& w, cudaStream_t stream) {
  uint32_t* const drawn = scratch<uint32_t>(w, kDrawn, w.count);
  if (w.count == 0) return drawn;
  const IsDrawn is_drawn{w.keys.data()};
  uint32_t* const number = &w.counts.data()->drawn;
  with_storage(w, "selecting the drawn Gaussians", [&](void* storage, size_t& bytes) {
    return cub::DeviceSelect::If(storage, bytes, thrust::counting_iterator<uint32_t>(0), drawn,
                                 number, w.count, is_drawn, stream);
  });
  return drawn;
}

/// The only wait of a forward pass.
void read_sizes(Workspace& w, cudaStream_t stream) {
  if (w.fixed_capacity) {
    w.drawn = w.count;
    w.instances = min(w.list_gaussian.capacity(), kMaxInstances);
    return;
  }
  *w.read = Counts{};
  if (w.count > 0) {
    check(cudaMemcpyAsync(w.read, w.counts.data(), sizeof(Counts), cudaMemcpyDeviceToHost, stream),
          "reading the number of instances");
    check(cudaStreamSynchronize(stream), "the forward pass");
  }
  if (w.read->instances > static_cast<uint64_t>(kMaxInstances)) {
    throw std::length_error("the splats meet " + std::to_string(w.read->instances) +
                            " tiles, more than the " + std::to_string(kMaxInstances) +
                            " that fit: draw a smaller image, or fewer or smaller splats");
  }
  w.drawn = w.read->drawn;
  w.instances = static_cast<int64_t>(w.read->instances);
}

/// Beyond the drawn ones, up to n, what sorts last.
__global__ void __launch_bounds__(kThreads)
    fetch_keys(int64_t n, const Counts* counts, const uint32_t* keys, uint32_t* drawn,
               uint32_t* depth) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= n) return;
  const bool there = i < counts->drawn;
  if (!there) drawn[i] = 0;
  depth[i] = there ? keys[drawn[i]] : kNone;
}

/// Ties keep the order of the indices.
void sort_by_depth(Workspace& w, uint32_t* drawn, cudaStream_t stream) {
  uint32_t* const depth = scratch<uint32_t>(w, kDepth, w.drawn);
  uint32_t* const sorted = scratch<uint32_t>(w, kSortedDepth, w.drawn);
  uint32_t* const order = w.order.grow(w.drawn);
  fetch_keys<<<blocks_for(w.drawn), kThreads, 0, stream>>>(w.drawn, w.counts.data(), w.keys.data(),
                                                           drawn, depth);
  check_launch("depth keys");
  with_storage(w, "sorting by depth", [&](void* storage, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, depth, sorted, drawn, order,
                                           items(w.drawn), 0, 32, stream);
  });
}

__global__ void __launch_bounds__(kThreads)
    fetch_tiles(int64_t n, const Counts* counts, const uint32_t* order, const uint32_t* tiles,
                uint64_t* offset) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i < n) offset[i] = i < counts->drawn ? tiles[order[i]] : 0;
}

/// First slot by rank. 64 bits: with a fixed capacity nobody has refused too many.
uint64_t* find_offsets(Workspace& w, cudaStream_t stream) {
  uint64_t* const offset = scratch<uint64_t>(w, kOffset, w.drawn);
  fetch_tiles<<<blocks_for(w.drawn), kThreads, 0, stream>>>(w.drawn, w.counts.data(),
                                                            w.order.data(), w.tiles.data(), offset);
  check_launch("tiles by rank");
  with_storage(w, "the slots", [&](void* storage, size_t& bytes) {
    return cub::DeviceScan::ExclusiveSum(storage, bytes, offset, offset, items(w.drawn), stream);
  });
  return offset;
}

struct Emission {
  const Record* records;
  const uint32_t* order;
  const uint64_t* offset;
  uint32_t *tiles, *first_slot;  // by Gaussian
  uint32_t *key, *slot, *owner;  // by slot
  Counts* counts;
  int64_t capacity;
  int width, height, tiles_x;
};

/// A Gaussian's slots: [first, end).
struct Slots {
  uint32_t first, end;
};

__device__ void write_instance(const Emission& e, uint32_t slot, uint32_t key, uint32_t gaussian) {
  e.key[slot] = key;
  e.slot[slot] = slot;
  e.owner[slot] = gaussian;
}

/// Row by row of its tiles, `lane` taking every `lanes`-th tile of a row. Fills the slots and no
/// others, whatever it finds; returns how many it found.
__device__ uint32_t write_instances(const Emission& e, const CullEllipse<float>& ellipse,
                                    uint32_t gaussian, Slots slots, int lane, int lanes) {
  const uint32_t first_of_lane = static_cast<uint32_t>(lane), step = static_cast<uint32_t>(lanes);
  const Span rows = tile_rows(ellipse, e.height, kTile);
  uint32_t next = slots.first;
  for (int row = rows.first; row <= rows.last && next < slots.end; row++) {
    const Span columns = tile_columns(ellipse, row, e.width, e.height, kTile);
    const uint32_t wanted = static_cast<uint32_t>(span_size(columns));
    const uint32_t n = min(wanted, slots.end - next);
    const uint32_t key = static_cast<uint32_t>(row * e.tiles_x + columns.first);
    for (uint32_t k = first_of_lane; k < n; k += step) {
      write_instance(e, next + k, key + k, gaussian);
    }
    next += n;
  }
  for (uint32_t k = next + first_of_lane; k < slots.end; k += step) {
    write_instance(e, k, kNone, gaussian);
  }
  return next - slots.first;
}

__device__ CullEllipse<float> ellipse_of(const Record& r) {
  return cull_ellipse(r.x, r.y, Conic<float>{r.a, r.b, r.c}, r.extent);
}

/// The Gaussian's slots, as far as there is room.
__device__ Slots slots_of(const Emission& e, int64_t rank, uint32_t gaussian) {
  const uint64_t room = static_cast<uint64_t>(e.capacity), first = min(e.offset[rank], room);
  const uint64_t n = min(static_cast<uint64_t>(e.tiles[gaussian]), room - first);
  return {static_cast<uint32_t>(first), static_cast<uint32_t>(first + n)};
}

/// A thread a Gaussian, by rank; those with many tiles one after the other by the whole warp.
__global__ void __launch_bounds__(kThreads) emit_kernel(const Emission e) {
  const int64_t rank = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool there = rank < e.counts->drawn;
  const uint32_t gaussian = there ? e.order[rank] : 0;
  const Slots slots = there ? slots_of(e, rank, gaussian) : Slots{0, 0};
  const bool many = slots.end - slots.first >= kManyTiles;
  if (there && !many) {
    e.first_slot[gaussian] = slots.first;
    e.tiles[gaussian] = write_instances(e, ellipse_of(e.records[gaussian]), gaussian, slots, 0, 1);
  }
  for (unsigned todo = __ballot_sync(kAllLanes, many); todo; todo &= todo - 1) {
    const int lane = __ffs(static_cast<int>(todo)) - 1;
    const uint32_t g = __shfl_sync(kAllLanes, gaussian, lane);
    const Slots s = {__shfl_sync(kAllLanes, slots.first, lane),
                     __shfl_sync(kAllLanes, slots.end, lane)};
    const uint32_t found = write_instances(e, ellipse_of(e.records[g]), g, s, lane_index(), kWarp);
    if (lane == lane_index()) {
      e.first_slot[g] = s.first;
      e.tiles[g] = found;
    }
  }
  if (rank == 0 && e.counts->instances > static_cast<uint64_t>(e.capacity)) e.counts->overflow = 1;
}

struct Lists {
  const uint32_t *key, *slot, *owner;  // key and slot by place, owner by slot
  uint32_t *list_gaussian, *list_slot;
  Range* ranges;
  int64_t instances;
  uint32_t tiles;
};

/// A thread a place: the lists, and where each tile's begins and ends.
__global__ void __launch_bounds__(kThreads) list_kernel(const Lists l) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  if (i >= l.instances) return;
  const uint32_t key = l.key[i];
  if (key >= l.tiles) return;  // there is room for more than there are
  const uint32_t slot = l.slot[i], place = static_cast<uint32_t>(i);
  l.list_gaussian[i] = l.owner[slot];
  if (l.slot != l.list_slot) l.list_slot[i] = slot;
  if (i == 0 || l.key[i - 1] != key) l.ranges[key].first = place;
  if (i + 1 == l.instances || l.key[i + 1] != key) l.ranges[key].end = place + 1;
}

/// Bits of the keys of `tiles` tiles and of a last one for kNone.
int key_bits(uint32_t tiles) {
  int bits = 1;
  while (tiles >> bits) bits++;
  return bits;
}

void sort_by_tile(Workspace& w, uint32_t* key, const uint32_t* owner, cudaStream_t stream) {
  const uint32_t tiles = static_cast<uint32_t>(w.tiles_x) * static_cast<uint32_t>(w.tiles_y);
  cub::DoubleBuffer<uint32_t> keys(key, scratch<uint32_t>(w, kTileKeySwap, w.instances));
  cub::DoubleBuffer<uint32_t> slots(w.list_slot.data(),
                                    scratch<uint32_t>(w, kSlotSwap, w.instances));
  with_storage(w, "sorting by tile", [&](void* storage, size_t& bytes) {
    return cub::DeviceRadixSort::SortPairs(storage, bytes, keys, slots, items(w.instances), 0,
                                           key_bits(tiles), stream);
  });
  const Lists lists = {keys.Current(),     slots.Current(), owner,       w.list_gaussian.data(),
                       w.list_slot.data(), w.ranges.data(), w.instances, tiles};
  list_kernel<<<blocks_for(w.instances), kThreads, 0, stream>>>(lists);
  check_launch("lists");
}

void make_lists(Workspace& w, const uint64_t* offset, cudaStream_t stream) {
  uint32_t* const key = scratch<uint32_t>(w, kTileKey, w.instances);
  uint32_t* const owner = scratch<uint32_t>(w, kOwner, w.instances);
  uint32_t* const slot = w.list_slot.grow(w.instances);
  w.list_gaussian.grow(w.instances);
  if (w.fixed_capacity && w.instances > 0) {  // the slots that nobody takes
    const size_t bytes = static_cast<size_t>(w.instances) * sizeof(uint32_t);
    check(cudaMemsetAsync(key, 0xff, bytes, stream), "the keys");
    check(cudaMemsetAsync(slot, 0, bytes, stream), "the slots");
  }
  const Emission e = {w.records.data(),
                      w.order.data(),
                      offset,
                      w.tiles.data(),
                      w.first_slot.data(),
                      key,
                      slot,
                      owner,
                      w.counts.data(),
                      w.instances,
                      w.camera.width,
                      w.camera.height,
                      w.tiles_x};
  emit_kernel<<<blocks_for(w.drawn), kThreads, 0, stream>>>(e);
  check_launch("instances");
  if (w.instances > 0) sort_by_tile(w, key, owner, stream);
}

/// One entry more than tiles: 0, for the sum.
__global__ void __launch_bounds__(kThreads)
    count_buckets(uint32_t tiles, const Range* ranges, uint32_t* buckets) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < tiles) buckets[i] = (ranges[i].end - ranges[i].first + kBucket - 1) / kBucket;
  if (i == tiles) buckets[i] = 0;
}

/// A warp a tile.
__global__ void __launch_bounds__(kThreads)
    name_buckets(uint32_t tiles, const uint32_t* first_bucket, uint32_t* bucket_tile,
                 Counts* counts) {
  const uint32_t tile = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  if (tile == 0 && lane_index() == 0) counts->buckets = first_bucket[tiles];
  if (tile >= tiles) return;
  const uint32_t lane = static_cast<uint32_t>(lane_index()), end = first_bucket[tile + 1];
  for (uint32_t b = first_bucket[tile] + lane; b < end; b += kWarp) bucket_tile[b] = tile;
}

void make_buckets(Workspace& w, cudaStream_t stream) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  w.buckets = (w.instances + (kBucket - 1) * min(tiles, w.instances)) / kBucket;
  w.bucket_tile.grow(w.buckets);
  uint32_t* const first = w.first_bucket.grow(tiles + 1);
  const uint32_t n = static_cast<uint32_t>(tiles);
  count_buckets<<<blocks_for(tiles + 1), kThreads, 0, stream>>>(n, w.ranges.data(), first);
  check_launch("counting buckets");
  with_storage(w, "the buckets", [&](void* storage, size_t& bytes) {
    return cub::DeviceScan::ExclusiveSum(storage, bytes, first, first, items(tiles + 1), stream);
  });
  name_buckets<<<blocks_for((tiles + 1) * kWarp), kThreads, 0, stream>>>(
      n, first, w.bucket_tile.data(), w.counts.data());
  check_launch("buckets");
}

}  // namespace

void order(Workspace& w, cudaStream_t stream) {
  const InStage stage(w, kSortBin, stream);
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  uint32_t* const drawn = select_drawn(w, stream);
  read_sizes(w, stream);
  Range* const ranges = w.ranges.grow(tiles + 1);
  const size_t bytes = static_cast<size_t>(tiles + 1) * sizeof(Range);
  check(cudaMemsetAsync(ranges, 0, bytes, stream), "the ranges");
  w.first_slot.grow(w.count);
  if (w.drawn > 0) {
    sort_by_depth(w, drawn, stream);
    make_lists(w, find_offsets(w, stream), stream);
  }
  make_buckets(w, stream);
}

}  // namespace splat::cuda
