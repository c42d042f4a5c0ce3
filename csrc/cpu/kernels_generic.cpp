// The CPU kernels compiled for any processor: 16-byte vectors (SSE2, NEON).
#include "isa_includes.h"

#define ATTFC_SIMD_BYTES 16
#define ATTFC_SIMD_VECTORS 2

namespace attfc::cpu::generic {
#include "kernels_isa.h"
}  // namespace attfc::cpu::generic
