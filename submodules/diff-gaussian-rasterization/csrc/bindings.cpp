// Python bindings: pointers as integers, sizes, and settings; all checks are made in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace {

using Address = std::uintptr_t;
using SixAddresses = std::array<Address, 6>;
using EightAddresses = std::array<Address, 8>;

float* floats(Address a) { return reinterpret_cast<float*>(a); }

splat::Parameters parameters(const EightAddresses& a) {
  splat::Parameters p;
  p.means = floats(a[0]);
  p.scales = floats(a[1]);
  p.quats = floats(a[2]);
  p.opacities = floats(a[3]);
  p.sh0 = floats(a[4]);
  p.shN = floats(a[5]);
  p.colors = floats(a[6]);
  p.sigma = floats(a[7]);
  return p;
}

splat::Parameters parameters(const SixAddresses& a) {
  return parameters(EightAddresses{a[0], a[1], a[2], a[3], a[4], a[5], 0, 0});
}

using ImageAddresses = std::array<Address, 5>;

splat::Images images(const ImageAddresses& a) {
  splat::Images i;
  i.color = floats(a[0]);
  i.transmittance = floats(a[1]);
  i.inverse_depth = floats(a[2]);
  i.depth = floats(a[3]);
  i.normal = floats(a[4]);
  return i;
}

int checked_threads(int threads) {
  if (threads < 1) throw std::runtime_error("threads must be at least 1");
  return threads < splat::kMaxThreads ? threads : splat::kMaxThreads;
}

/// A finished forward pass remembers what it drew, so that the backward needs no second copy, and
/// keeps what the caller of a training step never sees.
struct Rasterization {
  splat::Workspace workspace;
  splat::Scene scene;
  std::int64_t serial = 0;  // of the last forward pass
  bool drawn = false;       // and that pass is there to go back through
  std::atomic_flag at_work = ATOMIC_FLAG_INIT;
};

/// One call at a time: a second thread is refused before it can write into the same memory.
class Working {
 public:
  explicit Working(Rasterization& r) : flag_(r.at_work) {
    if (flag_.test_and_set())
      throw std::runtime_error("this workspace is at work in another thread; use one per thread");
  }
  ~Working() { flag_.clear(); }
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;

 private:
  std::atomic_flag& flag_;
};

/// No backward pass finds the last image any more.
void forget(Rasterization& r) {
  r.serial++;
  r.drawn = false;
}

void check_drawn(const Rasterization& r) {
  if (!r.drawn) throw std::runtime_error("there is no forward pass to go back through");
}

/// A row of 28 doubles; cameras.py writes them in this order. Pixel centres at integers.
splat::Camera camera(Address address, int width, int height, int sh_degree, int antialiasing) {
  const double* row = reinterpret_cast<const double*>(address);
  splat::Camera c;
  const auto next = [&] { return static_cast<float>(*row++); };
  for (float& v : c.rotation) v = next();
  for (float& v : c.translation) v = next();
  for (float& v : c.centre) v = next();
  for (float* v : {&c.fx, &c.fy, &c.cx, &c.cy}) *v = next();
  for (float* v : {&c.jacobian_fx, &c.jacobian_fy, &c.limit_x, &c.limit_y}) *v = next();
  for (float& v : c.background) v = next();
  c.scale_modifier = next();
  c.dilation = next();
  c.width = width;
  c.height = height;
  c.sh_degree = sh_degree;
  c.antialiasing = antialiasing != 0;
  return c;
}

void forward(Rasterization& r, Address camera_row, int width, int height, int sh_degree,
             int antialiasing, const EightAddresses& addresses, Address filter, std::int64_t count,
             std::int64_t sh0_stride, std::int64_t shN_stride, int rest, bool activated,
             const ImageAddresses& out, Address radii, int threads) {
  const Working working(r);
  forget(r);
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  r.scene.count = count;
  r.scene.sh0_stride = sh0_stride;
  r.scene.shN_stride = shN_stride;
  r.scene.rest = rest;
  r.scene.activated = activated;
  const splat::Camera c = camera(camera_row, width, height, sh_degree, antialiasing);
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  k.forward(r.workspace, r.scene, c, images(out), reinterpret_cast<std::int32_t*>(radii), threads);
  r.drawn = true;
}

