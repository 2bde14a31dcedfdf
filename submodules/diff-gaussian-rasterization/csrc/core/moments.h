// What is blended, and the sums over pixels that the blending backward leaves for each Gaussian,
// z = dL/d(ln alpha).
#pragma once

namespace splat {

/// Colour; with inverse depth; with depth, normals and absolute gradients too.
enum Level { kColour, kInverse, kFull };

enum Moment {
  kSum,  // of z, and so on: z u, z v, z u^2, z u v, z v^2
  kU,
  kV,
  kUU,
  kUV,
  kVV,
  kRed,
  kGreen,
  kBlue,
  kInverseDepth,
  kMoments,  // without the full level, which adds:
  kDepth = kMoments,
  kNormal,
  kAbsoluteX = kNormal + 3,  // |z u|
  kAbsoluteY,                // |z (b u + c v)|
  kFullMoments
};

}  // namespace splat
