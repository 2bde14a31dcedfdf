// (1 - lambda) L1 + lambda (1 - SSIM) and its gradient in one streaming pass over bands of rows.
//
// Rows enter in groups of four; a ring of 16 rows per filtered quantity suffices, because an output
// row needs 11 of them, and the vertical filter then makes four rows from 14 loads.

constexpr int kBandRows = 200;  // of one task; with 10 rows of overlap at each end
constexpr int kPad = 16;        // zeros on both sides of a row
constexpr int kRing = 16;
constexpr int kStep = 4;  // rows at a time

SPLAT_HD VecF filter_row(const float* p) {  // horizontal, 11 taps; p[-5] .. p[20] readable
  VecF sum = load(p) * kSsimWindow[0];
  for (int k = 1; k <= kSsimRadius; k++) sum += (load(p - k) + load(p + k)) * kSsimWindow[k];
  return sum;
}

struct LossBand {
  const float *image, *target;  // one channel
  float* gradient;
  int width, height;
  int first, last;               // rows of this band
  float l1_factor, ssim_factor;  // of sign(x - y) and of dSSIM in the gradient
  bool accumulate;
  float* scratch;
  int pitch;
  VecF l1_sum, ssim_sum;

  static constexpr int kRows = 4 + 4 * kRing + 3 * kStep + 3 * kRing;
  static int64_t scratch_floats(int width) {
    return int64_t{kRows} * ((width + kLanes - 1) / kLanes * kLanes + 2 * kPad);
  }

  SIMD_INLINE float* row(int index) const { return scratch + int64_t{index} * pitch + kPad; }
  // Quantities: 0 x, 1 y, 2 x^2 + y^2, 3 x y.
  SIMD_INLINE float* input(int q) const { return row(q); }
  SIMD_INLINE float* blurred(int q, int r) const { return row(4 + q * kRing + (r & (kRing - 1))); }
  // Derivatives: 0 mean, 1 square, 2 cross.
  SIMD_INLINE float* derivative(int i, int q) const { return row(4 + 4 * kRing + i * 3 + q); }
  SIMD_INLINE float* blurred_derivative(int q, int r) const {
    return row(4 + 4 * kRing + 3 * kStep + q * kRing + (r & (kRing - 1)));
  }
  SIMD_INLINE void clear_row(float* p) const {
    std::memset(p, 0, static_cast<size_t>(pitch - 2 * kPad) * sizeof(float));
  }

  /// Vertical filter at column j: rows centre .. centre + 3 from 14 rows of a ring.
  template <class Ring>
  SIMD_INLINE void filter_columns(Ring ring, int centre, int j, VecF* out) const {
    for (int i = 0; i < kStep; i++) out[i] = 0.f;
#pragma GCC unroll 14
    for (int k = 0; k < kStep + 2 * kSsimRadius; k++) {
      const VecF value = load(ring(centre - kSsimRadius + k) + j);
#pragma GCC unroll 4
      for (int i = 0; i < kStep; i++) {
        const int distance = k - i - kSsimRadius < 0 ? i + kSsimRadius - k : k - i - kSsimRadius;
        if (distance <= kSsimRadius) out[i] += value * kSsimWindow[distance];
      }
    }
  }

  SIMD_INLINE void read_pixels(int r, int j, VecF& x, VecF& y) const {
    const int64_t at = int64_t{r} * width + j;
    const int n = smaller(kLanes, width - j);
    x = load_first(image + at, n);
    y = load_first(target + at, n);
  }

  void enter_row(int r) const {
    if (r < 0 || r >= height) {
      for (int q = 0; q < 4; q++) clear_row(blurred(q, r));
      return;
    }
    for (int j = 0; j < width; j += kLanes) {
      VecF x, y;
      read_pixels(r, j, x, y);
      store(input(0) + j, x);
      store(input(1) + j, y);
      store(input(2) + j, x * x + y * y);
      store(input(3) + j, x * y);
    }
    for (int j = 0; j < width; j += kLanes) {
      for (int q = 0; q < 4; q++) store(blurred(q, r) + j, filter_row(input(q) + j));
    }
  }

  /// SSIM and its derivatives in rows r .. r + 3, the latter filtered horizontally into their
  /// rings.
  void ssim_rows(int r) {
    for (int j = 0; j < width; j += kLanes) {
      VecF filtered[4][kStep];
      for (int q = 0; q < 4; q++) {
        filter_columns([&](int k) { return blurred(q, k); }, r, j, filtered[q]);
      }
      const Mask inside = first_lanes(width - j);
      for (int i = 0; i < kStep; i++) {
        const SsimTerms<VecF> t =
            ssim_terms(filtered[0][i], filtered[1][i], filtered[2][i], filtered[3][i]);
        if (r + i >= first && r + i < last) ssim_sum += zero_unless(inside, t.value);
        store(derivative(i, 0) + j, zero_unless(inside, t.d_mean));
        store(derivative(i, 1) + j, zero_unless(inside, t.d_square));
        store(derivative(i, 2) + j, zero_unless(inside, t.d_cross));
      }
    }
    for (int i = 0; i < kStep; i++) {
      for (int q = 0; q < 3; q++) {
        float* const out = blurred_derivative(q, r + i);
        if (r + i < 0 || r + i >= height) {
          clear_row(out);
          continue;
        }
        for (int j = 0; j < width; j += kLanes) store(out + j, filter_row(derivative(i, q) + j));
      }
    }
  }

