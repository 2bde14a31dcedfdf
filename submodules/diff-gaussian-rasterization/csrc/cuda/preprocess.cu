// Stage 1: activation, projection, culling, colour, and how many tiles the ellipse meets; one
// record for each drawn Gaussian. One thread a Gaussian.
#include <cuda_runtime.h>

#include "core/tiles.h"
// (it brings the operations on built-in types first)
#include "core/surface.h"
#include "cuda/gaussian.cuh"
#include "cuda/pipeline.h"

namespace splat::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kWarps = kThreads / kWarp;
constexpr int kNoHarmonics = -1;  // as degree: colours are given
constexpr int kManyRows = 4;      // of tiles: from here on the warp counts together

/// Where results go.
struct Outputs {
  Record* records;
  Surface* surfaces;  // null = not wanted
  uint32_t* flags;
  float* radii;
  int32_t* radii_out;  // null = not wanted
  uint32_t* keys;
  uint32_t* tiles;
  Counts* counts;
};

/// What a Gaussian is on the screen.
struct OnScreen {
  Projection<float> p;
  Conic<float> conic;
  float log2_opacity, extent, radius;
  bool visible, drawn, clamped[3];
  float colour[3];
};

__device__ bool within_image(const OnScreen& s, const Camera& camera) {
  const Projection<float>& p = s.p;
  const EllipseBounds<float> bounds = ellipse_bounds(p, s.conic, s.extent);
  return 0.f <= p.x + bounds.half_width && 0.f <= p.y + bounds.half_height &&
         p.x - bounds.half_width <= static_cast<float>(camera.width - 1) &&
         p.y - bounds.half_height <= static_cast<float>(camera.height - 1);
}

/// All but the colour.
__device__ void place_on_screen(const Scene& scene, const Camera& camera,
                                const RawGaussian<float>& raw, OnScreen& s) {
  project(raw, camera, form_of(scene), s.p);
  s.radius = original_radius(s.p, camera, s.visible);
  s.log2_opacity = log2_positive(s.p.opacity);
  s.extent = s.log2_opacity - kLog2AlphaMin;
  s.conic = whitened_conic(s.p);
  s.drawn = s.p.in_front && s.p.sane && within_image(s, camera) && kAlphaMin <= s.p.opacity;
}

/// Colour before clamping: 0.5 + sum_k basis_k(direction) sh_k. `row` = the Gaussian's row of shN.
template <int kDegree>
__device__ void view_colour(const Scene& scene, const Camera& camera, const RawGaussian<float>& raw,
                            int64_t i, const float* row, float* colour) {
  float direction[3], inverse_distance, basis[16];
  view_direction(raw.position, camera, direction, inverse_distance);
  sh_basis(kDegree, direction[0], direction[1], direction[2], basis);
  for (int c = 0; c < 3; c++) colour[c] = basis[0] * scene.p.sh0[i * scene.sh0_stride + c] + 0.5f;
#pragma unroll
  for (int k = 0; k < sh_floats(kDegree); k++) colour[k % 3] += basis[1 + k / 3] * row[k];
}

/// The warp calls it together; lanes that do not draw leave their colours alone.
template <int kDegree, class T>
__device__ void colour_of(const Scene& scene, const Camera& camera, const RawGaussian<float>& raw,
                          int64_t i, float* rows, OnScreen& s) {
  if constexpr (kDegree == kNoHarmonics) {
    if (!s.drawn) return;
    for (int c = 0; c < 3; c++) s.colour[c] = scene.p.colors[3 * i + c];
  } else {
    const float* row = nullptr;
    if constexpr (kDegree > 0) {
      stage_sh<kDegree, T>(scene, i - lane_index(), __ballot_sync(kAllLanes, s.drawn), rows);
      row = rows + lane_index() * sh_pitch(kDegree);
    }
    if (s.drawn) view_colour<kDegree>(scene, camera, raw, i, row, s.colour);
  }
}

