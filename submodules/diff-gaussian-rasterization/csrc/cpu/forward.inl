// Stage 4: blending, one task a 32x32 tile. Block-outer: the state of 16 pixels stays in registers
// while the list of splats that meet the block is run through, four at a time for the exponent.

constexpr int kBatch = 255;  // instances unpacked together; index 255 is a splat that adds nothing
constexpr int kSide = 4;     // exponents side by side (measured: 1 slower by 15 %, 8 by 5 %)

/// Pixel offsets of the 16 lanes of each block within its tile.
struct BlockOffsets {
  alignas(64) float x[kBlocks * kLanes];
  alignas(64) float y[kBlocks * kLanes];
};
constexpr BlockOffsets make_block_offsets() {
  BlockOffsets t{};
  for (int b = 0; b < kBlocks; b++) {
    for (int k = 0; k < kLanes; k++) {
      t.x[kLanes * b + k] = static_cast<float>((b & 7) * 4 + (k & 3));
      t.y[kLanes * b + k] = static_cast<float>((b >> 3) * 4 + (k >> 2));
    }
  }
  return t;
}
constexpr BlockOffsets kOffsets = make_block_offsets();

struct TileOrigin {
  int x, y;  // [px]
};
SPLAT_HD TileOrigin tile_origin(const Workspace& w, int tile) {
  return {tile % w.tiles_x * kTile, tile / w.tiles_x * kTile};
}

/// A 4x4 block of an image of width x height; pixels outside read as 0 and are not written.
struct BlockView {
  int width, height, x, y;
  SIMD_INLINE bool outside() const { return x >= width || y >= height; }
  SIMD_INLINE bool whole() const { return x + 4 <= width && y + 4 <= height; }
  SIMD_INLINE int64_t pixel(int k) const { return int64_t{y + (k >> 2)} * width + x + (k & 3); }
  SIMD_INLINE bool has(int k) const { return x + (k & 3) < width && y + (k >> 2) < height; }
};
SPLAT_HD BlockView block_view(const Camera& c, TileOrigin o, int b) {
  return {c.width, c.height, o.x + (b & 7) * 4, o.y + (b >> 3) * 4};
}
SPLAT_HD VecF ones_inside(const BlockView& v) {
  if (v.whole()) return 1.f;
  float lanes[kLanes];
  for (int k = 0; k < kLanes; k++) lanes[k] = v.has(k) ? 1.f : 0.f;
  return load(lanes);
}
SPLAT_HD VecF read_block(const float* image, const BlockView& v) {
  float lanes[kLanes] = {};
  if (v.whole()) {
    for (int row = 0; row < 4; row++) std::memcpy(lanes + 4 * row, image + v.pixel(4 * row), 16);
  } else {
    for (int k = 0; k < kLanes; k++) {
      if (v.has(k)) lanes[k] = image[v.pixel(k)];
    }
  }
  return load(lanes);
}
SPLAT_HD void write_block(float* image, const BlockView& v, VecF value) {
  float lanes[kLanes];
  store(lanes, value);
  if (v.whole()) {
    for (int row = 0; row < 4; row++) std::memcpy(image + v.pixel(4 * row), lanes + 4 * row, 16);
  } else {
    for (int k = 0; k < kLanes; k++) {
      if (v.has(k)) image[v.pixel(k)] = lanes[k];
    }
  }
}

struct BlockState {
  VecF t;        // running transmittance, below the limit once finished
  VecF t_final;  // behind the last blended splat
  VecF red, green, blue, inverse_depth;
  VecI end;  // index after the last instance blended
};
struct SurfaceState {  // beside it, so that the other levels keep theirs close together
  VecF depth, normal[3];
};

/// What a tile needs of a splat, x and y replaced by u and v at the tile's origin.
struct TileSplat {
  float u0, v0, a, b, c, log2_opacity, red, green, blue, inverse_depth;
  int32_t end;      // index of the next instance
  Surface surface;  // only at the full level
};

struct TileBatch {
  alignas(64) TileSplat splat[kBatch + 1];
  alignas(64) uint8_t rows[8][kBatch + 1];  // byte r of each mask
  alignas(64) uint8_t hits[kBatch + 128];
};

