// The sweep compiled for any processor: 16-byte vectors (SSE2, NEON).
#include "sweep_includes.h"

#define ATTFC_SIMD_BYTES 16
#define ATTFC_SIMD_VECTORS 2

namespace attfc::cpu::generic {
#include "simd.h"
#include "operands.h"
#include "product.h"
#include "tile.h"
#include "row_sums.h"
#include "sweep_isa.h"
}  // namespace attfc::cpu::generic
