// Points in Morton order, in a tree of boxes with 32 children each; the 32 points of a leaf search
// together, one a lane.
//
// Morton codes are made of the ranks of the coordinates, not of the coordinates: a few points far
// away would otherwise put all others into one cell, and the boxes of its leaves would overlap.
// Real clouds have such points. The order decides how long the search takes, never what it finds.
#include "cuda/knn.h"

#include <cuda_runtime.h>

#include <cub/device/device_radix_sort.cuh>
#include <stdexcept>
#include <string>

#include "geometry.h"

namespace knn::cuda {
namespace {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kThreads = 256, kSearchThreads = 128;
constexpr int kFanBits = 5;  // points of a leaf, children of a node: 2^5
constexpr int kMaxLevels = 7;
static_assert(1 << kFanBits == kWarp, "a lane for each child");
static_assert(kMaxLevels * kFanBits >= 32, "enough for 2^32 points");

struct alignas(16) Point {
  float x, y, z;
  uint32_t row;  // in the caller's array
};
static_assert(sizeof(Point) == 2 * sizeof(uint64_t), "points take the place of two codes");

/// Level 0 has the boxes of the leaves, and each further level those of 32 nodes of the one before,
/// up to a single box.
struct Tree {
  const Point* points;  // in Morton order
  const Box* boxes;     // level after level
  uint32_t n;
  int levels;
  uint32_t first[kMaxLevels];  // box of each level

  __host__ __device__ static uint32_t count(uint32_t n, int level) {
    return static_cast<uint32_t>(uint64_t{n - 1} >> (kFanBits * (level + 1))) + 1;
  }
  __device__ const Box& box(int level, uint32_t node) const { return boxes[first[level] + node]; }
};

// --- the order ---

__global__ void __launch_bounds__(kThreads)
    copy_axis(const float* points, uint32_t n, int axis, uint32_t* values) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i < n) values[i] = ordered_bits(points[int64_t{3} * i + axis]);
}

/// Adds an axis's bits to the codes; the first axis sets them, and numbers the rows.
__global__ void __launch_bounds__(kThreads)
    add_to_codes(const float* points, uint32_t n, int axis, const uint32_t* ascending, int shift,
                 uint64_t* codes, uint32_t* rows) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n) return;
  const uint32_t rank = rank_of(ordered_bits(points[int64_t{3} * i + axis]), ascending, n);
  const uint64_t bits = spread_bits(rank >> shift) << axis;
  if (axis == 0) {
    codes[i] = bits;
    rows[i] = i;
  } else {
    codes[i] |= bits;
  }
}

__global__ void __launch_bounds__(kThreads)
    gather(const float* points, uint32_t n, const uint32_t* rows, Point* out) {
  const uint32_t i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= n) return;
  const float* const p = points + int64_t{3} * rows[i];
  out[i] = {p[0], p[1], p[2], rows[i]};
}

// --- the boxes ---

__device__ Box empty_box() {
  constexpr float kInf = INFINITY;
  return {{kInf, kInf, kInf}, {-kInf, -kInf, -kInf}};
}

/// The box around those of all lanes; lane 0 writes it.
__device__ void write_union(Box b, Box* out) {
  for (int far = kWarp / 2; far > 0; far /= 2) {
    for (int k = 0; k < 3; k++) {
      b.low[k] = fminf(b.low[k], __shfl_xor_sync(kAllLanes, b.low[k], far));
      b.high[k] = fmaxf(b.high[k], __shfl_xor_sync(kAllLanes, b.high[k], far));
    }
  }
  if (threadIdx.x % kWarp == 0) *out = b;
}

/// A warp for each leaf.
__global__ void __launch_bounds__(kThreads) leaf_boxes(const Point* points, uint32_t n, Box* out) {
  const uint32_t leaf = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  if (leaf >= Tree::count(n, 0)) return;
  const uint32_t i = leaf * kWarp + threadIdx.x % kWarp;
  Box b = empty_box();
  if (i < n) {
    const Point p = points[i];
    b = {{p.x, p.y, p.z}, {p.x, p.y, p.z}};
  }
  write_union(b, out + leaf);
}

/// A warp for each node, from the boxes of its children.
__global__ void __launch_bounds__(kThreads)
    node_boxes(const Box* children, uint32_t child_count, uint32_t count, Box* out) {
  const uint32_t node = (blockIdx.x * kThreads + threadIdx.x) / kWarp;
  if (node >= count) return;
  const uint32_t child = node * kWarp + threadIdx.x % kWarp;
  write_union(child < child_count ? children[child] : empty_box(), out + node);
}

// --- the search ---

/// What a lane looks for; the whole warp walks through the tree together.
struct Query {
  int lane;
  Point at;
  Box all;  // around the queries of all lanes
  Nearest nearest;
};

