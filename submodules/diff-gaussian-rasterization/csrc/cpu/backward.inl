// Blending backward, back to front, one task a tile. Gaussian-outer: the nine (ten with depth) sums
// of a (tile, Gaussian) instance stay in registers over the blocks of the tile, then one joint lane
// reduction and one store into the slot of the instance. Every slot is written exactly once: no
// atomics, and the same bits for any number of threads.

enum Moment { kSum, kU, kV, kUU, kUV, kVV, kRed, kGreen, kBlue, kInverseDepth, kMoments };

struct BlockGradient {
  VecF t;                        // transmittance behind the next splat
  VecF rest;                     // what lies behind it, times the gradient
  VecI end;                      // index after the last instance that was blended
  VecF red, green, blue, depth;  // dL/dimage
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
  q.depth = gradient.inverse_depth ? read_block(gradient.inverse_depth, view) : VecF(0.f);
  q.rest = q.red * background[0] + q.green * background[1] + q.blue * background[2];
  if (gradient.transmittance) q.rest += read_block(gradient.transmittance, view);
  q.rest *= q.t;
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

/// Gradient sums of one splat over the blocks in `mask`.
template <bool kAux>
SPLAT_HD void instance_gradient(const Record& r, uint32_t i, TileOrigin o, uint64_t mask,
                                BlockGradient* blocks, float* slot) {
  const float dx = static_cast<float>(o.x) - r.x, dy = static_cast<float>(o.y) - r.y;
  const PartF a = r.a, b = r.b, c = r.c, u0 = r.a * dx + r.b * dy, v0 = r.c * dy;
  const PartF log2_opacity = r.log2_opacity, red = r.red, green = r.green, blue = r.blue;
  const PartI index = static_cast<int>(i);
  PartF sum[kMoments];
  for (int k = 0; k < kMoments; k++) sum[k] = 0.f;
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
      const PartF q_red = part(q.red, k), q_green = part(q.green, k), q_blue = part(q.blue, k);
      PartF colour_gradient = red * q_red + green * q_green + blue * q_blue;
      if (kAux) colour_gradient += PartF(r.inverse_depth) * part(q.depth, k);
      const BlendGradient<PartF> g =
          blend_step_gradient(alpha, colour_gradient, part(q.t, k), part(q.rest, k));
      const PartF gu = g.power * u, gv = g.power * v;
      sum[kSum] += g.power;
      sum[kU] += gu;
      sum[kV] += gv;
      sum[kUU] += gu * u;
      sum[kUV] += gu * v;
      sum[kVV] += gv * v;
      sum[kRed] += g.weight * q_red;
      sum[kGreen] += g.weight * q_green;
      sum[kBlue] += g.weight * q_blue;
      if (kAux) sum[kInverseDepth] += g.weight * part(q.depth, k);
    }
  }
  store(slot, sum_lanes10(sum));
}

template <bool kAux>
void blend_tile_backward(Workspace& w, int tile, const float* transmittance,
                         const Images& gradient) {
  const TileOrigin origin = tile_origin(w, tile);
  const uint32_t start = w.tile_start[tile], end = w.tile_start[tile + 1];
  if (start == end) return;
  const FlushDenormals flush;
  BlockGradient blocks[kBlocks];
  const uint32_t* const block_end = w.block_end.data() + int64_t{tile} * kBlocks;
  uint64_t inside = 0, reached = 0;
  for (int b = 0; b < kBlocks; b++) {
    const BlockView view = block_view(w.camera, origin, b);
    if (view.outside()) continue;
    blocks[b] = load_block_gradient(w, transmittance, gradient, view, int64_t{tile} * kBlocks + b);
    inside |= uint64_t{1} << b;
  }
  for (uint32_t i = end, next = end; i-- > start;) {
    __builtin_prefetch(&w.records[w.instance_gaussian[larger(i, start + 10) - 10]]);
    if (i < next) reached = reached_blocks(block_end, inside, i, next);
    const uint64_t mask = w.instance_mask[i] & reached;
    float* const slot = &w.slots[int64_t{w.instance_slot[i]} * kSlotFloats];
    if (mask) {
      instance_gradient<kAux>(w.records[w.instance_gaussian[i]], i, origin, mask, blocks, slot);
    } else {
      store(slot, VecF(0.f));
    }
  }
}

/// The tiles with lists.
void blend_backward(Workspace& w, const float* transmittance, const Images& gradient, int threads) {
  w.slots.grow((w.longest + 1) * kSlotFloats);
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads)
  for (int tile = w.first_tile; tile < w.end_tile; tile++) {
    if (gradient.inverse_depth) {
      blend_tile_backward<true>(w, tile, transmittance, gradient);
    } else {
      blend_tile_backward<false>(w, tile, transmittance, gradient);
    }
  }
}
