// Stage 1: activation, projection, culling, colour; one record per drawn Gaussian.

/// Colour before clamping: 0.5 + sum_k basis_k(direction) sh_k.
SPLAT_HD void view_colour(const Scene& scene, const Camera& camera, const Group& g,
                          const RawGaussian<VecF>& raw, VecF* colour) {
  VecF direction[3], inverse_distance, basis[16];
  view_direction(raw.position, camera, direction, inverse_distance);
  sh_basis(camera.sh_degree, direction[0], direction[1], direction[2], basis);
  const int stride = static_cast<int>(scene.sh0_stride);
  for (int c = 0; c < 3; c++) {
    colour[c] = basis[0] * gather_component(scene.p.sh0, stride, c, g) + 0.5f;
  }
  const int total = sh_floats(camera.sh_degree);
  for (int offset = 0; offset < total; offset += kLanes) {
    VecF column[16];
    const int n = smaller(kLanes, total - offset);
    load_sh_columns(scene, g, offset, n, column);
    for (int k = 0; k < 16; k++) {
      const int j = offset + k;
      if (k < n) colour[j % 3] += basis[1 + j / 3] * column[k];
    }
  }
}

SPLAT_HD void write_records(Workspace& w, const Group& g, unsigned drawn, VecF* fields,
                            VecI depth_bits) {
  int depth[16];
  store(depth, depth_bits);
  for (int k = 0; k < g.count; k++) {
    w.keys[g.first + k] = drawn >> k & 1u ? static_cast<uint32_t>(depth[k]) : ~0u;
  }
  if (!drawn) return;
  transpose16(fields);
  for (int k = 0; k < g.count; k++) store(&w.records[g.first + k].x, fields[k]);
}

/// Depth and normal, for the maps of them.
SPLAT_HD void write_surfaces(Workspace& w, const Scene& scene, const Group& g,
                             const RawGaussian<VecF>& raw, const Projection<VecF>& p) {
  SurfaceNormal<VecF> s{};
  for (int k = 0; k < 3; k++) s.n[k] = 0.f;
  if (!scene.p.sigma) s = surface_normal(raw, p, w.camera, scene.activated);
  const VecF fields[4] = {p.camera[2], s.n[0], s.n[1], s.n[2]};
  float lanes[4][kLanes];
  for (int k = 0; k < 4; k++) store(lanes[k], fields[k]);
  for (int i = 0; i < g.count; i++) {
    w.surfaces[g.first + i] = {lanes[0][i], {lanes[1][i], lanes[2][i], lanes[3][i]}};
  }
}

/// Returns how many of the 16 were culled as invalid.
int preprocess_group(Workspace& w, const Scene& scene, const Group& g, int32_t* radii_out) {
  const Camera& camera = w.camera;
  RawGaussian<VecF> raw;
  Projection<VecF> p;
  load_gaussians(scene, g, raw);
  project(raw, camera, form_of(scene), p);
  Mask visible;
  VecF radius = original_radius(p, camera, visible);
  const Mask valid = first_lanes(g.count);
  visible = visible & valid;

  const VecF log2_opacity = log2_positive(p.opacity), extent = log2_opacity - kLog2AlphaMin;
  const Conic<VecF> conic = whitened_conic(p);
  const EllipseBounds<VecF> bounds = ellipse_bounds(p, conic, extent);
  const Mask inside = (VecF(0.f) <= p.x + bounds.half_width) &
                      (VecF(0.f) <= p.y + bounds.half_height) &
                      (p.x - bounds.half_width <= VecF(static_cast<float>(camera.width - 1))) &
                      (p.y - bounds.half_height <= VecF(static_cast<float>(camera.height - 1)));
  Mask drawn = p.in_front & p.sane & valid & inside & (VecF(kAlphaMin) <= p.opacity);

  VecF colour[3] = {0.f, 0.f, 0.f};
  GroupFlags flags{};
  if (any(drawn)) {
    if (scene.p.colors) {
      for (int c = 0; c < 3; c++) colour[c] = gather_component(scene.p.colors, 3, c, g);
    } else {
      view_colour(scene, camera, g, raw, colour);
    }
    Mask bounded = valid;
    for (int c = 0; c < 3; c++) bounded = bounded & (abs(colour[c]) <= VecF(kMaxColour));
    const unsigned refused = to_bits(drawn) & ~to_bits(bounded);
    p.sane = p.sane & mask_from_bits(~refused);
    drawn = drawn & bounded;
    visible = visible & p.sane;
    if (!scene.p.colors) {
      for (int c = 0; c < 3; c++) {
        flags.clamped[c] = static_cast<uint16_t>(to_bits(colour[c] < VecF(0.f)));
        colour[c] = max(colour[c], VecF(0.f));
      }
    }
  }
  flags.drawn = static_cast<uint16_t>(to_bits(drawn));
  flags.visible = static_cast<uint16_t>(to_bits(visible));
  w.flags[g.first / kLanes] = flags;
  radius = zero_unless(visible, radius);
  store_first(&w.radii[g.first], g.count, radius);
  if (radii_out) {
    int rounded[16];
    store(rounded, truncate(radius));
    for (int k = 0; k < g.count; k++) radii_out[g.first + k] = rounded[k];
  }
  VecF fields[16] = {p.x,       p.y,       conic.a,   conic.b,     conic.c, log2_opacity,
                     colour[0], colour[1], colour[2], p.inverse_z, extent,  1.f,
                     0.f,       0.f,       0.f,       0.f};
  fields[11] = VecF(1.f) / conic.a;
  fields[12] = bounds.rightmost_dy;
  fields[13] = bounds.half_width;
  fields[14] = bounds.half_height;
  write_records(w, g, flags.drawn, fields, float_bits(p.camera[2]));
  if (w.has_surfaces && flags.drawn) write_surfaces(w, scene, g, raw, p);
  // A position that is not finite has no side of the camera: it counts as invalid, not as behind.
  const Mask placed =
      is_finite(raw.position[0]) & is_finite(raw.position[1]) & is_finite(raw.position[2]);
  const unsigned behind = ~to_bits(p.in_front) & to_bits(placed);
  return __builtin_popcount(to_bits(valid) & ~behind & ~to_bits(p.sane));
}

void preprocess(Workspace& w, const Scene& scene, int32_t* radii, int threads) {
  const int64_t n = scene.count, chunks = (n + kChunk - 1) / kChunk;
  w.records.grow(n + kLanes);
  if (w.has_surfaces) w.surfaces.grow(n + kLanes);
  w.keys.grow(n + kLanes);
  w.radii.grow(n + kLanes);
  w.flags.grow(n / kLanes + 1);
  w.invalid_in_chunk.grow(chunks + 1);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t end = smaller(n, (chunk + 1) * kChunk);
    int64_t invalid = 0;
    for (int64_t i = chunk * kChunk; i < end; i += kLanes) {
      invalid += preprocess_group(w, scene, make_group(i, n), radii);
    }
    w.invalid_in_chunk[chunk] = invalid;
  }
  w.invalid = 0;
  for (int64_t chunk = 0; chunk < chunks; chunk++) w.invalid += w.invalid_in_chunk[chunk];
}
