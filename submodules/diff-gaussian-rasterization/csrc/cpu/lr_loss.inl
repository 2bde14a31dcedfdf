// The loss at LR size: L(A image, LR view) with A the scene's separable, banded downscaling, and
// its gradient A^T g added to the gradient of the HR image.
//
// A = A_y A_x is applied rows first (vectors along x, contiguous), then columns (lanes = outputs).

/// out[i, :] = sum_k weight[i, k] in[start[i] + k, :], 3 planes.
void combine_rows(const Taps& t, const float* in, float* out, int width, bool accumulate,
                  int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int task = 0; task < 3 * t.outputs; task++) {
    const int plane = task / t.outputs, i = task % t.outputs;
    const float* const weight = t.weight + int64_t{i} * t.width;
    const int taps = smaller(t.width, t.inputs - t.start[i]);  // beyond the image: zero padding
    const float* const source = in + (int64_t{plane} * t.inputs + t.start[i]) * width;
    float* const target = out + int64_t{task} * width;
    for (int j = 0; j < width; j += kLanes) {
      const int n = smaller(kLanes, width - j);
      VecF sum = accumulate ? load_first(target + j, n) : VecF(0.f);
      for (int k = 0; k < taps; k++) {
        sum += load_first(source + int64_t{k} * width + j, n) * weight[k];
      }
      store_first(target + j, n, sum);
    }
  }
}

/// out[r, i] = sum_k weight[i, k] in[r, start[i] + k] for `rows` rows; weights[k] holds tap k of
/// all outputs (rows of `pitch` floats), so that lanes are outputs.
void combine_columns(const Taps& t, const float* weights, int pitch, const float* in, float* out,
                     int rows, int threads) {
#pragma omp parallel for schedule(static) num_threads(threads)
  for (int r = 0; r < rows; r++) {
    const float* const source = in + int64_t{r} * t.inputs;
    float* const target = out + int64_t{r} * t.outputs;
    for (int i = 0; i < t.outputs; i += kLanes) {
      int start[kLanes];
      for (int k = 0; k < kLanes; k++) start[k] = t.start[smaller(i + k, t.outputs - 1)];
      const VecI index = load_int(start);
      VecF sum = 0.f;
      for (int k = 0; k < t.width; k++) {
        const VecI column = min(index + k, VecI(t.inputs - 1));  // weight 0 beyond the image
        sum += gather(source, column) * load(weights + int64_t{k} * pitch + i);
      }
      store_first(target + i, smaller(kLanes, t.outputs - i), sum);
    }
  }
}

/// Weights with the tap index slowest, padded to whole vectors of outputs.
int weights_by_tap(const Taps& t, Buffer<float>& out) {
  const int pitch = (t.outputs + kLanes - 1) / kLanes * kLanes;
  out.grow(int64_t{t.width} * pitch);
  for (int k = 0; k < t.width; k++) {
    for (int i = 0; i < pitch; i++) {
      const bool real = i < t.outputs && t.start[i] + k < t.inputs;
      out[int64_t{k} * pitch + i] = real ? t.weight[int64_t{i} * t.width + k] : 0.f;
    }
  }
  return pitch;
}

/// The transpose as a banded matrix of its own, in memory owned here.
class TransposedTaps {
 public:
  explicit TransposedTaps(const Taps& t) {
    taps_.outputs = t.inputs;
    taps_.inputs = t.outputs;
    start_.grow(t.inputs);
    last_.grow(t.inputs);
    for (int j = 0; j < t.inputs; j++) {
      start_[j] = t.outputs;
      last_[j] = -1;
    }
    for (int i = 0; i < t.outputs; i++) {
      for (int k = 0; k < t.width && t.start[i] + k < t.inputs; k++) {
        if (t.weight[int64_t{i} * t.width + k] == 0.f) continue;
        const int j = t.start[i] + k;
        start_[j] = smaller(start_[j], i);
        last_[j] = larger(last_[j], i);
      }
    }
    taps_.width = 1;
    for (int j = 0; j < t.inputs; j++) {
      if (last_[j] < 0) start_[j] = 0;  // an input that no output uses: a row of zeros
      taps_.width = larger(taps_.width, last_[j] - start_[j] + 1);
    }
    weight_.grow(int64_t{t.inputs} * taps_.width);
    for (int64_t j = 0; j < int64_t{t.inputs} * taps_.width; j++) weight_[j] = 0.f;
    for (int i = 0; i < t.outputs; i++) {
      for (int k = 0; k < t.width && t.start[i] + k < t.inputs; k++) {
        const float weight = t.weight[int64_t{i} * t.width + k];
        const int j = t.start[i] + k;
        if (weight != 0.f) weight_[int64_t{j} * taps_.width + i - start_[j]] = weight;
      }
    }
    taps_.start = start_.data();
    taps_.weight = weight_.data();
  }
  const Taps& taps() const { return taps_; }

 private:
  Taps taps_{};
  Buffer<int32_t> start_, last_;
  Buffer<float> weight_;
};

LossTerms lr_l1_ssim(Workspace& w, const float* image, const float* lr_target, float* gradient,
                     const Taps& taps_x, const Taps& taps_y, const LossSettings& s, int threads) {
  const double begin = now_ms();
  const int width = taps_x.inputs, lr_width = taps_x.outputs, lr_height = taps_y.outputs;
  float* const rows = w.lr_scratch[0].grow(int64_t{3} * lr_height * width);
  float* const small = w.lr_scratch[1].grow(int64_t{3} * lr_height * lr_width);
  float* const small_gradient = w.lr_scratch[2].grow(int64_t{3} * lr_height * lr_width);

  combine_rows(taps_y, image, rows, width, false, threads);
  int pitch = weights_by_tap(taps_x, w.taps_by_column);
  combine_columns(taps_x, w.taps_by_column.data(), pitch, rows, small, 3 * lr_height, threads);
  LossSettings at_lr = s;
  at_lr.accumulate = false;
  const LossTerms terms =
      image_loss(w, small, lr_target, small_gradient, lr_width, lr_height, at_lr, threads);

  const TransposedTaps back_x(taps_x), back_y(taps_y);
  pitch = weights_by_tap(back_x.taps(), w.taps_by_column);
  combine_columns(back_x.taps(), w.taps_by_column.data(), pitch, small_gradient, rows,
                  3 * lr_height, threads);
  combine_rows(back_y.taps(), rows, gradient, width, s.accumulate, threads);
  w.stage_ms[kLoss] = now_ms() - begin;
  return terms;
}
