// Real spherical harmonics up to degree 3, signs and order of the 3DGS code (Ramamoorthi &
// Hanrahan).
#pragma once
#include "core/camera.h"
#include "core/platform.h"

namespace splat {

constexpr float kSh0 = 0.28209479177387814f;
constexpr float kSh1 = 0.4886025119029199f;
// One by one: device code cannot read an array of the host.
constexpr float kSh2a = 1.0925484305920792f, kSh2b = 0.31539156525252005f,
                kSh2c = 0.5462742152960396f;
constexpr float kSh3a = 0.5900435899266435f, kSh3b = 2.890611442640554f,
                kSh3c = 0.4570457994644658f, kSh3d = 0.3731763325901154f,
                kSh3e = 1.445305721320277f;

/// Unit vector from the camera to the Gaussian, and 1 / distance.
template <class V>
SPLAT_HD void view_direction(const V* position, const Camera& camera, V* direction,
                             V& inverse_distance) {
  for (int k = 0; k < 3; k++) direction[k] = position[k] - camera.centre[k];
  const V squared =
      direction[0] * direction[0] + direction[1] * direction[1] + direction[2] * direction[2];
  inverse_distance = V(1.f) / sqrt(max(squared, V(1e-30f)));
  for (int k = 0; k < 3; k++) direction[k] *= inverse_distance;
}

/// From dL/ddirection to dL/dposition (its negative is dL/dcentre).
template <class V>
SPLAT_HD void view_direction_gradient(const V* direction, V inverse_distance, const V* gradient,
                                      V* g) {
  const V radial =
      gradient[0] * direction[0] + gradient[1] * direction[1] + gradient[2] * direction[2];
  for (int k = 0; k < 3; k++) g[k] = (gradient[k] - direction[k] * radial) * inverse_distance;
}

/// b[k] = basis function k at the unit direction (x, y, z), k < (degree + 1)^2.
template <class V>
SPLAT_HD void sh_basis(int degree, V x, V y, V z, V* b) {
  b[0] = kSh0;
  if (degree < 1) return;
  b[1] = -kSh1 * y;
  b[2] = kSh1 * z;
  b[3] = -kSh1 * x;
  if (degree < 2) return;
  const V xx = x * x, yy = y * y, zz = z * z;
  b[4] = kSh2a * (x * y);
  b[5] = -kSh2a * (y * z);
  b[6] = kSh2b * (2.f * zz - xx - yy);
  b[7] = -kSh2a * (x * z);
  b[8] = kSh2c * (xx - yy);
  if (degree < 3) return;
  b[9] = -kSh3a * y * (3.f * xx - yy);
  b[10] = kSh3b * (x * y) * z;
  b[11] = -kSh3c * y * (4.f * zz - xx - yy);
  b[12] = kSh3d * z * (2.f * zz - 3.f * xx - 3.f * yy);
  b[13] = -kSh3c * x * (4.f * zz - xx - yy);
  b[14] = kSh3e * z * (xx - yy);
  b[15] = -kSh3a * x * (xx - 3.f * yy);
}

/// g = gradient of sum_k q[k] basis_k with respect to (x, y, z), taken as independent.
template <class V>
SPLAT_HD void sh_basis_gradient(int degree, V x, V y, V z, const V* q, V* g) {
  if (degree < 1) {
    g[0] = g[1] = g[2] = 0.f;
    return;
  }
  g[0] = -kSh1 * q[3];
  g[1] = -kSh1 * q[1];
  g[2] = kSh1 * q[2];
  if (degree < 2) return;
  g[0] += kSh2a * y * q[4] - 2.f * kSh2b * x * q[6] - kSh2a * z * q[7];
  g[0] += 2.f * kSh2c * x * q[8];
  g[1] += kSh2a * x * q[4] - kSh2a * z * q[5] - 2.f * kSh2b * y * q[6];
  g[1] -= 2.f * kSh2c * y * q[8];
  g[2] += -kSh2a * y * q[5] + 4.f * kSh2b * z * q[6] - kSh2a * x * q[7];
  if (degree < 3) return;
  const V xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  g[0] += -6.f * kSh3a * xy * q[9] + kSh3b * yz * q[10] + 2.f * kSh3c * xy * q[11];
  g[0] += -kSh3c * (4.f * zz - 3.f * xx - yy) * q[13] - 6.f * kSh3d * xz * q[12];
  g[0] += 2.f * kSh3e * xz * q[14] - 3.f * kSh3a * (xx - yy) * q[15];
  g[1] += -3.f * kSh3a * (xx - yy) * q[9] + kSh3b * xz * q[10];
  g[1] += -kSh3c * (4.f * zz - xx - 3.f * yy) * q[11] - 6.f * kSh3d * yz * q[12];
  g[1] += 2.f * kSh3c * xy * q[13] - 2.f * kSh3e * yz * q[14] + 6.f * kSh3a * xy * q[15];
  g[2] += kSh3b * xy * q[10] - 8.f * kSh3c * yz * q[11];
  g[2] += kSh3d * (6.f * zz - 3.f * xx - 3.f * yy) * q[12] - 8.f * kSh3c * xz * q[13];
  g[2] += kSh3e * (xx - yy) * q[14];
}

}  // namespace splat
