// Images whose lists and slots are too many to have at once run in bands of tile rows. The depth
// order of the whole image is kept. Its instances are counted by tiles, without being kept; then a
// band's lists are written straight into their places, in the forward pass and again in the
// backward, which adds a band's slots to one sum per Gaussian.
//
// Slots lie in depth order here, not in index order: nothing needs to be known about the other
// Gaussians of the band.

constexpr int64_t kListBytes = sizeof(uint64_t) + 2 * sizeof(uint32_t);  // of an instance
constexpr int64_t kSlotBytes = kSlotFloats * sizeof(float);
// Left free beside the workspace for what every training step has: image, transmittance, their
// gradients and the losses' scratch memory.
constexpr int64_t kBytesPerPixel = 48;
constexpr int64_t kBytesPerColumn = 1024;  // and thread
constexpr int64_t kBytesPerChunk = 128;    // of Gaussians: the sums over a pose's chunks

/// Counts what bin_gaussian finds.
class TileCounter {
 public:
  TileCounter(uint32_t* counts, int tiles_x) : counts_(counts), tiles_x_(tiles_x) {}

  SIMD_INLINE void add(int tile_row, const int* lo, const int* hi, int first, int last, uint32_t) {
    for (int base = first; base <= last; base += 8) {
      uint64_t masks[8];
      const int n = smaller(8, last - base + 1);
      tile_masks(lo, hi, 8 * base, masks, n);
      for (int i = 0; i < n; i++) counts_[tile_row * tiles_x_ + base + i] += masks[i] != 0;
    }
  }

 private:
  uint32_t* counts_;
  int tiles_x_;
};

/// Writes what bin_gaussian finds into the lists.
class ListWriter {
 public:
  ListWriter(Workspace& w, uint32_t* next_in_tile, uint32_t first_slot)
      : slot(first_slot), w_(w), next_in_tile_(next_in_tile) {}

  SIMD_INLINE void add(int tile_row, const int* lo, const int* hi, int first, int last,
                       uint32_t gaussian) {
    for (int base = first; base <= last; base += 8) {
      uint64_t masks[8];
      const int n = smaller(8, last - base + 1);
      tile_masks(lo, hi, 8 * base, masks, n);
      for (int i = 0; i < n; i++) {
        if (masks[i] == 0) continue;
        const uint32_t place = next_in_tile_[tile_row * w_.tiles_x + base + i]++;
        w_.instance_gaussian[place] = gaussian;
        w_.instance_mask[place] = masks[i];
        w_.instance_slot[place] = slot++;
      }
    }
  }

  uint32_t slot;  // of the next instance

 private:
  Workspace& w_;
  uint32_t* next_in_tile_;
};

/// Calls visit(record, index) for the Gaussians of one of `ranges` equal parts of the depth order.
template <class Visit>
SPLAT_HD void each_in_range(const Workspace& w, int range, int ranges, const Visit& visit) {
  const int64_t end = w.drawn * (range + 1) / ranges;
  for (int64_t i = w.drawn * range / ranges; i < end; i++) {
    if (i + kPrefetch < end) {
      __builtin_prefetch(&w.records[static_cast<uint32_t>(w.order[i + kPrefetch])]);
    }
    const uint32_t gaussian = static_cast<uint32_t>(w.order[i]);
    visit(w.records[gaussian], gaussian);
  }
}

/// Instances that fit into the limit at `bytes_each`, beside `others` bytes and all other memory.
int64_t room_for_instances(const Workspace& w, int64_t others, int64_t bytes_each) {
  int64_t lists = w.instance_gaussian.bytes() + w.instance_mask.bytes() + w.instance_slot.bytes() +
                  w.slots.bytes() + w.slot_sums.bytes();
  for (const auto& b : w.emitted) lists += b.bytes();
  const int64_t columns = int64_t{w.camera.width} + kTile;
  const int64_t later = columns * (kBytesPerColumn * w.threads + kBytesPerPixel * w.camera.height) +
                        kBytesPerChunk * (w.count / kChunk + 1);
  const int64_t used =
      w.budget.used - lists - w.later_bytes() + larger(w.later_bytes(), later) + others;
  return (w.budget.limit - used) / bytes_each - 2 * kListPadding;
}

void release_lists_above(Workspace& w, int64_t instances) {
  instances = larger<int64_t>(instances, 0) + kListPadding;
  w.instance_gaussian.release_above(instances);
  w.instance_mask.release_above(instances);
  w.instance_slot.release_above(instances);
  w.slots.release_above(instances * kSlotFloats);
}

/// Bin the image as one piece where even the tiles of all boxes would fit into the limit.
bool bin_within_limit(Workspace& w, int threads) {
  int64_t most[kMaxThreads] = {};
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int q = 0; q < threads; q++) {
    int64_t tiles = 0;
    each_in_range(w, q, threads, [&](const Record& r, uint32_t) {
      const TileBox b = tile_box(r, w.camera);
      tiles += int64_t{b.column_last - b.column_first + 1} *
               ((b.row_last >> 3) - (b.row_first >> 3) + 1);
    });
    most[q] = tiles + w.tiles_x;  // a row is written before its empty masks are dropped
  }
  int64_t sum = 0, room = room_for_instances(w, 0, kListBytes + kSlotBytes + sizeof(Instance));
  room = smaller(room, kMaxInstances);
  for (int q = 0; q < threads; q++) sum += most[q];
  if (sum > room) return false;
  w.slot_sums.release();
  release_lists_above(w, room);
  bool large_enough = true;
  for (int q = 0; q < threads; q++) large_enough &= w.emitted[q].capacity() >= most[q];
  if (!large_enough) {  // all anew, or the old of some and the new of others could be too much
    for (auto& b : w.emitted) b.release();
    for (int q = 0; q < threads; q++) w.emitted[q].grow(most[q]);
  }
  return bin_to_tiles(w, threads);
}

