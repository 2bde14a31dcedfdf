// The Python module: the CPU backend, and the CUDA backend where it was built.
#include "bindings.h"

#include <string>

#include "cpu/kernels.h"

namespace nb = nanobind;
using namespace splat::bindings;

namespace {

static_assert(kScratches == splat::kScratches);

int checked_threads(int threads) {
  if (threads < 1) throw std::runtime_error("threads must be at least 1");
  return threads < splat::kMaxThreads ? threads : splat::kMaxThreads;
}

bool all_finite(const Guarded& guard) {
  for (int k = 0; k < guard.count; k++) {
    if (!std::isfinite(guard.values[k])) return false;
  }
  return true;
}

void write_terms(const splat::LossTerms& t, double* to) {
  to[0] = t.l1;
  to[1] = t.ssim;
  to[2] = t.loss;
}

class Cpu {
 public:
  using Run = int;  // threads

  void forward(const splat::Scene& scene, const splat::Camera& c, const splat::Images& out,
               std::int32_t* radii, bool /*keep*/, int threads) {
    if (scene.half_sh) throw std::runtime_error("half precision is for CUDA only");
    kernels().forward(workspace_, scene, c, out, radii, checked_threads(threads));
  }
  void backward(const splat::Scene& scene, const float* transmittance,
                const splat::Images& gradient, const splat::BackwardOutputs& out,
                const Guarded& guard, int threads) {
    if (!all_finite(guard)) return;
    kernels().backward(workspace_, scene, transmittance, gradient, out, checked_threads(threads));
  }
  void contributions(const splat::Contributions& out, int threads) {
    kernels().contributions(workspace_, out, checked_threads(threads));
  }
  void l1_ssim(const float* image, const float* target, float* gradient, int width, int height,
               const splat::LossSettings& s, double* terms, int threads) {
    write_terms(kernels().l1_ssim(workspace_, image, target, gradient, width, height, s,
                                  checked_threads(threads)),
                terms);
  }
  void lr_l1_ssim(const float* image, const float* lr_target, float* gradient, const splat::Taps& x,
                  const splat::Taps& y, const splat::LossSettings& s, double* terms, int threads) {
    write_terms(kernels().lr_l1_ssim(workspace_, image, lr_target, gradient, x, y, s,
                                     checked_threads(threads)),
                terms);
  }
  void add_invalid(double* to, int /*threads*/) { *to += static_cast<double>(workspace_.invalid); }

  bool try_reserve(const ScratchSizes& floats) { return workspace_.try_reserve(floats.data()); }
  ScratchAddresses scratch(const ScratchSizes& floats) {
    ScratchAddresses found{};
    for (std::size_t k = 0; k < found.size(); k++) {
      found[k] = reinterpret_cast<Address>(workspace_.scratch[k].grow(floats[k]));
    }
    return found;
  }
  void release_image() { workspace_.release_image(); }
  void release_losses() { workspace_.release_losses(); }
  std::int64_t limit() const { return workspace_.budget.limit; }
  void set_limit(std::int64_t bytes) { workspace_.set_limit(bytes); }

  nb::dict facts(int /*threads*/) const {
    nb::dict d;
    d["drawn"] = workspace_.drawn;
    d["instances"] = workspace_.instances;
    d["invalid"] = workspace_.invalid;
    d["bytes"] = workspace_.bytes();
    d["bands"] = workspace_.bands;
    d["overflow"] = false;
    d["stage_ms"] = stage_times(workspace_.stage_ms);
    return d;
  }

 private:
  static const splat::Kernels& kernels() { return splat::active_kernels(); }
  splat::Workspace workspace_;
};

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // an autograd graph may be alive when the interpreter ends
  m.doc() = "Kernels of the rasterizer; use the Python modules around it.";
  bind<Cpu>(m, "Rasterization").def(nb::init<>());
#if defined(SPLAT_WITH_CUDA)
  bind_cuda(m);
#endif
  m.attr("cuda_build") = SPLAT_CUDA_BUILD;  // GPU architectures, or "no: " and why
  m.def("isa", [] { return std::string(splat::active_kernels().name); });
  m.def("isa_supported",
        [](const std::string& name) { return splat::isa_supported(name.c_str()); });
}
