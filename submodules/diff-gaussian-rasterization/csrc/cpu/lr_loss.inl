// The loss at LR size: L(A image, LR view) with A the scene's separable, banded downscaling, and
// its gradient A^T g added to the gradient of the HR image.
//
// A = A_y A_x, rows first: that combines contiguous vectors and leaves the filter along x a
// fraction of the rows. Along x a vector of outputs is the sum of few inputs, each broadcast, times
// a vector of weights; no gathers. The way back expands along x first, for the same reason.

constexpr int kRowBlock = 4;   // rows of a block along y
constexpr int kBlocksUp = 16;  // along y of a task of the way back

/// f(row, column, weight) for the entries that are not zero; columns beyond the input are padding.
template <class F>
SPLAT_HD void each_entry(const Taps& t, bool transposed, F f) {
  for (int i = 0; i < t.outputs; i++) {
    for (int k = 0; k < t.width && t.start[i] + k < t.inputs; k++) {
      const float weight = t.weight[int64_t{i} * t.width + k];
      const int j = t.start[i] + k;
      if (weight != 0.f) f(transposed ? j : i, transposed ? i : j, weight);
    }
  }
}

void make_block_matrix(const Taps& t, bool transposed, int block, BlockMatrix& m) {
  m.rows = transposed ? t.inputs : t.outputs;
  m.block = block;
  const int blocks = (m.rows + block - 1) / block;
  m.first.grow(blocks);
  m.start.grow(blocks + 1);
  m.start[0] = 0;
  for (int b = 0; b < blocks; b++) {
    m.first[b] = transposed ? t.outputs : t.inputs;
    m.start[b + 1] = 0;
  }
  each_entry(t, transposed, [&](int row, int column, float) {
    int& end = m.start[row / block + 1];
    m.first[row / block] = smaller(m.first[row / block], column);
    end = larger(end, column + 1);
  });
  for (int b = 0; b < blocks; b++) {          // from the ends of the spans to their places
    if (m.start[b + 1] == 0) m.first[b] = 0;  // no entry in these rows
    m.start[b + 1] += m.start[b] - m.first[b];
  }
  const int64_t weights = int64_t{m.start[blocks]} * block;
  m.weight.grow(weights);
  for (int64_t k = 0; k < weights; k++) m.weight[k] = 0.f;
  each_entry(t, transposed, [&](int row, int column, float weight) {
    const int b = row / block;
    m.weight[int64_t{m.start[b] + column - m.first[b]} * block + row % block] = weight;
  });
}

/// Makes the axis's matrices unless they are those of the same taps already: compared by content,
/// because the caller may have written into the arrays since.
void prepare_axis(const Taps& t, int block, LRAxis& axis) {
  const int64_t weights = int64_t{t.outputs} * t.width;
  const size_t start_bytes = static_cast<size_t>(t.outputs) * sizeof(int32_t);
  const size_t weight_bytes = static_cast<size_t>(weights) * sizeof(float);
  if (axis.inputs == t.inputs && axis.outputs == t.outputs && axis.width == t.width &&
      std::memcmp(axis.start.data(), t.start, start_bytes) == 0 &&
      std::memcmp(axis.weight.data(), t.weight, weight_bytes) == 0) {
    return;
  }
  axis.width = 0;  // matches no taps, should memory run out below
  std::memcpy(axis.start.grow(t.outputs), t.start, start_bytes);
  std::memcpy(axis.weight.grow(weights), t.weight, weight_bytes);
  make_block_matrix(t, false, block, axis.down);
  make_block_matrix(t, true, block, axis.up);
  axis.inputs = t.inputs;
  axis.outputs = t.outputs;
  axis.width = t.width;
}

/// Block b of m times the rows of `in`, whose row 0 is the input that the block starts at.
void combine_rows(const BlockMatrix& m, int b, const float* in, int64_t in_pitch, float* out,
                  int64_t out_pitch, int width, bool accumulate) {
  const float* const weights = m.weight.data() + int64_t{m.start[b]} * kRowBlock;
  const int count = m.start[b + 1] - m.start[b];
  const int rows = smaller(kRowBlock, m.rows - b * kRowBlock);
  int j = 0;
  for (; j + 2 * kLanes <= width; j += 2 * kLanes) {
    VecF left[kRowBlock] = {0.f, 0.f, 0.f, 0.f}, right[kRowBlock] = {0.f, 0.f, 0.f, 0.f};
    for (int i = 0; i < count; i++) {
      const VecF l = load(in + i * in_pitch + j), r = load(in + i * in_pitch + j + kLanes);
      for (int k = 0; k < kRowBlock; k++) {
        left[k] += l * weights[i * kRowBlock + k];
        right[k] += r * weights[i * kRowBlock + k];
      }
    }
    for (int k = 0; k < rows; k++) {
      float* const to = out + k * out_pitch + j;
      store(to, accumulate ? load(to) + left[k] : left[k]);
      store(to + kLanes, accumulate ? load(to + kLanes) + right[k] : right[k]);
    }
  }
  for (; j < width; j += kLanes) {
    const int n = smaller(kLanes, width - j);
    VecF sum[kRowBlock] = {0.f, 0.f, 0.f, 0.f};
    for (int i = 0; i < count; i++) {
      const VecF v = load_first(in + i * in_pitch + j, n);
      for (int k = 0; k < kRowBlock; k++) sum[k] += v * weights[i * kRowBlock + k];
    }
    for (int k = 0; k < rows; k++) {
      float* const to = out + k * out_pitch + j;
      store_first(to, n, accumulate ? load_first(to, n) + sum[k] : sum[k]);
    }
  }
}

