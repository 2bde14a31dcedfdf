// Memory of a workspace: grows, never shrinks by itself, contents undefined after growing.
#pragma once
#include <cstddef>
#include <cstdint>

namespace splat {

/// Shared by all buffers of a workspace. With a limit they take exactly what they need, else some
/// room in advance.
struct Budget {
  int64_t limit = 0;  // [bytes], 0 = none
  int64_t used = 0;   // [bytes]
};

/// Throw std::bad_alloc. Not called inside a parallel region.
[[noreturn]] void out_of_memory();
/// The same, saying what does not fit and what to do.
[[noreturn]] void limit_too_small(int64_t limit, int64_t needed);
[[noreturn]] void row_too_long(int64_t instances, int64_t most);
double now_ms();  // monotonic clock

/// 64-byte aligned memory (2 MiB and huge pages when large), counted in a budget. Its functions are
/// defined once, outside the per-instruction-set units.
class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory();

  void join(Budget* budget) { budget_ = budget; }
  /// Free it.
  void release();
  int64_t bytes() const { return bytes_; }
  int64_t capacity() const { return capacity_; }

 protected:
  /// Room for n elements, the first `kept` of them copied; false where there is none. Without
  /// elements to keep the old memory goes first, and is lost on failure too.
  bool reallocate(int64_t n, int64_t element_bytes, int64_t kept);
  /// Why reallocate failed.
  [[noreturn]] void fail(int64_t n, int64_t element_bytes) const;

  void* memory_ = nullptr;
  int64_t capacity_ = 0;  // elements

 private:
  int64_t bytes_ = 0;
  Budget* budget_ = nullptr;
};

template <class T>
class Buffer : public Memory {
 public:
  Buffer() = default;
  inline __attribute__((always_inline)) ~Buffer() {}
  /// At least n elements; throws std::bad_alloc.
  inline __attribute__((always_inline)) T* grow(int64_t n) {
    if (!try_grow(n)) fail(n, sizeof(T));
    return data();
  }
  /// The same without throwing, for parallel regions.
  inline __attribute__((always_inline)) bool try_grow(int64_t n) {
    return n <= capacity_ || reallocate(n, sizeof(T), 0);
  }
  /// Room for n elements, the first `used` kept; false without memory (contents then unchanged).
  inline __attribute__((always_inline)) bool try_extend(int64_t used, int64_t n) {
    return n <= capacity_ || reallocate(2 * n, sizeof(T), used);
  }
  /// Give the memory back where it holds more than n elements.
  inline __attribute__((always_inline)) void release_above(int64_t n) {
    if (capacity_ > n) release();
  }
  inline __attribute__((always_inline)) T* data() const { return static_cast<T*>(memory_); }
  inline __attribute__((always_inline)) T& operator[](int64_t i) const { return data()[i]; }
};

}  // namespace splat