/// Unpack instances [first, first + n); returns the union of their masks.
template <int kLevel>
SPLAT_HD uint64_t unpack_batch(const Workspace& w, TileOrigin o, uint32_t first, int n,
                               uint32_t end, TileBatch& batch) {
  uint64_t used = 0;
  for (int i = 0; i < n; i++) {
    const uint32_t index = first + static_cast<uint32_t>(i);
    __builtin_prefetch(&w.records[w.instance_gaussian[smaller(index + 12, end - 1)]]);
    const uint32_t gaussian = w.instance_gaussian[index];
    const Record& r = w.records[gaussian];
    TileSplat& s = batch.splat[i];
    static_assert(sizeof(Record) == 64 && sizeof(TileSplat) == 64, "one vector each");
    store(&s.u0, load(&r.x));  // the fields in between are laid out alike
    const float dx = static_cast<float>(o.x) - r.x, dy = static_cast<float>(o.y) - r.y;
    s.u0 = r.a * dx + r.b * dy;
    s.v0 = r.c * dy;
    s.end = static_cast<int32_t>(index + 1);
    if (kLevel == kFull) s.surface = w.surfaces[gaussian];
    const uint64_t mask = w.instance_mask[index];
    used |= mask;
    for (int k = 0; k < 8; k++) batch.rows[k][i] = static_cast<uint8_t>(mask >> (8 * k));
  }
  return used;
}

/// Run the hits of one block. Returns the number of hits done when no lane is live any more, or 0.
template <int kLevel>
SPLAT_HD int blend_block(const TileBatch& batch, int num_hits, VecF ox, VecF oy, BlockState& state,
                         SurfaceState& surface_state) {
  BlockState s = state;
  SurfaceState surface;
  if (kLevel == kFull) surface = surface_state;
  int finished = 0;
  for (int j = 0; j < num_hits; j += kSide) {
    const TileSplat* splat[kSide];
    VecF u[kSide], v[kSide], power[kSide], alpha[kSide];
    Mask live, contributes[kSide];
    for (int k = 0; k < kSide; k++) {
      splat[k] = &batch.splat[batch.hits[j + k]];
      u[k] = oy * splat[k]->b + splat[k]->u0;
      v[k] = oy * splat[k]->c + splat[k]->v0;
    }
    for (int k = 0; k < kSide; k++) u[k] = ox * splat[k]->a + u[k];
    for (int k = 0; k < kSide; k++) power[k] = log2_alpha(u[k], v[k], VecF(splat[k]->log2_opacity));
    for (int k = 0; k < kSide; k++) contributes[k] = VecF(kLog2AlphaMin) <= power[k];
    exp2_each<kSide>(power);
    for (int k = 0; k < kSide; k++) {
      alpha[k] = min(zero_unless(contributes[k], power[k]), VecF(kAlphaMax));
    }
    for (int k = 0; k < kSide; k++) {
      const VecF weight = blend_step(alpha[k], s.t, s.t_final, live);
      s.red += weight * splat[k]->red;
      s.green += weight * splat[k]->green;
      s.blue += weight * splat[k]->blue;
      if (kLevel >= kInverse) s.inverse_depth += weight * splat[k]->inverse_depth;
      if (kLevel == kFull) {
        surface.depth += weight * splat[k]->surface.depth;
        for (int c = 0; c < 3; c++) surface.normal[c] += weight * splat[k]->surface.normal[c];
      }
      s.end = select(live, VecI(splat[k]->end), s.end);
    }
    if (!any(live)) {
      finished = smaller(j + kSide, num_hits);
      break;
    }
  }
  state = s;
  if (kLevel == kFull) surface_state = surface;
  return finished;
}

