// Device memory of a workspace: grows, never shrinks by itself, contents undefined after growing.
#pragma once
#include <cstddef>
#include <cstdint>
#include <stdexcept>

namespace splat::cuda {

/// Where memory comes from: PyTorch's caching allocator, through the bindings. Throws
/// std::bad_alloc. Memory is ordered with the stream that is current when it is allocated.
class Allocator {
 public:
  virtual ~Allocator() = default;
  virtual void* allocate(int64_t bytes) = 0;
  virtual void release(void* memory, int64_t bytes) = 0;
  /// Whether a buffer takes more than it needs, so that it seldom has to grow.
  virtual bool takes_more() const = 0;
};

class Memory {
 public:
  Memory() = default;
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  ~Memory() { release(); }

  void join(Allocator* allocator) { allocator_ = allocator; }
  void release() {
    if (memory_) allocator_->release(memory_, bytes_);
    memory_ = nullptr;
    capacity_ = bytes_ = 0;
  }
  int64_t bytes() const { return bytes_; }
  int64_t capacity() const { return capacity_; }  // elements

 protected:
  /// Room for n elements and some more; the old ones are lost.
  void reallocate(int64_t n, int64_t element_bytes) {
    release();
    if (!allocator_) throw std::logic_error("a buffer that Workspace::each_buffer does not name");
    const int64_t room = allocator_->takes_more() ? n + n / 4 : n;
    memory_ = allocator_->allocate(room * element_bytes);
    capacity_ = room;
    bytes_ = room * element_bytes;
  }

  void* memory_ = nullptr;
  int64_t capacity_ = 0;

 private:
  int64_t bytes_ = 0;
  Allocator* allocator_ = nullptr;
};

template <class T>
class Buffer : public Memory {
 public:
  /// At least n elements; throws std::bad_alloc.
  T* grow(int64_t n) {
    if (n > capacity_) reallocate(n, static_cast<int64_t>(sizeof(T)));
    return data();
  }
  T* data() const { return static_cast<T*>(memory_); }
};

}  // namespace splat::cuda