using Sizes = std::array<std::int64_t, splat::kScratches>;

/// Addresses of scratch memory, which stays until the next call. Where it does not fit beside an
/// image, that has to go; with `keep_image` std::bad_alloc says so instead.
std::array<Address, splat::kScratches> reserve(Rasterization& r, const Sizes& floats,
                                               bool keep_image) {
  const Working working(r);
  splat::Workspace& w = r.workspace;
  bool fits = w.try_reserve(floats.data());
  if (!fits && !keep_image) {
    forget(r);
    w.release_image();
    w.release_losses();
    fits = w.try_reserve(floats.data());
  }
  std::array<Address, splat::kScratches> found{};
  for (std::size_t k = 0; k < found.size(); k++) {
    found[k] = reinterpret_cast<Address>(w.scratch[k].grow(floats[k]));  // says what does not fit
  }
  return found;
}

void set_memory_limit(Rasterization& r, std::int64_t bytes) {
  const Working working(r);
  if (bytes == r.workspace.budget.limit) return;
  forget(r);
  r.workspace.set_limit(bytes);
}

using FourAddresses = std::array<Address, 4>;

splat::Statistics statistics(const FourAddresses& a) {
  return {floats(a[0]), floats(a[1]), floats(a[2]), floats(a[3])};
}

void backward(Rasterization& r, const EightAddresses& addresses, Address filter,
              Address transmittance, const ImageAddresses& gradient, const EightAddresses& out,
              const EightAddresses& added, Address means2d, Address absolute_means2d, Address pose,
              const FourAddresses& stats, int threads) {
  const Working working(r);
  check_drawn(r);
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  splat::BackwardOutputs o;
  o.gradients = parameters(out);
  o.added = parameters(added);
  o.means2d = floats(means2d);
  o.absolute_means2d = floats(absolute_means2d);
  o.pose = reinterpret_cast<double*>(pose);
  o.statistics = statistics(stats);
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  k.backward(r.workspace, r.scene, floats(transmittance), images(gradient), o, threads);
}

splat::AdamFactors adam_factors(double lr, std::int64_t step, double beta1, double beta2,
                                double eps) {
  const double t = static_cast<double>(step);
  splat::AdamFactors f;
  f.rate = static_cast<float>(lr / (1 - std::pow(beta1, t)));
  f.inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  f.beta1 = static_cast<float>(beta1);
  f.beta2 = static_cast<float>(beta2);
  f.one_minus_beta1 = static_cast<float>(1 - beta1);
  f.one_minus_beta2 = static_cast<float>(1 - beta2);
  f.eps = static_cast<float>(eps);
  return f;
}

void backward_adam(Rasterization& r, const SixAddresses& addresses, Address filter,
                   Address transmittance, const ImageAddresses& gradient, const SixAddresses& added,
                   const SixAddresses& mean, const SixAddresses& square,
                   const std::array<double, 6>& learning_rates, std::int64_t step,
                   const std::array<double, 2>& betas, double eps, Address visible, Address means2d,
                   const FourAddresses& stats, int threads) {
  const Working working(r);
  check_drawn(r);
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  splat::AdamState adam;
  adam.mean = parameters(mean);
  adam.square = parameters(square);
  adam.visible = reinterpret_cast<const std::uint8_t*>(visible);
  const auto factors = [&](std::size_t k) {
    splat::AdamFactors f = adam_factors(learning_rates[k], step, betas[0], betas[1], eps);
    // torch.optim.SparseAdam adds eps to the root before the bias correction, Adam after it.
    if (visible) f.eps *= f.inverse_root;
    return f;
  };
  adam.means = factors(0);
  adam.scales = factors(1);
  adam.quats = factors(2);
  adam.opacities = factors(3);
  adam.sh0 = factors(4);
  adam.shN = factors(5);
  splat::BackwardOutputs o;
  o.adam = &adam;
  o.added = parameters(added);
  o.means2d = floats(means2d);
  o.statistics = statistics(stats);
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  k.backward(r.workspace, r.scene, floats(transmittance), images(gradient), o, threads);
}

