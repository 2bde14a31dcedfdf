// Balanced kd-tree with leaves of at most 8 points; the queries of one leaf walk the tree together,
// one query a SIMD lane (plain loops of 8 that the compiler vectorises). Exact: see geometry.h.

#include "knn.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <limits>
#include <system_error>
#include <thread>
#include <vector>

#include "geometry.h"

namespace knn {
namespace {

constexpr int kLeaf = 8;  // points a leaf, queries a walk
constexpr float kInf = std::numeric_limits<float>::infinity();

struct Point {
  float at[3];
  uint32_t index;  // row in the caller's array
};

/// The points of one leaf as queries, one axis after the other; lanes beyond its count hold zeros.
struct Queries {
  float at[3][kLeaf];
};

/// The three smallest squared distances seen so far by each query of a leaf, ascending.
struct Best {
  float first[kLeaf], second[kLeaf], third[kLeaf];
};

/// Heap-numbered complete binary tree: root 1, children 2i and 2i + 1, 2^depth leaves. Node ranges
/// follow from halving [0, n) and are not stored.
struct Tree {
  int depth = 0;
  std::vector<Point> points;    // in leaf order
  std::vector<Box> boxes;       // by node number
  std::vector<uint32_t> begin;  // of each leaf's points, one past the last leaf included

  const Point* leaf(int64_t i) const { return points.data() + begin[static_cast<size_t>(i)]; }
  int leaf_count(int64_t i) const {
    return static_cast<int>(begin[static_cast<size_t>(i + 1)] - begin[static_cast<size_t>(i)]);
  }
};

/// Calls task(i) for 0 <= i < count on up to `threads` threads, each index once, in no particular
/// order.
template <class Task>
void parallel_for(int64_t count, int threads, const Task& task) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    for (int64_t i; (i = next.fetch_add(1)) < count;) task(i);
  };
  std::vector<std::thread> others;
  const auto wanted =
      static_cast<size_t>(std::max<int64_t>(0, std::min<int64_t>(threads, count) - 1));
  others.reserve(wanted);
  try {
    while (others.size() < wanted) others.emplace_back(work);
  } catch (const std::system_error&) {
    // The system grants no more threads: those that run, and this one, do all the work.
  }
  work();
  for (std::thread& other : others) other.join();
}

/// Bounding box of points [begin, end), at least one.
Box bounds(const Point* begin, const Point* end) {
  Box box;
  for (int k = 0; k < 3; ++k) box.low[k] = box.high[k] = begin->at[k];
  for (const Point* p = begin + 1; p != end; ++p) {
    for (int k = 0; k < 3; ++k) {
      box.low[k] = std::min(box.low[k], p->at[k]);
      box.high[k] = std::max(box.high[k], p->at[k]);
    }
  }
  return box;
}

template <int kAxis>
void split(Point* begin, Point* middle, Point* end) {
  std::nth_element(begin, middle, end,
                   [](const Point& a, const Point& b) { return a.at[kAxis] < b.at[kAxis]; });
}

/// Puts the lower half along the box's longest side first.
void halve(const Box& box, Point* begin, Point* middle, Point* end) {
  const float side[3] = {box.high[0] - box.low[0], box.high[1] - box.low[1],
                         box.high[2] - box.low[2]};
  if (side[0] >= side[1] && side[0] >= side[2]) {
    split<0>(begin, middle, end);
  } else if (side[1] >= side[2]) {
    split<1>(begin, middle, end);
  } else {
    split<2>(begin, middle, end);
  }
}

/// Builds the subtree of `node`, which holds points [begin, end) at `level`, down to `last_level`;
/// nodes reached there are handed to `rest(node, begin, end)`.
template <class Rest>
void build(Tree& tree, int64_t node, int level, int last_level, int64_t begin, int64_t end,
           const Rest& rest) {
  if (level == last_level) {
    rest(node, begin, end);
    return;
  }
  Point* points = tree.points.data();
  const Box box = bounds(points + begin, points + end);
  tree.boxes[static_cast<size_t>(node)] = box;
  const int64_t middle = begin + (end - begin) / 2;
  halve(box, points + begin, points + middle, points + end);
  build(tree, 2 * node, level + 1, last_level, begin, middle, rest);
  build(tree, 2 * node + 1, level + 1, last_level, middle, end, rest);
}

