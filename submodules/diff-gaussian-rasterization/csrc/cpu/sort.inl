// Stage 2: depth order of the drawn Gaussians; only they are sorted, never (tile, Gaussian) pairs.
// Stable: ties keep index order, so the result does not depend on the number of threads.
//
// One scatter into 1024 buckets of neighbouring depths, then each bucket on its own: all it touches
// is in the cache, and no two threads write to one line.

constexpr int kBuckets = 1024;
constexpr int kBucketBits = 17;              // of the key within a bucket: 64 buckets an octave
constexpr uint32_t kFirstKey = 0x3e000000u;  // 0.125 as bits; 16 octaves on, all is one bucket
constexpr int64_t kFewKeys = 32;             // sorted by insertion
constexpr int64_t kParallelSort = 30000;  // below, barriers cost more than the second thread saves

SPLAT_HD int depth_bucket(uint32_t key) {
  const uint32_t bucket = (larger(key, kFirstKey) - kFirstKey) >> kBucketBits;
  return static_cast<int>(smaller<uint32_t>(bucket, kBuckets - 1));
}

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

void insertion_sort(uint64_t* v, int64_t n) {
  for (int64_t i = 1; i < n; i++) {
    const uint64_t x = v[i];
    int64_t j = i;
    for (; j > 0 && v[j - 1] > x; j--) v[j] = v[j - 1];
    v[j] = x;
  }
}

template <int kBits>
SPLAT_HD uint64_t digit(uint64_t v, int shift) {
  return v >> (32 + shift) & ((1 << kBits) - 1);
}

/// Two stable passes over kLow and then kHigh bits of the keys, from bit `shift` on.
template <int kLow, int kHigh>
void radix_passes(uint64_t* keys, uint64_t* swap, int64_t n, int shift) {
  uint32_t low[1 << kLow] = {}, high[1 << kHigh] = {};
  for (int64_t i = 0; i < n; i++) {
    low[digit<kLow>(keys[i], shift)]++;
    high[digit<kHigh>(keys[i], shift + kLow)]++;
  }
  exclusive_prefix(low, 1 << kLow, 1);
  exclusive_prefix(high, 1 << kHigh, 1);
  for (int64_t i = 0; i < n; i++) swap[low[digit<kLow>(keys[i], shift)]++] = keys[i];
  for (int64_t i = 0; i < n; i++) keys[high[digit<kHigh>(swap[i], shift + kLow)]++] = swap[i];
}

void sort_bucket(uint64_t* keys, uint64_t* swap, int64_t n, bool whole_key) {
  if (n <= kFewKeys) {
    insertion_sort(keys, n);
  } else if (whole_key) {
    radix_passes<8, 8>(keys, swap, n, 0);
    radix_passes<8, 8>(keys, swap, n, 16);
  } else {
    static_assert(kBucketBits == 17, "9 + 8");
    radix_passes<9, 8>(keys, swap, n, 0);
  }
}

/// Parts of the Gaussians into the buckets, then the buckets one by one.
void sort_by_depth(Workspace& w, int threads) {
  const int parts = w.count < kParallelSort ? 1 : threads;
  const int64_t n = w.count;
  uint64_t* const order = w.order.grow(n + kLanes);
  uint64_t* const swap = w.order_swap.grow(n + kLanes);
  uint32_t* const histogram = w.histogram.grow(int64_t{parts} * kBuckets);
#pragma omp parallel num_threads(parts)
  {
#pragma omp for schedule(static, 1)
    for (int q = 0; q < parts; q++) {
      uint32_t* const count = histogram + q * kBuckets;
      std::memset(count, 0, kBuckets * sizeof(uint32_t));
      for (int64_t i = n * q / parts; i < n * (q + 1) / parts; i++) {
        if (w.keys[i] != ~0u) count[depth_bucket(w.keys[i])]++;
      }
    }
#pragma omp single
    w.drawn = exclusive_prefix(histogram, kBuckets, parts);
#pragma omp for schedule(static, 1)
    for (int q = 0; q < parts; q++) {
      uint32_t* const next = histogram + q * kBuckets;
      for (int64_t i = n * q / parts; i < n * (q + 1) / parts; i++) {
        const uint32_t key = w.keys[i];
        if (key == ~0u) continue;
        const uint32_t place = next[depth_bucket(key)]++;
        __builtin_prefetch(order + place + 8, 1);
        order[place] = uint64_t{key} << 32 | static_cast<uint64_t>(i);
      }
    }
    const uint32_t* const bucket_end = histogram + (parts - 1) * kBuckets;  // by now
#pragma omp for schedule(dynamic, 8)
    for (int b = 0; b < kBuckets; b++) {
      const uint32_t begin = b > 0 ? bucket_end[b - 1] : 0;
      sort_bucket(order + begin, swap + begin, bucket_end[b] - begin, b == 0 || b == kBuckets - 1);
    }
  }
}