SPLAT_HD void write_tile(Workspace& w, int tile, const BlockState* blocks, const Images& out) {
  const Camera& c = w.camera;
  const TileOrigin o = tile_origin(w, tile);
  const int64_t pixels = int64_t{c.width} * c.height;
  for (int b = 0; b < kBlocks; b++) {
    const BlockView view = block_view(c, o, b);
    if (view.outside()) continue;
    const BlockState& s = blocks[b];
    write_block(out.color, view, s.red + s.t_final * c.background[0]);
    write_block(out.color + pixels, view, s.green + s.t_final * c.background[1]);
    write_block(out.color + 2 * pixels, view, s.blue + s.t_final * c.background[2]);
    write_block(out.transmittance, view, s.t_final);
    if (out.inverse_depth) write_block(out.inverse_depth, view, s.inverse_depth);
    store(&w.lane_end[(int64_t{tile} * kBlocks + b) * kLanes], s.end);
  }
}

SPLAT_HD void write_tile_surfaces(const Workspace& w, int tile, const SurfaceState* blocks,
                                  const Images& out) {
  const Camera& c = w.camera;
  const int64_t pixels = int64_t{c.width} * c.height;
  for (int b = 0; b < kBlocks; b++) {
    const BlockView view = block_view(c, tile_origin(w, tile), b);
    if (view.outside()) continue;
    if (out.depth) write_block(out.depth, view, blocks[b].depth);
    if (!out.normal) continue;
    for (int k = 0; k < 3; k++) write_block(out.normal + k * pixels, view, blocks[b].normal[k]);
  }
}

template <int kLevel>
void blend_tile(Workspace& w, int tile, const Images& out) {
  const TileOrigin origin = tile_origin(w, tile);
  const uint32_t start = w.tile_start[tile], end = w.tile_start[tile + 1];
  const FlushDenormals flush;
  BlockState blocks[kBlocks];
  SurfaceState surfaces[kLevel == kFull ? kBlocks : 1];
  TileBatch batch;
  std::memset(&batch.splat[kBatch], 0, sizeof(TileSplat));
  batch.splat[kBatch].log2_opacity = -1000.f;
  uint32_t* const block_end = w.block_end.data() + int64_t{tile} * kBlocks;
  uint64_t alive = 0;
  for (int b = 0; b < kBlocks; b++) {
    const BlockView view = block_view(w.camera, origin, b);
    block_end[b] = view.outside() ? start : end;
    if (view.outside()) continue;
    const VecF one = ones_inside(view), zero = 0.f;
    blocks[b] = {one, one, zero, zero, zero, zero, static_cast<int>(start)};
    if (kLevel == kFull) surfaces[b] = {zero, {zero, zero, zero}};
    alive |= uint64_t{1} << b;
  }
  for (uint32_t first = start; first < end && alive; first += kBatch) {
    const int n = static_cast<int>(smaller<uint32_t>(kBatch, end - first));
    const uint64_t used = unpack_batch<kLevel>(w, origin, first, n, end, batch);
    batch.splat[kBatch].end = static_cast<int32_t>(first) + n;  // it may pass for the last one
    for (uint64_t todo = alive & used; todo; todo &= todo - 1) {
      const int b = __builtin_ctzll(todo);
      const int hits =
          list_hits(batch.rows[b >> 3], static_cast<uint8_t>(1 << (b & 7)), n, batch.hits);
      for (int k = 0; k < kSide; k++) batch.hits[hits + k] = kBatch;
      const VecF ox = load(kOffsets.x + kLanes * b), oy = load(kOffsets.y + kLanes * b);
      const int finished =
          blend_block<kLevel>(batch, hits, ox, oy, blocks[b], surfaces[kLevel == kFull ? b : 0]);
      if (finished) {
        alive &= ~(uint64_t{1} << b);
        block_end[b] = first + batch.hits[finished - 1];
      }
    }
  }
  write_tile(w, tile, blocks, out);
  if (kLevel == kFull) write_tile_surfaces(w, tile, surfaces, out);
}

/// The tiles with lists.
void blend_forward(Workspace& w, const Images& out, int threads) {
#pragma omp parallel for schedule(dynamic, 2) num_threads(threads)
  for (int tile = w.first_tile; tile < w.end_tile; tile++) {
    if (w.has_surfaces) {
      blend_tile<kFull>(w, tile, out);
    } else if (out.inverse_depth) {
      blend_tile<kInverse>(w, tile, out);
    } else {
      blend_tile<kColour>(w, tile, out);
    }
  }
}
