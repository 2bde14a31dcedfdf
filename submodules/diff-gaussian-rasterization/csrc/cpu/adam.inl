// The end of the geometry pass: gradients of a group of Gaussians are written, or go straight into
// Adam, which changes parameters and moments in place.

struct GradientSink {
  const AdamState* adam;  // null: `to` receives gradients; else `to` is updated in place
  Parameters to;          // a null field is left alone
  Parameters added;       // gradients of other views
};

/// Adam leaves fields without moments alone.
SPLAT_HD GradientSink make_sink(const Scene& scene, const BackwardOutputs& out) {
  if (!out.adam) return {nullptr, out.gradients, out.added};
  GradientSink sink{out.adam, Parameters{}, out.added};
  const Parameters& mean = out.adam->mean;
  if (mean.means) sink.to.means = scene.p.means;
  if (mean.scales) sink.to.scales = scene.p.scales;
  if (mean.quats) sink.to.quats = scene.p.quats;
  if (mean.opacities) sink.to.opacities = scene.p.opacities;
  if (mean.sh0) sink.to.sh0 = scene.p.sh0;
  if (mean.shN) sink.to.shN = scene.p.shN;
  return sink;
}

/// Gaussians of the group that Adam may touch, one bit each.
SPLAT_HD unsigned updated_bits(const AdamState* adam, const Group& g) {
  const unsigned all = (1u << g.count) - 1;
  if (!adam || !adam->visible) return all;
  unsigned bits = 0;
  for (int i = 0; i < g.count; i++) bits |= (adam->visible[g.first + i] ? 1u : 0u) << i;
  return bits;
}

/// Bit j = the bit of the Gaussian that float 16 * chunk + j belongs to, with K floats a Gaussian.
template <int K>
SPLAT_HD unsigned bits_of_floats(unsigned gaussians, int chunk) {
  unsigned bits = 0;
  for (int j = 0; j < kLanes; j++) bits |= (gaussians >> ((chunk * kLanes + j) / K) & 1u) << j;
  return bits;
}

SPLAT_HD bool all_zero(VecF a, VecF b) {  // false for NaN
  return to_bits(abs(a) + abs(b) <= VecF(0.f)) == 0xffffu;
}

/// One tensor, and what happens to it.
struct Tensor {
  float *to, *mean, *square;
  const AdamFactors* factors;  // null: write the gradient
  const float* added;          // null: nothing to add to the gradient
};

SPLAT_HD VecF plus_added(const Tensor& t, int64_t at, int n, VecF gradient) {
  return t.added ? gradient + load_first(t.added + at, n) : gradient;
}

/// The n floats from `at` on. With `idle` the gradient of this view is known to be 0: nothing
/// changes, bit for bit, where both moments are 0 too, and the stores are saved.
SPLAT_HD void emit_floats(const Tensor& t, int64_t at, int n, VecF gradient, bool idle) {
  gradient = plus_added(t, at, n, gradient);
  if (!t.factors) {
    store_first(t.to + at, n, gradient);
    return;
  }
  VecF m = load_first(t.mean + at, n), v = load_first(t.square + at, n);
  if (idle && !t.added && all_zero(m, v)) return;
  VecF p = load_first(t.to + at, n);
  adam_step(*t.factors, gradient, p, m, v);
  store_first(t.to + at, n, p);
  store_first(t.mean + at, n, m);
  store_first(t.square + at, n, v);
}

/// Adam on those of the n floats whose bit is set.
SPLAT_HD void emit_some_floats(const Tensor& t, int64_t at, int n, VecF gradient, unsigned bits) {
  const Mask chosen = mask_from_bits(bits);
  const VecF old_m = load_first(t.mean + at, n), old_v = load_first(t.square + at, n);
  const VecF old_p = load_first(t.to + at, n);
  VecF m = old_m, v = old_v, p = old_p;
  adam_step(*t.factors, plus_added(t, at, n, gradient), p, m, v);
  store_first(t.to + at, n, select(chosen, p, old_p));
  store_first(t.mean + at, n, select(chosen, m, old_m));
  store_first(t.square + at, n, select(chosen, v, old_v));
}

/// K floats a Gaussian in consecutive rows; `updated` = the Gaussians that Adam may touch.
template <int K>
SPLAT_HD void emit(const Tensor& t, const Group& g, const VecF* gradient, bool idle,
                   unsigned updated) {
  if (!t.to || !updated) return;
  alignas(64) float rows[kLanes * K], lanes[K][kLanes];
  for (int k = 0; k < K; k++) store(lanes[k], gradient[k]);
  for (int i = 0; i < kLanes; i++) {
    for (int k = 0; k < K; k++) rows[i * K + k] = lanes[k][i];
  }
  const int64_t at = g.first * K;
  const bool some = updated != (1u << g.count) - 1;
  for (int j = 0; j < g.count * K; j += kLanes) {
    const int n = smaller(kLanes, g.count * K - j);
    if (some) {
      emit_some_floats(t, at + j, n, load(rows + j), bits_of_floats<K>(updated, j / kLanes));
    } else {
      emit_floats(t, at + j, n, load(rows + j), idle);
    }
  }
}

/// Rows of shN: gradient = basis (k = 1..15) times colour gradient. basis[k] is 0 for inactive
/// bands.
SPLAT_HD void emit_sh_rest(const Tensor& t, const Scene& scene, const Group& g, unsigned drawn,
                           int active_floats, VecF* basis, const VecF* colour, unsigned updated) {
  if (!t.to || scene.rest == 0 || !updated) return;
  transpose16(basis);  // lanes were Gaussians, now basis[i] holds the basis of Gaussian i
  float lanes[3][kLanes], colours[4 * kLanes];
  for (int c = 0; c < 3; c++) store(lanes[c], colour[c]);
  for (int i = 0; i < kLanes; i++) {
    for (int c = 0; c < 4; c++) colours[4 * i + c] = c < 3 ? lanes[c][i] : 0.f;
  }
  const int total = 3 * scene.rest;
  for (int i = 0; i < g.count; i++) {
    if (!(updated >> i & 1u)) continue;
    VecF row[3];
    sh_gradient_row(basis[i], load_first(colours + 4 * i, 4), row);
    const int64_t at = (g.first + i) * scene.shN_stride;
    for (int q = 0; q * kLanes < total; q++) {
      const int64_t j = at + q * kLanes;
      const int n = smaller(kLanes, total - q * kLanes);
      const bool idle = q * kLanes >= active_floats || !(drawn >> i & 1u);
      emit_floats(t, j, n, row[q], idle);
    }
  }
}

SPLAT_HD void emit_sh0(const Tensor& t, const Scene& scene, const Group& g, const VecF* colour,
                       bool idle, unsigned updated) {
  if (!t.to) return;
  const VecF gradient[3] = {colour[0] * kSh0, colour[1] * kSh0, colour[2] * kSh0};
  if (scene.sh0_stride == 3) {
    emit<3>(t, g, gradient, idle, updated);
    return;
  }
  float lanes[3][kLanes];  // one tensor [N, K, 3]: gradients only
  for (int c = 0; c < 3; c++) store(lanes[c], gradient[c]);
  for (int i = 0; i < g.count; i++) {
    for (int c = 0; c < 3; c++) {
      const int64_t at = (g.first + i) * scene.sh0_stride + c;
      t.to[at] = t.added ? lanes[c][i] + t.added[at] : lanes[c][i];
    }
  }
}
