// A pinhole camera as the rasterizer sees it. Axes: x right, y down, z forward (OpenCV).
#pragma once

namespace splat {

struct Camera {
  float rotation[9];  // world to camera, row major
  float translation[3];
  float centre[3];       // camera position in the world, for the viewing direction
  float fx, fy, cx, cy;  // [px]; pixel (i, j) is sampled at x = i, y = j (centre-origin pixels)
  float jacobian_fx,
      jacobian_fy;         // [px]; focal lengths of J; equal to fx, fy for consistent cameras
  float limit_x, limit_y;  // |x / z| is clamped to these in J
  float background[3];
  float scale_modifier;
  float dilation;  // [px^2], added to both variances
  int width, height;
  int sh_degree;
  bool antialiasing;
};

}  // namespace splat