  void gradient_rows(int r) {
    for (int j = 0; j < width; j += kLanes) {
      VecF d[3][kStep];
      for (int q = 0; q < 3; q++) {
        filter_columns([&](int k) { return blurred_derivative(q, k); }, r, j, d[q]);
      }
      const int n = smaller(kLanes, width - j);
      for (int i = 0; i < kStep && r + i < last; i++) {
        VecF x, y;
        read_pixels(r + i, j, x, y);
        const VecF difference = x - y, size = abs(difference);
        l1_sum += size;
        const VecF sign = zero_unless(VecF(0.f) < size, with_sign_of(VecF(l1_factor), difference));
        VecF g = sign + ssim_factor * (d[0][i] + 2.f * x * d[1][i] + y * d[2][i]);
        float* const out = gradient + int64_t{r + i} * width + j;
        if (accumulate) g += load_first(out, n);
        store_first(out, n, g);
      }
    }
  }

  void run() {
    std::memset(scratch, 0,
                static_cast<size_t>(kRows) * static_cast<size_t>(pitch) * sizeof(float));
    l1_sum = ssim_sum = 0.f;
    constexpr int delay = kSsimRadius;  // SSIM lags the input by the radius, the gradient by twice
    for (int r = first - 2 * delay; r < last + 2 * delay; r += kStep) {
      for (int i = 0; i < kStep; i++) enter_row(r + i);
      if (r >= first - 2) ssim_rows(r - delay);
      if (r >= first + 2 * delay) gradient_rows(r - 2 * delay);
    }
  }
};

SPLAT_HD double sum_lanes(VecF v) {
  float lanes[kLanes];
  store(lanes, v);
  double sum = 0;
  for (int k = 0; k < kLanes; k++) sum += static_cast<double>(lanes[k]);
  return sum;
}

/// Loss of three planes; the sums of the bands are added in order.
LossTerms image_loss(Workspace& w, const float* image, const float* target, float* gradient,
                     int width, int height, const LossSettings& s, int threads) {
  const int bands = (height + kBandRows - 1) / kBandRows, tasks = 3 * bands;
  const int64_t pixels = int64_t{width} * height;
  if (pixels == 0) return {0, 0, 0};
  const double share = 1.0 / (3.0 * static_cast<double>(pixels));
  double* const sums = w.loss_sums.grow(2 * tasks);
  for (int t = 0; t < threads; t++) w.loss_rows[t].grow(LossBand::scratch_floats(width));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int task = 0; task < tasks; task++) {
    const int64_t plane = task / bands * pixels;
    const int band = task % bands;
    LossBand b;
    b.image = image + plane;
    b.target = target + plane;
    b.gradient = gradient + plane;
    b.width = width;
    b.height = height;
    b.first = band * kBandRows;
    b.last = smaller(height, (band + 1) * kBandRows);
    b.l1_factor = static_cast<float>(s.weight * (1 - s.lambda_dssim) * share);
    b.ssim_factor = static_cast<float>(-s.weight * s.lambda_dssim * share);
    b.accumulate = s.accumulate;
    b.scratch = w.loss_rows[omp_get_thread_num()].data();
    b.pitch = (width + kLanes - 1) / kLanes * kLanes + 2 * kPad;
    b.run();
    sums[2 * task] = sum_lanes(b.l1_sum);
    sums[2 * task + 1] = sum_lanes(b.ssim_sum);
  }
  LossTerms terms{0, 0, 0};
  for (int task = 0; task < tasks; task++) {
    terms.l1 += sums[2 * task] * share;
    terms.ssim += sums[2 * task + 1] * share;
  }
  const double lambda = static_cast<double>(s.lambda_dssim);
  terms.loss = (1 - lambda) * terms.l1 + lambda * (1 - terms.ssim);
  return terms;
}

LossTerms l1_ssim(Workspace& w, const float* image, const float* target, float* gradient, int width,
                  int height, const LossSettings& s, int threads) {
  const double start = now_ms();
  const LossTerms terms = image_loss(w, image, target, gradient, width, height, s, threads);
  w.stage_ms[kLoss] = now_ms() - start;
  return terms;
}