/// m times each of up to kRowBlock rows.
void combine_columns(const BlockMatrix& m, const float* in, int64_t in_pitch, float* out,
                     int64_t out_pitch, int rows) {
  const float* source[kRowBlock];
  for (int k = 0; k < kRowBlock; k++) source[k] = in + smaller(k, rows - 1) * in_pitch;
  for (int b = 0; b * kLanes < m.rows; b++) {
    const float* const weights = m.weight.data() + int64_t{m.start[b]} * kLanes;
    VecF sum[kRowBlock] = {0.f, 0.f, 0.f, 0.f};
    for (int i = 0; i < m.start[b + 1] - m.start[b]; i++) {
      const VecF weight = load(weights + i * kLanes);
      for (int k = 0; k < kRowBlock; k++) sum[k] += weight * source[k][m.first[b] + i];
    }
    const int n = smaller(kLanes, m.rows - b * kLanes);
    for (int k = 0; k < rows; k++) {
      float* const to = out + k * out_pitch + b * kLanes;
      if (n == kLanes) {
        store(to, sum[k]);
      } else {
        store_first(to, n, sum[k]);
      }
    }
  }
}

/// out = A in, 3 planes.
void downscale(Workspace& w, const float* in, float* out, int threads) {
  const LRAxis &x = w.lr_axis[0], &y = w.lr_axis[1];
  const int blocks = (y.outputs + kRowBlock - 1) / kRowBlock;
  for (int t = 0; t < threads; t++) w.lr_rows[t].grow(int64_t{kRowBlock} * x.inputs);
#pragma omp parallel for schedule(dynamic, 4) num_threads(threads)
  for (int task = 0; task < 3 * blocks; task++) {
    const int64_t plane = task / blocks;
    const int b = task % blocks, row = b * kRowBlock;
    float* const rows = w.lr_rows[omp_get_thread_num()].data();
    combine_rows(y.down, b, in + (plane * y.inputs + y.down.first[b]) * x.inputs, x.inputs, rows,
                 x.inputs, x.inputs, false);
    combine_columns(x.down, rows, x.inputs, out + (plane * y.outputs + row) * x.outputs, x.outputs,
                    smaller(kRowBlock, y.outputs - row));
  }
}

/// out = (or +=) A^T in, 3 planes.
void upscale(Workspace& w, const float* in, float* out, bool accumulate, int threads) {
  const LRAxis &x = w.lr_axis[0], &y = w.lr_axis[1];
  const int blocks = (y.inputs + kRowBlock - 1) / kRowBlock;
  const int tasks = (blocks + kBlocksUp - 1) / kBlocksUp;
  // Of blocks begin .. end - 1, the LR rows first .. last - 1.
  const auto span = [&](int begin, int end, int& first, int& last) {
    first = y.outputs;
    last = 0;
    for (int b = begin; b < end; b++) {
      const int count = y.up.start[b + 1] - y.up.start[b];
      if (count > 0) first = smaller(first, y.up.first[b]);
      last = larger(last, y.up.first[b] + count);
    }
  };
  int most = 0;
  for (int task = 0; task < tasks; task++) {
    int first, last;
    span(task * kBlocksUp, smaller(blocks, (task + 1) * kBlocksUp), first, last);
    most = larger(most, last - first);
  }
  for (int t = 0; t < threads; t++) w.lr_rows[t].grow(int64_t{most} * x.inputs);
#pragma omp parallel for schedule(dynamic, 1) num_threads(threads)
  for (int task = 0; task < 3 * tasks; task++) {
    const int64_t plane = task / tasks;
    const int begin = task % tasks * kBlocksUp, end = smaller(blocks, begin + kBlocksUp);
    float* const rows = w.lr_rows[omp_get_thread_num()].data();
    int first, last;
    span(begin, end, first, last);
    for (int row = first; row < last; row += kRowBlock) {
      combine_columns(x.up, in + (plane * y.outputs + row) * x.outputs, x.outputs,
                      rows + int64_t{row - first} * x.inputs, x.inputs,
                      smaller(kRowBlock, last - row));
    }
    for (int b = begin; b < end; b++) {
      const bool empty = y.up.start[b + 1] == y.up.start[b];
      const int64_t offset = empty ? 0 : y.up.first[b] - first;
      combine_rows(y.up, b, rows + offset * x.inputs, x.inputs,
                   out + (plane * y.inputs + b * kRowBlock) * x.inputs, x.inputs, x.inputs,
                   accumulate);
    }
  }
}

LossTerms lr_l1_ssim(Workspace& w, const float* image, const float* lr_target, float* gradient,
                     const Taps& taps_x, const Taps& taps_y, const LossSettings& s, int threads) {
  const double begin = now_ms();
  prepare_axis(taps_x, kLanes, w.lr_axis[0]);
  prepare_axis(taps_y, kRowBlock, w.lr_axis[1]);
  const int64_t size = int64_t{3} * taps_x.outputs * taps_y.outputs;
  float* const small = w.lr_images.grow(2 * size);
  float* const small_gradient = small + size;
  downscale(w, image, small, threads);
  LossSettings at_lr = s;
  at_lr.accumulate = false;
  const LossTerms terms = image_loss(w, small, lr_target, small_gradient, taps_x.outputs,
                                     taps_y.outputs, at_lr, threads);
  upscale(w, small_gradient, gradient, s.accumulate, threads);
  w.stage_ms[kLoss] += now_ms() - begin;
  return terms;
}
