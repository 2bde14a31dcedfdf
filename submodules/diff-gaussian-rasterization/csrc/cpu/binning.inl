// Stage 3: which 4x4-pixel blocks each ellipse meets, as one 64-bit mask per (32x32 tile,
// Gaussian), collected in depth order and scattered to the tiles by a stable counting sort.
//
// Threads take consecutive ranges of the depth order, so the lists do not depend on their number.

constexpr int kPrefetch = 8;  // Gaussians ahead
constexpr int64_t kListPadding = 64;
constexpr float kEdge = 0.001f;  // [px] outward rounding of an ellipse's x-interval

struct TileRows {
  int first, end;
};

/// What bin_gaussian finds, appended to a list. add() takes one tile row: the block intervals of
/// its 8 block rows, tile columns first..last.
class InstanceList {
 public:
  InstanceList(Buffer<Instance>& out, uint32_t* tile_counts, int tiles_x)
      : out_(out), tile_counts_(tile_counts), tiles_x_(tiles_x) {}

  SIMD_INLINE void add(int tile_row, const int* lo, const int* hi, int first, int last,
                       uint32_t gaussian) {
    if (failed || size > kMaxInstances || !out_.try_extend(size, size + last - first + 2)) {
      failed = true;
      return;
    }
    for (int base = first; base <= last; base += 8) {  // 64 block columns at a time
      uint64_t masks[8];
      const int n = smaller(8, last - base + 1);
      tile_masks(lo, hi, 8 * base, masks, n);
      for (int i = 0; i < n; i++) {
        const uint32_t tile = static_cast<uint32_t>(tile_row * tiles_x_ + base + i);
        out_[size] = {masks[i], tile, gaussian};
        const uint32_t hit = masks[i] != 0;  // branch-free: an empty mask is overwritten
        tile_counts_[tile] += hit;
        size += hit;
      }
    }
  }

  int64_t size = 0;
  bool failed = false;  // no memory

 private:
  Buffer<Instance>& out_;
  uint32_t* tile_counts_;
  int tiles_x_;
};

/// Block intervals of 16 block rows from `row0` on; empty rows get lo > hi.
SPLAT_HD void block_intervals(const Record& r, int row0, int row_first, int row_last, int width,
                              int* lo, int* hi) {
  const VecI row = lane_index() + row0;
  const VecF top = to_float(row * 4) - r.y;
  const VecF low = max(top, VecF(-r.half_height)), high = min(top + 3.f, VecF(r.half_height));
  VecF left, right;
  band_interval(low, high, VecF(r.rightmost_dy), VecF(r.extent), VecF(r.c * r.c), VecF(r.inverse_a),
                VecF(r.b * r.inverse_a), left, right);
  const VecF far = 1e6f;  // any image is smaller; keeps the conversion to int defined
  const VecI last_px = truncate(floor(min(max(right + r.x + kEdge, -far), far)));
  const VecI first_px = truncate(ceil(min(max(left + r.x - kEdge, -far), far)));
  const Mask empty = (last_px < first_px) | (row < VecI(row_first)) | (VecI(row_last) < row) |
                     (last_px < VecI(0)) | (VecI(width - 1) < first_px);
  const VecI first_block = shift_right(max(first_px, VecI(0)), 2);
  const VecI last_block = shift_right(min(last_px, VecI(width - 1)), 2);
  store(lo, select(empty, VecI(1), first_block));
  store(hi, select(empty, VecI(0), last_block));
}

/// Tile columns and block rows that the box around an ellipse meets, first and last.
struct TileBox {
  int column_first, column_last, row_first, row_last;
};
SPLAT_HD TileBox tile_box(const Record& r, const Camera& c) {
  const float right = static_cast<float>(c.width - 1), bottom = static_cast<float>(c.height - 1);
  return {static_cast<int>(larger(0.f, r.x - r.half_width)) / kTile,
          static_cast<int>(smaller(right, r.x + r.half_width)) / kTile,
          static_cast<int>(__builtin_ceilf(larger(0.f, r.y - r.half_height))) >> 2,
          static_cast<int>(smaller(bottom, r.y + r.half_height)) >> 2};
}

/// Tell `sink` about the tiles in `rows` that the ellipse meets, by rows and then columns.
template <class Sink>
SPLAT_HD void bin_gaussian(const Record& r, uint32_t gaussian, const Camera& camera, TileRows rows,
                           Sink& sink) {
  const TileBox box = tile_box(r, camera);
  const int last = smaller(box.row_last, 8 * rows.end - 1);
  for (int row0 = larger(box.row_first & ~7, 8 * rows.first); row0 <= last; row0 += 16) {
    int lo[16], hi[16];  // two tile rows at a time
    block_intervals(r, row0, box.row_first, box.row_last, camera.width, lo, hi);
    sink.add(row0 >> 3, lo, hi, box.column_first, box.column_last, gaussian);
    if (row0 + 8 <= last) {
      sink.add((row0 >> 3) + 1, lo + 8, hi + 8, box.column_first, box.column_last, gaussian);
    }
  }
}

