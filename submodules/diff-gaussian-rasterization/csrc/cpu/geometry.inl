// From slots to parameters: sums of each Gaussian's instances, projection and colour backward, then
// either Adam in place or the gradients, and the densification statistics, in one pass over memory.
// The projection is computed again, which costs less than storing it.

/// Sum of a Gaussian's slots, in order, on top of `sum`.
SPLAT_HD VecF add_slots(const Workspace& w, int64_t gaussian, VecF sum) {
  const uint32_t end = w.slot_end[gaussian];
  for (uint32_t s = w.slot_start[gaussian]; s < end; s++) {
    sum += load(&w.slots[int64_t{s} * kSlotFloats]);
  }
  return sum;
}

/// Per-Gaussian sums over its slots in fixed order; afterwards lanes are Gaussians.
SPLAT_HD void sum_slots(const Workspace& w, const Group& g, VecF* moments) {
  for (int i = 0; i < kLanes; i++) {
    moments[i] = 0.f;
    if (i >= g.count) continue;
    const int64_t gaussian = g.first + i;
    moments[i] = w.bands > 1 ? load(&w.slot_sums[gaussian * kSlotFloats])
                             : add_slots(w, gaussian, moments[i]);
  }
  transpose16(moments);
}

/// Add the slots of the band that has lists now to the sums of its Gaussians: band after band these
/// are the very additions of an image in one piece.
void add_band_slots(Workspace& w, bool first_band, int threads) {
  const int64_t n = w.count, chunks = (n + kChunk - 1) / kChunk;
  w.slot_sums.grow(n * kSlotFloats);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    for (int64_t i = chunk * kChunk; i < smaller(n, (chunk + 1) * kChunk); i++) {
      float* const sum = &w.slot_sums[i * kSlotFloats];
      store(sum, add_slots(w, i, first_band ? VecF(0.f) : load(sum)));
    }
  }
}

struct GroupGradient {
  GaussianGradient<VecF> gaussian;
  VecF colour[3], basis[16];
  VecF ndc_x, ndc_y;  // dL/dmeans2D
  VecF pose[15];      // dL/d(rotation, translation, camera centre); only set when wanted
};

SPLAT_HD void clear(GroupGradient& o) {
  const VecF zero = 0.f;
  for (int k = 0; k < 3; k++) {
    o.gaussian.position[k] = o.gaussian.scale[k] = o.colour[k] = zero;
  }
  for (int k = 0; k < 4; k++) o.gaussian.quat[k] = zero;
  for (int k = 0; k < 6; k++) o.gaussian.sigma[k] = zero;
  for (int k = 0; k < 16; k++) o.basis[k] = zero;
  o.gaussian.opacity = o.ndc_x = o.ndc_y = zero;
}

/// Colour and its dependence on the viewing direction, position - centre.
SPLAT_HD void colour_gradient(const Scene& scene, const Camera& camera, const Group& g,
                              const RawGaussian<VecF>& raw, Mask drawn, GroupGradient& o) {
  VecF direction[3], inverse_distance;
  view_direction(raw.position, camera, direction, inverse_distance);
  const int degree = camera.sh_degree;
  sh_basis(degree, direction[0], direction[1], direction[2], o.basis);
  for (int k = 0; k < (degree + 1) * (degree + 1); k++) o.basis[k] = zero_unless(drawn, o.basis[k]);
  if (degree == 0) return;
  VecF q[16], gradient[3];  // q[k] = sum over channels of dL/dcolour sh_k
  for (int k = 0; k < 16; k++) q[k] = 0.f;
  const int total = sh_floats(degree);
  for (int offset = 0; offset < total; offset += kLanes) {
    VecF column[16];
    const int n = smaller(kLanes, total - offset);
    load_sh_columns(scene, g, offset, n, column);
    for (int k = 0; k < 16; k++) {
      const int j = offset + k;
      if (k < n) q[1 + j / 3] += o.colour[j % 3] * column[k];
    }
  }
  sh_basis_gradient(degree, direction[0], direction[1], direction[2], q, gradient);
  VecF along[3];
  view_direction_gradient(direction, inverse_distance, gradient, along);
  for (int k = 0; k < 3; k++) {
    o.gaussian.position[k] += along[k];
    o.pose[12 + k] = -along[k];
  }
}

SPLAT_HD void mask_gradient(Mask drawn, GaussianGradient<VecF>& g) {
  for (int k = 0; k < 3; k++) {
    g.position[k] = zero_unless(drawn, g.position[k]);
    g.scale[k] = zero_unless(drawn, g.scale[k]);
  }
  for (int k = 0; k < 4; k++) g.quat[k] = zero_unless(drawn, g.quat[k]);
  for (int k = 0; k < 6; k++) g.sigma[k] = zero_unless(drawn, g.sigma[k]);
  g.opacity = zero_unless(drawn, g.opacity);
}

