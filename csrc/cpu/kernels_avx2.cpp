// The CPU kernels compiled for x86-64 with AVX2 and FMA.
#if defined(__x86_64__)
#include "isa_includes.h"
#include <immintrin.h>

// After the standard headers, so that no function that other files share is compiled for this target.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define ATTFC_SIMD_BYTES 32
#define ATTFC_SIMD_VECTORS 2

namespace attfc::cpu::avx2 {
#include "kernels_isa.h"
}  // namespace attfc::cpu::avx2

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif  // __x86_64__
