// Blending backward, back to front, one task a tile. Gaussian-outer: the nine (ten with inverse
// depth, 16 at the full level) sums of a (tile, Gaussian) instance stay in registers over the
// blocks of the tile, then one joint lane reduction and one store into the slot of the instance.
// Every slot is written exactly once: no atomics, and the same bits for any number of threads.

/// Where in a slot each sum lies: the joint reduction of ten decides for the first, the others take
/// the lanes that it leaves free.
struct SlotLanes {
  int of[kFullMoments];
};
constexpr SlotLanes make_slot_lanes() {
  SlotLanes s{};
  bool taken[kSlotFloats] = {};
  for (int k = 0; k < kMoments; k++) {
    s.of[k] = kSumLane[k];
    taken[kSumLane[k]] = true;
  }
  for (int k = kMoments, lane = 0; k < kFullMoments; k++) {
    while (taken[lane]) lane++;
    s.of[k] = lane++;
  }
  return s;
}
constexpr SlotLanes kSlotLane = make_slot_lanes();

/// The sums of the full level; the ten others are in `slot`, the same bits as without them.
SPLAT_HD void store_full_sums(const PartF* sum, float* slot) {
  constexpr int first = kFullMoments - kMoments;
  float lanes[kSlotFloats];
  store(lanes, sum_lanes10(sum + first));
  for (int k = kMoments; k < kFullMoments; k++) {
    slot[kSlotLane.of[k]] = lanes[kSumLane[k - first]];
  }
}

struct BlockGradient {
  VecF t;                                // transmittance behind the next splat
  VecF rest;                             // what lies behind it, times the gradient
  VecI end;                              // index after the last instance that was blended
  VecF red, green, blue, inverse_depth;  // dL/dimage
};
struct SurfaceGradient {
  VecF depth, normal[3];  // dL/dimage
};

/// State behind the last splat: only the background, seen through what is left.
SPLAT_HD BlockGradient load_block_gradient(const Workspace& w, const float* transmittance,
                                           const Images& gradient, const BlockView& view,
                                           int64_t block) {
  const int64_t pixels = int64_t{view.width} * view.height;
  const float* const background = w.camera.background;
  BlockGradient q;
  q.t = read_block(transmittance, view);
  q.end = load_int(&w.lane_end[block * kLanes]);
  q.red = read_block(gradient.color, view);
  q.green = read_block(gradient.color + pixels, view);
  q.blue = read_block(gradient.color + 2 * pixels, view);
  q.inverse_depth = gradient.inverse_depth ? read_block(gradient.inverse_depth, view) : VecF(0.f);
  q.rest = q.red * background[0] + q.green * background[1] + q.blue * background[2];
  if (gradient.transmittance) q.rest += read_block(gradient.transmittance, view);
  q.rest *= q.t;
  return q;
}

SPLAT_HD SurfaceGradient load_surface_gradient(const Images& gradient, const BlockView& view) {
  const int64_t pixels = int64_t{view.width} * view.height;
  SurfaceGradient q;
  q.depth = gradient.depth ? read_block(gradient.depth, view) : VecF(0.f);
  for (int k = 0; k < 3; k++) {
    q.normal[k] = gradient.normal ? read_block(gradient.normal + k * pixels, view) : VecF(0.f);
  }
  return q;
}

/// Blocks of `inside` that instance i may have been blended in; `next` = index below which this
/// changes.
SPLAT_HD uint64_t reached_blocks(const uint32_t* block_end, uint64_t inside, uint32_t i,
                                 uint32_t& next) {
  uint64_t reached = inside;
  next = 0;
  for (uint64_t todo = inside; todo; todo &= todo - 1) {
    const int b = __builtin_ctzll(todo);
    if (block_end[b] < i) {
      reached &= ~(uint64_t{1} << b);
      next = larger(next, block_end[b] + 1);
    }
  }
  return reached;
}

SPLAT_HD Features<PartF> features_of(const Record& r, const Surface& s) {
  return {r.red,           r.green, r.blue,
          r.inverse_depth, s.depth, {s.normal[0], s.normal[1], s.normal[2]}};
}

