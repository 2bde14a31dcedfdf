// Constants of the splatting model (Kerbl et al. 2023 and its published code).
#pragma once

namespace splat {

constexpr float kNearPlane = 0.2f;        // camera z at or below this is culled
constexpr float kAlphaMax = 0.99f;        // opacity cap of one splat at one pixel
constexpr float kAlphaMin = 1.f / 255.f;  // a splat contributes to a pixel from here on
constexpr float kLog2AlphaMin = -7.99435344f;
constexpr float kTransmittanceMin = 1e-4f;  // a pixel is finished before it falls below
constexpr float kHalfLog2E = 0.72134752f;   // exp(-q / 2) = 2^(-kHalfLog2E q)
constexpr float kFrustumMargin = 1.3f;      // |x / z| is clamped to this times tan(fov / 2) in J
constexpr float kAntialiasMin = 2.5e-5f;    // lower bound of det(cov) / det(cov + dilation)
constexpr int kRadiusTile = 16;             // tile of the original rasterizer; only `radii` uses it

// Limits that keep every intermediate finite in float32. A splat outside them is culled and
// counted.
constexpr float kMaxWorld = 1e15f;         // |camera-space coordinate|, scale
constexpr float kMaxCovariance = 1e18f;    // [px^2]
constexpr float kMinDeterminant = 1e-12f;  // [px^4]
constexpr float kMaxColour = 1e10f;
constexpr float kMinFilter = 1e-18f;  // smaller ones are 0: their square would be denormal
constexpr float kMinQuatNorm2 = 1e-30f;
constexpr float kMaxQuatNorm2 = 1e30f;
constexpr float kMaxRadius = 1073741824.f;  // 2^30 px, so that it fits an int32

}  // namespace splat
