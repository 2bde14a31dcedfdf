#include "cpu/buffer.h"

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include "cpu/workspace.h"

namespace splat {
namespace {

constexpr int64_t kLine = 64, kHuge = int64_t{2} << 20;

struct NoRoom : std::bad_alloc {
  char text[256];
  const char* what() const noexcept override { return text; }
};

void* allocate(int64_t bytes) {
  // Fresh 4 KiB pages cost three times as much to touch as 2 MiB ones (22 against 8 ms per 64 MB).
  const bool large = bytes >= 2 * kHuge;
  void* p = nullptr;
  if (posix_memalign(&p, static_cast<size_t>(large ? kHuge : kLine), static_cast<size_t>(bytes))) {
    return nullptr;
  }
#if defined(__linux__)
  if (large) madvise(p, static_cast<size_t>(bytes), MADV_HUGEPAGE);
#endif
  return p;
}

int64_t whole_lines(int64_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

}  // namespace

void out_of_memory() { throw std::bad_alloc(); }

void limit_too_small(int64_t limit, int64_t needed) {
  NoRoom e;
  std::snprintf(e.text, sizeof e.text,
                "the rasterizer's memory limit of %lld bytes is too small: at least %lld bytes are "
                "needed; raise it, or use fewer Gaussians or a smaller image",
                static_cast<long long>(limit), static_cast<long long>(needed));
  throw e;
}

void row_too_long(int64_t instances, int64_t most) {
  NoRoom e;
  std::snprintf(e.text, sizeof e.text,
                "the Gaussians cover %lld tiles in one row of 32x32-pixel tiles, at most %lld are "
                "possible: they are too large; use fewer or smaller ones, or a smaller image",
                static_cast<long long>(instances), static_cast<long long>(most));
  throw e;
}

double now_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

Memory::~Memory() { release(); }

void Memory::release() {
  std::free(memory_);
  if (budget_) __atomic_sub_fetch(&budget_->used, bytes_, __ATOMIC_RELAXED);
  memory_ = nullptr;
  capacity_ = bytes_ = 0;
}

bool Memory::reallocate(int64_t n, int64_t element_bytes, int64_t kept) {
  const bool limited = budget_ && budget_->limit > 0;
  if (!limited) n += (kept ? 0 : n / 4) + 64;
  int64_t bytes;
  if (__builtin_mul_overflow(n, element_bytes, &bytes) || bytes > INT64_MAX - kLine) return false;
  bytes = whole_lines(bytes);
  if (!kept) release();
  // In parallel regions buffers grow only without a limit: nobody else adds in between.
  if (limited && budget_->used + bytes > budget_->limit) return false;
  void* const p = allocate(bytes);
  if (!p) return false;
  if (kept) std::memcpy(p, memory_, static_cast<size_t>(kept * element_bytes));
  release();
  memory_ = p;
  capacity_ = n;
  bytes_ = bytes;
  if (budget_) __atomic_add_fetch(&budget_->used, bytes, __ATOMIC_RELAXED);
  return true;
}

void Memory::fail(int64_t n, int64_t element_bytes) const {
  if (!budget_ || budget_->limit == 0) out_of_memory();
  int64_t bytes;
  if (__builtin_mul_overflow(n, element_bytes, &bytes)) out_of_memory();
  limit_too_small(budget_->limit, budget_->used + whole_lines(bytes));
}

namespace {

template <class W, class F>
void each_image_buffer(W& w, const F& f) {
  const auto all = [&](auto&... buffer) { (f(buffer), ...); };
  all(w.records, w.surfaces, w.radii, w.flags, w.invalid_in_chunk, w.keys, w.order, w.order_swap,
      w.histogram, w.band_start, w.range_counts, w.tile_start, w.slot_start, w.band_slot_end,
      w.instance_gaussian, w.instance_slot, w.instance_mask, w.block_end, w.lane_end, w.slots,
      w.slot_sums, w.pose_sums);
  for (auto& buffer : w.emitted) f(buffer);
}

template <class W, class F>
void each_loss_buffer(W& w, const F& f) {
  f(w.loss_sums);
  f(w.lr_images);
  for (auto& buffer : w.loss_scratch) f(buffer);
  for (auto& buffer : w.lr_rows) f(buffer);
  const auto all = [&](auto&... buffer) { (f(buffer), ...); };
  for (auto& axis : w.lr_axis) {
    all(axis.start, axis.weight, axis.down.first, axis.down.start, axis.down.weight, axis.up.first,
        axis.up.start, axis.up.weight);
  }
}

}  // namespace

Workspace::Workspace() {
  const auto join = [this](Memory& m) { m.join(&budget); };
  each_image_buffer(*this, join);
  each_loss_buffer(*this, join);
  for (auto& buffer : scratch) join(buffer);
}

int64_t Workspace::later_bytes() const {
  int64_t sum = 0;
  each_loss_buffer(*this, [&](const Memory& m) { sum += m.bytes(); });
  for (int k = 0; k < kImageScratches; k++) sum += scratch[k].bytes();
  return sum;
}

void Workspace::release_image() {
  each_image_buffer(*this, [](Memory& m) { m.release(); });
}

void Workspace::release_losses() {
  each_loss_buffer(*this, [](Memory& m) { m.release(); });
  for (auto& axis : lr_axis) axis.inputs = axis.outputs = axis.width = 0;  // matches no taps
}

void Workspace::set_limit(int64_t bytes) {
  if (bytes == budget.limit) return;
  release_image();
  release_losses();
  for (auto& buffer : scratch) buffer.release();
  budget.limit = bytes;
}

bool Workspace::try_reserve(const int64_t* sizes) {
  if (budget.limit > 0) {
    for (int k = 0; k < kScratches; k++) scratch[k].release_above(sizes[k]);
  }
  bool all = true;
  for (int k = 0; k < kScratches; k++) all = all && scratch[k].try_grow(sizes[k]);
  return all;
}

}  // namespace splat
