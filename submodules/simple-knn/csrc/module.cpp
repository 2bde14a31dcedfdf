// Python binding: buffers come in as addresses, so one build serves every version of torch.
#include <nanobind/nanobind.h>

#include "knn.h"

namespace nb = nanobind;

NB_MODULE(_native, m) {
  m.attr("cuda_build") = SPLAT_CUDA_BUILD;  // GPU architectures, or "no: " and why
  m.def(
      "first_not_finite",
      [](uintptr_t points, int64_t n) {
        nb::gil_scoped_release release;
        return knn::first_not_finite(reinterpret_cast<const float*>(points), n);
      },
      nb::arg("points"), nb::arg("n"));
  m.def(
      "mean_squared_distance_3",
      [](uintptr_t points, int64_t n, uintptr_t out, int threads) {
        nb::gil_scoped_release release;
        knn::mean_squared_distance_3(reinterpret_cast<const float*>(points), n,
                                     reinterpret_cast<float*>(out), threads);
      },
      nb::arg("points"), nb::arg("n"), nb::arg("out"), nb::arg("threads"));
}
