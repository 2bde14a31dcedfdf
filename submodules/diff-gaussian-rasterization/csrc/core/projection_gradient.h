// Derivatives of projection.h and conic.h: from gradients on the screen to those of the parameters.
#pragma once
#include "core/camera.h"
#include "core/conic.h"
#include "core/constants.h"
#include "core/platform.h"
#include "core/projection.h"

namespace splat {

template <class V>
struct ScreenGradient {
  V x, y;        // dL/d position [1/px]
  V xx, xy, yy;  // dL/d covariance; xy for both off-diagonal entries together
  V opacity;     // dL/d effective opacity
  V inverse_depth, depth;
};

/// Sums over pixels of z = dL/d(ln alpha) times 1, u, v, u^2, u v, v^2.
template <class V>
struct Moments {
  V one, u, v, uu, uv, vv;
};

/// With d = pixel - centre, Sigma^-1 d = (a u, b u + c v) / k and k = log2(e) / 2.
template <class V>
SPLAT_HD ScreenGradient<V> screen_gradient(const Moments<V>& m, const Conic<V>& q, V opacity,
                                           V inverse_depth) {
  constexpr float k1 = 1.f / kHalfLog2E, k2 = k1 * k1;
  ScreenGradient<V> g;
  g.x = k1 * q.a * m.u;
  g.y = k1 * (q.b * m.u + q.c * m.v);
  g.xx = (0.5f * k2) * q.a * q.a * m.uu;
  g.yy = (0.5f * k2) * (q.b * q.b * m.uu + 2.f * q.b * q.c * m.uv + q.c * q.c * m.vv);
  g.xy = k2 * q.a * (q.b * m.uu + q.c * m.uv);
  g.opacity = m.one / opacity;
  g.inverse_depth = inverse_depth;
  g.depth = 0.f;
  return g;
}

/// Sums over pixels of |dL/dx| and |dL/dy| from those of |z u| and |z (b u + c v)| (a > 0).
template <class V>
SPLAT_HD void absolute_gradient(const Conic<V>& q, V sum_u, V sum_bu_cv, V& x, V& y) {
  constexpr float k1 = 1.f / kHalfLog2E;
  x = k1 * q.a * sum_u;
  y = k1 * sum_bu_cv;
}

template <class V>
struct GaussianGradient {
  V position[3], scale[3], quat[4], sigma[6], opacity;
};

/// What the camera's pose needs.
template <class V>
struct ViewGradient {
  V camera[3];  // dL/d position in camera space
  V t[6];       // dL/dT, through the covariance
};

/// Antialiasing: opacity = base sqrt(det0 / det); adds what flows into the covariance.
template <class V>
SPLAT_HD void antialias_gradient(const Projection<V>& p, const Camera& c, ScreenGradient<V>& s) {
  const V inverse_det = V(1.f) / p.det, ratio = p.raw_det * inverse_det;
  const auto active = V(kAntialiasMin) <= ratio;
  const V g_ratio =
      zero_unless(active, s.opacity * (p.sigmoid * p.coverage) * 0.5f / p.compensation);
  const V g_det = -g_ratio * ratio * inverse_det;
  const V g_raw_det = g_ratio * inverse_det + g_det;  // det = det0 + dilation (xx + yy) + ...
  s.xx += g_det * c.dilation + g_raw_det * p.raw_yy;
  s.yy += g_det * c.dilation + g_raw_det * p.raw_xx;
  s.xy -= 2.f * g_raw_det * p.xy;
}

/// Quaternion (w x y z, any length) from dL/dR of its normalised rotation matrix.
template <class V>
SPLAT_HD void quaternion_gradient(const Projection<V>& p, const V* gr, V* g) {
  const V r = p.quat[0], x = p.quat[1], y = p.quat[2], z = p.quat[3];
  const V q[4] = {2.f * (x * (gr[7] - gr[5]) + y * (gr[2] - gr[6]) + z * (gr[3] - gr[1])),
                  2.f * (y * (gr[1] + gr[3]) + z * (gr[2] + gr[6]) + r * (gr[7] - gr[5]) -
                         2.f * x * (gr[4] + gr[8])),
                  2.f * (x * (gr[1] + gr[3]) + z * (gr[5] + gr[7]) + r * (gr[2] - gr[6]) -
                         2.f * y * (gr[0] + gr[8])),
                  2.f * (x * (gr[2] + gr[6]) + y * (gr[5] + gr[7]) + r * (gr[3] - gr[1]) -
                         2.f * z * (gr[0] + gr[4]))};
  const V radial = q[0] * r + q[1] * x + q[2] * y + q[3] * z;
  for (int k = 0; k < 4; k++) g[k] = (q[k] - p.quat[k] * radial) * p.inverse_norm;
}

/// From s' back to s (both, or both their logarithms), and through the opacity's factor s / s':
/// d ln(s / s') = (f / s')^2 d ln s. `opacity` = dL/d(opacity) times the opacity.
template <class V>
SPLAT_HD void smoothing_gradient(const Projection<V>& p, bool activated, V opacity, V* scale) {
  for (int k = 0; k < 3; k++) {
    const V s = p.plain[k], share = p.plain_share[k];
    const V through_opacity = opacity * p.filter_share[k] * p.filter_share[k];
    if (activated) {
      const V signed_share = select(s < V(0.f), -share, share);
      scale[k] = scale[k] * signed_share + zero_unless(V(0.f) < abs(s), through_opacity / s);
    } else {
      scale[k] = scale[k] * share * share + through_opacity;
    }
  }
}

/// dL/dT from the covariance M M^T with M = T R diag(scale); also scale and rotation.
template <class V>
SPLAT_HD void shape_gradient(const Projection<V>& p, const Camera& c, bool activated,
                             const ScreenGradient<V>& s, V* gt, GaussianGradient<V>& g) {
  V gr[9];
  for (int k = 0; k < 6; k++) gt[k] = 0.f;
  for (int j = 0; j < 3; j++) {
    const V m = p.m[j], n = p.m[3 + j];
    const V gm = 2.f * s.xx * m + s.xy * n, gn = 2.f * s.yy * n + s.xy * m;
    if (activated) {
      const V tr0 =
          p.t[0] * p.rotation[j] + p.t[1] * p.rotation[3 + j] + p.t[2] * p.rotation[6 + j];
      const V tr1 =
          p.t[3] * p.rotation[j] + p.t[4] * p.rotation[3 + j] + p.t[5] * p.rotation[6 + j];
      g.scale[j] = c.scale_modifier * (gm * tr0 + gn * tr1);
    } else {
      g.scale[j] = gm * m + gn * n;  // d/d log(scale)
    }
    const V scaled_gm = gm * p.scale[j], scaled_gn = gn * p.scale[j];
    for (int k = 0; k < 3; k++) {
      gt[k] += scaled_gm * p.rotation[3 * k + j];
      gt[3 + k] += scaled_gn * p.rotation[3 * k + j];
      gr[3 * k + j] = scaled_gm * p.t[k] + scaled_gn * p.t[3 + k];
    }
  }
  quaternion_gradient(p, gr, g.quat);
}

/// dL/dT and dL/dSigma of T Sigma T^T; off-diagonal entries of Sigma count twice.
template <class V>
SPLAT_HD void covariance_gradient(const RawGaussian<V>& raw, const Projection<V>& p,
                                  const ScreenGradient<V>& s, V* gt, GaussianGradient<V>& g) {
  constexpr int index[3][3] = {{0, 1, 2}, {1, 3, 4}, {2, 4, 5}};
  const V *a = p.t, *b = p.t + 3;
  for (int i = 0; i < 3; i++) {
    V sa = 0.f, sb = 0.f;
    for (int j = 0; j < 3; j++) {
      sa += raw.sigma[index[i][j]] * a[j];
      sb += raw.sigma[index[i][j]] * b[j];
    }
    gt[i] = 2.f * s.xx * sa + s.xy * sb;
    gt[3 + i] = 2.f * s.yy * sb + s.xy * sa;
    for (int j = i; j < 3; j++) {
      const V entry =
          s.xx * a[i] * a[j] + s.yy * b[i] * b[j] + 0.5f * s.xy * (a[i] * b[j] + a[j] * b[i]);
      g.sigma[index[i][j]] = i == j ? entry : 2.f * entry;
    }
  }
}

/// Position from dL/dT (through J) and from the pixel position. The exact derivative, also where
/// x / z is clamped (the original treats the clamped value as a constant times z).
template <class V>
SPLAT_HD void position_gradient(const Projection<V>& p, const Camera& c, const ScreenGradient<V>& s,
                                const V* gt, V* camera, V* g) {
  const float* r = c.rotation;
  const V g00 = gt[0] * r[0] + gt[1] * r[1] + gt[2] * r[2];
  const V g02 = gt[0] * r[6] + gt[1] * r[7] + gt[2] * r[8];
  const V g11 = gt[3] * r[3] + gt[4] * r[4] + gt[5] * r[5];
  const V g12 = gt[3] * r[6] + gt[4] * r[7] + gt[5] * r[8];
  const V g_slope_x = s.x * c.fx - zero_unless(p.free_x, g02 * p.j00);
  const V g_slope_y = s.y * c.fy - zero_unless(p.free_y, g12 * p.j11);
  V g_inverse_z = c.jacobian_fx * (g00 - g02 * p.slope_x) + c.jacobian_fy * (g11 - g12 * p.slope_y);
  g_inverse_z += s.inverse_depth + g_slope_x * p.camera[0] + g_slope_y * p.camera[1];
  camera[0] = g_slope_x * p.inverse_z;
  camera[1] = g_slope_y * p.inverse_z;
  camera[2] = s.depth - g_inverse_z * p.inverse_z * p.inverse_z;
  for (int k = 0; k < 3; k++) {
    g[k] = camera[0] * r[k] + camera[1] * r[3 + k] + camera[2] * r[6 + k];
  }
}

template <class V>
SPLAT_HD void project_gradient(const RawGaussian<V>& raw, const Projection<V>& p, const Camera& c,
                               Form form, ScreenGradient<V> s, GaussianGradient<V>& g,
                               ViewGradient<V>& view) {
  if (c.antialiasing) antialias_gradient(p, c, s);
  if (form.precomputed) {
    covariance_gradient(raw, p, s, view.t, g);
  } else {
    shape_gradient(p, c, form.activated, s, view.t, g);
    if (form.filtered) {
      smoothing_gradient(p, form.activated, s.opacity * p.opacity, g.scale);
    }
  }
  position_gradient(p, c, s, view.t, view.camera, g.position);
  g.opacity = s.opacity * p.compensation;
  if (form.filtered) g.opacity *= p.coverage;
  if (!form.activated) g.opacity *= p.sigmoid * (1.f - p.sigmoid);
}

/// One Gaussian's part of dL/d(W, t) with p_c = W p + t, every entry of W taken as free: through
/// the position in camera space, and through T = J W. (The camera centre, on which the colour
/// depends, counts as a third variable.)
template <class V>
SPLAT_HD void pose_gradient(const V* position, const Projection<V>& p, const ViewGradient<V>& view,
                            V* rotation, V* translation) {
  for (int k = 0; k < 3; k++) {
    const V gm = view.t[k], gn = view.t[3 + k];
    rotation[k] = view.camera[0] * position[k] + p.j00 * gm;
    rotation[3 + k] = view.camera[1] * position[k] + p.j11 * gn;
    rotation[6 + k] = view.camera[2] * position[k] + p.j02 * gm + p.j12 * gn;
    translation[k] = view.camera[k];
  }
}

}  // namespace splat