/// Colours beyond float32's reach are refused, those below 0 clamped.
template <int kDegree>
__device__ void check_colour(OnScreen& s) {
  bool bounded = true;
  for (int c = 0; c < 3; c++) bounded = bounded && fabsf(s.colour[c]) <= kMaxColour;
  s.p.sane = s.p.sane && bounded;
  s.drawn = s.drawn && bounded;
  s.visible = s.visible && s.p.sane;
  if constexpr (kDegree != kNoHarmonics) {
    for (int c = 0; c < 3; c++) {
      s.clamped[c] = s.colour[c] < 0.f;
      s.colour[c] = max(s.colour[c], 0.f);
    }
  }
}

__device__ uint32_t flags_of(const OnScreen& s) {
  uint32_t flags = (s.drawn ? kDrawn : 0) | (s.visible ? kVisible : 0);
  for (int c = 0; c < 3; c++) flags |= s.drawn && s.clamped[c] ? kClampedRed << c : 0;
  return flags;
}

__device__ void write_surface(const Scene& scene, const Camera& camera,
                              const RawGaussian<float>& raw, const OnScreen& s, Surface& to) {
  SurfaceNormal<float> normal{};
  if (!scene.p.sigma) normal = surface_normal(raw, s.p, camera, scene.activated);
  to = {s.p.camera[2], {normal.n[0], normal.n[1], normal.n[2]}};
}

__device__ float broadcast(float x, int lane) { return __shfl_sync(kAllLanes, x, lane); }

__device__ CullEllipse<float> broadcast(const CullEllipse<float>& e, int lane) {
  return {broadcast(e.x, lane),
          broadcast(e.y, lane),
          broadcast(e.extent, lane),
          broadcast(e.half_height, lane),
          broadcast(e.rightmost_dy, lane),
          broadcast(e.c_squared, lane),
          broadcast(e.inverse_a, lane),
          broadcast(e.b_over_a, lane),
          broadcast(e.edge_x, lane),
          broadcast(e.edge_y, lane)};
}

/// Tiles in rows first, first + step, ... of the ellipse.
__device__ uint32_t tiles_in_rows(const CullEllipse<float>& e, const Camera& camera, int first,
                                  int last, int step) {
  uint32_t sum = 0;
  for (int row = first; row <= last; row += step) {
    sum +=
        static_cast<uint32_t>(span_size(tile_columns(e, row, camera.width, camera.height, kTile)));
  }
  return sum;
}

/// Tiles that meet the lane's ellipse, 0 where it has none. The warp calls it together: rows of
/// large ellipses are shared out among its lanes.
__device__ uint32_t count_tiles(const CullEllipse<float>& e, const Camera& camera, bool drawn) {
  const Span rows = drawn ? tile_rows(e, camera.height, kTile) : Span{0, -1};
  const bool many = span_size(rows) >= kManyRows;
  uint32_t count = many ? 0 : tiles_in_rows(e, camera, rows.first, rows.last, 1);
  for (unsigned todo = __ballot_sync(kAllLanes, many); todo; todo &= todo - 1) {
    const int lane = __ffs(static_cast<int>(todo)) - 1;
    const int first = __shfl_sync(kAllLanes, rows.first, lane);
    const int last = __shfl_sync(kAllLanes, rows.last, lane);
    const uint32_t part =
        tiles_in_rows(broadcast(e, lane), camera, first + lane_index(), last, kWarp);
    const uint32_t sum = __reduce_add_sync(kAllLanes, part);
    if (lane == lane_index()) count = sum;
  }
  return count;
}

/// Sums over the block, whole numbers, so that the order does not matter.
__device__ void add_counts(uint32_t tiles, bool invalid, Counts* counts) {
  __shared__ unsigned long long sums[2];
  if (threadIdx.x < 2) sums[threadIdx.x] = 0;
  __syncthreads();
  const unsigned many = __ballot_sync(kAllLanes, invalid);
  const uint32_t in_warp = __reduce_add_sync(kAllLanes, tiles);
  if (lane_index() == 0) {
    atomicAdd(&sums[0], static_cast<unsigned long long>(in_warp));
    atomicAdd(&sums[1], static_cast<unsigned long long>(__popc(many)));
  }
  __syncthreads();
  if (threadIdx.x != 0) return;
  if (sums[0]) atomicAdd(reinterpret_cast<unsigned long long*>(&counts->instances), sums[0]);
  if (sums[1]) atomicAdd(&counts->invalid, static_cast<unsigned>(sums[1]));
}

