// The CPU kernels compiled for x86-64 with AVX-512 and, for bfloat16, the matrix unit of Intel's server processors
// (AMX).
#include "isa.h"
#ifdef ATTFC_BUILDS_AMX
#include "isa_includes.h"
#include <immintrin.h>

// After the standard headers, so that no function that other files share is compiled for this target.
#ifdef __clang__
#pragma clang attribute push(                                                                                 \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#endif

#define ATTFC_SIMD_BYTES 64
#define ATTFC_SIMD_VECTORS 4
#define ATTFC_HAS_BF16_DOT
#define ATTFC_HAS_MATRIX_UNIT

namespace attfc::cpu::amx {
#include "kernels_isa.h"
}  // namespace attfc::cpu::amx

#ifdef __clang__
#pragma clang attribute pop
#endif
#endif  // ATTFC_BUILDS_AMX
