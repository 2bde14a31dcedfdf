#include "cpu/buffer.h"

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <new>
#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace splat {
namespace {

struct TooManyInstances : std::bad_alloc {
  const char* what() const noexcept override {
    return "the Gaussians cover more than 67108864 tiles of 32x32 pixels in all: they are too "
           "large; "
           "use fewer or smaller ones, or a smaller image";
  }
};

}  // namespace

void* allocate_bytes(size_t bytes) {
  // Fresh 4 KiB pages cost three times as much to touch as 2 MiB ones (22 against 8 ms per 64 MB).
  constexpr size_t kLine = 64, kHuge = size_t{2} << 20;
  const size_t alignment = bytes >= 2 * kHuge ? kHuge : kLine;
  const size_t rounded = (bytes + alignment - 1) / alignment * alignment;
  if (rounded < bytes) return nullptr;
  void* p = std::aligned_alloc(alignment, rounded);
#if defined(__linux__)
  if (p && alignment == kHuge) madvise(p, rounded, MADV_HUGEPAGE);
#endif
  return p;
}

void free_bytes(void* p) { std::free(p); }

void out_of_memory() { throw std::bad_alloc(); }

void too_many_instances() { throw TooManyInstances(); }

void copy_bytes(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }

double now_ms() {
  const auto now = std::chrono::steady_clock::now().time_since_epoch();
  return std::chrono::duration<double, std::milli>(now).count();
}

}  // namespace splat
