// The CPU kernels compiled for x86-64 with AVX-512 and its bfloat16 dot product.
#if defined(__x86_64__)
#define ATTFC_ISA avx512_bf16
#define ATTFC_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,f16c"
#define ATTFC_SIMD_BYTES 64
#define ATTFC_SIMD_VECTORS 4
#define ATTFC_HAS_BF16_DOT
#include "kernels_target.h"
#endif  // __x86_64__
