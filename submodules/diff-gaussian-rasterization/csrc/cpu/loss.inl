// (1 - lambda) L1 + lambda (1 - SSIM) and its gradient in one pass over blocks of 16 x 16 pixels.
//
// A task walks along groups of 16 rows. In each block the images are filtered down the columns
// (lanes along x) and transposed, so that the filter along x combines whole vectors as well
// (lanes = rows) instead of loading each one from 11 unaligned places. SSIM and its derivatives
// follow in that layout; the derivatives are filtered along x, transposed back and filtered down
// the columns. Each filter needs the radius on both sides of what it gives: along x the input runs
// a block ahead of the output, down the columns the gradient lags.
//
// A filter's input lies in two halves of 16 vectors, the last group or block and the new one, which
// take turns: nothing is moved. Pixels are copied to a place of their own row by row, because
// reading 26 rows of a block from the image waits for memory at each of them.
//
// Weights of pixels come along as a third plane, which is transposed but not filtered.

constexpr int kBandRows = 134;  // about, of a task: 9 groups with the radius at both ends
constexpr int kGroup = 16;      // rows and columns of a block
constexpr int kReach = 2 * kSsimRadius;
constexpr int kStep = 4;    // outputs of a filter at a time
constexpr int kImages = 4;  // x, y, x^2 + y^2, x y; then weights of pixels
constexpr int kSlopes = 3;  // derivatives of SSIM by the filtered x, x^2 + y^2, x y
static_assert(kGroup == kLanes, "blocks are transposed in registers");

/// out[i] = sum_k window[k] value(i + k) for kStep outputs.
template <class Value>
SPLAT_HD void filter_step(Value value, VecF* out) {
  VecF v[kStep + kReach];
#pragma GCC unroll 14
  for (int k = 0; k < kStep + kReach; k++) v[k] = value(k);
#pragma GCC unroll 4
  for (int i = 0; i < kStep; i++) {
    const VecF* const centre = v + i + kSsimRadius;
    out[i] = centre[0] * kSsimWindow[0];
#pragma GCC unroll 5
    for (int k = 1; k <= kSsimRadius; k++) out[i] += (centre[-k] + centre[k]) * kSsimWindow[k];
  }
}

/// kGroup outputs, transposed: lanes become places along the filter, and the other way round.
template <class Value>
SPLAT_HD void filter_and_transpose(Value value, VecF* out) {
#pragma GCC unroll 4
  for (int s = 0; s < kGroup; s += kStep) {
    filter_step([&](int k) { return value(s + k); }, out + s);
  }
  transpose16(out);
}

/// What a task works in; columns and rows beyond the image are zeros. kMore = 1 with weights of
/// pixels, else 0.
template <int kMore>
struct alignas(64) LossScratch {
  using Pixels = float[2][kGroup][2 + kMore][kLanes];  // of a block: halves, rows, x, y, weights
  using Carried = float[kReach][kSlopes][kLanes];      // last rows of slopes of a block
  float products[kGroup + kReach][2][kLanes];          // x^2 + y^2, x y of the rows r - radius ..
  float filtered[2][kGroup][kImages + kMore][kLanes];  // halves, columns; lanes = rows r ..
  float slopes[2][kGroup][kSlopes][kLanes];            // halves, columns; lanes = rows r ..
  float rows[kGroup][kSlopes][kLanes];                 // r .., lanes = columns j ..

  static int blocks(int width) { return (width + kGroup - 1) / kGroup; }
  static int64_t bytes(int width) {
    const size_t block = sizeof(Pixels) + sizeof(Carried);
    return static_cast<int64_t>(sizeof(LossScratch) + static_cast<size_t>(blocks(width)) * block);
  }
  SIMD_INLINE Pixels* pixels() { return reinterpret_cast<Pixels*>(this + 1); }
  SIMD_INLINE Carried* carried(int width) {
    return reinterpret_cast<Carried*>(pixels() + blocks(width));
  }
};

template <int kMore>
struct LossBand {
  using Scratch = LossScratch<kMore>;
  const float* planes[2 + kMore];  // one channel of image and target, weights of pixels
  float* gradient;
  int width, height;
  int first, last;               // rows of this band
  float l1_factor, ssim_factor;  // of sign(x - y) and of half dSSIM in the gradient
  bool accumulate;
  Scratch* scratch;
  VecF l1_sum, ssim_sum;

  /// Rows r .. r + 15 of the images into one half of each block.
  void read_rows(int r, int half) const {
    typename Scratch::Pixels* const pixels = scratch->pixels();
    for (int k = 0; k < kGroup; k++) {
      const bool inside = r + k >= 0 && r + k < height;
      const int64_t row = int64_t{r + k} * width;
      int b = 0;
      for (; inside && (b + 1) * kLanes <= width; b++) {
        for (int q = 0; q < 2 + kMore; q++) {
          store(pixels[b][half][k][q], load(planes[q] + row + b * kLanes));
        }
      }
      for (; b < Scratch::blocks(width); b++) {
        const int n = width - b * kLanes;
        for (int q = 0; q < 2 + kMore; q++) {
          store(pixels[b][half][k][q],
                inside ? load_first(planes[q] + row + b * kLanes, n) : VecF(0.f));
        }
      }
    }
  }

