// Python bindings of the CUDA backend.
#include "bindings.h"

#include <cstdio>
#include <new>

#include "cuda/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace splat::bindings {
namespace {

struct NoRoom : std::bad_alloc {
  char text[256];
  const char* what() const noexcept override { return text; }
};

/// Memory from Python: an object with allocate(bytes) -> address and release(address).
class PythonMemory final : public cuda::Allocator {
 public:
  explicit PythonMemory(nb::object memory) : memory_(std::move(memory)) {}

  void* allocate(std::int64_t bytes) override {
    if (limit > 0 && used + bytes > limit) refuse(used + bytes);
    const nb::gil_scoped_acquire gil;
    const Address found = nb::cast<Address>(memory_.attr("allocate")(bytes));
    used += bytes;
    return reinterpret_cast<void*>(found);
  }
  void release(void* memory, std::int64_t bytes) override {
    const nb::gil_scoped_acquire gil;
    used -= bytes;
    try {
      memory_.attr("release")(reinterpret_cast<Address>(memory));
    } catch (nb::python_error& e) {  // called by destructors
      e.discard_as_unraisable("release");
    }
  }
  bool takes_more() const override { return limit == 0; }
  nb::object object() const { return memory_; }

  std::int64_t limit = 0;  // [bytes], 0 = none
  std::int64_t used = 0;   // [bytes]

 private:
  [[noreturn]] void refuse(std::int64_t needed) const {
    NoRoom e;
    std::snprintf(e.text, sizeof e.text,
                  "the rasterizer's memory limit of %lld bytes is too small: at least %lld bytes "
                  "are needed; raise it, or use fewer Gaussians or a smaller image",
                  static_cast<long long>(limit), static_cast<long long>(needed));
    throw e;
  }
  nb::object memory_;
};

/// CUDA's current device is that of the workspace during every call.
class Cuda {
 public:
  using Run = std::array<Address, 2>;  // stream, and whether every run must give the same bits

  Cuda(int device, nb::object memory, Address pinned)
      : device_(device), memory_(std::move(memory)) {
    workspace_.each_buffer([&](cuda::Memory& buffer) { buffer.join(&memory_); });
    for (auto& buffer : scratch_) buffer.join(&memory_);
    workspace_.read = reinterpret_cast<cuda::Counts*>(pinned);
  }

  void forward(const Scene& scene, const Camera& c, const Images& out, std::int32_t* radii,
               bool keep, const Run& run) {
    begin(run);
    const bool same = scene.count == workspace_.count && c.width == workspace_.camera.width &&
                      c.height == workspace_.camera.height;
    if (memory_.limit > 0 && !same) release_image();  // other sizes, other buffers
    try {
      cuda::forward(workspace_, scene, c, out, radii, keep, stream_);
    } catch (const NoRoom&) {  // perhaps beside what another image needed: once more without that
      if (workspace_.fixed_capacity) throw;
      release_image();
      cuda::forward(workspace_, scene, c, out, radii, keep, stream_);
    }
    drew_ = true;
  }
  void backward(const Scene& scene, const float* transmittance, const Images& gradient,
                const BackwardOutputs& out, const Guarded& guard, const Run& run) {
    begin(run);
    const cuda::Backward how{run[1] != 0, {guard.values, guard.count}};
    cuda::backward(workspace_, scene, transmittance, gradient, out, how, stream_);
  }
  void contributions(const Contributions& out, const Run& run) {
    begin(run);
    cuda::contributions(workspace_, out, stream_);
  }
  void l1_ssim(const float* image, const float* target, float* gradient, int width, int height,
               const LossSettings& s, double* terms, const Run& run) {
    begin(run);
    cuda::l1_ssim(workspace_, image, target, gradient, width, height, s, terms, stream_);
  }
  void lr_l1_ssim(const float* image, const float* lr_target, float* gradient, const Taps& x,
                  const Taps& y, const LossSettings& s, double* terms, const Run& run) {
    begin(run);
    cuda::lr_l1_ssim(workspace_, image, lr_target, gradient, x, y, s, terms, stream_);
  }
  void add_invalid(double* to, const Run& run) {
    begin(run);
    cuda::add_invalid(workspace_, to, stream_);
  }