/// Offers the points of a leaf to all queries; kSelf: it is the queries' own leaf, and no point is
/// its own neighbour.
template <bool kSelf>
__device__ void offer(const Tree& t, uint32_t leaf, Query& q) {
  const Point* const points = t.points + leaf * kWarp;
  const uint32_t left = t.n - leaf * kWarp;
  const int count = left < kWarp ? static_cast<int>(left) : kWarp;
#pragma unroll 4
  for (int c = 0; c < count; c++) {
    const Point p = points[c];
    const float d = sum_of_squares(p.x - q.at.x, p.y - q.at.y, p.z - q.at.z);
    const float offered = kSelf && c == q.lane ? INFINITY : d;
    q.nearest = inserted(offered, q.nearest.first, q.nearest.second, q.nearest.third);
  }
}

/// The children of a node of the next level, but for `skipped`, that may be near enough to any
/// query: a bit for each.
__device__ unsigned children_worth(const Tree& t, int level, uint32_t parent, uint32_t skipped,
                                   const Query& q) {
  // distances are not negative: as bits they are in the same order
  const float furthest =
      __uint_as_float(__reduce_max_sync(kAllLanes, __float_as_uint(q.nearest.third)));
  const uint32_t child = parent * kWarp + static_cast<uint32_t>(q.lane);
  bool worth = child < Tree::count(t.n, level) && child != skipped;
  worth = worth && box_distance(t.box(level, child), q.all) < furthest;
  return __ballot_sync(kAllLanes, worth);
}

/// Offers every leaf below the children of a node that is worth it, depth first. What is left to
/// visit of the children on level k is kept by lane k.
__device__ void search_below(const Tree& t, int top, uint32_t parent, uint32_t skipped, Query& q) {
  int level = top;
  unsigned pending = children_worth(t, level, parent, skipped, q);
  uint32_t first = parent * kWarp;
  while (true) {
    const unsigned left = __shfl_sync(kAllLanes, pending, level);
    if (left == 0) {
      if (level == top) return;
      level++;
      continue;
    }
    const uint32_t child = __shfl_sync(kAllLanes, first, level) +
                           static_cast<uint32_t>(__ffs(static_cast<int>(left)) - 1);
    if (q.lane == level) pending = left & (left - 1);
    const float distance = box_distance(t.box(level, child), q.at.x, q.at.y, q.at.z);
    if (!__any_sync(kAllLanes, distance < q.nearest.third)) continue;
    if (level == 0) {
      offer<false>(t, child, q);
      continue;
    }
    level--;
    const unsigned worth = children_worth(t, level, child, UINT32_MAX, q);
    if (q.lane == level) {
      pending = worth;
      first = child * kWarp;
    }
  }
}

/// A warp for each leaf: its own points first, then its siblings', then those of its parent, and so
/// on, so that near leaves come early and far subtrees are pruned at their top.
__global__ void __launch_bounds__(kSearchThreads)
    search(const __grid_constant__ Tree t, int neighbours, float* out) {
  const uint32_t leaf = (blockIdx.x * kSearchThreads + threadIdx.x) / kWarp;
  if (leaf >= Tree::count(t.n, 0)) return;  // the whole warp
  Query q;
  q.lane = static_cast<int>(threadIdx.x % kWarp);
  const uint32_t i = leaf * kWarp + threadIdx.x % kWarp;
  q.at = t.points[i < t.n ? i : t.n - 1];
  q.all = t.box(0, leaf);
  // lanes beyond the last point want nothing: no distance is below zero
  const float start = i < t.n ? INFINITY : 0.f;
  q.nearest = {start, start, start};
  offer<true>(t, leaf, q);
  uint32_t node = leaf;
  for (int level = 0; level + 1 < t.levels; level++, node /= kWarp) {
    search_below(t, level, node / kWarp, node, q);
  }
  if (i < t.n) out[q.at.row] = mean_of(q.nearest, neighbours);
}

// --- the host's side ---

void check(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(error));
}

unsigned blocks(uint64_t threads, int of = kThreads) {
  return static_cast<unsigned>((threads + static_cast<uint64_t>(of) - 1) /
                               static_cast<uint64_t>(of));
}

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

cudaError_t sort_values(void* storage, size_t& bytes, cub::DoubleBuffer<uint32_t>& values,
                        uint32_t n, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortKeys(storage, bytes, values, n, 0, 32, stream);
}
cudaError_t sort_codes(void* storage, size_t& bytes, cub::DoubleBuffer<uint64_t>& codes,
                       cub::DoubleBuffer<uint32_t>& rows, uint32_t n, cudaStream_t stream) {
  return cub::DeviceRadixSort::SortPairs(storage, bytes, codes, rows, n, 0, 3 * kCodeBits, stream);
}

