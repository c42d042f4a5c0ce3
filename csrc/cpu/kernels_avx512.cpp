// The CPU kernels compiled for x86-64 with AVX-512.
#if defined(__x86_64__)
#define ATTFC_ISA avx512
#define ATTFC_TARGET "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c"
#define ATTFC_SIMD_BYTES 64
#define ATTFC_SIMD_VECTORS 4
#include "kernels_target.h"
#endif  // __x86_64__