/// What the full level adds to dL/dquats, and the absolute screen gradients, NDC units.
struct FullGradient {
  VecF quat[4], absolute[3];
};

SPLAT_HD void clear(FullGradient& o) {
  for (int k = 0; k < 4; k++) o.quat[k] = 0.f;
  for (int k = 0; k < 3; k++) o.absolute[k] = 0.f;
}

/// Out of line and on its own projection: the plain pass keeps its registers (inline: 5 % slower).
__attribute__((noinline)) void full_gradient(const Workspace& w, const Scene& scene, const Group& g,
                                             const VecF* slot, FullGradient& o) {
  const Camera& camera = w.camera;
  RawGaussian<VecF> raw;
  Projection<VecF> p;
  load_gaussians(scene, g, raw);
  project(raw, camera, form_of(scene), p);
  if (w.has_surfaces && !scene.p.sigma) {
    const VecF normal[3] = {slot[kSlotLane.of[kNormal]], slot[kSlotLane.of[kNormal + 1]],
                            slot[kSlotLane.of[kNormal + 2]]};
    surface_normal_gradient(surface_normal(raw, p, camera, scene.activated), p, normal, o.quat);
  }
  absolute_gradient(whitened_conic(p), slot[kSlotLane.of[kAbsoluteX]],
                    slot[kSlotLane.of[kAbsoluteY]], o.absolute[0], o.absolute[1]);
  o.absolute[0] *= 0.5f * static_cast<float>(camera.width);
  o.absolute[1] *= 0.5f * static_cast<float>(camera.height);
}

SPLAT_HD void group_gradient(const Workspace& w, const Scene& scene, const Group& g,
                             GroupFlags flags, bool pose, FullGradient& full, GroupGradient& o) {
  const Camera& camera = w.camera;
  const Mask drawn = mask_from_bits(flags.drawn);
  VecF slot[16];
  sum_slots(w, g, slot);
  const auto moment = [&](int k) __attribute__((always_inline)) {
    return zero_unless(drawn, slot[kSumLane[k]]);
  };
  RawGaussian<VecF> raw;
  Projection<VecF> p;
  load_gaussians(scene, g, raw);
  project(raw, camera, form_of(scene), p);
  const Moments<VecF> moments = {moment(kSum), moment(kU),  moment(kV),
                                 moment(kUU),  moment(kUV), moment(kVV)};
  ScreenGradient<VecF> screen =
      screen_gradient(moments, whitened_conic(p), p.opacity, moment(kInverseDepth));
  if (w.slots_are_full) screen.depth = zero_unless(drawn, slot[kSlotLane.of[kDepth]]);
  o.ndc_x = zero_unless(drawn, screen.x * (0.5f * static_cast<float>(camera.width)));
  o.ndc_y = zero_unless(drawn, screen.y * (0.5f * static_cast<float>(camera.height)));
  ViewGradient<VecF> view;
  project_gradient(raw, p, camera, form_of(scene), screen, o.gaussian, view);
  if (pose) {
    pose_gradient(raw.position, p, view, o.pose, o.pose + 9);
    for (int k = 12; k < 15; k++) o.pose[k] = 0.f;
  }
  if (w.slots_are_full) {
    full_gradient(w, scene, g, slot, full);
    for (int k = 0; k < 4; k++) o.gaussian.quat[k] += full.quat[k];
    for (int k = 0; k < 2; k++) full.absolute[k] = zero_unless(drawn, full.absolute[k]);
  }
  for (int c = 0; c < 3; c++) {
    o.colour[c] =
        zero_unless(mask_from_bits(static_cast<unsigned>(flags.drawn & ~flags.clamped[c])),
                    slot[kSumLane[kRed + c]]);
  }
  if (!scene.p.colors) colour_gradient(scene, camera, g, raw, drawn, o);
  mask_gradient(drawn, o.gaussian);
  if (pose) {
    for (VecF& value : o.pose) value = zero_unless(drawn, value);
  }
}

/// Lanes in order, in double: a camera's gradient is a sum over all Gaussians, with cancellation.
SPLAT_HD void add_pose(const VecF* pose, double* sums) {
  for (int k = 0; k < 15; k++) {
    float lanes[kLanes];
    store(lanes, pose[k]);
    for (int i = 0; i < kLanes; i++) sums[k] += static_cast<double>(lanes[i]);
  }
}

