// The CPU kernels compiled for x86-64 with AVX2 and FMA.
#if defined(__x86_64__)
#define ATTFC_ISA avx2
#define ATTFC_TARGET "avx2,fma,f16c"
#define ATTFC_SIMD_BYTES 32
#define ATTFC_SIMD_VECTORS 2
#include "kernels_target.h"
#endif  // __x86_64__
