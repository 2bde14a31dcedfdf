// Stage 2: depth order of the drawn Gaussians. Stable LSD radix sort, 3 passes of 11 bits; only the
// Gaussians are sorted, never (tile, Gaussian) pairs. Ties keep index order.

constexpr int kRadix = 2048;
constexpr int64_t kParallelSort = 60000;  // below, barriers cost more than the second thread saves

SPLAT_HD uint32_t digit(uint32_t key, int pass) { return key >> (11 * pass) & (kRadix - 1); }

/// Counts -> first position of every (digit, part); returns the total.
SPLAT_HD uint32_t exclusive_prefix(uint32_t* counts, int64_t values, int parts) {
  uint32_t sum = 0;
  for (int64_t v = 0; v < values; v++) {
    for (int q = 0; q < parts; q++) {
      uint32_t& c = counts[q * values + v];
      const uint32_t count = c;
      c = sum;
      sum += count;
    }
  }
  return sum;
}

/// First pass: from the keys of all Gaussians, leaving out those not drawn.
void radix_first_pass(Workspace& w, uint64_t* to, int parts) {
  uint32_t* const histogram = w.histogram.data();
  const int64_t n = w.count;
#pragma omp parallel num_threads(parts)
  {
#pragma omp for schedule(static, 1)
    for (int q = 0; q < parts; q++) {
      uint32_t* const count = histogram + q * kRadix;
      std::memset(count, 0, kRadix * sizeof(uint32_t));
      for (int64_t i = n * q / parts; i < n * (q + 1) / parts; i++) {
        if (w.keys[i] != ~0u) count[digit(w.keys[i], 0)]++;
      }
    }
#pragma omp single
    w.drawn = exclusive_prefix(histogram, kRadix, parts);
#pragma omp for schedule(static, 1)
    for (int q = 0; q < parts; q++) {
      uint32_t* const next = histogram + q * kRadix;
      for (int64_t i = n * q / parts; i < n * (q + 1) / parts; i++) {
        const uint32_t key = w.keys[i];
        if (key != ~0u) to[next[digit(key, 0)]++] = uint64_t{key} << 32 | static_cast<uint64_t>(i);
      }
    }
  }
}

void radix_pass(Workspace& w, const uint64_t* from, uint64_t* to, int pass, int parts) {
  uint32_t* const histogram = w.histogram.data();
  const int64_t n = w.drawn;
#pragma omp parallel num_threads(parts)
  {
#pragma omp for schedule(static, 1)
    for (int q = 0; q < parts; q++) {
      uint32_t* const count = histogram + q * kRadix;
      std::memset(count, 0, kRadix * sizeof(uint32_t));
      for (int64_t i = n * q / parts; i < n * (q + 1) / parts; i++) {
        count[digit(static_cast<uint32_t>(from[i] >> 32), pass)]++;
      }
    }
#pragma omp single
    exclusive_prefix(histogram, kRadix, parts);
#pragma omp for schedule(static, 1)
    for (int q = 0; q < parts; q++) {
      uint32_t* const next = histogram + q * kRadix;
      for (int64_t i = n * q / parts; i < n * (q + 1) / parts; i++) {
        to[next[digit(static_cast<uint32_t>(from[i] >> 32), pass)]++] = from[i];
      }
    }
  }
}

void sort_by_depth(Workspace& w, int threads) {
  const int parts = w.count < kParallelSort ? 1 : threads;
  w.order.grow(w.count + kLanes);
  w.order_swap.grow(w.count + kLanes);
  w.histogram.grow(int64_t{parts} * kRadix);
  radix_first_pass(w, w.order.data(), parts);
  radix_pass(w, w.order.data(), w.order_swap.data(), 1, parts);
  radix_pass(w, w.order_swap.data(), w.order.data(), 2, parts);
}
