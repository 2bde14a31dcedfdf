// Blending backward, front to back, one task a tile. Gaussian-outer: the nine (ten with depth) sums
// of a (tile, Gaussian) instance stay in registers over the blocks of the tile, then one joint lane
// reduction and one store into the slot of the instance. Every slot is written exactly once: no
// atomics, and the same bits for any number of threads.

enum Moment { kSum, kU, kV, kUU, kUV, kVV, kRed, kGreen, kBlue, kInverseDepth, kMoments };
constexpr int kSlotFloats = 16;

struct BlockGradient {
  VecF t;                        // transmittance in front of the next splat
  VecF rest;                     // what is still to come, times the gradient
  VecF red, green, blue, depth;  // dL/dimage
};

/// Gradients of a block and `rest` before its first splat.
SPLAT_HD BlockGradient load_block_gradient(const Images& images, const Images& gradient,
                                           const BlockView& view, bool aux) {
  const int64_t pixels = int64_t{view.width} * view.height;
  BlockGradient q;
  q.t = ones_inside(view);
  q.red = read_block(gradient.color, view);
  q.green = read_block(gradient.color + pixels, view);
  q.blue = read_block(gradient.color + 2 * pixels, view);
  q.depth = 0.f;
  q.rest = q.red * read_block(images.color, view) +
           q.green * read_block(images.color + pixels, view) +
           q.blue * read_block(images.color + 2 * pixels, view);
  if (aux) {
    q.depth = read_block(gradient.inverse_depth, view);
    q.rest += q.depth * read_block(images.inverse_depth, view);
  }
  if (gradient.transmittance) {
    q.rest += read_block(gradient.transmittance, view) * read_block(images.transmittance, view);
  }
  return q;
}

/// Blocks of `alive` that go beyond instance i; `next` = first instance after which this changes.
SPLAT_HD uint64_t still_alive(const uint32_t* block_end, uint64_t alive, uint32_t i, uint32_t end,
                              uint32_t& next) {
  next = end;
  for (uint64_t todo = alive; todo; todo &= todo - 1) {
    const int b = __builtin_ctzll(todo);
    if (block_end[b] < i) {
      alive &= ~(uint64_t{1} << b);
    } else {
      next = smaller(next, block_end[b] + 1);
    }
  }
  return alive;
}

/// Gradient sums of one splat over the blocks in `mask`.
template <bool kAux>
SPLAT_HD void instance_gradient(const Record& r, TileOrigin o, uint64_t mask, BlockGradient* blocks,
                                float* slot) {
  const float dx = static_cast<float>(o.x) - r.x, dy = static_cast<float>(o.y) - r.y;
  const VecF a = r.a, b = r.b, c = r.c, u0 = r.a * dx + r.b * dy, v0 = r.c * dy;
  const VecF log2_opacity = r.log2_opacity, red = r.red, green = r.green, blue = r.blue;
  VecF sum[kMoments];
  for (int k = 0; k < kMoments; k++) sum[k] = 0.f;
  for (; mask; mask &= mask - 1) {
    const int block = __builtin_ctzll(mask);
    BlockGradient& q = blocks[block];
    const VecF ox = load(kOffsets.x + kLanes * block), oy = load(kOffsets.y + kLanes * block);
    const VecF u = a * ox + (b * oy + u0), v = c * oy + v0;
    VecF alpha = log2_alpha(u, v, log2_opacity);
    const Mask contributes = VecF(kLog2AlphaMin) <= alpha;
    exp2_each<1>(&alpha);
    alpha = zero_unless(contributes, alpha);
    VecF colour_gradient = red * q.red + green * q.green + blue * q.blue;
    if (kAux) colour_gradient += VecF(r.inverse_depth) * q.depth;
    const BlendGradient<VecF> g = blend_step_gradient(alpha, colour_gradient, q.t, q.rest);
    const VecF gu = g.power * u, gv = g.power * v;
    sum[kSum] += g.power;
    sum[kU] += gu;
    sum[kV] += gv;
    sum[kUU] += gu * u;
    sum[kUV] += gu * v;
    sum[kVV] += gv * v;
    sum[kRed] += g.weight * q.red;
    sum[kGreen] += g.weight * q.green;
    sum[kBlue] += g.weight * q.blue;
    if (kAux) sum[kInverseDepth] += g.weight * q.depth;
  }
  store(slot, sum_lanes10(sum));
}

template <bool kAux>
void blend_tile_backward(Workspace& w, int tile, const Images& images, const Images& gradient) {
  const TileOrigin origin = tile_origin(w, tile);
  const uint32_t start = w.tile_start[tile], end = w.tile_start[tile + 1];
  if (start == end) return;
  const FlushDenormals flush;
  BlockGradient blocks[kBlocks];
  uint64_t alive = 0;
  for (int b = 0; b < kBlocks; b++) {
    const BlockView view = block_view(w.camera, origin, b);
    if (view.outside()) continue;
    blocks[b] = load_block_gradient(images, gradient, view, kAux);
    alive |= uint64_t{1} << b;
  }
  const uint32_t* const block_end = w.block_end.data() + int64_t{tile} * kBlocks;
  uint32_t i = start, next = start;
  for (; i < end && alive; i++) {
    __builtin_prefetch(&w.records[w.instance_gaussian[smaller(i + 10, end - 1)]]);
    if (i >= next) alive = still_alive(block_end, alive, i, end, next);
    const uint64_t mask = w.instance_mask[i] & alive;
    float* const slot = &w.slots[int64_t{w.instance_slot[i]} * kSlotFloats];
    if (mask) {
      instance_gradient<kAux>(w.records[w.instance_gaussian[i]], origin, mask, blocks, slot);
    } else {
      store(slot, VecF(0.f));
    }
  }
  for (; i < end; i++) store(&w.slots[int64_t{w.instance_slot[i]} * kSlotFloats], VecF(0.f));
}

void blend_backward(Workspace& w, const Images& images, const Images& gradient, int threads) {
  const int tiles = w.tiles_x * w.tiles_y;
  const bool aux = gradient.inverse_depth && images.inverse_depth;
  w.slots.grow((w.instances + 1) * kSlotFloats);
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads)
  for (int tile = 0; tile < tiles; tile++) {
    if (aux) {
      blend_tile_backward<true>(w, tile, images, gradient);
    } else {
      blend_tile_backward<false>(w, tile, images, gradient);
    }
  }
}