/// A position that is not finite has no side of the camera: it counts as invalid, not as behind.
__device__ bool is_invalid(const RawGaussian<float>& raw, const Projection<float>& p) {
  const bool placed =
      is_finite(raw.position[0]) && is_finite(raw.position[1]) && is_finite(raw.position[2]);
  return !(p.sane || (!p.in_front && placed));
}

/// kDegree: of the spherical harmonics; T: how shN is stored.
template <int kDegree, class T>
__global__ void __launch_bounds__(kThreads)
    preprocess_kernel(const Scene scene, const Camera camera, const Outputs out) {
  constexpr int kRowFloats = kDegree > 0 ? kWarp * sh_pitch(kDegree) : 1;
  __shared__ float rows[kWarps][kRowFloats];
  const int64_t i = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const bool valid = i < scene.count;
  OnScreen s{};
  RawGaussian<float> raw{};
  if (valid) {
    raw = load_gaussian(scene, i);
    place_on_screen(scene, camera, raw, s);
  }
  colour_of<kDegree, T>(scene, camera, raw, i, rows[threadIdx.x / kWarp], s);
  if (s.drawn) check_colour<kDegree>(s);
  const CullEllipse<float> ellipse = cull_ellipse(s.p.x, s.p.y, s.conic, s.extent);
  const uint32_t tiles = count_tiles(ellipse, camera, s.drawn);
  add_counts(tiles, valid && is_invalid(raw, s.p), out.counts);
  if (!valid) return;
  const float radius = s.visible ? s.radius : 0.f;
  out.flags[i] = flags_of(s);
  out.radii[i] = radius;
  if (out.radii_out) out.radii_out[i] = static_cast<int32_t>(radius);
  out.keys[i] = s.drawn ? __float_as_uint(s.p.camera[2]) : ~0u;
  out.tiles[i] = tiles;
  if (!s.drawn) return;
  out.records[i] = {s.p.x, s.p.y,         s.conic.a,   s.conic.b,   s.conic.c,   s.log2_opacity,
                    0.f,   s.p.inverse_z, s.colour[0], s.colour[1], s.colour[2], s.extent};
  if (out.surfaces) write_surface(scene, camera, raw, s, out.surfaces[i]);
}

using Kernel = void (*)(Scene, Camera, Outputs);

template <class T>
Kernel kernel_of_degree(int degree) {
  return degree == 1   ? preprocess_kernel<1, T>
         : degree == 2 ? preprocess_kernel<2, T>
                       : preprocess_kernel<3, T>;
}

Kernel kernel_of(const Scene& scene, int degree) {
  if (scene.p.colors) return preprocess_kernel<kNoHarmonics, float>;
  if (degree == 0) return preprocess_kernel<0, float>;
  return scene.half_sh ? kernel_of_degree<__half>(degree) : kernel_of_degree<float>(degree);
}

}  // namespace

void preprocess(Workspace& w, const Scene& scene, int32_t* radii_out, cudaStream_t stream) {
  const InStage stage(w, kPreprocess, stream);
  const int64_t n = scene.count;
  Outputs out;
  out.records = w.records.grow(n);
  out.surfaces = w.has_surfaces ? w.surfaces.grow(n) : nullptr;
  out.flags = w.flags.grow(n);
  out.radii = w.radii.grow(n);
  out.radii_out = radii_out;
  out.keys = w.keys.grow(n);
  out.tiles = w.tiles.grow(n);
  out.counts = w.counts.grow(1);
  check(cudaMemsetAsync(out.counts, 0, sizeof(Counts), stream), "the counts");
  if (n == 0) return;
  const unsigned blocks = static_cast<unsigned>(ceil_div<int64_t>(n, kThreads));
  kernel_of(scene, w.camera.sh_degree)<<<blocks, kThreads, 0, stream>>>(scene, w.camera, out);
  check_launch("preprocess");
}

}  // namespace splat::cuda
