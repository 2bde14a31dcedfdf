// Python binding: buffers come in as addresses, so one build serves every version of torch.
#include <nanobind/nanobind.h>

#include "knn.h"
#if defined(SPLAT_WITH_CUDA)
#include "cuda/knn.h"
#endif

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
#if defined(SPLAT_WITH_CUDA)
  m.def("cuda_workspace_bytes", &knn::cuda::workspace_bytes, nb::arg("n"), nb::arg("device"));
  m.def(
      "cuda_mean_squared_distance_3",
      [](uintptr_t points, int64_t n, uintptr_t out, uintptr_t workspace, int64_t bytes, int device,
         uintptr_t stream) {
        nb::gil_scoped_release release;
        knn::cuda::mean_squared_distance_3(
            reinterpret_cast<const float*>(points), n, reinterpret_cast<float*>(out),
            reinterpret_cast<void*>(workspace), bytes, device, reinterpret_cast<void*>(stream));
      },
      nb::arg("points"), nb::arg("n"), nb::arg("out"), nb::arg("workspace"), nb::arg("bytes"),
      nb::arg("device"), nb::arg("stream"));
#endif
}