/// Gradient sums of one splat over the blocks in `mask`.
template <int kLevel>
SPLAT_HD void instance_gradient(const Record& r, const Surface& surface, uint32_t i, TileOrigin o,
                                uint64_t mask, BlockGradient* blocks, SurfaceGradient* surfaces,
                                float* slot) {
  constexpr int num_sums = kLevel == kFull ? kFullMoments : kMoments;
  const float dx = static_cast<float>(o.x) - r.x, dy = static_cast<float>(o.y) - r.y;
  const PartF a = r.a, b = r.b, c = r.c, u0 = r.a * dx + r.b * dy, v0 = r.c * dy;
  const PartF log2_opacity = r.log2_opacity;
  const Features<PartF> splat = features_of(r, surface);
  const PartI index = static_cast<int>(i);
  PartF sum[num_sums];
  for (int k = 0; k < num_sums; k++) sum[k] = 0.f;
  for (; mask; mask &= mask - 1) {
    const int block = __builtin_ctzll(mask);
    BlockGradient& q = blocks[block];
    for (int k = 0; k < kParts; k++) {
      const int64_t lane = kLanes * block + kPartLanes * k;
      const PartF ox = load_part(kOffsets.x + lane), oy = load_part(kOffsets.y + lane);
      const PartF u = a * ox + (b * oy + u0), v = c * oy + v0;
      PartF alpha = log2_alpha(u, v, log2_opacity);
      const PartMask contributes = (PartF(kLog2AlphaMin) <= alpha) & (index < part(q.end, k));
      exp2_each<1>(&alpha);
      alpha = zero_unless(contributes, alpha);
      Features<PartF> gradient;
      gradient.red = part(q.red, k);
      gradient.green = part(q.green, k);
      gradient.blue = part(q.blue, k);
      if (kLevel >= kInverse) gradient.inverse_depth = part(q.inverse_depth, k);
      if (kLevel == kFull) {
        SurfaceGradient& s = surfaces[block];
        gradient.depth = part(s.depth, k);
        for (int c = 0; c < 3; c++) gradient.normal[c] = part(s.normal[c], k);
      }
      Behind<PartF> behind = {part(q.t, k), part(q.rest, k)};
      pixel_gradient<kLevel>(splat, gradient, b, c, u, v, alpha, behind, sum);
      part(q.t, k) = behind.t;
      part(q.rest, k) = behind.rest;
    }
  }
  store(slot, sum_lanes10(sum));
  if constexpr (kLevel == kFull) store_full_sums(sum, slot);
}

template <int kLevel>
void blend_tile_backward(Workspace& w, int tile, const float* transmittance,
                         const Images& gradient) {
  const TileOrigin origin = tile_origin(w, tile);
  const uint32_t start = w.tile_start[tile], end = w.tile_start[tile + 1];
  if (start == end) return;
  const FlushDenormals flush;
  BlockGradient blocks[kBlocks];
  SurfaceGradient surfaces[kLevel == kFull ? kBlocks : 1];
  const Surface nothing{};
  const uint32_t* const block_end = w.block_end.data() + int64_t{tile} * kBlocks;
  uint64_t inside = 0, reached = 0;
  for (int b = 0; b < kBlocks; b++) {
    const BlockView view = block_view(w.camera, origin, b);
    if (view.outside()) continue;
    blocks[b] = load_block_gradient(w, transmittance, gradient, view, int64_t{tile} * kBlocks + b);
    if (kLevel == kFull) surfaces[b] = load_surface_gradient(gradient, view);
    inside |= uint64_t{1} << b;
  }
  for (uint32_t i = end, next = end; i-- > start;) {
    __builtin_prefetch(&w.records[w.instance_gaussian[larger(i, start + 10) - 10]]);
    if (i < next) reached = reached_blocks(block_end, inside, i, next);
    const uint64_t mask = w.instance_mask[i] & reached;
    float* const slot = &w.slots[int64_t{w.instance_slot[i]} * kSlotFloats];
    if (mask) {
      const uint32_t gaussian = w.instance_gaussian[i];
      const Surface& surface = kLevel == kFull && w.has_surfaces ? w.surfaces[gaussian] : nothing;
      instance_gradient<kLevel>(w.records[gaussian], surface, i, origin, mask, blocks, surfaces,
                                slot);
    } else {
      store(slot, VecF(0.f));
    }
  }
}

SPLAT_HD bool wants_absolute(const BackwardOutputs& out) {
  return out.absolute_means2d || out.statistics.absolute_norm;
}

/// The tiles with lists.
void blend_backward(Workspace& w, const float* transmittance, const Images& gradient, bool absolute,
                    int threads) {
  w.slots.grow((w.longest + 1) * kSlotFloats);
  w.slots_are_full = absolute || gradient.depth || gradient.normal;
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads)
  for (int tile = w.first_tile; tile < w.end_tile; tile++) {
    if (w.slots_are_full) {
      blend_tile_backward<kFull>(w, tile, transmittance, gradient);
    } else if (gradient.inverse_depth) {
      blend_tile_backward<kInverse>(w, tile, transmittance, gradient);
    } else {
      blend_tile_backward<kColour>(w, tile, transmittance, gradient);
    }
  }
}