Tree make_tree(const float* points, int64_t n, int threads) {
  Tree tree;
  while ((n - 1) >> tree.depth >= kLeaf) ++tree.depth;
  const int64_t leaves = int64_t{1} << tree.depth;
  tree.points.resize(static_cast<size_t>(n));
  tree.boxes.resize(static_cast<size_t>(2 * leaves));
  tree.begin.assign(static_cast<size_t>(leaves + 1), static_cast<uint32_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    tree.points[static_cast<size_t>(i)] = {{points[3 * i], points[3 * i + 1], points[3 * i + 2]},
                                           static_cast<uint32_t>(i)};
  }
  struct Subtree {
    int64_t node, begin, end;
  };
  std::vector<Subtree> subtrees;
  const int shared_levels = std::min(tree.depth, 5);  // built by one thread, then 32 tasks
  build(tree, 1, 0, shared_levels, 0, n,
        [&](int64_t node, int64_t begin, int64_t end) { subtrees.push_back({node, begin, end}); });
  parallel_for(static_cast<int64_t>(subtrees.size()), threads, [&](int64_t i) {
    const Subtree& s = subtrees[static_cast<size_t>(i)];
    build(tree, s.node, shared_levels, tree.depth, s.begin, s.end,
          [&](int64_t node, int64_t begin, int64_t end) {
            tree.boxes[static_cast<size_t>(node)] =
                bounds(tree.points.data() + begin, tree.points.data() + end);
            tree.begin[static_cast<size_t>(node - leaves)] = static_cast<uint32_t>(begin);
          });
  });
  return tree;
}

/// Whether any point of the box can be nearer to a query than the third neighbour that the query
/// has so far.
bool worth_visiting(const Box& box, const Queries& queries, const Best& best) {
  int any = 0;
  for (int q = 0; q < kLeaf; ++q) {
    any |= box_distance(box, queries.at[0][q], queries.at[1][q], queries.at[2][q]) < best.third[q];
  }
  return any != 0;
}

/// Offers the points of a leaf to all queries; kSelf: it is the queries' own leaf, no point is its
/// own neighbour.
template <bool kSelf>
void offer(const Point* candidates, int count, const Queries& queries, Best& best) {
  for (int c = 0; c < count; ++c) {
    const Point p = candidates[c];
    float distance[kLeaf];
    for (int q = 0; q < kLeaf; ++q) {
      distance[q] = sum_of_squares(p.at[0] - queries.at[0][q], p.at[1] - queries.at[1][q],
                                   p.at[2] - queries.at[2][q]);
    }
    if (kSelf) distance[c] = kInf;
    for (int q = 0; q < kLeaf; ++q) {
      const Nearest now = inserted(distance[q], best.first[q], best.second[q], best.third[q]);
      best.first[q] = now.first;
      best.second[q] = now.second;
      best.third[q] = now.third;
    }
  }
}

/// Offers every leaf below `top` that is worth it.
void search_below(const Tree& tree, int64_t top, const Queries& queries, Best& best) {
  const int64_t first_leaf = int64_t{1} << tree.depth;
  int64_t stack[64];  // depth-first over a binary tree of depth <= 32: at most one pending sibling
                      // a level
  int size = 0;
  stack[size++] = top;
  while (size > 0) {
    const int64_t node = stack[--size];
    if (!worth_visiting(tree.boxes[static_cast<size_t>(node)], queries, best)) continue;
    if (node >= first_leaf) {
      const int64_t leaf = node - first_leaf;
      offer<false>(tree.leaf(leaf), tree.leaf_count(leaf), queries, best);
    } else {
      stack[size++] = 2 * node + 1;
      stack[size++] = 2 * node;
    }
  }
}

/// Neighbours of all points of one leaf: first its own points, then the sibling subtrees on the way
/// to the root, so that near leaves come early and far subtrees are pruned at their top.
void search_leaf(const Tree& tree, int64_t leaf, int neighbours, float* out) {
  const Point* const own = tree.leaf(leaf);
  const int count = tree.leaf_count(leaf);
  Queries queries{};
  for (int q = 0; q < count; ++q) {
    for (int k = 0; k < 3; ++k) queries.at[k][q] = own[q].at[k];
  }
  Best best;
  for (int q = 0; q < kLeaf; ++q) {
    // Unused lanes want nothing: no distance is below zero.
    const float start = q < count ? kInf : 0.f;
    best.first[q] = best.second[q] = best.third[q] = start;
  }
  offer<true>(own, count, queries, best);
  for (int64_t node = leaf + (int64_t{1} << tree.depth); node > 1; node /= 2) {
    search_below(tree, node ^ 1, queries, best);
  }
  for (int q = 0; q < count; ++q) {
    out[own[q].index] = mean_of({best.first[q], best.second[q], best.third[q]}, neighbours);
  }
}

}  // namespace

int64_t first_not_finite(const float* points, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float* p = points + 3 * i;
    if (!(std::isfinite(p[0]) && std::isfinite(p[1]) && std::isfinite(p[2]))) return i;
  }
  return -1;
}

void mean_squared_distance_3(const float* points, int64_t n, float* out, int threads) {
  if (n <= 0) return;
  const Tree tree = make_tree(points, n, threads);
  const int neighbours = static_cast<int>(std::min<int64_t>(3, n - 1));
  const int64_t leaves = int64_t{1} << tree.depth, chunk = 64;
  parallel_for((leaves + chunk - 1) / chunk, threads, [&](int64_t i) {
    for (int64_t leaf = i * chunk; leaf < std::min(leaves, (i + 1) * chunk); ++leaf) {
      search_leaf(tree, leaf, neighbours, out);
    }
  });
}

}  // namespace knn
