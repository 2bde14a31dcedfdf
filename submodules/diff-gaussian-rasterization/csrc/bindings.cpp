// Python bindings: pointers as integers, sizes, and settings; all checks are made in Python.
#include <nanobind/nanobind.h>
#include <nanobind/stl/array.h>
#include <nanobind/stl/string.h>

#include <array>
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

/// A finished forward pass remembers what it drew, so that the backward needs no second copy.
struct Rasterization {
  splat::Workspace workspace;
  splat::Scene scene;
};

splat::Camera make_camera(int width, int height, const std::array<double, 9>& rotation,
                          const std::array<double, 3>& translation,
                          const std::array<double, 3>& centre, const std::array<double, 4>& pinhole,
                          const std::array<double, 2>& jacobian_focal,
                          const std::array<double, 2>& slope_limit,
                          const std::array<double, 3>& background, double scale_modifier,
                          double dilation, int sh_degree, bool antialiasing) {
  splat::Camera c;
  for (std::size_t k = 0; k < 9; k++) c.rotation[k] = static_cast<float>(rotation[k]);
  for (std::size_t k = 0; k < 3; k++) {
    c.translation[k] = static_cast<float>(translation[k]);
    c.centre[k] = static_cast<float>(centre[k]);
    c.background[k] = static_cast<float>(background[k]);
  }
  c.fx = static_cast<float>(pinhole[0]);
  c.fy = static_cast<float>(pinhole[1]);
  c.cx = static_cast<float>(pinhole[2]);
  c.cy = static_cast<float>(pinhole[3]);
  c.jacobian_fx = static_cast<float>(jacobian_focal[0]);
  c.jacobian_fy = static_cast<float>(jacobian_focal[1]);
  c.limit_x = static_cast<float>(slope_limit[0]);
  c.limit_y = static_cast<float>(slope_limit[1]);
  c.scale_modifier = static_cast<float>(scale_modifier);
  c.dilation = static_cast<float>(dilation);
  c.width = width;
  c.height = height;
  c.sh_degree = sh_degree;
  c.antialiasing = antialiasing;
  return c;
}

void forward(Rasterization& r, const splat::Camera& camera, const EightAddresses& addresses,
             Address filter, std::int64_t count, std::int64_t sh0_stride, std::int64_t shN_stride,
             int rest, bool activated, const ImageAddresses& out, Address radii, int threads) {
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  r.scene.count = count;
  r.scene.sh0_stride = sh0_stride;
  r.scene.shN_stride = shN_stride;
  r.scene.rest = rest;
  r.scene.activated = activated;
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  k.forward(r.workspace, r.scene, camera, images(out), reinterpret_cast<std::int32_t*>(radii),
            threads);
}

void backward(Rasterization& r, const EightAddresses& addresses, Address filter,
              Address transmittance, const ImageAddresses& gradient, const EightAddresses& out,
              const EightAddresses& added, Address means2d, Address absolute_means2d, Address pose,
              int threads) {
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  splat::BackwardOutputs o;
  o.gradients = parameters(out);
  o.added = parameters(added);
  o.means2d = floats(means2d);
  o.absolute_means2d = floats(absolute_means2d);
  o.pose = reinterpret_cast<double*>(pose);
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
                   const std::array<Address, 4>& statistics, int threads) {
  r.scene.p = parameters(addresses);
  r.scene.filter = floats(filter);
  splat::AdamState adam;
  adam.mean = parameters(mean);
  adam.square = parameters(square);
  adam.visible = reinterpret_cast<const std::uint8_t*>(visible);
  const auto factors = [&](std::size_t k) {
    return adam_factors(learning_rates[k], step, betas[0], betas[1], eps);
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
  o.statistics = {floats(statistics[0]), floats(statistics[1]), floats(statistics[2]),
                  floats(statistics[3])};
  const splat::Kernels& k = splat::active_kernels();
  threads = checked_threads(threads);
  const nb::gil_scoped_release release;
  k.backward(r.workspace, r.scene, floats(transmittance), images(gradient), o, threads);
}

void contributions(Rasterization& r, const std::array<Address, 3>& out, int threads) {
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
  nb::class_<splat::Camera>(m, "Camera");
  nb::class_<Rasterization>(m, "Rasterization")
      .def(nb::init<>())
      .def("forward", &forward)
      .def("backward", &backward)
      .def("backward_adam", &backward_adam)
      .def("contributions", &contributions)
      .def("set_memory_limit",
           [](Rasterization& r, std::int64_t bytes) { r.workspace.memory_limit = bytes; })
      .def("l1_ssim", &l1_ssim)
      .def("lr_l1_ssim", &lr_l1_ssim)
      .def("facts", &facts);
  m.def("make_camera", &make_camera, "width"_a, "height"_a, "rotation"_a, "translation"_a,
        "centre"_a, "pinhole"_a, "jacobian_focal"_a, "slope_limit"_a, "background"_a,
        "scale_modifier"_a, "dilation"_a, "sh_degree"_a, "antialiasing"_a);
  m.def("isa", [] { return std::string(splat::active_kernels().name); });
  m.def("isa_supported",
        [](const std::string& name) { return splat::isa_supported(name.c_str()); });
}
