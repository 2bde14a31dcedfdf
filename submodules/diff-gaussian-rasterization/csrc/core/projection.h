// From a Gaussian in the world to an ellipse on the screen (EWA splatting; Kerbl et al. 2023, Sec.
// 4).
//
// Letters: W = world-to-camera rotation, J = Jacobian of the projection, T = J W (2x3), R =
// rotation of the Gaussian, M = T R diag(scale) (2x3, rows m and n). Screen covariance = M M^T +
// dilation I. f = standard deviation of the 3D smoothing filter, which widens every scale s to
// s' = sqrt(s^2 + f^2).
#pragma once
#include "core/camera.h"
#include "core/constants.h"
#include "core/exponential.h"
#include "core/platform.h"

namespace splat {

/// How Gaussians are stored.
struct Form {
  bool activated;    // scales and opacities are values, not logarithms and logits
  bool precomputed;  // sigma instead of scale and quat
  bool filtered;     // with a 3D smoothing filter; not with a precomputed covariance
};

/// What a Gaussian brings; `opacity` is what the parameter holds (a logit when not activated).
template <class V>
struct RawGaussian {
  V position[3];
  V scale[3];
  V quat[4];   // w x y z, any length
  V sigma[6];  // xx xy xz yy yz zz, only with a precomputed covariance
  V opacity;
  V filter;  // f [world units], only when filtered
};

template <class V>
struct Projection {
  using Mask = decltype(V() < V());
  V camera[3];  // position in camera space; z of culled lanes is 1
  V inverse_z;
  V slope_x, slope_y;    // x / z, y / z, clamped
  Mask free_x, free_y;   // not clamped
  V x, y;                // [px]
  V j00, j02, j11, j12;  // J
  V t[6];                // T, row major
  V quat[4], inverse_norm, rotation[9];
  V scale[3];            // s' times the scale modifier
  V plain[3];            // s; only set when filtered, like the next two
  V plain_share[3];      // |s| / s'
  V filter_share[3];     // f / s'
  V coverage;            // product of |s| / s': what widens becomes fainter
  V m[6];                // M, row major; not set with a precomputed covariance
  V raw_xx, raw_yy, xy;  // covariance without dilation
  V xx, yy;              // with dilation
  V raw_det, det;
  V sigmoid, compensation, opacity;  // opacity = sigmoid * coverage * compensation
  Mask in_front, sane;
};

template <class V>
SPLAT_HD auto is_finite(V x) {
  return abs(x) <= V(3.4028235e38f);  // false for NaN
}
template <class V>
SPLAT_HD auto in_reach(V x) {
  return abs(x) <= V(kMaxWorld);
}

template <class V>
SPLAT_HD void project_position(const V* position, const Camera& c, Projection<V>& p) {
  for (int k = 0; k < 3; k++) {
    p.camera[k] = position[0] * c.rotation[3 * k] + position[1] * c.rotation[3 * k + 1] +
                  position[2] * c.rotation[3 * k + 2] + c.translation[k];
  }
  p.in_front = V(kNearPlane) < p.camera[2];
  p.camera[2] = select(p.in_front, p.camera[2], V(1.f));
  p.inverse_z = V(1.f) / p.camera[2];
  const V slope_x = p.camera[0] * p.inverse_z, slope_y = p.camera[1] * p.inverse_z;
  p.x = slope_x * c.fx + c.cx;
  p.y = slope_y * c.fy + c.cy;
  p.slope_x = min(max(slope_x, V(-c.limit_x)), V(c.limit_x));
  p.slope_y = min(max(slope_y, V(-c.limit_y)), V(c.limit_y));
  p.free_x = abs(slope_x) <= V(c.limit_x);
  p.free_y = abs(slope_y) <= V(c.limit_y);
  p.j00 = p.inverse_z * c.jacobian_fx;
  p.j11 = p.inverse_z * c.jacobian_fy;
  p.j02 = -p.j00 * p.slope_x;
  p.j12 = -p.j11 * p.slope_y;
  for (int k = 0; k < 3; k++) {
    p.t[k] = p.j00 * c.rotation[k] + p.j02 * c.rotation[6 + k];
    p.t[3 + k] = p.j11 * c.rotation[3 + k] + p.j12 * c.rotation[6 + k];
  }
}

/// Rotation matrix of the unit quaternion (r, x, y, z), row major.
template <class V>
SPLAT_HD void rotation_matrix(const V* quat, V* rotation) {
  const V r = quat[0], x = quat[1], y = quat[2], z = quat[3];
  rotation[0] = 1.f - 2.f * (y * y + z * z);
  rotation[1] = 2.f * (x * y - r * z);
  rotation[2] = 2.f * (x * z + r * y);
  rotation[3] = 2.f * (x * y + r * z);
  rotation[4] = 1.f - 2.f * (x * x + z * z);
  rotation[5] = 2.f * (y * z - r * x);
  rotation[6] = 2.f * (x * z - r * y);
  rotation[7] = 2.f * (y * z + r * x);
  rotation[8] = 1.f - 2.f * (x * x + y * y);
}

/// 3D smoothing filter (Yu et al., Mip-Splatting, CVPR 2024, Sec. 5.1): the Gaussian convolved with
/// an isotropic one of standard deviation f. f = 0 leaves it as it is, a zero scale included.
template <class V>
SPLAT_HD void smooth_scales(const RawGaussian<V>& g, Projection<V>& p) {
  p.sane = p.sane & in_reach(g.filter);
  const V f = zero_unless(V(kMinFilter) < abs(g.filter), g.filter);
  for (int k = 0; k < 3; k++) {
    const V s = abs(p.scale[k]);
    const V wide = max(sqrt(s * s + f * f), s);  // max: s * s may underflow
    p.plain[k] = p.scale[k];
    const auto wider = V(0.f) < wide;
    p.plain_share[k] = select(wider, s / wide, V(1.f));
    p.filter_share[k] = zero_unless(wider, f / wide);
    p.coverage *= p.plain_share[k];
    p.scale[k] = wide;
  }
}

/// Covariance and its determinant from scale and rotation. The Gram form |m x n|^2 of the
/// determinant keeps full precision for needles, where xx yy - xy^2 cancels.
template <class V>
SPLAT_HD void project_shape(const RawGaussian<V>& g, const Camera& c, Form form, Projection<V>& p) {
  for (int k = 0; k < 3; k++) p.scale[k] = form.activated ? g.scale[k] : exp_bounded(g.scale[k]);
  if (form.filtered) smooth_scales(g, p);
  for (int k = 0; k < 3; k++) {
    p.scale[k] *= c.scale_modifier;
    p.sane = p.sane & in_reach(p.scale[k]);
  }
  V norm2 = 0.f;
  for (int k = 0; k < 4; k++) norm2 += g.quat[k] * g.quat[k];
  p.sane = p.sane & (V(kMinQuatNorm2) < norm2) & (norm2 < V(kMaxQuatNorm2));
  p.inverse_norm = V(1.f) / sqrt(norm2);
  for (int k = 0; k < 4; k++) p.quat[k] = g.quat[k] * p.inverse_norm;
  rotation_matrix(p.quat, p.rotation);
  for (int i = 0; i < 2; i++) {
    for (int j = 0; j < 3; j++) {
      const V tr = p.t[3 * i] * p.rotation[j] + p.t[3 * i + 1] * p.rotation[3 + j] +
                   p.t[3 * i + 2] * p.rotation[6 + j];
      p.m[3 * i + j] = tr * p.scale[j];
    }
  }
  const V *m = p.m, *n = p.m + 3;
  p.raw_xx = m[0] * m[0] + m[1] * m[1] + m[2] * m[2];
  p.raw_yy = n[0] * n[0] + n[1] * n[1] + n[2] * n[2];
  p.xy = m[0] * n[0] + m[1] * n[1] + m[2] * n[2];
  const V cross_x = m[1] * n[2] - m[2] * n[1], cross_y = m[2] * n[0] - m[0] * n[2];
  const V cross_z = m[0] * n[1] - m[1] * n[0];
  p.raw_det = cross_x * cross_x + cross_y * cross_y + cross_z * cross_z;
}

/// The same from a precomputed covariance: det(T Sigma T^T) = w^T adj(Sigma) w with w = t0 x t1
/// (Cauchy-Binet), which again avoids the difference of products on the screen.
template <class V>
SPLAT_HD void project_covariance(const RawGaussian<V>& g, Projection<V>& p) {
  const V *s = g.sigma, *a = p.t, *b = p.t + 3;
  V sa[3], sb[3];  // Sigma t0, Sigma t1
  sa[0] = s[0] * a[0] + s[1] * a[1] + s[2] * a[2];
  sa[1] = s[1] * a[0] + s[3] * a[1] + s[4] * a[2];
  sa[2] = s[2] * a[0] + s[4] * a[1] + s[5] * a[2];
  sb[0] = s[0] * b[0] + s[1] * b[1] + s[2] * b[2];
  sb[1] = s[1] * b[0] + s[3] * b[1] + s[4] * b[2];
  sb[2] = s[2] * b[0] + s[4] * b[1] + s[5] * b[2];
  p.raw_xx = a[0] * sa[0] + a[1] * sa[1] + a[2] * sa[2];
  p.raw_yy = b[0] * sb[0] + b[1] * sb[1] + b[2] * sb[2];
  p.xy = a[0] * sb[0] + a[1] * sb[1] + a[2] * sb[2];
  const V w0 = a[1] * b[2] - a[2] * b[1], w1 = a[2] * b[0] - a[0] * b[2];
  const V w2 = a[0] * b[1] - a[1] * b[0];
  const V diagonal = w0 * w0 * (s[3] * s[5] - s[4] * s[4]) + w1 * w1 * (s[0] * s[5] - s[2] * s[2]) +
                     w2 * w2 * (s[0] * s[3] - s[1] * s[1]);
  const V mixed = w0 * w1 * (s[2] * s[4] - s[1] * s[5]) + w0 * w2 * (s[1] * s[4] - s[2] * s[3]) +
                  w1 * w2 * (s[1] * s[2] - s[0] * s[4]);
  p.raw_det = max(diagonal + 2.f * mixed, V(0.f));
  p.sane = p.sane & (V(0.f) <= p.raw_xx) & (V(0.f) <= p.raw_yy);
}

/// Everything about 16 (or one) Gaussians on the screen. `sane` is false where a value is NaN, or
/// so large or degenerate that float32 cannot hold what follows; written so that NaN fails.
template <class V>
SPLAT_HD void project(const RawGaussian<V>& g, const Camera& c, Form form, Projection<V>& p) {
  project_position(g.position, c, p);
  p.sane =
      is_finite(g.opacity) & in_reach(p.camera[0]) & in_reach(p.camera[1]) & in_reach(p.camera[2]);
  for (int k = 0; k < 3; k++) p.sane = p.sane & is_finite(g.position[k]);
  p.coverage = 1.f;
  if (form.precomputed) {
    for (int k = 0; k < 6; k++) p.sane = p.sane & (abs(g.sigma[k]) <= V(kMaxWorld * kMaxWorld));
  } else {
    for (int k = 0; k < 3; k++) p.sane = p.sane & is_finite(g.scale[k]);
    for (int k = 0; k < 4; k++) p.sane = p.sane & is_finite(g.quat[k]);
  }
  if (form.precomputed) {
    project_covariance(g, p);
  } else {
    project_shape(g, c, form, p);
  }
  p.xx = p.raw_xx + c.dilation;
  p.yy = p.raw_yy + c.dilation;
  p.det = p.raw_det + c.dilation * (p.raw_xx + p.raw_yy) + c.dilation * c.dilation;
  p.sane = p.sane & (p.xx + p.yy <= V(kMaxCovariance)) & (V(kMinDeterminant) <= p.det) &
           (p.det < V(kMaxCovariance * kMaxCovariance));
  p.sigmoid = form.activated ? g.opacity : V(1.f) / (1.f + exp_bounded(-g.opacity));
  p.compensation = c.antialiasing ? sqrt(max(p.raw_det / p.det, V(kAntialiasMin))) : V(1.f);
  p.opacity = p.sigmoid * p.compensation;
  if (form.filtered) p.opacity *= p.coverage;
}

/// Radius [px] of the original rasterizer, ceil(3 sqrt(larger eigenvalue)), and whether the
/// original calls the Gaussian visible: its square of that radius meets the grid of 16x16 tiles,
/// whose last tile is rounded as (x + r + 15) / 16, so that pixel index 1 must be reached from the
/// left.
template <class V>
SPLAT_HD V original_radius(const Projection<V>& p, const Camera& c, decltype(V() < V())& visible) {
  const V middle = 0.5f * (p.xx + p.yy);
  const V largest = middle + sqrt(max(middle * middle - p.det, V(0.1f)));
  const V radius = min(ceil(3.f * sqrt(largest)), V(kMaxRadius));
  const int columns = (c.width + kRadiusTile - 1) / kRadiusTile;
  const int rows = (c.height + kRadiusTile - 1) / kRadiusTile;
  visible = p.in_front & p.sane & (V(1.f) <= p.x + radius) & (V(1.f) <= p.y + radius) &
            (p.x - radius < V(static_cast<float>(columns * kRadiusTile))) &
            (p.y - radius < V(static_cast<float>(rows * kRadiusTile)));
  return radius;
}

}  // namespace splat