  bool try_reserve(const ScratchSizes& floats) {
    try {
      scratch(floats);
      return true;
    } catch (const NoRoom&) {
      return false;
    }
  }
  ScratchAddresses scratch(const ScratchSizes& floats) {
    ScratchAddresses found{};
    for (std::size_t k = 0; k < found.size(); k++) {
      if (memory_.limit > 0 && scratch_[k].capacity() > floats[k]) scratch_[k].release();
    }
    for (std::size_t k = 0; k < found.size(); k++) {
      found[k] = reinterpret_cast<Address>(scratch_[k].grow(floats[k]));
    }
    return found;
  }
  /// Losses have no memory of their own: theirs is among the workspace's.
  void release_losses() {}
  void release_image() {
    drew_ = false;
    workspace_.each_buffer([](cuda::Memory& buffer) { buffer.release(); });
  }
  std::int64_t limit() const { return memory_.limit; }
  void set_limit(std::int64_t bytes) {
    release_image();
    for (auto& buffer : scratch_) buffer.release();
    memory_.limit = bytes;
  }

  /// Waits for what the stream has to do.
  nb::dict facts(const Run& run) {
    cuda::Counts counts{};
    double stage_ms[cuda::kStages];
    if (drew_) {
      const nb::gil_scoped_release release;
      begin(run);
      counts = cuda::read_counts(workspace_, stream_);
      if (workspace_.timing) workspace_.stages.read(stage_ms);
    }
    nb::dict d;
    d["drawn"] = counts.drawn;
    d["instances"] = counts.instances;
    d["invalid"] = counts.invalid;
    d["bytes"] = memory_.used;
    d["bands"] = 1;
    d["overflow"] = counts.overflow != 0;
    d["stage_ms"] = drew_ && workspace_.timing ? stage_times(stage_ms) : nb::dict();
    return d;
  }

  nb::object memory() const { return memory_.object(); }
  bool fixed_capacity() const { return workspace_.fixed_capacity; }
  void fix_capacity(bool fixed) {
    if (fixed && workspace_.list_gaussian.capacity() == 0) {
      throw std::runtime_error(
          "the capacity is that of the tile lists so far: draw an image first");
    }
    workspace_.fixed_capacity = fixed;
  }
  bool timing() const { return workspace_.timing; }
  void set_timing(bool on) { workspace_.timing = on; }

 private:
  void begin(const Run& run) {
    cuda::use_device(device_);
    stream_ = reinterpret_cast<cuda::Stream>(run[0]);
  }

  int device_;
  PythonMemory memory_;  // before what takes memory from it
  cuda::Workspace workspace_;
  cuda::Buffer<float> scratch_[kScratches];  // the caller's
  cuda::Stream stream_ = nullptr;            // of the last call
  bool drew_ = false;                        // the counts of an image are there
};

}  // namespace

void bind_cuda(nb::module_& m) {
  using R = Rasterization<Cuda>;
  nb::class_<R> c = bind<Cuda>(m, "CudaRasterization");
  c.def(nb::init<int, nb::object, Address>(), "device"_a, "memory"_a, "pinned"_a)
      .def_prop_ro("memory", [](const R& r) { return r.backend.memory(); })
      .def_prop_ro("fixed_capacity", [](const R& r) { return r.backend.fixed_capacity(); })
      .def("fix_capacity", [](R& r, bool fixed) { r.backend.fix_capacity(fixed); })
      .def_prop_rw(
          "timing", [](const R& r) { return r.backend.timing(); },
          [](R& r, bool on) { r.backend.set_timing(on); });
  c.attr("PINNED_BYTES") = sizeof(cuda::Counts);
}

}  // namespace splat::bindings
