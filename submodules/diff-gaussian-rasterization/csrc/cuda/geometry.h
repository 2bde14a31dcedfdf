// The end of the backward pass. For .cu files.
#pragma once
#include <cuda_runtime.h>

#include "cuda/kernels.h"

namespace splat::cuda {

/// From w.sums to gradients or, by Adam, to new parameters; statistics. level: of the sums. Writes
/// nothing at all where a number of the guard is not finite.
void geometry_backward(Workspace&, const Scene&, const BackwardOutputs&, Level level, const Guard&,
                       cudaStream_t);

}  // namespace splat::cuda
