// All kernels for one instruction set: compiled once per set with SPLAT_ISA_NAME and -m flags.
//
// Nothing with external linkage may leave this unit except splat::SPLAT_ISA_NAME::..., or the
// linker could hand, say, the AVX-512 copy of an inline function to a machine without AVX-512.
// Hence no standard containers or algorithms here, and always_inline for all that is shared.
#if defined(SPLAT_ISA_avx512)
#include "cpu/simd_avx512.h"
#elif defined(SPLAT_ISA_avx2)
#include "cpu/simd_avx2.h"
#else
#include "cpu/simd_scalar.h"
#endif

#include <omp.h>

#include <cmath>
#include <cstring>

#include "core/adam.h"
#include "core/blend.h"
#include "core/conic.h"
#include "core/moments.h"
#include "core/pixel.h"
#include "core/projection.h"
#include "core/projection_gradient.h"
#include "core/sh.h"
#include "core/ssim.h"
#include "core/surface.h"
#include "cpu/kernels.h"

namespace splat::SPLAT_ISA_NAME {
namespace {

template <class T>
SPLAT_HD T smaller(T a, T b) {
  return b < a ? b : a;
}
template <class T>
SPLAT_HD T larger(T a, T b) {
  return a < b ? b : a;
}

#include "cpu/rows.inl"
// (the order is that of the pipeline)
#include "cpu/preprocess.inl"
#include "cpu/sort.inl"
#include "cpu/binning.inl"
#include "cpu/bands.inl"
#include "cpu/forward.inl"
#include "cpu/backward.inl"
#include "cpu/contributions.inl"
#include "cpu/adam.inl"
#include "cpu/geometry.inl"
#include "cpu/loss.inl"
#include "cpu/lr_loss.inl"

/// Run `pass` over the image, band by band: pass(true) is the first one. Returns how long the
/// bands' lists took [ms].
template <class Pass>
double each_band(Workspace& w, int threads, const Pass& pass) {
  double listing = 0;
  for (int band = 0; band < w.bands; band++) {
    if (w.bands > 1) {
      const double start = now_ms();
      list_band(w, band, threads);
      listing += now_ms() - start;
    }
    pass(band == 0);
  }
  return listing;
}

/// With a limit buffers are of the very size that is needed: other sizes, other buffers.
void begin_image(Workspace& w, const Scene& scene, const Camera& camera, bool surfaces,
                 int threads) {
  const bool same = w.count == scene.count && w.camera.width == camera.width &&
                    w.camera.height == camera.height && w.has_surfaces == surfaces &&
                    w.threads == threads;
  if (w.budget.limit > 0 && !same) {
    w.release_image();
    w.release_losses();
  }
  w.camera = camera;
  w.count = scene.count;
  w.has_surfaces = surfaces;
  w.threads = threads;
  w.tiles_x = (camera.width + kTile - 1) / kTile;
  w.tiles_y = (camera.height + kTile - 1) / kTile;
}

void forward(Workspace& w, const Scene& scene, const Camera& camera, const Images& out,
             int32_t* radii, int threads) {
  begin_image(w, scene, camera, out.depth || out.normal, threads);
  const double start = now_ms();
  preprocess(w, scene, radii, threads);
  const double preprocessed = now_ms();
  sort_by_depth(w, threads);
  bin_image(w, threads);
  const double binned = now_ms();
  const double listing = each_band(w, threads, [&](bool) { blend_forward(w, out, threads); });
  w.stage_ms[kPreprocess] = preprocessed - start;
  w.stage_ms[kSortBin] = binned - preprocessed + listing;
  w.stage_ms[kForward] = now_ms() - binned - listing;
  w.stage_ms[kLoss] = 0;  // the terms that follow add up
}

void backward(Workspace& w, const Scene& scene, const float* transmittance, const Images& gradient,
              const BackwardOutputs& out, int threads) {
  const double start = now_ms();
  each_band(w, threads, [&](bool first) {
    blend_backward(w, transmittance, gradient, wants_absolute(out), threads);
    if (w.bands > 1) add_band_slots(w, first, threads);
  });
  const double blended = now_ms();
  geometry_backward(w, scene, out, threads);
  w.stage_ms[kBlendBackward] = blended - start;
  w.stage_ms[kGeometry] = now_ms() - blended;
}

void contributions(Workspace& w, const Contributions& out, int threads) {
  each_band(w, threads, [&](bool) { band_contributions(w, out, threads); });
}

}  // namespace

extern const Kernels kKernels;
#define SPLAT_STRINGIFY(x) #x
#define SPLAT_STRING(x) SPLAT_STRINGIFY(x)
const Kernels kKernels = {
    SPLAT_STRING(SPLAT_ISA_NAME), forward, backward, contributions, l1_ssim, lr_l1_ssim};

}  // namespace splat::SPLAT_ISA_NAME
