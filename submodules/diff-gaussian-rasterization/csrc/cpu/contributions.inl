// What each Gaussian contributes to the last image, for pruning. The passes of the backward one: a
// task a tile leaves one triple for each of its instances, then each Gaussian's are put together in
// fixed order.

struct alignas(16) Contribution {
  float largest, sum, pixels, unused;
};

struct BlockTransmittance {
  VecF t;    // in front of the next splat
  VecI end;  // index after the last instance that was blended
};

/// The largest weight of instance i, the sum and the number of its weights in the blocks of `mask`,
/// lane by lane; front to back.
SPLAT_HD void instance_weights(const Record& r, uint32_t i, TileOrigin o, uint64_t mask,
                               BlockTransmittance* blocks, VecF& largest, VecF& sum, VecF& pixels) {
  const float dx = static_cast<float>(o.x) - r.x, dy = static_cast<float>(o.y) - r.y;
  const VecF a = r.a, b = r.b, c = r.c, u0 = r.a * dx + r.b * dy, v0 = r.c * dy;
  const VecI index = static_cast<int>(i);
  largest = sum = pixels = 0.f;
  for (; mask; mask &= mask - 1) {
    const int block = __builtin_ctzll(mask);
    BlockTransmittance& q = blocks[block];
    const VecF ox = load(kOffsets.x + kLanes * block), oy = load(kOffsets.y + kLanes * block);
    const VecF u = a * ox + (b * oy + u0), v = c * oy + v0;
    VecF alpha = log2_alpha(u, v, VecF(r.log2_opacity));
    const Mask blended = (VecF(kLog2AlphaMin) <= alpha) & (index < q.end);
    exp2_each<1>(&alpha);
    alpha = min(zero_unless(blended, alpha), VecF(kAlphaMax));
    const VecF weight = q.t * alpha;
    q.t = negative_multiply_add(q.t, alpha, q.t);
    largest = max(largest, weight);
    sum += weight;
    pixels += zero_unless(blended, VecF(1.f));
  }
}

void tile_contributions(const Workspace& w, int tile, Contribution* slots) {
  const TileOrigin origin = tile_origin(w, tile);
  const uint32_t start = w.tile_start[tile], end = w.tile_start[tile + 1];
  const FlushDenormals flush;
  BlockTransmittance blocks[kBlocks];
  const uint32_t* const block_end = w.block_end.data() + int64_t{tile} * kBlocks;
  uint64_t live = 0;
  for (int b = 0; b < kBlocks; b++) {
    if (block_view(w.camera, origin, b).outside()) continue;
    blocks[b].t = 1.f;
    blocks[b].end = load_int(&w.lane_end[(int64_t{tile} * kBlocks + b) * kLanes]);
    live |= uint64_t{1} << b;
  }
  for (uint32_t first = start; first < end; first += kLanes) {  // lanes become instances
    for (uint64_t todo = live; todo; todo &= todo - 1) {
      if (block_end[__builtin_ctzll(todo)] < first) live &= ~(todo & (~todo + 1));
    }
    VecF largest[kLanes], sum[kLanes], pixels[kLanes];
    for (uint32_t k = 0; k < kLanes; k++) {
      const uint32_t i = smaller(first + k, end - 1);
      const uint64_t mask = first + k < end ? w.instance_mask[i] & live : 0;
      instance_weights(w.records[w.instance_gaussian[i]], i, origin, mask, blocks, largest[k],
                       sum[k], pixels[k]);
    }
    transpose16(largest);
    transpose16(sum);
    transpose16(pixels);
    for (int n = kLanes / 2; n > 0; n /= 2) {
      for (int k = 0; k < n; k++) {
        largest[k] = max(largest[k], largest[k + n]);
        sum[k] += sum[k + n];
        pixels[k] += pixels[k + n];
      }
    }
    float lanes[3][kLanes];
    store(lanes[0], largest[0]);
    store(lanes[1], sum[0]);
    store(lanes[2], pixels[0]);
    for (uint32_t k = 0; k < smaller<uint32_t>(kLanes, end - first); k++) {
      slots[w.instance_slot[first + k]] = {lanes[0][k], lanes[1][k], lanes[2][k], 0.f};
    }
  }
}

/// Combine what a Gaussian's instances left with what earlier bands and views did, one after the
/// other: the same additions for any number of bands.
SPLAT_HD void add_contributions(const Workspace& w, const Contribution* slots, int64_t i,
                                const Contributions& out) {
  for (uint32_t s = w.slot_start[i]; s < w.slot_end[i]; s++) {
    if (out.max_weight) out.max_weight[i] = larger(out.max_weight[i], slots[s].largest);
    if (out.weight) out.weight[i] += slots[s].sum;
    if (out.pixels) out.pixels[i] += slots[s].pixels;
  }
}

/// Of the tiles with lists.
void band_contributions(Workspace& w, const Contributions& out, int threads) {
  static_assert(sizeof(Contribution) == 4 * sizeof(float), "they lie in the slots' memory");
  const int64_t n = w.count, chunks = (n + kChunk - 1) / kChunk;
  auto* const slots = reinterpret_cast<Contribution*>(w.slots.grow((w.longest + 1) * 4));
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads)
  for (int tile = w.first_tile; tile < w.end_tile; tile++) tile_contributions(w, tile, slots);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t end = smaller(n, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; i++) add_contributions(w, slots, i, out);
  }
}
