// A Gaussian as a piece of surface: its normal is its shortest axis, turned towards the camera.
//
// Letters: R = rotation of the Gaussian; n = R axis with axis = +-1 at the smallest scale, else 0.
// Which axis that is and its sign are constants of the derivative: both change in steps.
#pragma once
#include "core/camera.h"
#include "core/platform.h"
#include "core/projection.h"
#include "core/projection_gradient.h"

namespace splat {

template <class V>
struct SurfaceNormal {
  V axis[3];
  V n[3];  // unit vector, world axes
};

/// Needs scales and quaternions. On a tie the first of the axes; edge-on it keeps its own sign.
template <class V>
SPLAT_HD SurfaceNormal<V> surface_normal(const RawGaussian<V>& g, const Projection<V>& p,
                                         const Camera& c, bool activated) {
  V size[3];
  for (int k = 0; k < 3; k++) size[k] = activated ? abs(g.scale[k]) : g.scale[k];
  const auto second = size[1] < size[0];
  const auto third = size[2] < min(size[1], size[0]);
  const V zero = 0.f, one = 1.f;
  SurfaceNormal<V> s;
  s.axis[0] = select(third, zero, select(second, zero, one));
  s.axis[1] = select(third, zero, select(second, one, zero));
  s.axis[2] = select(third, one, zero);
  V away = 0.f;  // n . (mean - camera centre)
  for (int k = 0; k < 3; k++) {
    s.n[k] = p.rotation[3 * k] * s.axis[0] + p.rotation[3 * k + 1] * s.axis[1] +
             p.rotation[3 * k + 2] * s.axis[2];
    away += s.n[k] * (g.position[k] - c.centre[k]);
  }
  const V sign = select(zero < away, V(-1.f), one);
  for (int k = 0; k < 3; k++) {
    s.axis[k] *= sign;
    s.n[k] *= sign;
  }
  return s;
}

/// Adds to the quaternion's gradient what dL/dn brings.
template <class V>
SPLAT_HD void surface_normal_gradient(const SurfaceNormal<V>& s, const Projection<V>& p,
                                      const V* gradient, V* quat) {
  V rotation[9], added[4];
  for (int k = 0; k < 3; k++) {
    for (int j = 0; j < 3; j++) rotation[3 * k + j] = gradient[k] * s.axis[j];
  }
  quaternion_gradient(p, rotation, added);
  for (int k = 0; k < 4; k++) quat[k] += added[k];
}

}  // namespace splat
