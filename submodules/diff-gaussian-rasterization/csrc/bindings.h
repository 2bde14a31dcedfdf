// Python bindings of every backend: pointers as integers, sizes, and settings; all checks are made
// in Python. The arguments are the same for all of them but the last one, `run`.
//
// A backend has: Run, how a call runs; forward, backward, contributions, l1_ssim, lr_l1_ssim and
// add_invalid, which do the work without the GIL; try_reserve and scratch, memory for the caller;
// release_image and release_losses; limit and set_limit; facts.
#pragma once
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <type_traits>
#include <utility>

#include "core/camera.h"
#include "interface.h"

namespace splat::bindings {

namespace nb = nanobind;

using Address = std::uintptr_t;
using SixAddresses = std::array<Address, 6>;
using EightAddresses = std::array<Address, 8>;
using ImageAddresses = std::array<Address, 5>;
using FourAddresses = std::array<Address, 4>;

constexpr int kScratches =
    3;  // transmittance and dL/dimage of an image; gradients of all Gaussians
using ScratchSizes = std::array<std::int64_t, kScratches>;
using ScratchAddresses = std::array<Address, kScratches>;

inline float* floats(Address a) { return reinterpret_cast<float*>(a); }
inline double* doubles(Address a) { return reinterpret_cast<double*>(a); }

inline Parameters parameters(const EightAddresses& a) {
  Parameters p;
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

inline Parameters parameters(const SixAddresses& a) {
  return parameters(EightAddresses{a[0], a[1], a[2], a[3], a[4], a[5], 0, 0});
}

inline Images images(const ImageAddresses& a) {
  Images i;
  i.color = floats(a[0]);
  i.transmittance = floats(a[1]);
  i.inverse_depth = floats(a[2]);
  i.depth = floats(a[3]);
  i.normal = floats(a[4]);
  return i;
}

inline Statistics statistics(const FourAddresses& a) {
  return {floats(a[0]), floats(a[1]), floats(a[2]), floats(a[3])};
}

inline Taps taps(const std::array<Address, 2>& a, const std::array<int, 3>& shape) {
  return {reinterpret_cast<const std::int32_t*>(a[0]), floats(a[1]), shape[0], shape[1], shape[2]};
}

/// A row of 28 doubles; cameras.py writes them in this order. Pixel centres at integers.
inline Camera camera(Address address, int width, int height, int sh_degree, int antialiasing) {
  const double* row = reinterpret_cast<const double*>(address);
  Camera c;
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

inline AdamFactors adam_factors(double lr, std::int64_t step, double beta1, double beta2,
                                double eps) {
  const double t = static_cast<double>(step);
  AdamFactors f;
  f.rate = static_cast<float>(lr / (1 - std::pow(beta1, t)));
  f.inverse_root = static_cast<float>(1 / std::sqrt(1 - std::pow(beta2, t)));
  f.beta1 = static_cast<float>(beta1);
  f.beta2 = static_cast<float>(beta2);
  f.one_minus_beta1 = static_cast<float>(1 - beta1);
  f.one_minus_beta2 = static_cast<float>(1 - beta2);
  f.eps = static_cast<float>(eps);
  return f;
}

/// Numbers that must all be finite, or else a backward pass writes nothing: address and how many.
struct Guarded {
  const double* values;
  int count;
};
using GuardPair = std::array<Address, 2>;
inline Guarded guarded(const GuardPair& a) { return {doubles(a[0]), static_cast<int>(a[1])}; }

/// A finished forward pass remembers what it drew, so that the backward needs no second copy, and
/// keeps what the caller of a training step never sees.
template <class Backend>
struct Rasterization {
  template <class... Arguments,
            class = std::enable_if_t<std::is_constructible_v<Backend, Arguments...>>>
  explicit Rasterization(Arguments&&... a) : backend(std::forward<Arguments>(a)...) {}

  Backend backend;
  Scene scene;
  std::int64_t serial = 0;  // of the last forward pass
  bool drawn = false;       // and that pass is there to go back through
  std::atomic_flag at_work = ATOMIC_FLAG_INIT;

  /// No backward pass finds the last image any more.
  void forget() {
    serial++;
    drawn = false;
  }
  void check_drawn() const {
    if (!drawn) throw std::runtime_error("there is no forward pass to go back through");
  }
};

/// One call at a time: a second thread is refused before it can write into the same memory.
class Working {
 public:
  explicit Working(std::atomic_flag& at_work) : flag_(at_work) {
    if (flag_.test_and_set())
      throw std::runtime_error("this workspace is at work in another thread; use one per thread");
  }
  ~Working() { flag_.clear(); }
  Working(const Working&) = delete;
  Working& operator=(const Working&) = delete;

 private:
  std::atomic_flag& flag_;
};

/// keep: for a backward pass; half_sh: shN holds 16-bit floats. Strides in elements of sh0 and shN.
template <class B>
void forward(Rasterization<B>& r, Address camera_row, int width, int height, int sh_degree,
             int antialiasing, const EightAddresses& addresses, Address filter, std::int64_t count,
             std::int64_t sh0_stride, std::int64_t shN_stride, int rest, bool activated,
             bool half_sh, const ImageAddresses& out, Address radii, bool keep,
             const typename B::Run& run) {
  const Working working(r.at_work);
  r.forget();
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  r.scene.count = count;
  r.scene.sh0_stride = sh0_stride;
  r.scene.shN_stride = shN_stride;
  r.scene.rest = rest;
  r.scene.activated = activated;
  r.scene.half_sh = half_sh;
  const Camera c = camera(camera_row, width, height, sh_degree, antialiasing);
  {
    const nb::gil_scoped_release release;
    r.backend.forward(r.scene, c, images(out), reinterpret_cast<std::int32_t*>(radii), keep, run);
  }
  r.drawn = true;
}

/// Addresses of scratch memory, which stays until the next call. Where it does not fit beside an
/// image, that has to go; with `keep_image` std::bad_alloc says so instead.
template <class B>
ScratchAddresses reserve(Rasterization<B>& r, const ScratchSizes& floats, bool keep_image) {
  const Working working(r.at_work);
  if (!r.backend.try_reserve(floats) && !keep_image) {
    r.forget();
    r.backend.release_image();
    r.backend.release_losses();
  }
  return r.backend.scratch(floats);  // says what does not fit
}

template <class B>
void set_memory_limit(Rasterization<B>& r, std::int64_t bytes) {
  const Working working(r.at_work);
  if (bytes == r.backend.limit()) return;
  r.forget();
  r.backend.set_limit(bytes);
}

template <class B>
void backward(Rasterization<B>& r, const EightAddresses& addresses, Address filter,
              Address transmittance, const ImageAddresses& gradient, const EightAddresses& out,
              const EightAddresses& added, Address means2d, Address absolute_means2d, Address pose,
              const FourAddresses& stats, const GuardPair& guard, const typename B::Run& run) {
  const Working working(r.at_work);
  r.check_drawn();
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  BackwardOutputs o;
  o.gradients = parameters(out);
  o.added = parameters(added);
  o.means2d = floats(means2d);
  o.absolute_means2d = floats(absolute_means2d);
  o.pose = doubles(pose);
  o.statistics = statistics(stats);
  const nb::gil_scoped_release release;
  r.backend.backward(r.scene, floats(transmittance), images(gradient), o, guarded(guard), run);
}

template <class B>
void backward_adam(Rasterization<B>& r, const SixAddresses& addresses, Address filter,
                   Address transmittance, const ImageAddresses& gradient, const SixAddresses& added,
                   const SixAddresses& mean, const SixAddresses& square,
                   const std::array<double, 6>& learning_rates, std::int64_t step,
                   const std::array<double, 2>& betas, double eps, Address visible, Address means2d,
                   const FourAddresses& stats, const GuardPair& guard, const typename B::Run& run) {
  const Working working(r.at_work);
  r.check_drawn();
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  AdamState adam;
  adam.mean = parameters(mean);
  adam.square = parameters(square);
  adam.visible = reinterpret_cast<const std::uint8_t*>(visible);
  const auto factors = [&](std::size_t k) {
    AdamFactors f = adam_factors(learning_rates[k], step, betas[0], betas[1], eps);
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
  BackwardOutputs o;
  o.adam = &adam;
  o.added = parameters(added);
  o.means2d = floats(means2d);
  o.statistics = statistics(stats);
  const nb::gil_scoped_release release;
  r.backend.backward(r.scene, floats(transmittance), images(gradient), o, guarded(guard), run);
}

template <class B>
void contributions(Rasterization<B>& r, const std::array<Address, 3>& out,
                   const typename B::Run& run) {
  const Working working(r.at_work);
  r.check_drawn();
  const Contributions c{floats(out[0]), floats(out[1]), floats(out[2])};
  const nb::gil_scoped_release release;
  r.backend.contributions(c, run);
}

inline LossSettings loss_settings(double weight, double lambda_dssim, bool accumulate) {
  return {static_cast<float>(weight), static_cast<float>(lambda_dssim), accumulate, nullptr};
}

/// terms: three doubles for l1, ssim and loss.
template <class B>
void l1_ssim(Rasterization<B>& r, Address image, Address target, Address pixel_weights,
             Address gradient, int width, int height, double weight, double lambda_dssim,
             bool accumulate, Address terms, const typename B::Run& run) {
  const Working working(r.at_work);
  LossSettings s = loss_settings(weight, lambda_dssim, accumulate);
  s.pixel_weights = floats(pixel_weights);
  const nb::gil_scoped_release release;
  r.backend.l1_ssim(floats(image), floats(target), floats(gradient), width, height, s,
                    doubles(terms), run);
}

template <class B>
void lr_l1_ssim(Rasterization<B>& r, Address image, Address lr_target, Address gradient,
                const std::array<Address, 2>& taps_x, const std::array<int, 3>& shape_x,
                const std::array<Address, 2>& taps_y, const std::array<int, 3>& shape_y,
                double weight, double lambda_dssim, bool accumulate, Address terms,
                const typename B::Run& run) {
  const Working working(r.at_work);
  const LossSettings s = loss_settings(weight, lambda_dssim, accumulate);
  const nb::gil_scoped_release release;
  r.backend.lr_l1_ssim(floats(image), floats(lr_target), floats(gradient), taps(taps_x, shape_x),
                       taps(taps_y, shape_y), s, doubles(terms), run);
}

/// *to += the Gaussians of the last image that were culled for NaN, Inf or range.
template <class B>
void add_invalid(Rasterization<B>& r, Address to, const typename B::Run& run) {
  const Working working(r.at_work);
  r.check_drawn();
  const nb::gil_scoped_release release;
  r.backend.add_invalid(doubles(to), run);
}

template <class B>
nb::dict facts(Rasterization<B>& r, const typename B::Run& run) {
  const Working working(r.at_work);
  return r.backend.facts(run);
}

inline nb::dict stage_times(const double* ms) {
  static const char* const kNames[] = {"preprocess", "sort_bin",       "forward",
                                       "loss",       "blend_backward", "geometry"};
  nb::dict d;
  for (const char* name : kNames) d[name] = *ms++;
  return d;
}

/// The class with all that the backends have in common.
template <class B>
nb::class_<Rasterization<B>> bind(nb::module_& m, const char* name) {
  nb::class_<Rasterization<B>> c(m, name);
  c.def("forward", &forward<B>)
      .def("backward", &backward<B>)
      .def("backward_adam", &backward_adam<B>)
      .def("contributions", &contributions<B>)
      .def("set_memory_limit", &set_memory_limit<B>)
      .def("l1_ssim", &l1_ssim<B>)
      .def("lr_l1_ssim", &lr_l1_ssim<B>)
      .def("add_invalid", &add_invalid<B>)
      .def("reserve", &reserve<B>)
      .def("facts", &facts<B>)
      .def_ro("serial", &Rasterization<B>::serial);
  return c;
}

void bind_cuda(nb::module_& m);  // cuda/bindings.cpp

}  // namespace splat::bindings
