// From the sums of each Gaussian to its parameters: colour and projection backward, then either
// Adam in place or the gradients, and the densification statistics, in one pass over memory. The
// projection is computed again, which costs less than storing it.
//
// A warp has 32 consecutive Gaussians. Their gradients are found lane by lane; what is written goes
// through the warp's shared memory, so that lanes have floats that lie side by side.
#include "cuda/geometry.h"

#include "core/scalar.h"
// (the operations on built-in types come first)
#include "core/adam.h"
#include "core/conic.h"
#include "core/moments.h"
#include "core/projection.h"
#include "core/projection_gradient.h"
#include "core/sh.h"
#include "core/surface.h"
#include "cuda/device.cuh"
#include "cuda/gaussian.cuh"
#include "cuda/pipeline.h"

namespace splat::cuda {
namespace {

constexpr int kWarps = 4;                     // of a block
constexpr int kBands = 15;                    // basis functions beyond the first
constexpr int kPose = 15;                     // numbers of a pose's gradient
constexpr int kMemory = kWarp * sh_pitch(3);  // floats of a warp in shared memory
constexpr int kPoseScratch = 4;               // after those of blending

/// One tensor, and what happens to it.
struct Tensor {
  float* to;             // null: nothing
  float *mean, *square;  // null: `to` receives gradients; else it is updated in place
  const float* added;    // gradients of other views, or null
  AdamFactors factors;
};

struct GeometryViews {
  Scene scene;
  Camera camera;
  Level level;  // of the sums
  bool has_surfaces;
  const float* sums;
  const uint32_t* flags;
  const float* radii;
  const uint8_t* updated;  // [N], 0: Adam leaves it alone; null: all 1
  Tensor means, scales, quats, opacities, sigma, colors, sh0, shN;
  float *means2d, *absolute_means2d;
  Statistics statistics;
  double* pose;  // [15, warps] or null
  int64_t warps;
  Guard guard;
};

/// The 32 Gaussians of a warp, one bit each.
struct Group {
  int64_t first;
  unsigned drawn, updated;
};

/// What is found about one of them; zeros where it is not drawn.
struct Found {
  GaussianGradient<float> gaussian;
  float colour[3], basis[1 + kBands];
  float ndc[2], absolute[2];  // dL/dmeans2D, and its sums of absolute values
  float pose[kPose];          // dL/d(rotation, translation, camera centre), only where wanted
};

/// All lanes of the warp know.
__device__ bool guard_holds(const Guard& guard) {
  bool finite = true;
  for (int k = lane_index(); k < guard.count; k += kWarp) finite &= isfinite(guard.values[k]) != 0;
  return __all_sync(kAllLanes, finite);
}

__device__ void load_sums(const float* from, float* sum) {
  const float4* const rows = reinterpret_cast<const float4*>(from);
  for (int k = 0; k < kSlotFloats / 4; k++) {
    const float4 four = rows[k];
    sum[4 * k] = four.x;
    sum[4 * k + 1] = four.y;
    sum[4 * k + 2] = four.z;
    sum[4 * k + 3] = four.w;
  }
}

/// q[k] = sum over channels of dL/dcolour sh_k, from a row of shN in shared memory.
template <int kDegree>
__device__ void sh_products(const float* row, const float* colour, float* q) {
  for (int j = 0; j < sh_floats(kDegree); j++) q[1 + j / 3] += colour[j % 3] * row[j];
}

/// Colour and its dependence on the viewing direction, position - centre. `rows`: of stage_sh.
__device__ void colour_gradient(const Camera& camera, const float* position, const float* rows,
                                Found& o) {
  float direction[3], inverse_distance;
  view_direction(position, camera, direction, inverse_distance);
  const int degree = camera.sh_degree;
  sh_basis(degree, direction[0], direction[1], direction[2], o.basis);
  if (degree == 0) return;
  float q[1 + kBands] = {}, gradient[3], along[3];
  const int lane = lane_index();
  if (degree == 1) {
    sh_products<1>(rows + lane * sh_pitch(1), o.colour, q);
  } else if (degree == 2) {
    sh_products<2>(rows + lane * sh_pitch(2), o.colour, q);
  } else {
    sh_products<3>(rows + lane * sh_pitch(3), o.colour, q);
  }
  sh_basis_gradient(degree, direction[0], direction[1], direction[2], q, gradient);
  view_direction_gradient(direction, inverse_distance, gradient, along);
  for (int k = 0; k < 3; k++) {
    o.gaussian.position[k] += along[k];
    o.pose[12 + k] = -along[k];
  }
}

/// What the full level adds: normals, and the absolute screen gradients in NDC units.
__device__ void full_gradient(const GeometryViews& v, const RawGaussian<float>& raw,
                              const Projection<float>& p, const float* sum, Found& o) {
  const Camera& camera = v.camera;
  if (v.has_surfaces && !v.scene.p.sigma) {
    surface_normal_gradient(surface_normal(raw, p, camera, v.scene.activated), p, sum + kNormal,
                            o.gaussian.quat);
  }
  absolute_gradient(whitened_conic(p), sum[kAbsoluteX], sum[kAbsoluteY], o.absolute[0],
                    o.absolute[1]);
  o.absolute[0] *= 0.5f * static_cast<float>(camera.width);
  o.absolute[1] *= 0.5f * static_cast<float>(camera.height);
}

/// Of Gaussian i, which is drawn.
__device__ void find_gradient(const GeometryViews& v, int64_t i, uint32_t flags, const float* rows,
                              Found& o) {
  const Camera& camera = v.camera;
  const Form form = form_of(v.scene);
  float sum[kSlotFloats];
  load_sums(v.sums + i * kSlotFloats, sum);
  const RawGaussian<float> raw = load_gaussian(v.scene, i);
  Projection<float> p;
  project(raw, camera, form, p);
  const Moments<float> moments = {sum[kSum], sum[kU], sum[kV], sum[kUU], sum[kUV], sum[kVV]};
  ScreenGradient<float> screen =
      screen_gradient(moments, whitened_conic(p), p.opacity, sum[kInverseDepth]);
  if (v.level == kFull) screen.depth = sum[kDepth];
  o.ndc[0] = screen.x * (0.5f * static_cast<float>(camera.width));
  o.ndc[1] = screen.y * (0.5f * static_cast<float>(camera.height));
  ViewGradient<float> view;
  project_gradient(raw, p, camera, form, screen, o.gaussian, view);
  if (v.pose) pose_gradient(raw.position, p, view, o.pose, o.pose + 9);
  if (v.level == kFull) full_gradient(v, raw, p, sum, o);
  for (int c = 0; c < 3; c++) o.colour[c] = flags & kClampedRed << c ? 0.f : sum[kRed + c];
  if (!v.scene.p.colors) colour_gradient(camera, raw.position, rows, o);
}

/// The rows of shN of the drawn Gaussians, for colour_gradient. The whole warp calls it. (Halves
/// have no backward pass.)
__device__ void stage_rows(const GeometryViews& v, const Group& g, float* rows) {
  const int degree = v.camera.sh_degree;
  if (degree == 1) stage_sh<1, float>(v.scene, g.first, g.drawn, rows);
  if (degree == 2) stage_sh<2, float>(v.scene, g.first, g.drawn, rows);
  if (degree == 3) stage_sh<3, float>(v.scene, g.first, g.drawn, rows);
}

/// A float of a tensor.
struct Element {
  int64_t at;
  float gradient;
  bool used;  // false: leave it alone
  bool idle;  // the gradient of this view is known to be 0
};

/// kBatch floats a lane, element(0) ..., all loads before the stores. An idle float does not
/// change, bit for bit, where both moments are 0: stores, and a load, are saved.
template <int kBatch, class Elements>
__device__ void update(const Tensor& t, const Elements& element) {
  Element e[kBatch];
  for (int j = 0; j < kBatch; j++) {
    e[j] = element(j);
    if (t.added && e[j].used) e[j].gradient += t.added[e[j].at];
  }
  if (!t.mean) {
    for (int j = 0; j < kBatch; j++) {
      if (e[j].used) t.to[e[j].at] = e[j].gradient;
    }
    return;
  }
  float p[kBatch], m[kBatch], s[kBatch];
  for (int j = 0; j < kBatch; j++) {
    m[j] = e[j].used ? t.mean[e[j].at] : 0.f;
    s[j] = e[j].used ? t.square[e[j].at] : 0.f;
    p[j] = e[j].used && (!e[j].idle || t.added) ? t.to[e[j].at] : 0.f;
  }
  for (int j = 0; j < kBatch; j++) {
    if (!e[j].idle || t.added) continue;
    if (m[j] == 0.f && s[j] == 0.f) e[j].used = false;
    if (e[j].used) p[j] = t.to[e[j].at];
  }
  for (int j = 0; j < kBatch; j++) {
    if (!e[j].used) continue;
    adam_step(t.factors, e[j].gradient, p[j], m[j], s[j]);
    t.to[e[j].at] = p[j];
    t.mean[e[j].at] = m[j];
    t.square[e[j].at] = s[j];
  }
}

/// K floats a Gaussian, in rows `stride` floats apart. The whole warp calls it.
template <int K>
__device__ void emit(const Tensor& t, const Group& g, int64_t stride, const float* gradient,
                     float* memory) {
  if (!t.to) return;
  __syncwarp();
  for (int k = 0; k < K; k++) memory[lane_index() * K + k] = gradient[k];
  __syncwarp();
  update<K>(t, [&](int j) -> Element {
    const int f = j * kWarp + lane_index(), i = f / K, k = f % K;
    return {(g.first + i) * stride + k, memory[f], (g.updated >> i & 1u) != 0,
            (g.drawn >> i & 1u) == 0};
  });
}

/// Rows of shN: gradient = basis times colour gradient; 0 beyond the active degree.
__device__ void emit_sh_rest(const GeometryViews& v, const Group& g, const Found& o,
                             float* memory) {
  constexpr int batch = 9;  // 5 of them at degree 3
  const Tensor& t = v.shN;
  const int total = 3 * v.scene.rest, active = sh_floats(v.camera.sh_degree);
  if (!t.to || total == 0) return;
  const int lane = lane_index();
  float* const colours = memory + kWarp * kBands;
  __syncwarp();
  for (int k = 0; k < kBands; k++) memory[lane * kBands + k] = o.basis[1 + k];
  for (int c = 0; c < 3; c++) colours[lane * 3 + c] = o.colour[c];
  __syncwarp();
  for (int first = 0; first < total; first += batch) {
    update<batch>(t, [&](int j) -> Element {
      if (first + j >= total) return {0, 0.f, false, true};
      const unsigned f = static_cast<unsigned>((first + j) * kWarp + lane);
      const int i = static_cast<int>(f / static_cast<unsigned>(total));
      const int k = static_cast<int>(f) - i * total;
      const bool idle = k >= active || (g.drawn >> i & 1u) == 0;
      const float gradient = idle ? 0.f : memory[i * kBands + k / 3] * colours[i * 3 + k % 3];
      return {(g.first + i) * v.scene.shN_stride + k, gradient, (g.updated >> i & 1u) != 0, idle};
    });
  }
}

/// Everything that is updated in place, or whose gradient is written.
__device__ void emit_parameters(const GeometryViews& v, const Group& g, const Found& o,
                                float* memory) {
  const GaussianGradient<float>& d = o.gaussian;
  emit<3>(v.means, g, 3, d.position, memory);
  emit<3>(v.scales, g, 3, d.scale, memory);
  emit<4>(v.quats, g, 4, d.quat, memory);
  emit<1>(v.opacities, g, 1, &d.opacity, memory);
  emit<6>(v.sigma, g, 6, d.sigma, memory);
  emit<3>(v.colors, g, 3, o.colour, memory);
  const float sh0[3] = {o.colour[0] * kSh0, o.colour[1] * kSh0, o.colour[2] * kSh0};
  emit<3>(v.sh0, g, v.scene.sh0_stride, sh0, memory);
  emit_sh_rest(v, g, o, memory);
}

/// Gradients on the screen, and their norms over visible Gaussians.
__device__ void emit_screen(const GeometryViews& v, int64_t i, uint32_t flags, const Found& o) {
  if (v.means2d) {
    v.means2d[3 * i] = o.ndc[0];
    v.means2d[3 * i + 1] = o.ndc[1];
    v.means2d[3 * i + 2] = 0.f;
  }
  if (v.absolute_means2d) {
    v.absolute_means2d[3 * i] = o.absolute[0];
    v.absolute_means2d[3 * i + 1] = o.absolute[1];
    v.absolute_means2d[3 * i + 2] = 0.f;
  }
  if (!(flags & kVisible)) return;
  const Statistics& s = v.statistics;
  if (s.gradient_norm) s.gradient_norm[i] += sqrt(o.ndc[0] * o.ndc[0] + o.ndc[1] * o.ndc[1]);
  if (s.count) s.count[i] += 1.f;
  if (s.max_radius) s.max_radius[i] = max(s.max_radius[i], v.radii[i]);
  if (s.absolute_norm) {
    s.absolute_norm[i] += sqrt(o.absolute[0] * o.absolute[0] + o.absolute[1] * o.absolute[1]);
  }
}

/// The warp's part of the pose's gradient, in double and in a fixed order: a sum over all
/// Gaussians, with cancellation. The whole warp calls it.
__device__ void reduce_pose(const GeometryViews& v, int64_t warp, const float* pose) {
  for (int k = 0; k < kPose; k++) {
    double sum = pose[k];
    for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
    if (lane_index() == 0) v.pose[k * v.warps + warp] = sum;
  }
}

__global__ void __launch_bounds__(kWarps* kWarp) differentiate_gaussians(GeometryViews v) {
  __shared__ float memories[kWarps][kMemory];
  const int64_t warp = int64_t{blockIdx.x} * kWarps + threadIdx.x / kWarp;
  if (warp >= v.warps || !guard_holds(v.guard)) return;  // the whole warp
  float* const memory = memories[threadIdx.x / kWarp];
  const int64_t first = warp * kWarp, i = first + lane_index();
  const bool inside = i < v.scene.count;
  const uint32_t flags = inside ? v.flags[i] : 0;
  const bool drawn = (flags & kDrawn) != 0;
  const bool updated = inside && (!v.updated || v.updated[i] != 0);
  const Group g = {first, __ballot_sync(kAllLanes, drawn), __ballot_sync(kAllLanes, updated)};
  if (g.drawn && !v.scene.p.colors) stage_rows(v, g, memory);
  Found o{};
  if (drawn) find_gradient(v, i, flags, memory, o);
  if (inside) emit_screen(v, i, flags, o);
  if (v.pose) reduce_pose(v, warp, o.pose);
  if (g.updated) emit_parameters(v, g, o, memory);
}

/// A warp a number: its parts in a fixed order.
__global__ void __launch_bounds__(kPose* kWarp)
    sum_pose(const double* parts, int64_t warps, double* pose, Guard guard) {
  if (!guard_holds(guard)) return;
  const int k = static_cast<int>(threadIdx.x) / kWarp;
  double sum = 0;
  for (int64_t i = lane_index(); i < warps; i += kWarp) sum += parts[k * warps + i];
  for (int step = kWarp / 2; step > 0; step /= 2) sum += __shfl_xor_sync(kAllLanes, sum, step);
  if (lane_index() == 0) pose[k] = sum;
}

/// Adam leaves fields without moments alone.
Tensor tensor(const BackwardOutputs& out, const Scene& scene, float* Parameters::* field,
              AdamFactors AdamState::* factors) {
  const float* const added = out.added.*field;
  if (!out.adam) return {out.gradients.*field, nullptr, nullptr, added, {}};
  if (!factors || !(out.adam->mean.*field)) return {};
  return {scene.p.*field, out.adam->mean.*field, out.adam->square.*field, added,
          out.adam->*factors};
}

void set_tensors(const BackwardOutputs& out, const Scene& scene, GeometryViews& v) {
  v.means = tensor(out, scene, &Parameters::means, &AdamState::means);
  v.scales = tensor(out, scene, &Parameters::scales, &AdamState::scales);
  v.quats = tensor(out, scene, &Parameters::quats, &AdamState::quats);
  v.opacities = tensor(out, scene, &Parameters::opacities, &AdamState::opacities);
  v.sigma = tensor(out, scene, &Parameters::sigma, nullptr);
  v.colors = tensor(out, scene, &Parameters::colors, nullptr);
  v.sh0 = tensor(out, scene, &Parameters::sh0, &AdamState::sh0);
  v.shN = tensor(out, scene, &Parameters::shN, &AdamState::shN);
}

}  // namespace

void geometry_backward(Workspace& w, const Scene& scene, const BackwardOutputs& out, Level level,
                       const Guard& guard, cudaStream_t stream) {
  GeometryViews v{};
  v.scene = scene;
  v.camera = w.camera;
  v.level = level;
  v.has_surfaces = w.has_surfaces;
  v.sums = w.sums.data();
  v.flags = w.flags.data();
  v.radii = w.radii.data();
  v.updated = out.adam ? out.adam->visible : nullptr;
  set_tensors(out, scene, v);
  v.means2d = out.means2d;
  v.absolute_means2d = out.absolute_means2d;
  v.statistics = out.statistics;
  v.warps = ceil_div<int64_t>(scene.count, kWarp);
  v.guard = guard;
  if (out.pose) v.pose = scratch<double>(w, kPoseScratch, v.warps * kPose);
  if (v.warps > 0) {
    const auto blocks = static_cast<unsigned>(ceil_div<int64_t>(v.warps, kWarps));
    differentiate_gaussians<<<blocks, kWarps * kWarp, 0, stream>>>(v);
    check_launch("gradients of the Gaussians");
  }
  if (!out.pose) return;
  sum_pose<<<1, kPose * kWarp, 0, stream>>>(v.pose, v.warps, out.pose, guard);
  check_launch("gradient of the pose");
}

}  // namespace splat::cuda