SPLAT_HD void add_statistics(const Workspace& w, const Statistics& s, const Group& g,
                             GroupFlags flags, const GroupGradient& o) {
  const int n = g.count;
  const Mask visible = mask_from_bits(flags.visible);
  if (s.gradient_norm) {
    const VecF norm = zero_unless(visible, sqrt(o.ndc_x * o.ndc_x + o.ndc_y * o.ndc_y));
    store_first(s.gradient_norm + g.first, n, load_first(s.gradient_norm + g.first, n) + norm);
  }
  if (s.count) {
    const VecF one = zero_unless(visible, VecF(1.f));
    store_first(s.count + g.first, n, load_first(s.count + g.first, n) + one);
  }
  if (s.max_radius) {
    const VecF radius = load_first(&w.radii[g.first], n);
    store_first(s.max_radius + g.first, n, max(load_first(s.max_radius + g.first, n), radius));
  }
}

/// Absolute screen gradients: the tensor, and the sum of their norms over views.
SPLAT_HD void emit_absolute(const BackwardOutputs& out, const Group& g, GroupFlags flags,
                            const VecF* absolute) {
  emit<3>({out.absolute_means2d, nullptr, nullptr, nullptr, nullptr}, g, absolute, false,
          updated_bits(nullptr, g));
  float* const sum = out.statistics.absolute_norm;
  if (!sum || !flags.visible) return;
  VecF norm = sqrt(absolute[0] * absolute[0] + absolute[1] * absolute[1]);
  norm = zero_unless(mask_from_bits(flags.visible), norm);
  store_first(sum + g.first, g.count, load_first(sum + g.first, g.count) + norm);
}

/// `pose` = sums to add to, or null.
void geometry_group(Workspace& w, const Scene& scene, const BackwardOutputs& out,
                    const GradientSink& sink, const Group& g, double* pose) {
  const GroupFlags flags = w.flags[g.first / kLanes];
  GroupGradient o;
  clear(o);
  FullGradient full;
  if (w.slots_are_full) clear(full);
  if (flags.drawn) {
    group_gradient(w, scene, g, flags, pose != nullptr, full, o);
    if (pose) add_pose(o.pose, pose);
  }
  if (w.slots_are_full) emit_absolute(out, g, flags, full.absolute);
  if (flags.visible) add_statistics(w, out.statistics, g, flags, o);
  const bool idle = !flags.drawn;
  const unsigned all = updated_bits(nullptr, g), updated = updated_bits(sink.adam, g);
  const AdamState* a = sink.adam;
  const Parameters none, &mean = a ? a->mean : none, &square = a ? a->square : none;
  const Parameters &to = sink.to, &added = sink.added;
  const VecF ndc[3] = {o.ndc_x, o.ndc_y, 0.f};
  const GaussianGradient<VecF>& d = o.gaussian;
  emit<3>({out.means2d, nullptr, nullptr, nullptr, nullptr}, g, ndc, idle, all);
  emit<3>({to.means, mean.means, square.means, a ? &a->means : nullptr, added.means}, g, d.position,
          idle, updated);
  emit<3>({to.scales, mean.scales, square.scales, a ? &a->scales : nullptr, added.scales}, g,
          d.scale, idle, updated);
  emit<4>({to.quats, mean.quats, square.quats, a ? &a->quats : nullptr, added.quats}, g, d.quat,
          idle, updated);
  emit<1>({to.opacities, mean.opacities, square.opacities, a ? &a->opacities : nullptr,
           added.opacities},
          g, &d.opacity, idle, updated);
  emit<6>({to.sigma, nullptr, nullptr, nullptr, added.sigma}, g, d.sigma, idle, all);
  emit<3>({to.colors, nullptr, nullptr, nullptr, added.colors}, g, o.colour, idle, all);
  emit_sh0({to.sh0, mean.sh0, square.sh0, a ? &a->sh0 : nullptr, added.sh0}, scene, g, o.colour,
           idle, updated);
  emit_sh_rest({to.shN, mean.shN, square.shN, a ? &a->shN : nullptr, added.shN}, scene, g,
               flags.drawn, sh_floats(w.camera.sh_degree), o.basis, o.colour, updated);
}

void geometry_backward(Workspace& w, const Scene& scene, const BackwardOutputs& out, int threads) {
  const int64_t n = w.count, chunks = (n + kChunk - 1) / kChunk;
  const GradientSink sink = make_sink(scene, out);
  if (out.pose) w.pose_sums.grow(chunks * 15);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t end = smaller(n, (chunk + 1) * kChunk);
    double pose[15] = {};
    for (int64_t i = chunk * kChunk; i < end; i += kLanes) {
      geometry_group(w, scene, out, sink, make_group(i, n), out.pose ? pose : nullptr);
    }
    if (out.pose) std::memcpy(&w.pose_sums[chunk * 15], pose, sizeof pose);
  }
  if (!out.pose) return;
  for (int k = 0; k < 15; k++) {
    out.pose[k] = 0;
    for (int64_t chunk = 0; chunk < chunks; chunk++) out.pose[k] += w.pose_sums[chunk * 15 + k];
  }
}
