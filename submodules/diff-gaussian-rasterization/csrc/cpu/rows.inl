// Rows of parameters in memory <-> lanes of vectors: lanes are 16 consecutive Gaussians.

struct Group {
  int64_t first;  // Gaussian of lane 0
  int count;      // lanes in use
  VecI lane;      // lane number, clamped to the last one in use: safe to load
};

SPLAT_HD Group make_group(int64_t first, int64_t total) {
  const int count = static_cast<int>(smaller<int64_t>(kLanes, total - first));
  return {first, count, min(lane_index(), VecI(count - 1))};
}

/// Component k of rows of `stride` floats.
SPLAT_HD VecF gather_component(const float* rows, int stride, int k, const Group& g) {
  return gather(rows + g.first * stride + k, g.lane * stride);
}

SPLAT_HD Form form_of(const Scene& scene) {
  const bool precomputed = scene.p.sigma != nullptr;
  return {scene.activated, precomputed, scene.filter && !precomputed};
}

SPLAT_HD void load_gaussians(const Scene& scene, const Group& g, RawGaussian<VecF>& raw) {
  for (int k = 0; k < 3; k++) raw.position[k] = gather_component(scene.p.means, 3, k, g);
  if (scene.p.sigma) {
    for (int k = 0; k < 6; k++) raw.sigma[k] = gather_component(scene.p.sigma, 6, k, g);
  } else {
    for (int k = 0; k < 3; k++) raw.scale[k] = gather_component(scene.p.scales, 3, k, g);
    for (int k = 0; k < 4; k++) raw.quat[k] = gather_component(scene.p.quats, 4, k, g);
  }
  raw.opacity = gather_component(scene.p.opacities, 1, 0, g);
  if (scene.filter) raw.filter = gather_component(scene.filter, 1, 0, g);
}

/// columns[k] = float `offset + k` of each Gaussian's shN row, for k < n (at most 16).
SPLAT_HD void load_sh_columns(const Scene& scene, const Group& g, int offset, int n,
                              VecF* columns) {
  const float* row = scene.p.shN + g.first * scene.shN_stride + offset;
  for (int k = 0; k < kLanes; k++) {
    columns[k] = n == kLanes ? load(row) : load_first(row, n);
    if (k + 1 < g.count) row += scene.shN_stride;
  }
  transpose16(columns);
}

SPLAT_HD int sh_floats(int degree) { return 3 * ((degree + 1) * (degree + 1) - 1); }
