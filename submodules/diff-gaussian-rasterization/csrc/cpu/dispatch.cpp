// Choice of the instruction set, once per process. This file is compiled for the base architecture.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/kernels.h"

namespace splat {
namespace {

struct Isa {
  const char* name;
  bool (*supported)();
  const Kernels* kernels;
};

const Isa kIsas[] = {
// best first; the last always works
#if defined(SPLAT_HAS_avx512)
    {"avx512",
     [] {
       return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
              __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
              __builtin_cpu_supports("avx512vbmi2");
     },
     &avx512::kKernels},
#endif
#if defined(SPLAT_HAS_avx2)
    {"avx2", [] { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); },
     &avx2::kKernels},
#endif
    {"scalar", [] { return true; }, &scalar::kKernels},
};

const Kernels& choose() {
  const char* forced = std::getenv("SPLAT_ISA");
  if (!forced || !*forced) {
    for (const Isa& isa : kIsas) {
      if (isa.supported()) return *isa.kernels;
    }
  }
  std::string known;
  for (const Isa& isa : kIsas) {
    known += std::string(known.empty() ? "" : ", ") + isa.name;
    if (forced && std::strcmp(forced, isa.name) == 0) {
      if (isa.supported()) return *isa.kernels;
      throw std::runtime_error("SPLAT_ISA=" + std::string(forced) +
                               ": this processor does not have these instructions; unset it");
    }
  }
  throw std::runtime_error("SPLAT_ISA=" + std::string(forced ? forced : "") +
                           ": unknown instruction set; use one of " + known + " or unset it");
}

}  // namespace

const Kernels& active_kernels() {
  static const Kernels& kernels = choose();
  return kernels;
}

bool isa_supported(const char* name) {
  for (const Isa& isa : kIsas) {
    if (std::strcmp(name, isa.name) == 0) return isa.supported();
  }
  return false;
}

}  // namespace splat
