// The table of entry points that every instruction set provides.
#pragma once
#include <cstdint>

#include "core/camera.h"
#include "cpu/workspace.h"
#include "interface.h"

namespace splat {

struct Kernels {
  const char* name;
  void (*forward)(Workspace&, const Scene&, const Camera&, const Images&, int32_t* radii,
                  int threads);
  /// gradient.color is required; `transmittance` is that of the forward pass.
  void (*backward)(Workspace&, const Scene&, const float* transmittance, const Images& gradient,
                   const BackwardOutputs&, int threads);
  void (*contributions)(Workspace&, const Contributions&, int threads);
  LossTerms (*l1_ssim)(Workspace&, const float* image, const float* target, float* gradient,
                       int width, int height, const LossSettings&, int threads);
  LossTerms (*lr_l1_ssim)(Workspace&, const float* image, const float* lr_target, float* gradient,
                          const Taps& taps_x, const Taps& taps_y, const LossSettings&, int threads);
};

namespace scalar {
extern const Kernels kKernels;
}
namespace avx2 {
extern const Kernels kKernels;
}
namespace avx512 {
extern const Kernels kKernels;
}

/// The kernels of this machine, or of SPLAT_ISA. Throws std::runtime_error on an unknown name or an
/// instruction set that the processor does not have.
const Kernels& active_kernels();
bool isa_supported(const char* name);

}  // namespace splat