/// Where things lie in the workspace, in bytes. Until the codes are complete, their second half
/// holds an axis's values, twice; once they are sorted, the points take their place.
struct Layout {
  size_t codes = 0;  // twice
  size_t rows = 0;   // twice
  size_t boxes = 0;
  size_t storage = 0, storage_bytes = 0;  // CUB's
  size_t end = 0;

  explicit Layout(uint32_t n) {
    uint64_t nodes = 0;
    for (int level = 0; level < kMaxLevels; level++) nodes += Tree::count(n, level);
    rows = aligned(2 * sizeof(uint64_t) * n);
    boxes = rows + aligned(2 * sizeof(uint32_t) * n);
    storage = boxes + aligned(sizeof(Box) * nodes);
    cub::DoubleBuffer<uint32_t> values;
    cub::DoubleBuffer<uint64_t> of_codes;
    cub::DoubleBuffer<uint32_t> of_rows;
    size_t for_values = 0, for_codes = 0;
    check(sort_values(nullptr, for_values, values, n, nullptr), "the size of a sort");
    check(sort_codes(nullptr, for_codes, of_codes, of_rows, n, nullptr), "the size of a sort");
    storage_bytes = for_values > for_codes ? for_values : for_codes;
    end = storage + aligned(storage_bytes);
  }
};

/// The points in Morton order, in the place of the codes.
const Point* order(const float* points, uint32_t n, const Layout& l, char* memory,
                   cudaStream_t stream) {
  auto* const codes = reinterpret_cast<uint64_t*>(memory + l.codes);
  auto* const rows = reinterpret_cast<uint32_t*>(memory + l.rows);
  auto* const values = reinterpret_cast<uint32_t*>(codes + n);
  void* const storage = memory + l.storage;
  size_t bytes = l.storage_bytes;
  for (int axis = 0; axis < 3; axis++) {
    cub::DoubleBuffer<uint32_t> sorted(values, values + n);
    copy_axis<<<blocks(n), kThreads, 0, stream>>>(points, n, axis, values);
    check(sort_values(storage, bytes, sorted, n, stream), "sorting coordinates");
    add_to_codes<<<blocks(n), kThreads, 0, stream>>>(points, n, axis, sorted.Current(),
                                                     rank_shift(n), codes, rows);
  }
  cub::DoubleBuffer<uint64_t> sorted_codes(codes, codes + n);
  cub::DoubleBuffer<uint32_t> sorted_rows(rows, rows + n);
  check(sort_codes(storage, bytes, sorted_codes, sorted_rows, n, stream), "sorting codes");
  auto* const out = reinterpret_cast<Point*>(codes);
  gather<<<blocks(n), kThreads, 0, stream>>>(points, n, sorted_rows.Current(), out);
  return out;
}

Tree make_tree(const Point* points, uint32_t n, Box* boxes, cudaStream_t stream) {
  Tree t{points, boxes, n, 1, {}};
  leaf_boxes<<<blocks(uint64_t{Tree::count(n, 0)} * kWarp), kThreads, 0, stream>>>(points, n,
                                                                                   boxes);
  while (Tree::count(n, t.levels - 1) > 1) {
    const int level = t.levels++;
    const uint32_t children = Tree::count(n, level - 1), count = Tree::count(n, level);
    t.first[level] = t.first[level - 1] + children;
    node_boxes<<<blocks(uint64_t{count} * kWarp), kThreads, 0, stream>>>(
        boxes + t.first[level - 1], children, count, boxes + t.first[level]);
  }
  return t;
}

}  // namespace

int64_t workspace_bytes(int64_t n, int device) {
  if (n <= 0) return 0;
  check(cudaSetDevice(device), "the device");
  return static_cast<int64_t>(Layout(static_cast<uint32_t>(n)).end);
}

void mean_squared_distance_3(const float* points, int64_t n, float* out, void* workspace,
                             int64_t bytes, int device, void* stream) {
  if (n <= 0) return;
  check(cudaSetDevice(device), "the device");
  const auto queue = static_cast<cudaStream_t>(stream);
  const auto count = static_cast<uint32_t>(n);
  const Layout l(count);
  if (bytes < static_cast<int64_t>(l.end)) throw std::runtime_error("the workspace is too small");
  char* const memory = static_cast<char*>(workspace);
  const Point* const ordered = order(points, count, l, memory, queue);
  const Tree t = make_tree(ordered, count, reinterpret_cast<Box*>(memory + l.boxes), queue);
  const int neighbours = n < 4 ? static_cast<int>(n - 1) : 3;
  search<<<blocks(uint64_t{Tree::count(count, 0)} * kWarp, kSearchThreads), kSearchThreads, 0,
           queue>>>(t, neighbours, out);
  check(cudaGetLastError(), "the neighbours");
}

}  // namespace knn::cuda
