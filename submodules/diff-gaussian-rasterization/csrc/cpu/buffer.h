// Memory of a workspace: grows, never shrinks, contents undefined after growing.
#pragma once
#include <cstddef>
#include <cstdint>

namespace splat {

/// 64-byte aligned (2 MiB and huge pages when large); nullptr when there is no memory.
/// Defined once, outside the per-instruction-set units.
void* allocate_bytes(size_t bytes);
void free_bytes(void* p);
/// Throw std::bad_alloc. Not called inside a parallel region.
[[noreturn]] void out_of_memory();
/// The same for tile lists beyond kMaxInstances, with a text that says what to do.
[[noreturn]] void too_many_instances();
void copy_bytes(void* to, const void* from, size_t bytes);
double now_ms();  // monotonic clock

template <class T>
class Buffer {
 public:
  Buffer() = default;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { free_bytes(data_); }

  /// At least n elements; throws std::bad_alloc.
  inline __attribute__((always_inline)) T* grow(int64_t n) {
    if (!try_grow(n)) out_of_memory();
    return data_;
  }
  /// The same without throwing, for parallel regions.
  inline __attribute__((always_inline)) bool try_grow(int64_t n) {
    if (n <= capacity_) return true;
    free_bytes(data_);
    capacity_ = n + n / 4 + 64;
    data_ = static_cast<T*>(allocate_bytes(static_cast<size_t>(capacity_) * sizeof(T)));
    if (!data_) capacity_ = 0;
    return data_ != nullptr;
  }
  /// Room for n elements, the first `used` kept; false without memory (contents then unchanged).
  inline __attribute__((always_inline)) bool try_extend(int64_t used, int64_t n) {
    if (n <= capacity_) return true;
    const int64_t capacity = 2 * n + 64;
    T* bigger = static_cast<T*>(allocate_bytes(static_cast<size_t>(capacity) * sizeof(T)));
    if (!bigger) return false;
    if (used) copy_bytes(bigger, data_, static_cast<size_t>(used) * sizeof(T));
    free_bytes(data_);
    data_ = bigger;
    capacity_ = capacity;
    return true;
  }
  inline __attribute__((always_inline)) T* data() const { return data_; }
  inline __attribute__((always_inline)) T& operator[](int64_t i) const { return data_[i]; }
  inline __attribute__((always_inline)) void swap(Buffer& other) {
    T* const data = data_;
    const int64_t capacity = capacity_;
    data_ = other.data_;
    capacity_ = other.capacity_;
    other.data_ = data;
    other.capacity_ = capacity;
  }
  int64_t bytes() const { return capacity_ * static_cast<int64_t>(sizeof(T)); }

 private:
  T* data_ = nullptr;
  int64_t capacity_ = 0;
};

}  // namespace splat
