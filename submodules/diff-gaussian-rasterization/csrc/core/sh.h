// Real spherical harmonics up to degree 3, signs and order of the 3DGS code (Ramamoorthi &
// Hanrahan).
#pragma once
#include "core/platform.h"

namespace splat {

constexpr float kSh0 = 0.28209479177387814f;
constexpr float kSh1 = 0.4886025119029199f;
constexpr float kSh2[5] = {1.0925484305920792f, -1.0925484305920792f, 0.31539156525252005f,
                           -1.0925484305920792f, 0.5462742152960396f};
constexpr float kSh3[7] = {-0.5900435899266435f, 2.890611442640554f,   -0.4570457994644658f,
                           0.3731763325901154f,  -0.4570457994644658f, 1.445305721320277f,
                           -0.5900435899266435f};

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
  b[4] = kSh2[0] * (x * y);
  b[5] = kSh2[1] * (y * z);
  b[6] = kSh2[2] * (2.f * zz - xx - yy);
  b[7] = kSh2[3] * (x * z);
  b[8] = kSh2[4] * (xx - yy);
  if (degree < 3) return;
  b[9] = kSh3[0] * y * (3.f * xx - yy);
  b[10] = kSh3[1] * (x * y) * z;
  b[11] = kSh3[2] * y * (4.f * zz - xx - yy);
  b[12] = kSh3[3] * z * (2.f * zz - 3.f * xx - 3.f * yy);
  b[13] = kSh3[4] * x * (4.f * zz - xx - yy);
  b[14] = kSh3[5] * z * (xx - yy);
  b[15] = kSh3[6] * x * (xx - 3.f * yy);
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
  g[0] += kSh2[0] * y * q[4] - 2.f * kSh2[2] * x * q[6] + kSh2[3] * z * q[7];
  g[0] += 2.f * kSh2[4] * x * q[8];
  g[1] += kSh2[0] * x * q[4] + kSh2[1] * z * q[5] - 2.f * kSh2[2] * y * q[6];
  g[1] -= 2.f * kSh2[4] * y * q[8];
  g[2] += kSh2[1] * y * q[5] + 4.f * kSh2[2] * z * q[6] + kSh2[3] * x * q[7];
  if (degree < 3) return;
  const V xx = x * x, yy = y * y, zz = z * z, xy = x * y, yz = y * z, xz = x * z;
  g[0] += 6.f * kSh3[0] * xy * q[9] + kSh3[1] * yz * q[10] - 2.f * kSh3[2] * xy * q[11];
  g[0] += kSh3[4] * (4.f * zz - 3.f * xx - yy) * q[13] - 6.f * kSh3[3] * xz * q[12];
  g[0] += 2.f * kSh3[5] * xz * q[14] + 3.f * kSh3[6] * (xx - yy) * q[15];
  g[1] += 3.f * kSh3[0] * (xx - yy) * q[9] + kSh3[1] * xz * q[10];
  g[1] += kSh3[2] * (4.f * zz - xx - 3.f * yy) * q[11] - 6.f * kSh3[3] * yz * q[12];
  g[1] -= 2.f * kSh3[4] * xy * q[13] + 2.f * kSh3[5] * yz * q[14] + 6.f * kSh3[6] * xy * q[15];
  g[2] += kSh3[1] * xy * q[10] + 8.f * kSh3[2] * yz * q[11];
  g[2] += kSh3[3] * (6.f * zz - 3.f * xx - 3.f * yy) * q[12] + 8.f * kSh3[4] * xz * q[13];
  g[2] += kSh3[5] * (xx - yy) * q[14];
}

}  // namespace splat