  /// Filters the images down a block's columns into one half of `filtered`. The rows r - radius ..
  /// begin in the half `upper` of the pixels.
  SIMD_INLINE void filter_block(int b, int upper, int half) const {
    Scratch& s = *scratch;
    const auto& pixels = s.pixels()[b];
    const auto pixel = [&](int k, int q) {
      return load(k < kGroup ? pixels[upper][k][q] : pixels[1 - upper][k - kGroup][q]);
    };
    for (int k = 0; k < kGroup + kReach; k++) {
      const VecF x = pixel(k, 0), y = pixel(k, 1);
      store(s.products[k][0], x * x + y * y);
      store(s.products[k][1], x * y);
    }
    VecF v[kGroup];
    for (int q = 0; q < 2; q++) {
      filter_and_transpose([&](int k) { return pixel(k, q); }, v);
      for (int k = 0; k < kGroup; k++) store(s.filtered[half][k][q], v[k]);
    }
    for (int q = 0; q < 2; q++) {
      filter_and_transpose([&](int k) { return load(s.products[k][q]); }, v);
      for (int k = 0; k < kGroup; k++) store(s.filtered[half][k][2 + q], v[k]);
    }
    if constexpr (kMore) {
      for (int k = 0; k < kGroup; k++) v[k] = pixel(k + kSsimRadius, 2);
      transpose16(v);
      for (int k = 0; k < kGroup; k++) store(s.filtered[half][k][kImages], v[k]);
    }
  }

  /// SSIM and its slopes in columns j + radius .. of a group, from the halves of `filtered` with
  /// the columns j .. and j + 16 .., into one half of `slopes`. Returns the sum of SSIM, or with
  /// weights c that of 1 - c (1 - SSIM).
  SIMD_INLINE VecF ssim_block(int j, int left, int half) const {
    Scratch& s = *scratch;
    const auto column_of = [&](int k, int q) {
      return load(k < kGroup ? s.filtered[left][k][q] : s.filtered[1 - left][k - kGroup][q]);
    };
    VecF sum = 0.f;
#pragma GCC unroll 4
    for (int step = 0; step < kGroup; step += kStep) {
      VecF f[kImages][kStep];
      for (int q = 0; q < kImages; q++) {
        filter_step([&](int k) { return column_of(k + step, q); }, f[q]);
      }
      for (int i = 0; i < kStep; i++) {
        SsimTerms<VecF> t = ssim_terms(f[0][i], f[1][i], f[2][i], f[3][i]);
        if constexpr (kMore) weigh(t, column_of(step + i + kSsimRadius, kImages));
        const int column = j + kSsimRadius + step + i;
        if (column < 0 || column >= width) t = {0.f, 0.f, 0.f, 0.f};
        sum += t.value;
        float (*const out)[kLanes] = s.slopes[half][step + i];
        store(out[0], t.mean);
        store(out[1], t.square);
        store(out[2], t.cross);
      }
    }
    return sum;
  }

  /// Filters the slopes along x: columns j .. of rows r .., the columns before them in `left`.
  SIMD_INLINE void slope_rows(int r, int left) const {
    Scratch& s = *scratch;
    VecF v[kGroup];
    for (int q = 0; q < kSlopes; q++) {
      filter_and_transpose(
          [&](int k) {
            k += kGroup - kReach;
            return load(k < kGroup ? s.slopes[left][k][q] : s.slopes[1 - left][k - kGroup][q]);
          },
          v);
      for (int k = 0; k < kGroup; k++) {
        store(s.rows[k][q], r + k >= 0 && r + k < height ? v[k] : VecF(0.f));
      }
    }
  }

  /// Gradient in rows r - radius .. as far as the band has them, and the columns of block b.
  SIMD_INLINE void gradient_block(int r, int b, int upper) {
    Scratch& s = *scratch;
    const auto& pixels = s.pixels()[b];
    auto& carried = s.carried(width)[b];
    const int n = width - b * kLanes;
#pragma GCC unroll 4
    for (int step = 0; step < kGroup; step += kStep) {
      const int top = r - kSsimRadius + step;
      if (top + kStep <= first || top >= last) continue;
      VecF d[kSlopes][kStep];
      for (int q = 0; q < kSlopes; q++) {
        filter_step(
            [&](int k) {
              k += step;
              return load(k < kReach ? carried[k][q] : s.rows[k - kReach][q]);
            },
            d[q]);
      }
      for (int i = 0; i < kStep; i++) {
        if (top + i < first || top + i >= last) continue;
        const VecF x = load(pixels[upper][step + i][0]), y = load(pixels[upper][step + i][1]);
        const VecF difference = x - y, size = abs(difference);
        VecF sign = zero_unless(VecF(0.f) < size, with_sign_of(VecF(l1_factor), difference));
        if constexpr (kMore) {
          const VecF weight = load(pixels[upper][step + i][2]);
          l1_sum += weight * size;
          sign = weight * sign;
        } else {
          l1_sum += size;
        }
        const VecF g = sign + ssim_factor * half_ssim_gradient(x, y, d[0][i], d[1][i], d[2][i]);
        write_gradient(gradient + int64_t{top + i} * width + b * kLanes, n, g);
      }
    }
    std::memcpy(carried, s.rows + kGroup - kReach, sizeof carried);
  }
  SIMD_INLINE void write_gradient(float* out, int n, VecF g) const {
    __builtin_prefetch(out + 2 * kLanes, 1);
    if (n >= kLanes) {
      store(out, accumulate ? g + load(out) : g);
    } else {
      store_first(out, n, accumulate ? g + load_first(out, n) : g);
    }
  }

