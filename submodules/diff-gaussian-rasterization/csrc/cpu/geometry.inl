// From slots to parameters: sums of each Gaussian's instances, projection and colour backward, then
// either Adam in place or the gradients, and the densification statistics, in one pass over memory.
// The projection is computed again, which costs less than storing it.

struct GradientSink {
  const AdamState* adam;  // null: `to` receives gradients; else `to` is updated in place
  Parameters to;
};

SPLAT_HD bool all_zero(VecF a, VecF b) { return !any(VecF(0.f) < max(abs(a), abs(b))); }

/// Adam on n consecutive floats. With `idle` the gradient is known to be 0: nothing changes, bit
/// for bit, where both moments are 0 too, and the stores are saved.
SPLAT_HD void adam_floats(const AdamFactors& f, float* parameter, float* mean, float* square, int n,
                          VecF gradient, bool idle) {
  VecF m = load_first(mean, n), v = load_first(square, n);
  if (idle && all_zero(m, v)) return;
  VecF p = load_first(parameter, n);
  adam_step(f, gradient, p, m, v);
  store_first(parameter, n, p);
  store_first(mean, n, m);
  store_first(square, n, v);
}

/// One tensor with K floats a Gaussian, in consecutive rows.
struct Tensor {
  float *to, *mean, *square;
  const AdamFactors* factors;  // null: write the gradient
};

template <int K>
SPLAT_HD void emit(const Tensor& t, const Group& g, const VecF* gradient, bool idle) {
  if (!t.to) return;
  alignas(64) float rows[kLanes * K], lanes[K][kLanes];
  for (int k = 0; k < K; k++) store(lanes[k], gradient[k]);
  for (int i = 0; i < kLanes; i++) {
    for (int k = 0; k < K; k++) rows[i * K + k] = lanes[k][i];
  }
  const int64_t at = g.first * K;
  for (int j = 0; j < g.count * K; j += kLanes) {
    const int n = smaller(kLanes, g.count * K - j);
    if (t.factors) {
      adam_floats(*t.factors, t.to + at + j, t.mean + at + j, t.square + at + j, n, load(rows + j),
                  idle);
    } else {
      store_first(t.to + at + j, n, load(rows + j));
    }
  }
}

/// Rows of shN: gradient = basis (k = 1..15) times colour gradient. basis[k] is 0 for inactive
/// bands.
SPLAT_HD void emit_sh_rest(const GradientSink& sink, const Scene& scene, const Group& g,
                           unsigned drawn, int active_floats, VecF* basis, const VecF* colour) {
  if (!sink.to.shN || scene.rest == 0) return;
  transpose16(basis);  // lanes were Gaussians, now basis[i] holds the basis of Gaussian i
  float lanes[3][kLanes], colours[4 * kLanes];
  for (int c = 0; c < 3; c++) store(lanes[c], colour[c]);
  for (int i = 0; i < kLanes; i++) {
    for (int c = 0; c < 4; c++) colours[4 * i + c] = c < 3 ? lanes[c][i] : 0.f;
  }
  const int total = 3 * scene.rest;
  for (int i = 0; i < g.count; i++) {
    VecF row[3];
    sh_gradient_row(basis[i], load_first(colours + 4 * i, 4), row);
    const int64_t at = (g.first + i) * scene.shN_stride;
    for (int q = 0; q * kLanes < total; q++) {
      const int64_t j = at + q * kLanes;
      const int n = smaller(kLanes, total - q * kLanes);
      const bool idle = q * kLanes >= active_floats || !(drawn >> i & 1u);
      if (sink.adam) {
        adam_floats(sink.adam->shN, sink.to.shN + j, sink.adam->mean.shN + j,
                    sink.adam->square.shN + j, n, row[q], idle);
      } else {
        store_first(sink.to.shN + j, n, row[q]);
      }
    }
  }
}

SPLAT_HD void emit_sh0(const GradientSink& sink, const Scene& scene, const Group& g,
                       const VecF* colour, bool idle) {
  if (!sink.to.sh0) return;
  const VecF gradient[3] = {colour[0] * kSh0, colour[1] * kSh0, colour[2] * kSh0};
  if (scene.sh0_stride == 3) {
    const AdamState* a = sink.adam;
    emit<3>({sink.to.sh0, a ? a->mean.sh0 : nullptr, a ? a->square.sh0 : nullptr,
             a ? &a->sh0 : nullptr},
            g, gradient, idle);
    return;
  }
  float lanes[3][kLanes];  // one tensor [N, K, 3]: gradients only
  for (int c = 0; c < 3; c++) store(lanes[c], gradient[c]);
  for (int i = 0; i < g.count; i++) {
    for (int c = 0; c < 3; c++) sink.to.sh0[(g.first + i) * scene.sh0_stride + c] = lanes[c][i];
  }
}

/// Per-Gaussian sums over its slots in fixed order; afterwards lanes are Gaussians.
SPLAT_HD void sum_slots(const Workspace& w, const Group& g, VecF* moments) {
  for (int i = 0; i < kLanes; i++) {
    VecF sum = 0.f;
    if (i < g.count) {
      const uint32_t end = w.slot_start[g.first + i + 1];
      for (uint32_t s = w.slot_start[g.first + i]; s < end; s++) {
        sum += load(&w.slots[int64_t{s} * kSlotFloats]);
      }
    }
    moments[i] = sum;
  }
  transpose16(moments);
}