void count_by_tile(Workspace& w, int ranges) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  w.ranges = ranges;
#pragma omp parallel for schedule(static, 1) num_threads(ranges)
  for (int q = 0; q < ranges; q++) {
    uint32_t* const counts = w.range_counts.data() + q * tiles;
    std::memset(counts, 0, static_cast<size_t>(tiles) * sizeof(uint32_t));
    TileCounter counter(counts, w.tiles_x);
    each_in_range(w, q, ranges, [&](const Record& r, uint32_t gaussian) {
      bin_gaussian(r, gaussian, w.camera, {0, w.tiles_y}, counter);
    });
  }
}

/// Instances in a tile row.
int64_t count_in_row(const Workspace& w, int row) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  int64_t sum = 0;
  for (int q = 0; q < w.ranges; q++) {
    for (int x = 0; x < w.tiles_x; x++) {
      sum += w.range_counts[q * tiles + int64_t{row} * w.tiles_x + x];
    }
  }
  return sum;
}

/// From the top: as many tile rows as have at most `most` instances together. Returns those of the
/// longest band, which is a row with more than `most` if there is one.
int64_t choose_bands(Workspace& w, int64_t most) {
  int64_t in_band = 0, longest = 0;
  w.bands = 0;
  w.instances = 0;
  for (int row = 0; row < w.tiles_y; row++) {
    const int64_t in_row = count_in_row(w, row);
    if (w.bands == 0 || in_band + in_row > most) {
      w.band_start[w.bands++] = row;
      in_band = 0;
    }
    in_band += in_row;
    longest = larger(longest, in_band);
    w.instances += in_row;
  }
  w.band_start[w.bands] = w.tiles_y;
  return longest;
}

/// Lists of one band, in place of those that were there.
void list_band(Workspace& w, int band, int threads) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  const TileRows rows{w.band_start[band], w.band_start[band + 1]};
  uint32_t next = 0, in_range[kMaxThreads] = {};
  w.first_tile = rows.first * w.tiles_x;
  w.end_tile = rows.end * w.tiles_x;
  for (int tile = w.first_tile; tile < w.end_tile; tile++) {
    w.tile_start[tile] = next;
    for (int q = 0; q < w.ranges; q++) {
      const uint32_t count = w.range_counts[q * tiles + tile];
      w.histogram[q * tiles + tile] = next;
      next += count;
      in_range[q] += count;
    }
  }
  w.tile_start[w.end_tile] = next;
  w.listed = next;
  for (int q = w.ranges; q-- > 0;) in_range[q] = next -= in_range[q];
#pragma omp parallel for schedule(static, 1) num_threads(threads)
  for (int q = 0; q < w.ranges; q++) {
    ListWriter writer(w, w.histogram.data() + q * tiles, in_range[q]);
    each_in_range(w, q, w.ranges, [&](const Record& r, uint32_t gaussian) {
      w.slot_start[gaussian] = writer.slot;
      bin_gaussian(r, gaussian, w.camera, rows, writer);
      w.band_slot_end[gaussian] = writer.slot;
    });
  }
}

void bin_in_bands(Workspace& w, int threads) {
  for (auto& b : w.emitted) b.release();
  w.range_counts.grow(int64_t{threads} * w.tiles_x * w.tiles_y);
  w.band_start.grow(w.tiles_y + 1);
  w.band_slot_end.grow(w.count);
  const int64_t each = kListBytes + kSlotBytes, limit = w.budget.limit;
  const int64_t most =
      limit > 0 ? smaller(kMaxInstances, room_for_instances(w, w.count * kSlotBytes, each))
                : kMaxInstances;
  count_by_tile(w, threads);
  w.longest = choose_bands(w, most);
  if (w.longest > kMaxInstances) row_too_long(w.longest, kMaxInstances);
  if (w.longest > most) limit_too_small(limit, limit + (w.longest - most) * each);
  if (limit > 0) release_lists_above(w, most);
  grow_lists(w);
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int64_t g = 0; g < w.count; g++) {
    if (w.keys[g] == ~0u) w.slot_start[g] = w.band_slot_end[g] = 0;
  }
  w.slot_end = w.band_slot_end.data();
  if (w.bands == 1) list_band(w, 0, threads);
}

void bin_image(Workspace& w, int threads) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  w.histogram.grow(larger<int64_t>(threads * tiles, kBuckets));
  w.tile_start.grow(tiles + 1);
  w.slot_start.grow(w.count + 1);
  w.block_end.grow(tiles * kBlocks);
  w.lane_end.grow(tiles * kBlocks * kLanes);
  w.bands = 1;
  w.first_tile = 0;
  w.end_tile = static_cast<int>(tiles);
  w.slot_end = w.slot_start.data() + 1;
  if (w.budget.limit > 0) {
    if (bin_within_limit(w, threads)) return;
  } else {
    for (int q = 0; q < threads; q++) w.emitted[q].grow(w.drawn / threads * 3 + 4096);
    if (bin_to_tiles(w, threads)) return;
  }
  bin_in_bands(w, threads);
}
