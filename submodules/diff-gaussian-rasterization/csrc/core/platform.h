// How a device-independent formula is declared.
//
// `static` + always_inline on the CPU: these headers are compiled once per instruction set into one
// shared object. With external linkage the linker would keep a single copy of each function,
// perhaps the AVX-512 one, and call it on a machine without AVX-512.
#pragma once

#if defined(__CUDACC__)
#define SPLAT_HD __host__ __device__ __forceinline__
#else
#define SPLAT_HD static inline __attribute__((always_inline))
#endif
