// The CPU kernels compiled for x86-64 with AVX-512 and, for bfloat16, the matrix unit of Intel's server processors
// (AMX).
#include "isa.h"
#ifdef ATTFC_BUILDS_AMX
#define ATTFC_ISA amx
#define ATTFC_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"
#define ATTFC_SIMD_BYTES 64
#define ATTFC_SIMD_VECTORS 4
#define ATTFC_HAS_BF16_DOT
#define ATTFC_HAS_MATRIX_UNIT
#include "kernels_target.h"
#endif  // ATTFC_BUILDS_AMX