void grow_lists(Workspace& w) {
  w.instance_gaussian.grow(w.longest + kListPadding);
  w.instance_mask.grow(w.longest + kListPadding);
  w.instance_slot.grow(w.longest + kListPadding);
}

/// Instances of depth ranks [begin, end); slot_start[g] becomes Gaussian g's number of instances.
bool emit_range(Workspace& w, int part, int64_t begin, int64_t end, uint32_t* tile_counts) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y;
  std::memset(tile_counts, 0, static_cast<size_t>(tiles) * sizeof(uint32_t));
  InstanceList list(w.emitted[part], tile_counts, w.tiles_x);
  for (int64_t i = begin; i < end; i++) {
    if (i + kPrefetch < end) {
      __builtin_prefetch(&w.records[static_cast<uint32_t>(w.order[i + kPrefetch])]);
    }
    const uint32_t gaussian = static_cast<uint32_t>(w.order[i]);
    const int64_t before = list.size;
    bin_gaussian(w.records[gaussian], gaussian, w.camera, {0, w.tiles_y}, list);
    w.slot_start[gaussian] = static_cast<uint32_t>(list.size - before);
  }
  w.num_emitted[part] = list.size;
  return !list.failed;
}

/// Instances of the Gaussians with indices [begin, end).
uint32_t count_instances(const Workspace& w, int64_t begin, int64_t end) {
  uint32_t sum = 0;
  for (int64_t g = begin; g < end; g++) sum += w.keys[g] != ~0u ? w.slot_start[g] : 0;
  return sum;
}

/// Number of instances -> first slot, the first of them being `next`.
void assign_slots(Workspace& w, int64_t begin, int64_t end, uint32_t next) {
  for (int64_t g = begin; g < end; g++) {
    const uint32_t n = w.keys[g] != ~0u ? w.slot_start[g] : 0;
    w.slot_start[g] = next;
    next += n;
  }
}

/// Into the lists. Without the prefetches most of the time is waiting for lines to write to.
void scatter_range(Workspace& w, int part, uint32_t* next_in_tile) {
  const Instance* const emitted = w.emitted[part].data();
  const int64_t n = w.num_emitted[part];
  uint64_t* const masks = w.instance_mask.data();
  uint32_t* const gaussians = w.instance_gaussian.data();
  uint32_t* const slots = w.instance_slot.data();
  uint32_t previous = ~0u, slot = 0;
  for (int64_t i = 0; i < n; i++) {
    const Instance& e = emitted[i];
    __builtin_prefetch(&w.slot_start[emitted[smaller(i + 16, n - 1)].gaussian]);
    if (e.gaussian != previous) {
      previous = e.gaussian;
      slot = w.slot_start[e.gaussian];
    }
    const uint32_t place = next_in_tile[e.tile]++;
    __builtin_prefetch(&masks[place + 8], 1);  // the next line of each
    __builtin_prefetch(&gaussians[place + 16], 1);
    __builtin_prefetch(&slots[place + 16], 1);
    masks[place] = e.mask;
    gaussians[place] = e.gaussian;
    slots[place] = slot++;
  }
}

/// Lists of the whole image. False, and nothing kept, when it has more than kMaxInstances.
bool bin_to_tiles(Workspace& w, int threads) {
  const int64_t tiles = int64_t{w.tiles_x} * w.tiles_y, n = w.count;
  uint32_t* const histogram = w.histogram.data();
  uint32_t first_slot[kMaxThreads];
  bool ok = true;
#pragma omp parallel num_threads(threads) reduction(&& : ok)
  {
#pragma omp for schedule(dynamic, 1)
    for (int q = 0; q < threads; q++) {
      const bool done = emit_range(w, q, w.drawn * q / threads, w.drawn * (q + 1) / threads,
                                   histogram + q * tiles);
      ok = ok && done;
    }
#pragma omp for schedule(static)
    for (int q = 0; q < threads; q++) {
      first_slot[q] = count_instances(w, n * q / threads, n * (q + 1) / threads);
    }
  }
  w.instances = 0;
  for (int q = 0; q < threads; q++) w.instances += w.num_emitted[q];
  if (w.instances > kMaxInstances) return false;
  if (!ok) out_of_memory();
  w.listed = w.longest = w.instances;
  grow_lists(w);
  exclusive_prefix(first_slot, 1, threads);
  exclusive_prefix(histogram, tiles, threads);
  std::memcpy(w.tile_start.data(), histogram, static_cast<size_t>(tiles) * sizeof(uint32_t));
  w.tile_start[tiles] = w.slot_start[n] = static_cast<uint32_t>(w.instances);
#pragma omp parallel num_threads(threads)
  {
#pragma omp for schedule(static)
    for (int q = 0; q < threads; q++) {
      assign_slots(w, n * q / threads, n * (q + 1) / threads, first_slot[q]);
    }
#pragma omp for schedule(dynamic, 1)
    for (int q = 0; q < threads; q++) scatter_range(w, q, histogram + q * tiles);
  }
  return true;
}