struct GroupGradient {
  GaussianGradient<VecF> gaussian;
  VecF colour[3], basis[16];
  VecF ndc_x, ndc_y;  // dL/dmeans2D
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

/// Colour and its dependence on the viewing direction.
SPLAT_HD void colour_gradient(const Scene& scene, const Camera& camera, const Group& g,
                              const RawGaussian<VecF>& raw, Mask drawn, GroupGradient& o) {
  VecF direction[3], inverse_distance;
  view_direction(raw, camera, direction, inverse_distance);
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
  const VecF radial =
      gradient[0] * direction[0] + gradient[1] * direction[1] + gradient[2] * direction[2];
  for (int k = 0; k < 3; k++) {
    o.gaussian.position[k] += (gradient[k] - direction[k] * radial) * inverse_distance;
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

SPLAT_HD void group_gradient(const Workspace& w, const Scene& scene, const Group& g,
                             GroupFlags flags, GroupGradient& o) {
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
  project(raw, camera, scene.activated, scene.p.sigma != nullptr, p);
  const Moments<VecF> moments = {moment(kSum), moment(kU),  moment(kV),
                                 moment(kUU),  moment(kUV), moment(kVV)};
  const ScreenGradient<VecF> screen =
      screen_gradient(moments, whitened_conic(p), p.opacity, moment(kInverseDepth));
  o.ndc_x = zero_unless(drawn, screen.x * (0.5f * static_cast<float>(camera.width)));
  o.ndc_y = zero_unless(drawn, screen.y * (0.5f * static_cast<float>(camera.height)));
  project_gradient(raw, p, camera, scene.activated, scene.p.sigma != nullptr, screen, o.gaussian);
  for (int c = 0; c < 3; c++) {
    o.colour[c] =
        zero_unless(mask_from_bits(static_cast<unsigned>(flags.drawn & ~flags.clamped[c])),
                    slot[kSumLane[kRed + c]]);
  }
  if (!scene.p.colors) colour_gradient(scene, camera, g, raw, drawn, o);
  mask_gradient(drawn, o.gaussian);
}

SPLAT_HD void add_statistics(const Workspace& w, const Statistics& s, const Group& g,
                             GroupFlags flags, const GroupGradient& o) {
  const int n = g.count;
  if (s.gradient_norm) {
    const VecF norm = sqrt(o.ndc_x * o.ndc_x + o.ndc_y * o.ndc_y);
    store_first(s.gradient_norm + g.first, n, load_first(s.gradient_norm + g.first, n) + norm);
  }
  if (s.count) {
    const VecF one = zero_unless(mask_from_bits(flags.visible), VecF(1.f));
    store_first(s.count + g.first, n, load_first(s.count + g.first, n) + one);
  }
  if (s.max_radius) {
    const VecF radius = load_first(&w.radii[g.first], n);
    store_first(s.max_radius + g.first, n, max(load_first(s.max_radius + g.first, n), radius));
  }
}

void geometry_group(Workspace& w, const Scene& scene, const BackwardOutputs& out, const Group& g) {
  const GradientSink sink{out.adam, out.adam ? scene.p : out.gradients};
  const GroupFlags flags = w.flags[g.first / kLanes];
  GroupGradient o;
  clear(o);
  if (flags.drawn) group_gradient(w, scene, g, flags, o);
  if (flags.visible) add_statistics(w, out.statistics, g, flags, o);
  const bool idle = !flags.drawn;
  const AdamState* a = sink.adam;
  const Parameters none, &mean = a ? a->mean : none, &square = a ? a->square : none;
  const VecF ndc[3] = {o.ndc_x, o.ndc_y, 0.f};
  emit<3>({out.means2d, nullptr, nullptr, nullptr}, g, ndc, idle);
  emit<3>({sink.to.means, mean.means, square.means, a ? &a->means : nullptr}, g,
          o.gaussian.position, idle);
  emit<3>({sink.to.scales, mean.scales, square.scales, a ? &a->scales : nullptr}, g,
          o.gaussian.scale, idle);
  emit<4>({sink.to.quats, mean.quats, square.quats, a ? &a->quats : nullptr}, g, o.gaussian.quat,
          idle);
  emit<1>({sink.to.opacities, mean.opacities, square.opacities, a ? &a->opacities : nullptr}, g,
          &o.gaussian.opacity, idle);
  emit<6>({sink.to.sigma, nullptr, nullptr, nullptr}, g, o.gaussian.sigma, idle);
  emit<3>({sink.to.colors, nullptr, nullptr, nullptr}, g, o.colour, idle);
  emit_sh0(sink, scene, g, o.colour, idle);
  emit_sh_rest(sink, scene, g, flags.drawn, sh_floats(w.camera.sh_degree), o.basis, o.colour);
}

void geometry_backward(Workspace& w, const Scene& scene, const BackwardOutputs& out, int threads) {
  const int64_t n = w.count, chunks = (n + kChunk - 1) / kChunk;
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int64_t chunk = 0; chunk < chunks; chunk++) {
    const int64_t end = smaller(n, (chunk + 1) * kChunk);
    for (int64_t i = chunk * kChunk; i < end; i += kLanes) {
      geometry_group(w, scene, out, make_group(i, n));
    }
  }
}