void contributions(Rasterization& r, const std::array<Address, 3>& out, int threads) {
  const Working working(r);
  check_drawn(r);
  const splat::Contributions c{floats(out[0]), floats(out[1]), floats(out[2])};
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  k.contributions(r.workspace, c, threads);
}

std::array<double, 3> as_array(const splat::LossTerms& t) { return {t.l1, t.ssim, t.loss}; }

std::array<double, 3> l1_ssim(Rasterization& r, Address image, Address target, Address gradient,
                              int width, int height, double weight, double lambda_dssim,
                              bool accumulate, int threads) {
  const Working working(r);
  const splat::LossSettings s{static_cast<float>(weight), static_cast<float>(lambda_dssim),
                              accumulate};
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  return as_array(k.l1_ssim(r.workspace, floats(image), floats(target), floats(gradient), width,
                            height, s, threads));
}

splat::Taps taps(const std::array<Address, 2>& a, const std::array<int, 3>& shape) {
  return {reinterpret_cast<const std::int32_t*>(a[0]), floats(a[1]), shape[0], shape[1], shape[2]};
}

std::array<double, 3> lr_l1_ssim(Rasterization& r, Address image, Address lr_target,
                                 Address gradient, const std::array<Address, 2>& taps_x,
                                 const std::array<int, 3>& shape_x,
                                 const std::array<Address, 2>& taps_y,
                                 const std::array<int, 3>& shape_y, double weight,
                                 double lambda_dssim, bool accumulate, int threads) {
  const Working working(r);
  const splat::LossSettings s{static_cast<float>(weight), static_cast<float>(lambda_dssim),
                              accumulate};
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  return as_array(k.lr_l1_ssim(r.workspace, floats(image), floats(lr_target), floats(gradient),
                               taps(taps_x, shape_x), taps(taps_y, shape_y), s, threads));
}

nb::dict facts(const Rasterization& r) {
  static const char* const kNames[splat::kStages] = {"preprocess", "sort_bin",       "forward",
                                                     "loss",       "blend_backward", "geometry"};
  nb::dict stages, d;
  for (int k = 0; k < splat::kStages; k++) stages[kNames[k]] = r.workspace.stage_ms[k];
  d["drawn"] = r.workspace.drawn;
  d["instances"] = r.workspace.instances;
  d["invalid"] = r.workspace.invalid;
  d["bytes"] = r.workspace.bytes();
  d["bands"] = r.workspace.bands;
  d["stage_ms"] = stages;
  return d;
}

}  // namespace

NB_MODULE(_native, m) {
  nb::set_leak_warnings(false);  // an autograd graph may be alive when the interpreter ends
  m.doc() = "CPU kernels of the rasterizer; use the Python modules around it.";
  nb::class_<Rasterization>(m, "Rasterization")
      .def(nb::init<>())
      .def("forward", &forward)
      .def("backward", &backward)
      .def("backward_adam", &backward_adam)
      .def("contributions", &contributions)
      .def("set_memory_limit", &set_memory_limit)
      .def("l1_ssim", &l1_ssim)
      .def("lr_l1_ssim", &lr_l1_ssim)
      .def("reserve", &reserve)
      .def_ro("serial", &Rasterization::serial)
      .def_prop_ro("invalid", [](const Rasterization& r) { return r.workspace.invalid; })
      .def("facts", &facts);
  m.attr("cuda_build") = SPLAT_CUDA_BUILD;  // GPU architectures, or "no: " and why
  m.def("isa", [] { return std::string(splat::active_kernels().name); });
  m.def("isa_supported",
        [](const std::string& name) { return splat::isa_supported(name.c_str()); });
}
