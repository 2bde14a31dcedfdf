// The formulas of csrc/core for one sample at a time, in float and in double, callable from Python;
// compiled by nvcc it holds a kernel that evaluates all of them, too.
#include "core/scalar.h"
// (the operations on built-in types come first)
#include "core/adam.h"
#include "core/blend.h"
#include "core/conic.h"
#include "core/exponential.h"
#include "core/pixel.h"
#include "core/projection.h"
#include "core/projection_gradient.h"
#include "core/sh.h"
#include "core/ssim.h"
#include "core/surface.h"

namespace {

using namespace splat;

enum Formula {
  kProject,
  kProjectGradient,
  kConic,
  kScreenGradient,
  kBand,
  kSurface,
  kBasis,
  kBasisGradient,
  kDirection,
  kDirectionGradient,
  kBlend,
  kBlendGradient,
  kPixelGradient,
  kSsim,
  kExponential,
  kAdam
};
constexpr int kActivated = 1, kPrecomputed = 2, kFiltered = 4;
constexpr int kLayers = 6;  // splats of the blending tests

struct Settings {
  Camera camera;
  int options;  // form of the Gaussians
  AdamFactors adam;
};

SPLAT_HD Form form_of(int options) {
  return {(options & kActivated) != 0, (options & kPrecomputed) != 0, (options & kFiltered) != 0};
}

/// in: position 3, scale 3, quat 4, sigma 6, opacity, filter.
template <class V>
SPLAT_HD RawGaussian<V> read_gaussian(const V* in) {
  RawGaussian<V> g;
  for (int k = 0; k < 3; k++) g.position[k] = in[k];
  for (int k = 0; k < 3; k++) g.scale[k] = in[3 + k];
  for (int k = 0; k < 4; k++) g.quat[k] = in[6 + k];
  for (int k = 0; k < 6; k++) g.sigma[k] = in[10 + k];
  g.opacity = in[16];
  g.filter = in[17];
  return g;
}

/// out: x, y, xx, xy, yy, opacity, 1 / z, det, det without dilation, drawable, radius, visible.
template <class V>
SPLAT_HD void evaluate_project(const Settings& s, const V* in, V* out) {
  Projection<V> p;
  project(read_gaussian(in), s.camera, form_of(s.options), p);
  bool visible = false;
  const V radius = original_radius(p, s.camera, visible);
  const V values[12] = {p.x,       p.y,         p.xx,  p.xy,      p.yy,
                        p.opacity, p.inverse_z, p.det, p.raw_det, V(p.in_front && p.sane),
                        radius,    V(visible)};
  for (int k = 0; k < 12; k++) out[k] = values[k];
}

/// in: a Gaussian, then the gradients of x, y, xx, xy, yy, opacity, 1 / z, z.
/// out: those of its 17 parameters, and of rotation and translation.
template <class V>
SPLAT_HD void evaluate_project_gradient(const Settings& s, const V* in, V* out) {
  const RawGaussian<V> raw = read_gaussian(in);
  Projection<V> p;
  project(raw, s.camera, form_of(s.options), p);
  const V* w = in + 18;
  const ScreenGradient<V> screen = {w[0], w[1], w[2], w[3], w[4], w[5], w[6], w[7]};
  GaussianGradient<V> g{};
  ViewGradient<V> view;
  project_gradient(raw, p, s.camera, form_of(s.options), screen, g, view);
  for (int k = 0; k < 3; k++) out[k] = g.position[k];
  for (int k = 0; k < 3; k++) out[3 + k] = g.scale[k];
  for (int k = 0; k < 4; k++) out[6 + k] = g.quat[k];
  for (int k = 0; k < 6; k++) out[10 + k] = g.sigma[k];
  out[16] = g.opacity;
  pose_gradient(raw.position, p, view, out + 17, out + 26);
}

template <class V>
SPLAT_HD Projection<V> screen_ellipse(const V* in) {  // xx, xy, yy
  Projection<V> p{};
  p.xx = in[0];
  p.xy = in[1];
  p.yy = in[2];
  p.det = in[0] * in[2] - in[1] * in[1];
  return p;
}

/// in: xx, xy, yy, opacity, dx, dy. out: a, b, c, u, v, log2(alpha), half width, half height, the
/// dy of the rightmost point.
template <class V>
SPLAT_HD void evaluate_conic(const V* in, V* out) {
  const Projection<V> p = screen_ellipse(in);
  const Conic<V> q = whitened_conic(p);
  const V log2_opacity = log2_positive(in[3]);
  const EllipseBounds<V> bounds = ellipse_bounds(p, q, log2_opacity - kLog2AlphaMin);
  out[0] = q.a;
  out[1] = q.b;
  out[2] = q.c;
  out[3] = q.a * in[4] + q.b * in[5];
  out[4] = q.c * in[5];
  out[5] = log2_alpha(out[3], out[4], log2_opacity);
  out[6] = bounds.half_width;
  out[7] = bounds.half_height;
  out[8] = bounds.rightmost_dy;
}

/// in: xx, xy, yy, opacity, the six moments, sums of |z u| and |z (b u + c v)|.
/// out: gradients of x, y, xx, xy, yy, opacity, absolute ones of x, y.
template <class V>
SPLAT_HD void evaluate_screen_gradient(const V* in, V* out) {
  const Conic<V> q = whitened_conic(screen_ellipse(in));
  const Moments<V> m = {in[4], in[5], in[6], in[7], in[8], in[9]};
  const ScreenGradient<V> g = screen_gradient(m, q, in[3], V(0));
  out[0] = g.x;
  out[1] = g.y;
  out[2] = g.xx;
  out[3] = g.xy;
  out[4] = g.yy;
  out[5] = g.opacity;
  absolute_gradient(q, in[10], in[11], out[6], out[7]);
}

/// in: xx, xy, yy, opacity, low, high. out: left, right.
template <class V>
SPLAT_HD void evaluate_band(const V* in, V* out) {
  const Projection<V> p = screen_ellipse(in);
  const Conic<V> q = whitened_conic(p);
  const V extent = log2_positive(in[3]) - kLog2AlphaMin;
  const EllipseBounds<V> bounds = ellipse_bounds(p, q, extent);
  band_interval(in[4], in[5], bounds.rightmost_dy, extent, q.c * q.c, V(1) / q.a, q.b / q.a, out[0],
                out[1]);
}

/// in: a Gaussian, then the gradient of n. out: n, gradient of the quaternion.
template <class V>
SPLAT_HD void evaluate_surface(const Settings& s, const V* in, V* out) {
  const RawGaussian<V> raw = read_gaussian(in);
  const Form form = form_of(s.options);
  Projection<V> p{};
  project(raw, s.camera, form, p);
  const SurfaceNormal<V> surface = surface_normal(raw, p, s.camera, form.activated);
  for (int k = 0; k < 3; k++) out[k] = surface.n[k];
  for (int k = 3; k < 7; k++) out[k] = 0;
  surface_normal_gradient(surface, p, in + 18, out + 3);
}

/// in: kLayers alphas, front to back. out: the weight of each, and the final transmittance.
template <class V>
SPLAT_HD void evaluate_blend(const V* in, V* out) {
  V t = 1, t_final = 1;
  for (int k = 0; k < kLayers; k++) {
    bool live = false;
    out[k] = blend_step(min(in[k], V(kAlphaMax)), t, t_final, live);
  }
  out[kLayers] = t_final;
}

/// in: kLayers alphas, colour . gradient of each, that of the background.
/// out: dL/d(ln alpha) and weight of each.
template <class V>
SPLAT_HD void evaluate_blend_gradient(const V* in, V* out) {
  V t = 1, t_final = 1;
  int end = 0;
  for (int k = 0; k < kLayers; k++) {
    bool live = false;
    blend_step(min(in[k], V(kAlphaMax)), t, t_final, live);
    if (live) end = k + 1;
  }
  t = t_final;
  V rest = t_final * in[2 * kLayers];
  for (int k = kLayers - 1; k >= 0; k--) {
    const BlendGradient<V> g =
        blend_step_gradient(k < end ? in[k] : V(0), in[kLayers + k], t, rest);
    out[k] = g.power;
    out[kLayers + k] = g.weight;
  }
}

constexpr int kSplatFloats = 14;  // x, y, a, b, c, log2(opacity), features 8
constexpr int kTestPixels = 3;    // at (0, 0), (3, 1), (1, 7)
constexpr int kPixelFloats = 9;   // q 8, (background . q) + gradient of the transmittance

template <class V>
SPLAT_HD Features<V> read_features(const V* in) {
  return {in[0], in[1], in[2], in[3], in[4], {in[5], in[6], in[7]}};
}

/// in: kLayers splats front to back, then kTestPixels pixels.
/// out: the 16 sums of each splat. The list is cut into buckets of two, as on a GPU: each begins at
/// what the one behind it left, found from the buckets' own sums.
template <class V>
SPLAT_HD void evaluate_pixel_gradient(const V* in, V* out) {
  constexpr int bucket = 2;
  const V* pixels = in + kLayers * kSplatFloats;
  for (int k = 0; k < kLayers * kFullMoments; k++) out[k] = 0;
  for (int p = 0; p < kTestPixels; p++) {
    const V ox = V(p == 1 ? 3.f : p == 2 ? 1.f : 0.f), oy = V(p == 1 ? 1.f : p == 2 ? 7.f : 0.f);
    const Features<V> q = read_features(pixels + p * kPixelFloats);
    V alpha[kLayers], u[kLayers], v[kLayers], front[kLayers / bucket + 1], own[kLayers / bucket];
    V t = 1, t_final = 1;
    for (int k = 0; k < kLayers; k++) {
      const V* s = in + k * kSplatFloats;
      u[k] = s[2] * (ox - s[0]) + s[3] * (oy - s[1]);
      v[k] = s[4] * (oy - s[1]);
      alpha[k] = log2_alpha(u[k], v[k], s[5]);
      const bool contributes = V(kLog2AlphaMin) <= alpha[k];
      exp2_each<1>(&alpha[k]);
      alpha[k] = zero_unless(contributes, alpha[k]);
      if (k % bucket == 0) front[k / bucket] = t_final, own[k / bucket] = 0;
      bool live = false;
      const V weight = blend_step(min(alpha[k], V(kAlphaMax)), t, t_final, live);
      own[k / bucket] += weight * dot_features<kFull>(read_features(s + 6), q);
      alpha[k] = zero_unless(live, alpha[k]);
    }
    front[kLayers / bucket] = t_final;
    V rest = t_final * pixels[p * kPixelFloats + 8];
    for (int b = kLayers / bucket - 1; b >= 0; b--) {
      Behind<V> behind = {front[b + 1], rest};
      for (int k = b * bucket + bucket - 1; k >= b * bucket; k--) {
        const V* s = in + k * kSplatFloats;
        pixel_gradient<kFull>(read_features(s + 6), q, s[3], s[4], u[k], v[k], alpha[k], behind,
                              out + k * kFullMoments);
      }
      rest += own[b];
    }
  }
}

template <class V>
SPLAT_HD void evaluate(Formula formula, const Settings& s, const V* in, V* out) {
  const int degree = s.camera.sh_degree;
  V distance;
  switch (formula) {
    case kProject:
      return evaluate_project(s, in, out);
    case kProjectGradient:
      return evaluate_project_gradient(s, in, out);
    case kConic:
      return evaluate_conic(in, out);
    case kScreenGradient:
      return evaluate_screen_gradient(in, out);
    case kBand:
      return evaluate_band(in, out);
    case kSurface:
      return evaluate_surface(s, in, out);
    case kBasis:
      return sh_basis(degree, in[0], in[1], in[2], out);
    case kBasisGradient:  // in: x y z, 16 gradients
      return sh_basis_gradient(degree, in[0], in[1], in[2], in + 3, out);
    case kDirection:
      return view_direction(in, s.camera, out, out[3]);
    case kDirectionGradient: {  // in: position, 3 gradients
      V direction[3];
      view_direction(in, s.camera, direction, distance);
      return view_direction_gradient(direction, distance, in + 3, out);
    }
    case kBlend:
      return evaluate_blend(in, out);
    case kBlendGradient:
      return evaluate_blend_gradient(in, out);
    case kPixelGradient:
      return evaluate_pixel_gradient(in, out);
    case kSsim: {
      const SsimTerms<V> terms = ssim_terms(in[0], in[1], in[2], in[3]);
      out[0] = terms.value;
      out[1] = 2 * terms.mean;
      out[2] = -terms.square;
      out[3] = 2 * terms.cross;
      return;
    }
    case kExponential:  // out: e^in, log2(|in|), 2^in twice
      out[0] = exp_bounded(in[0]);
      out[1] = log2_positive(abs(in[0]));
      out[2] = in[0];
      out[3] = in[0] / 2;
      return exp2_each<2>(out + 2);
    case kAdam:  // gradient, parameter, mean, square
      for (int k = 0; k < 3; k++) out[k] = in[1 + k];
      return adam_step(s.adam, in[0], out[0], out[1], out[2]);
  }
}

template <class V>
void evaluate_all(int formula, const Settings* s, int n, const V* in, int in_stride, V* out,
                  int out_stride) {
  for (int i = 0; i < n; i++) {
    evaluate(static_cast<Formula>(formula), *s, in + i * in_stride, out + i * out_stride);
  }
}

#if defined(__CUDACC__)
/// What the CUDA half relies on: every formula compiles for the device.
template <class V>
__global__ void evaluate_on_device(int formula, Settings s, int n, const V* in, int in_stride,
                                   V* out, int out_stride) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) {
    evaluate(static_cast<Formula>(formula), s, in + i * in_stride, out + i * out_stride);
  }
}
template __global__ void evaluate_on_device<float>(int, Settings, int, const float*, int, float*,
                                                   int);
#endif

}  // namespace

extern "C" {
int settings_bytes() { return static_cast<int>(sizeof(Settings)); }
void evaluate_float(int formula, const Settings* s, int n, const float* in, int in_stride,
                    float* out, int out_stride) {
  evaluate_all(formula, s, n, in, in_stride, out, out_stride);
}
void evaluate_double(int formula, const Settings* s, int n, const double* in, int in_stride,
                     double* out, int out_stride) {
  evaluate_all(formula, s, n, in, in_stride, out, out_stride);
}
}