  /// Slopes of rows r .. r + 15, and with them the gradient of rows r - 5 .. r + 10.
  void group(int r, int upper) {
    Scratch& s = *scratch;
    read_rows(r - kSsimRadius + kGroup, 1 - upper);
    std::memset(s.filtered, 0, sizeof s.filtered);
    std::memset(s.slopes, 0, sizeof s.slopes);
    const int blocks = Scratch::blocks(width);
    VecF sum = 0.f;
    for (int b = -1; b < blocks; b++) {  // the images of block b + 1, the gradient of block b
      const int left = b & 1, right = 1 - left;
      if (b + 1 < blocks) {
        filter_block(b + 1, upper, right);
      } else {
        std::memset(s.filtered[right], 0, sizeof s.filtered[right]);
      }
      sum += ssim_block(b * kGroup, left, right);
      if (b < 0) continue;
      slope_rows(r, left);
      gradient_block(r, b, upper);
    }
    ssim_sum += zero_unless(mask_from_bits(first_bits(last - r) & ~first_bits(first - r)), sum);
  }
  static SIMD_INLINE unsigned first_bits(int n) {
    return n >= kGroup ? 0xffffu : n <= 0 ? 0u : (1u << n) - 1u;
  }

  void run() {
    l1_sum = ssim_sum = 0.f;
    std::memset(scratch, 0, static_cast<size_t>(Scratch::bytes(width)));
    int upper = 0;
    read_rows(first - kReach, upper);
    for (int r = first - kSsimRadius; r < last + kSsimRadius; r += kGroup, upper = 1 - upper) {
      group(r, upper);
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

/// Rows of a band: an even number of bands, so that 2, 3 or 6 threads share the 3 planes evenly;
/// with the radius at both ends a multiple of the group.
SPLAT_HD int band_rows(int height) {
  const int bands = 2 * ((height + 2 * kBandRows - 1) / (2 * kBandRows));
  const int groups = ((height + bands - 1) / bands + kReach + kGroup - 1) / kGroup;
  return groups * kGroup - kReach;
}

/// Loss of three planes; the sums of the bands are added in order.
template <int kMore>
LossTerms planes_loss(Workspace& w, const float* image, const float* target, float* gradient,
                      int width, int height, const LossSettings& s, int threads) {
  using Scratch = LossScratch<kMore>;
  const int64_t pixels = int64_t{width} * height;
  if (pixels == 0) return {0, 0, 0};
  const int rows = band_rows(height), tasks = 3 * ((height + rows - 1) / rows);
  const double share = 1.0 / (3.0 * static_cast<double>(pixels));
  double* const sums = w.loss_sums.grow(2 * tasks);
  for (int t = 0; t < threads; t++) w.loss_scratch[t].grow(Scratch::bytes(width));
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int task = 0; task < tasks; task++) {
    const int64_t plane = task % 3 * pixels;
    LossBand<kMore> b;
    b.planes[0] = image + plane;
    b.planes[1] = target + plane;
    if constexpr (kMore) b.planes[2] = s.pixel_weights;
    b.gradient = gradient + plane;
    b.width = width;
    b.height = height;
    b.first = task / 3 * rows;
    b.last = smaller(height, b.first + rows);
    b.l1_factor = static_cast<float>(s.weight * (1 - s.lambda_dssim) * share);
    b.ssim_factor = static_cast<float>(-2 * s.weight * s.lambda_dssim * share);
    b.accumulate = s.accumulate;
    b.scratch = reinterpret_cast<Scratch*>(w.loss_scratch[omp_get_thread_num()].data());
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

LossTerms image_loss(Workspace& w, const float* image, const float* target, float* gradient,
                     int width, int height, const LossSettings& s, int threads) {
  return (s.pixel_weights ? planes_loss<1> : planes_loss<0>)(w, image, target, gradient, width,
                                                             height, s, threads);
}

LossTerms l1_ssim(Workspace& w, const float* image, const float* target, float* gradient, int width,
                  int height, const LossSettings& s, int threads) {
  const double start = now_ms();
  const LossTerms terms = image_loss(w, image, target, gradient, width, height, s, threads);
  w.stage_ms[kLoss] += now_ms() - start;
  return terms;
}
